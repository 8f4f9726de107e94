"""The story of a run: prepare · measure · fit · judge · publish."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from mtcore import events
from mtcore.config import RunConfig, RunFile
from mtcore.data.stages import StageStream
from mtcore.errors import ResumeMismatch
from mtcore.evaluation.evaluate import evaluate
from mtcore.evaluation.report import VariantOutcome, comparison_markdown, markdown
from mtcore.files import locked, write_json, write_text
from mtcore.fitting import Fitting
from mtcore.modeling.load import find_base
from mtcore.preparation import Emit, Preparer
from mtcore.references import Reference, ReferenceStore, with_references
from mtcore.registry import Registry
from mtcore.types import Group, Ledger, TaskProfile
from mtcore.verdicts import GroupResult, Measured, Prepared, judge_variant

FREE_TO_CHANGE = ("observers", "out", "keep_reference_weights")
"""Keys that change no result: a run may be resumed with others."""


def train(run: RunFile, registry: Registry, fitting: Fitting, folder: Path) -> list[VariantOutcome]:
    """Do everything that the run file asks for and is not yet done; the same call resumes."""
    with locked(folder, wanted=fitting.is_main):
        resumed = refuse_changes(folder, run)
        fitting.emit(events.RunStarted(run.name, list(run.variants), next(iter(run.variants.values())).seeds, resumed))
        preparer = Preparer(registry, fitting.emit)
        variants = [prepare(name, config, preparer, fitting.emit) for name, config in run.variants.items()]
        if fitting.is_main:
            write_resolved(folder, run, registry)
            write_quarantine(folder, variants)
        outcomes = []
        for prepared in variants:
            measured, reused = measure(prepared, registry, fitting)
            results = fit(prepared, measured, registry, fitting, folder)
            outcome = judge_variant(run.name, prepared, measured, results, reused)
            outcomes.append(outcome)
            publish(outcome, folder, fitting)
        compare(run.name, outcomes, folder, fitting)
        return outcomes


def prepare(name: str, config: RunConfig, preparer: Preparer, emit: Emit) -> Prepared:
    """Resolve a variant and find its base; everything that can be wrong before training is found here."""
    resolved = preparer.resolve(name, config)
    base = find_base(config.model, Path(config.out) / "bases")
    warnings = list(resolved.warnings)
    for task, preview in resolved.method.preview({n: t.data for n, t in resolved.tasks.items()}, base).items():
        for text in preview.warnings:
            warnings.append(f"{task}: {text}")
            emit(events.Warned(task, text))
    emit(events.Grouped(name, resolved.groups))
    return Prepared(**{**vars(resolved), "warnings": warnings}, base=base)


def measure(prepared: Prepared, registry: Registry, fitting: Fitting) -> tuple[Measured, int]:
    """The reference of every task under every seed, and how many of them were already there."""
    config = prepared.config
    store = ReferenceStore(Path(config.out) / "references", registry, fitting)
    before = {p.parent.name for p in store.folder.glob("*/reference.json")}
    measured = {
        (p.name, seed): store.get(p.name, prepared.tasks[p.name], p, config, prepared.reference, prepared.base, seed)
        for seed in config.seeds
        for p in prepared.profiles
    }
    return measured, sum(r.key in before for r in measured.values())


def fit(prepared: Prepared, measured: Measured, registry: Registry, fitting: Fitting, folder: Path) -> dict[tuple[str, int], GroupResult]:
    """One model for every group and seed, by the variant's method and scheduler."""
    results = {}
    for seed in prepared.config.seeds:
        references = {p.name: measured[p.name, seed] for p in prepared.profiles}
        for group in prepared.groups:
            if prepared.scheduler.alone:
                answers = {name: references[name].answers for name in group.tasks}
                results[group.name, seed] = GroupResult(fingerprint="", fitted=None, answers=answers, failures={})
            else:
                results[group.name, seed] = _fit_group(prepared, group, seed, references, registry, fitting, folder)
    return results


def publish(outcome: VariantOutcome, folder: Path, fitting: Fitting) -> None:
    """Leave the variant's report beside its bundles."""
    fitting.emit(events.VariantJudged(outcome.variant, outcome.average, sum(len(g.qualified) for g in outcome.groups), len(outcome.tasks)))
    if fitting.is_main:
        write_json(folder / outcome.variant / "report.json", outcome.as_json())
        write_text(folder / outcome.variant / "report.md", markdown(outcome))


def compare(run: str, outcomes: Sequence[VariantOutcome], folder: Path, fitting: Fitting) -> None:
    """Leave the comparison over variants, where there are several."""
    if len(outcomes) > 1 and fitting.is_main:
        variants = [o.as_json() for o in outcomes]
        kept = ("variant", "model", "method", "average", "qualified", "overhead", "deployment")
        lines = [{k: v[k] for k in kept} | {"scores": {t["name"]: t["score"] for g in v["groups"] for t in g["tasks"]}} for v in variants]
        write_json(folder / "comparison.json", {"run": run, "variants": lines})
        write_text(folder / "comparison.md", comparison_markdown(run, outcomes))
    fitting.emit(events.RunEnded(run, str(folder / ("comparison.md" if len(outcomes) > 1 else "report.md"))))


