"""The run folder: what a run resolved to is written down there, and a run that means something else is refused."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtcore.config import RunFile, is_task_file
from mtcore.errors import ResumeMismatch, RunError
from mtcore.evaluation.comparison import Judgement
from mtcore.evaluation.page import page
from mtcore.files import write_json, write_text
from mtcore.registry import Registry
from mtcore.verdicts import Prepared

FREE_TO_CHANGE = ("launcher", "observers", "out", "data", "keep_reference_weights", "distribution")
"""Keys that change no result: a run may be resumed with others. Rows are known by their content, wherever they lie."""
BUNDLE, CANDIDATE = "bundle", "candidate"
"""Below a model's place: what may go live, and what an update left that has not been found fit for it."""
SAMPLES = "verdict.json"
"""Beside report.json: every task's score on every bootstrap sample."""
PAGE = "report.html"


def model_place(folder: Path, variant: str, seed: int, group: str) -> Path:
    """Where everything of one group's model lies."""
    return folder / variant / f"seed-{seed}" / group.replace("/", "--")


def is_begun(folder: Path) -> bool:
    return (folder / "resolved.json").is_file()


def refuse_changes(folder: Path, run: RunFile) -> None:
    """Compare the run with what is written down in its folder.

    Raises ResumeMismatch with the difference where a variant that was begun now means something else. New variants may join.
    """
    before = _resolved(folder)
    for name, config in run.variants.items():
        now, then = config.model_dump(mode="json"), before.get(name)
        changed = [k for k in now if then is not None and k not in FREE_TO_CHANGE and _meaning(k, now[k]) != _meaning(k, then.get(k))]
        if then is not None and changed:
            what = "; ".join(f"{k}: was {json.dumps(then.get(k))}, now {json.dumps(now[k])}" for k in changed)
            raise ResumeMismatch(
                f"{folder} was begun with another configuration{f' of variant {name!r}' if name else ''}. {what}. "
                "Give the run file another name, undo the change, or start over with --restart."
            )


def write_resolved(folder: Path, run: RunFile, variants: Sequence[Prepared], registry: Registry) -> None:
    """Write down what the run resolved to, defaults included: once everything that can be wrong before training is right."""
    now = {v.name: v.config.model_dump(mode="json") | {"components": v.components, "base": v.base.digest} for v in variants}
    for v in variants:
        if v.update is not None:
            now[v.name]["update"] = {"bundle": str(v.update.live.folder), "digest": v.update.live.digest}
    data = {
        name: {"rows": task.digest, "licence": task.data.spec.licence, "plugin": task.data.plugin}
        for v in variants
        for name, task in v.tasks.items()
    }
    plugins = [asdict(plugin) for plugin in registry.plugins]
    before = _read(folder)
    table = {
        "run": run.name,
        "mtcore": version("mtcore"),
        "variants": {**before.get("variants", {}), **now},
        "tasks": {**before.get("tasks", {}), **data},
        "plugins": plugins,
    }
    write_json(folder / "resolved.json", table)


def write_quarantine(folder: Path, variants: Sequence[Prepared]) -> None:
    """Every row that was set aside, with file, line and reason, as lines of JSON."""
    path = folder / "quarantine.jsonl"
    rows = dict.fromkeys(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [])
    rows |= {json.dumps(asdict(row), ensure_ascii=False): None for v in variants for task in v.tasks.values() for row in task.quarantined}
    write_text(path, "".join(f"{row}\n" for row in rows))


def drop(folder: Path, variants: Sequence[str]) -> None:
    """Delete the work and the reports of these variants, and of no other."""
    for name in variants:
        for path in [*(folder / name).glob("seed-*"), *(folder / name).glob("report.*"), *(folder / name).glob(SAMPLES)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def judgement(folder: Path, variant: str | None = None) -> Judgement:
    """What was found of one variant; `folder` is the run's or the variant's own. Raises RunError where there is no or more than one report."""
    if is_begun(folder):
        judged = {report["variant"]: (folder / report["variant"], report) for report in reports(folder)}
    else:
        path = folder / "report.json"
        own = [json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []
        judged = {report["variant"]: (folder, report) for report in own}
    if not judged:
        below = sorted(str(p.parent) for p in folder.glob("**/report.json"))
        raise RunError(f"{folder} holds no report. Reports below it: {', '.join(below) or 'none'}.")
    chosen = variant if variant is not None or len(judged) > 1 else next(iter(judged))
    if chosen not in judged:
        asked = "" if chosen is None else f" and none of variant {chosen!r}"
        raise RunError(
            f"{folder} holds reports of {', '.join(v or 'one variant without a name' for v in judged)}{asked}; choose with --variant"
        )
    place, report = judged[chosen]
    samples = place / SAMPLES
    return Judgement(str(place), report, json.loads(samples.read_text(encoding="utf-8")) if samples.is_file() else {})


@dataclass(frozen=True)
class Published:
    """A group's model in a finished run."""

    group: str
    bundle: Path
    qualified: Mapping[str, bool]
    """Of each of its tasks, whether it reached its bar."""


def published(folder: Path, variant: str | None = None, seed: int | None = None) -> list[Published]:
    """The bundles that a run left, one a group. Raises RunError where the run has none, or several variants or seeds and none is chosen."""
    report = judgement(folder, variant).report
    seeds = report["seeds"]
    if (seed is None and len(seeds) > 1) or (seed is not None and seed not in seeds):
        raise RunError(f"{folder} holds models of seeds {', '.join(map(str, seeds))}; choose one with --seed")
    found = []
    for group in report["groups"]:
        name = report["variant"] if is_begun(folder) else ""
        place = model_place(folder, name, seed or seeds[0], group["name"]) / BUNDLE
        if place.is_dir():
            found.append(Published(group["name"], place, {task["name"]: bool(task["qualified"]) for task in group["tasks"]}))
    if not found:
        raise RunError(f"{folder} left no bundle: its tasks have models of their own, which `keep_reference_weights` keeps")
    return found


def reports(folder: Path) -> list[dict[str, Any]]:
    """The reports of all variants that have one, in the order in which they were begun."""
    paths = [folder / name / "report.json" for name in _resolved(folder)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def _meaning(key: str, value: Any) -> Any:
    """What is compared of a key's value: a task file, like rows, is known by its content, wherever it lies."""
    return [Path(task).name if is_task_file(task) else task for task in value] if key == "tasks" and value else value


def write_page(folder: Path) -> Path:
    """Render the page of a run anew from the reports of its variants and what it resolved to. Raises RunError where it cannot be."""
    judged = reports(folder)
    if not judged:
        runs = sorted({str(p.parent) for p in [*folder.glob("**/resolved.json"), folder.parent / "resolved.json"] if p.is_file()})
        raise RunError(f"{folder} is no run's folder with a report in it. Runs near it: {', '.join(runs) or 'none'}.")
    resolved = _read(folder)
    write_text(folder / PAGE, page(resolved["run"], judged, resolved))
    return folder / PAGE


def _resolved(folder: Path) -> dict[str, dict[str, Any]]:
    return dict(_read(folder).get("variants", {}))


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "resolved.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
