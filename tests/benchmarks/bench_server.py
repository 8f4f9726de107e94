"""B7: the online server under open-loop load: against a naive server and LitServe, and one multi-task server against N single-task ones."""

import argparse
import importlib.metadata
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from servers.bundles import chat_specs, hotel_specs, make_bundle, parameters, texts
from servers.load import Call, Client, Measured, message
from servers.processes import Server, cpu_seconds, free_port, memory, pin, python, start
from servers.tables import tables
from servers.workloads import MIXES, Documents, Plan, body, new_documents, separate_servers

RESULT = Path("runs/benchmarks/server.json")
PEERS_BODY, MANY_BODY = (256, 4), (256, 6)
"""Wide × layers: so small among peers that the slowest of them answers enough requests for a P99."""
SERVER_CORE, GENERATOR_CORE = 0, 1
LEAD = 1.0
LEAST_BOUND, TIMES_UNLOADED = 0.25, 5.0
"""The bound on P99 for a comparison: so many times what the other side takes when nothing else is asked, so that it does not decide against
it by itself (where requests wait for one that takes always the same, P99 is five times that at about 60 % load), and at least a quarter of a
second."""
SHARES = (0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.1)
FEWER_SHARES = (0.45, 0.6, 0.75, 0.875, 1.0)
"""Rates that are tried, as shares of what the same server answers in a closed loop: by bisection."""
LITSERVE = ((4, 0.005), (8, 0.005), (16, 0.01))
"""Largest batch and seconds that LitServe waits for one: the best is taken."""
COUNTS = (1, 5, 11, 17)
AGREE = 1e-4
"""By how much probabilities of two servers may differ."""
OURS = "mtcore serve"
PACKAGES = ("torch", "transformers", "fastapi", "uvicorn", "litserve")

Probabilities = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    seconds: float
    """Of a point, after a lead that is not counted."""
    closed: float
    """Of a closed loop."""
    steps: int
    """Points of a bisection."""
    counts: Sequence[int]
    """Tasks, one server against one each."""


# --- one server ------------------------------------------------------------------------------------------------------------------------


async def unloaded(client: Client, plan: Plan, seconds: float, servers: Sequence[Server]) -> tuple[float, float | None]:
    """Where one request is asked at a time: the median latency, and what the server takes beside its model, as a share of the model's time."""
    calls = [arrival.calls for arrival in plan(200, 10)]
    model = model_seconds(servers)
    latencies = await client.closed_loop(calls, 1, seconds)
    beside = None if model is None else sum(latencies) / ((model_seconds(servers) or math.inf) - model) - 1
    return statistics.median(latencies), beside


async def capacity(client: Client, plan: Plan, seconds: float, servers: Sequence[Server], concurrency: int = 16) -> dict[str, float]:
    """Answers a second in a closed loop, and where our server says it, the share of the time in which its model computed."""
    arrivals = plan(1000, 10)
    await client.closed_loop([a.calls for a in arrivals[: 2 * concurrency]], concurrency, 1.0)
    model, cpu, begun = model_seconds(servers), cpu_seconds(servers), time.perf_counter()
    latencies = await client.closed_loop([a.calls for a in arrivals[2 * concurrency :]], concurrency, seconds)
    wall = time.perf_counter() - begun
    busy = {} if model is None else {"model_share": ((model_seconds(servers) or 0.0) - model) / wall}
    rate = len(latencies) * arrivals[0].answers / wall
    return {"answers_per_second": rate, "p50": statistics.median(latencies), "cpu": (cpu_seconds(servers) - cpu) / wall, **busy}


def model_seconds(servers: Sequence[Server]) -> float | None:
    """Seconds that the models of our servers have computed; None where a peer does not count them."""
    if any(server.ready != "/ready" for server in servers):
        return None
    total = 0.0
    for server in servers:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
            total += sum(float(v) for v in re.findall(r"^mtcore_model_seconds_total\S* (\S+)$", answer.read().decode(), re.MULTILINE))
    return total


async def point(client: Client, plan: Plan, rate: float, bound: float, seconds: float, servers: Sequence[Server]) -> dict[str, Any]:
    """One rate: latencies, refusals, and what the servers and the generator took."""
    arrivals = plan(rate, LEAD + seconds)
    cpu, begun = cpu_seconds(servers), time.perf_counter()
    measured: Measured = await client.open_loop(arrivals, LEAD, give_up=4 * bound)
    wall = time.perf_counter() - begun
    taken = cpu_seconds(servers) - cpu
    return {
        "offered": rate,
        "answered": measured.answers / seconds,
        "requests": len(measured.latencies),
        "p50": finite(measured.percentile(0.5)),
        "p99": finite(measured.percentile(0.99)),
        "refused": sum(count for status, count in measured.statuses.items() if status != 200),
        "is_cut_short": measured.is_given_up,
        "server_cores": taken / wall,
        "core_seconds_per_1000": 1000 * taken / (rate * (LEAD + seconds)),
        "generator_cores": measured.generator_cpu / wall,
        "latest_send": measured.latest_send,
    }


def finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


@dataclass
class Curve:
    """One server under one load: the points that were measured, by share of what it answers in a closed loop."""

    client: Client
    plan: Plan
    most: float
    effort: Effort
    servers: Sequence[Server]
    shares: Sequence[float] = SHARES
    points: dict[float, dict[str, Any]] = field(default_factory=dict)

    async def best(self, bound: float) -> dict[str, Any] | None:
        """The highest of the rates whose P99 stays within the bound, by bisection; None where that of the lowest does not."""
        low, high, steps = -1, len(self.shares), 0
        while high - low > 1 and steps < self.effort.steps:
            middle, steps = (low + high) // 2, steps + 1
            share = self.shares[middle]
            if share not in self.points:
                self.points[share] = await point(self.client, self.plan, share * self.most, bound, self.effort.seconds, self.servers)
                print("  ", describe(self.points[share]), flush=True)
            p99 = self.points[share]["p99"]
            low, high = (middle, high) if p99 is not None and p99 <= bound else (low, middle)
        return self.points[self.shares[low]] if low >= 0 else None

    def row(self) -> list[dict[str, Any]]:
        return [self.points[share] for share in sorted(self.points)]


def describe(row: dict[str, Any]) -> str:
    p99 = f"{row['p99'] * 1000:.0f} ms" if row["p99"] is not None else "never"
    return (
        f"{row['offered']:7.1f} answers/s: P99 {p99} ({row['requests']} requests, {row['refused']} refused), "
        f"{row['core_seconds_per_1000']:.2f} core-seconds a 1,000; generator {row['generator_cores']:.0%}"
    )


async def answers(client: Client, port: int, path: str, asked: Sequence[tuple[str, Sequence[str]]]) -> list[Probabilities]:
    """Probabilities by task, of some requests."""
    found = []
    for text, tasks in asked:
        status, content = await client.ask(Call(port, message(path, body(text, tasks))))
        if status != 200:
            raise RuntimeError(f"status {status}: {content[:500]!r}")
        data = json.loads(content)
        if "results" in data:
            data = {name: answer["probabilities"] for name, answer in data["results"][0]["answers"].items()}
        found.append(data)
    return found


def differ(one: Sequence[Probabilities], other: Sequence[Probabilities]) -> float:
    """The largest difference between two servers' probabilities."""
    return max(abs(a[task][label] - b[task][label]) for a, b in zip(one, other, strict=True) for task in b for label in b[task])


def ours(bundle: Path, folder: Path, name: str = OURS) -> Server:
    port = free_port()
    command = [str(Path(sys.executable).with_name("mtcore")), "serve", str(bundle), "--port", str(port), "--threads", "1"]
    return start(name, command, port, "/ready", folder)


# --- B7a -------------------------------------------------------------------------------------------------------------------------------


