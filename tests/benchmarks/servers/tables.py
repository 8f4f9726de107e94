"""B7's results as Markdown tables."""

from typing import Any


def tables(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines: list[str] = []
    if peers := result.get("against_peers"):
        lines += [
            "| | mix | alone | closed loop, answers/s | most answers/s within P99 | core-seconds a 1,000 | memory |",
            "|---" * 7 + "|",
        ]
        for name, system in peers["systems"].items():
            for mix, row in system["mixes"].items():
                best = "; ".join(f"{rate(b)} in {1000 * peers['bounds'][mix][peer]:.0f} ms" for peer, b in row["best"].items())
                cost = "; ".join(f"{b['core_seconds_per_1000']:.2f}" if b else "–" for b in row["best"].values())
                closed, mib = row["closed"]["answers_per_second"], system["memory"]["pss"]
                lines.append(f"| {name} | {mix} | {1000 * row['unloaded']:.1f} ms | {closed:.0f} | {best} | {cost} | {mib:.0f} MiB |")
        for mix, ratios in peers["ratios"].items():
            lines.append(f"\n{mix}: " + ", ".join(f"{times(value)} × {peer}" for peer, value in ratios.items()))
        lines.append(
            f"beside the model: {peers['overhead_alone']:.1%} of its time alone, {peers['overhead_saturated']:.1%} at saturation; "
            f"prepare() {1000 * peers['alone']['1']['prepare']:.2f} ms, predict() {1000 * peers['alone']['1']['predict']:.1f} ms by themselves; "
            f"answers differ by {peers['differ']:.1e}\n"
        )
    if many := result.get("one_against_many"):
        rows = many["rows"]
        lines += [
            "| tasks | | PSS (USS) | of it weights | alone | bound | answers/s | core-seconds a 1,000 | GiB-seconds a 1,000 |",
            "|---" * 9 + "|",
        ]
        for row in rows:
            for side in ("separate", "together"):
                r, best = row[side], row[side]["best"]
                pss, uss = r["memory"]["pss"], r["memory"]["uss"]
                cost = f"{best['core_seconds_per_1000']:.2f} | {pss / 1024 * 1000 / best['offered']:.1f}" if best else "– | –"
                lines.append(
                    f"| {row['tasks']} | {side} | {pss:,.0f} MiB ({uss:,.0f}) | {r['weights']:.0f} MiB | {1000 * r['unloaded']:.0f} ms "
                    f"| {1000 * r['bound']:.0f} ms | {rate(best)} | {cost} |"
                )
        for row in rows:
            lines.append(f"\n{row['tasks']} tasks: {times(row['throughput_ratio'])} × the answers, {row['memory_ratio']:.1f} × less memory")
        lines.append(f"\nanswers differ by {many['differ']:.1e}")
        if first := rows[-1].get("task_first"):
            lines.append(
                f"\ntask-first: {1000 * first['unloaded']:.0f} ms alone, {first['closed']['answers_per_second']:.0f} answers/s closed"
            )
    return "\n".join(lines)


def rate(best: dict[str, Any] | None) -> str:
    return f"{best['offered']:.0f}" if best else "none"


def times(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else "–"