def refuse_changes(folder: Path, run: RunFile) -> bool:
    """Compare the run with what is written down in its folder; return whether there is anything, and this is a resume.

    Raises ResumeMismatch with the difference where a variant that was begun now means something else. New variants may join.
    """
    before = _resolved(folder)
    for name, config in run.variants.items():
        now, then = config.model_dump(mode="json"), before.get(name)
        changed = [k for k in now if then is not None and k not in FREE_TO_CHANGE and now[k] != then.get(k)]
        if then is not None and changed:
            what = "; ".join(f"{k}: was {json.dumps(then.get(k))}, now {json.dumps(now[k])}" for k in changed)
            raise ResumeMismatch(
                f"{folder} was begun with another configuration{f' of variant {name!r}' if name else ''}. {what}. "
                "Give the run file another name, undo the change, or start over with --restart."
            )
    return bool(before)


def write_resolved(folder: Path, run: RunFile, registry: Registry) -> None:
    """Write down what the run resolved to: once everything that can be wrong before training is right."""
    variants = {**_resolved(folder), **{name: config.model_dump(mode="json") for name, config in run.variants.items()}}
    plugins = [asdict(plugin) for plugin in registry.plugins]
    write_json(folder / "resolved.json", {"run": run.name, "variants": variants, "plugins": plugins, "mtcore": version("mtcore")})


def write_quarantine(folder: Path, variants: Sequence[Prepared]) -> None:
    """Every row that was set aside, with file, line and reason, as lines of JSON."""
    rows = {json.dumps(asdict(row), ensure_ascii=False): None for v in variants for task in v.tasks.values() for row in task.quarantined}
    write_text(folder / "quarantine.jsonl", "".join(f"{row}\n" for row in rows))


def _resolved(folder: Path) -> dict[str, dict[str, object]]:
    path = folder / "resolved.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["variants"]) if path.is_file() else {}


def _fit_group(
    prepared: Prepared, group: Group, seed: int, references: Mapping[str, Reference], registry: Registry, fitting: Fitting, folder: Path
) -> GroupResult:
    """Fit one group, or find it fitted; its model, loaded as it would be served, answers every row of the verdict."""
    place = folder / prepared.name / f"seed-{seed}" / group.name.replace("/", "--")
    known = [p for p in with_references(prepared.profiles, references) if p.name in group.tasks]
    fingerprint = _fingerprint(prepared, group, seed, known)
    if (place / "result.json").is_file():
        result = GroupResult.model_validate_json((place / "result.json").read_text(encoding="utf-8"))
        if result.fingerprint == fingerprint:
            return result
        fitting.emit(events.Warned(group.name, "rows, references or settings changed since its model was trained: it is trained anew"))
    tasks = {name: prepared.tasks[name] for name in group.tasks}
    stream = StageStream(prepared.scheduler, registry.sampler, known, seed=seed, max_steps=prepared.config.max_steps)
    fitted = fitting.fit(
        prepared.method,
        group,
        stream,
        tasks=tasks,
        base=prepared.base,
        seed=seed,
        folder=place / "work",
        bundle=place / "bundle",
        work=f"{prepared.name or 'run'}/{group.name}" + (f" seed {seed}" if len(prepared.config.seeds) > 1 else ""),
        fingerprint=fingerprint,
        bars={name: references[name].bar for name in group.tasks},
    )
    judged = evaluate(prepared.method.load(Path(fitted.bundle)), {name: task.exam(task.judged_on) for name, task in tasks.items()})
    result = GroupResult(
        fingerprint=fingerprint, fitted=fitted, answers={n: tuple(a) for n, a in judged.answers.items()}, failures=dict(judged.failures)
    )
    if fitting.is_main:
        compiled = [stream.next(fitted.done[:number], Ledger()) for number in range(len(fitted.done))]
        write_json(place / "plan.json", [asdict(c.plan) for c in compiled if c and c.plan])
        write_text(place / "result.json", result.model_dump_json(indent=1))
        shutil.rmtree(place / "work", ignore_errors=True)
    return result


def _fingerprint(prepared: Prepared, group: Group, seed: int, known: Sequence[TaskProfile]) -> str:
    config = prepared.config
    table = {
        "method": config.method.model_dump(),
        "scheduler": config.scheduler.model_dump(),
        "max_steps": config.max_steps,
        "seed": seed,
        "base": prepared.base.digest,
        "tasks": {name: prepared.tasks[name].digest for name in group.tasks},
        "profiles": [[p.name, p.resource, p.bar] for p in known],
    }
    return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()