async def against_peers(effort: Effort, folder: Path) -> dict[str, Any]:
    """The three servers in turn, on the same bundle and one core, under both mixes."""
    client = Client()
    specs = chat_specs()
    bundle = make_bundle(folder / "chat", specs, *PEERS_BODY)
    documents, tasks = Documents(texts(3000)), list(specs)
    samples = [(documents.take(), tasks) for _ in range(8)]
    expected: list[Probabilities] = []
    bounds: dict[str, dict[str, float]] = {mix: {} for mix in MIXES}
    alone = without_server(bundle, documents.texts[-96:], folder)

    async def measure(server: Server, path: str) -> dict[str, Any]:
        """A peer sets a bound of its own; ours, which comes last, is measured at all of them."""
        got = await answers(client, server.port, path, samples)
        expected[:] = expected or got
        row: dict[str, Any] = {"differ": differ(expected, got), "mixes": {}}
        for mix, workload in MIXES.items():
            plan = workload(server.port, path, tasks, documents)
            first, beside = await unloaded(client, plan, effort.closed, [server])
            most = await capacity(client, plan, effort.closed, [server])
            if server.name != OURS:
                bounds[mix][server.name] = max(LEAST_BOUND, TIMES_UNLOADED * first)
            print(f"{server.name}, {mix}: {1000 * first:.1f} ms alone, {most['answers_per_second']:.0f} answers/s closed", flush=True)
            curve = Curve(client, plan, most["answers_per_second"], effort, [server])
            asked = bounds[mix] if server.name == OURS else {server.name: bounds[mix][server.name]}
            best = {peer: await curve.best(bound) for peer, bound in asked.items()}
            row["mixes"][mix] = {"unloaded": first, "beside_model": beside, "closed": most, "best": best, "points": curve.row()}
        row["memory"] = memory([server])
        return row

    port = free_port()
    naive = start("naive", python("naive.py", str(bundle), str(port)), port, "/health", folder)
    systems = {"naive": await served(naive, lambda: measure(naive, "/predict"))}
    tried = [(await tune(client, setting, bundle, tasks, documents, effort, folder), setting) for setting in LITSERVE]
    lit = litserve(max(tried)[1], bundle, folder)
    systems["LitServe"] = await served(lit, lambda: measure(lit, "/predict"))
    systems["LitServe"]["tried"] = [{"max_batch_size": s, "batch_timeout": t, "answers_per_second": rate} for rate, (s, t) in tried]
    own = ours(bundle, folder)
    systems[OURS] = await served(own, lambda: measure(own, "/v1/predict"))
    mine = systems[OURS]["mixes"]
    client.close()
    return {
        "systems": systems,
        "alone": alone,
        "tasks": len(tasks),
        "body": {"width": PEERS_BODY[0], "layers": PEERS_BODY[1], "parameters": parameters(bundle)},
        "differ": max(system["differ"] for system in systems.values()),
        "bounds": bounds,
        "ratios": {
            mix: {peer: ratio(mine[mix]["best"][peer], systems[peer]["mixes"][mix]["best"][peer]) for peer in bounds[mix]} for mix in MIXES
        },
        "overhead_alone": mine["new documents"]["beside_model"],
        "overhead_saturated": 1 / mine["new documents"]["closed"]["model_share"] - 1,
    }


async def served(server: Server, measure: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Measure a server that was started, once it is ready, on its core; and end it."""
    try:
        server.wait()
        pin([server], [SERVER_CORE])
        return await measure()
    finally:
        server.stop()


def litserve(setting: tuple[int, float], bundle: Path, folder: Path) -> Server:
    port = free_port()
    arguments = [str(bundle), str(port), str(setting[0]), str(setting[1])]
    return start("LitServe", python("lit.py", *arguments), port, "/health", folder)


async def tune(
    client: Client, setting: tuple[int, float], bundle: Path, tasks: Sequence[str], documents: Documents, effort: Effort, folder: Path
) -> float:
    """Answers a second that LitServe gives with this setting in a closed loop: the geometric mean over both mixes."""
    server = litserve(setting, bundle, folder)

    async def measure() -> dict[str, Any]:
        plans = [workload(server.port, "/predict", tasks, documents) for workload in MIXES.values()]
        return {"rates": [(await capacity(client, plan, effort.closed, [server]))["answers_per_second"] for plan in plans]}

    rates = (await served(server, measure))["rates"]
    print(f"LitServe {setting}: {', '.join(f'{rate:.0f}' for rate in rates)} answers/s closed", flush=True)
    return statistics.geometric_mean(rates)


def ratio(one: dict[str, Any] | None, other: dict[str, Any] | None) -> float | None:
    """Of the rates of two points; None where one side kept to the bound at no rate."""
    return one["offered"] / other["offered"] if one and other else None


def without_server(bundle: Path, asked: Sequence[str], folder: Path) -> dict[str, Any]:
    """What encoding and the model take by themselves, on the core that servers get."""
    (folder / "asked.json").write_text(json.dumps(asked))
    command = ["taskset", "-c", str(SERVER_CORE), *python("alone.py", str(bundle), str(folder / "asked.json"))]
    rows: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return rows


# --- B7b -------------------------------------------------------------------------------------------------------------------------------


async def one_against_many(effort: Effort, folder: Path) -> dict[str, Any]:
    """N servers of one task each against one of all tasks: the same software, the same body, the same core."""
    client = Client()
    specs = hotel_specs()
    names = list(specs)
    documents = Documents(texts(3000))
    samples = [documents.take() for _ in range(4)]
    everything = make_bundle(folder / "hotel", specs, *MANY_BODY)
    weights = (everything / "model.safetensors").stat().st_size / 2**20
    rows: list[dict[str, Any]] = []

    async def measure(name: str, servers: Sequence[Server], tasks: list[str], plan: Plan, bound: float | None) -> dict[str, Any]:
        alone, _ = await unloaded(client, plan, effort.closed, servers)
        most = await capacity(client, plan, effort.closed, servers, concurrency=8)
        bound = bound or max(LEAST_BOUND, TIMES_UNLOADED * alone)
        print(f"{name}, {len(tasks)} tasks: {alone * 1000:.1f} ms alone, {most['answers_per_second']:.0f} answers/s closed", flush=True)
        curve = Curve(client, plan, most["answers_per_second"], effort, servers, FEWER_SHARES)
        best = await curve.best(bound)
        taken = {"memory": memory(servers), "weights": weights * len(servers)}
        return {"unloaded": alone, "closed": most, "bound": bound, "best": best, "points": curve.row(), **taken}

    many: list[Server] = []
    try:
        for count in effort.counts:
            tasks = names[:count]
            for name in tasks[len(many) :]:
                only = make_bundle(folder / f"only-{name.rpartition('/')[2]}", {name: specs[name]}, *MANY_BODY)
                many.append(ours(only, folder, name))
                if len(many) > 1:  # two start at a time
                    many[-2].wait()
            for server in many:
                server.wait()
            pin(many, [SERVER_CORE])
            plan = separate_servers([server.port for server in many], "/v1/predict", tasks, documents)
            rows.append({"tasks": count, "separate": await measure("separate servers", many, tasks, plan, None)})
        apart = [
            {
                name: (await answers(client, server.port, "/v1/predict", [(text, [name])]))[0][name]
                for server, name in zip(many, names, strict=False)
            }
            for text in samples
        ]
    finally:
        for server in many:
            server.popen.terminate()
        for server in many:
            server.stop()

    one = ours(everything, folder)
    try:
        one.wait()
        pin([one], [SERVER_CORE])
        together = await answers(client, one.port, "/v1/predict", [(text, names) for text in samples])
        for row in rows:
            tasks = names[: row["tasks"]]
            plan = new_documents(one.port, "/v1/predict", tasks, documents)
            row["together"] = await measure("one server", [one], tasks, plan, row["separate"]["bound"])
            row["throughput_ratio"] = ratio(row["together"]["best"], row["separate"]["best"])
            row["memory_ratio"] = row["separate"]["memory"]["pss"] / row["together"]["memory"]["pss"]
    finally:
        one.stop()

    contrast = ours(make_bundle(folder / "task-first", specs, *MANY_BODY, layout="task-first"), folder, "task-first")
    try:
        contrast.wait()
        pin([contrast], [SERVER_CORE])
        plan = new_documents(contrast.port, "/v1/predict", names, documents)
        alone, _ = await unloaded(client, plan, effort.closed, [contrast])
        most = await capacity(client, plan, effort.closed, [contrast], concurrency=8)
        rows[-1]["task_first"] = {"unloaded": alone, "closed": most}
        print(f"one server, task-first: {alone * 1000:.1f} ms alone, {most['answers_per_second']:.0f} answers/s closed", flush=True)
    finally:
        contrast.stop()
    client.close()
    return {
        "rows": rows,
        "body": {"width": MANY_BODY[0], "layers": MANY_BODY[1], "parameters": parameters(everything)},
        "differ": differ(together, apart),
    }


# --- what is said ----------------------------------------------------------------------------------------------------------------------


PARTS = {"b7a": ("against_peers", against_peers), "b7b": ("one_against_many", one_against_many)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(PARTS), help="one of the two parts; what is known of the other is kept")
    parser.add_argument("--quick", action="store_true", help="short and rough: to see that it works")
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS), help="of tasks, for b7b")
    chosen = parser.parse_args()
    effort = Effort(2.0, 1.5, 2, chosen.counts) if chosen.quick else Effort(10.0, 3.0, 4, chosen.counts)
    os.environ["OMP_NUM_THREADS"] = "1"
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {GENERATOR_CORE})
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for key in [chosen.only] if chosen.only else PARTS:
        name, measure = PARTS[key]
        load, begun = os.getloadavg()[0], time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="bench-server-") as folder:
            result[name] = uvloop.run(measure(effort, Path(folder)))
        result[name]["about"] = {
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
            "load": [load, os.getloadavg()[0]],
            "seconds": time.perf_counter() - begun,
            "is_quick": chosen.quick,
        }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1))
    print(tables(result))
    if (worst := max(part["differ"] for part in result.values())) > AGREE:
        raise SystemExit(f"servers answer differently: by {worst:.1e}")


if __name__ == "__main__":
    main()
