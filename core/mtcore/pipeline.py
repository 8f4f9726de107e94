"""The story of a run: prepare · measure · fit · judge · publish."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtcore import events, runfolder
from mtcore.config import RunConfig, RunFile
from mtcore.contracts import Predictor
from mtcore.data.stages import StageStream
from mtcore.errors import RunError
from mtcore.evaluation.card import leave_cards
from mtcore.evaluation.report import VariantOutcome
from mtcore.evaluation.tables import comparison, comparison_markdown, markdown
from mtcore.files import locked, read_model, write_json, write_text
from mtcore.fitting import Fitting, renders
from mtcore.measuring import measure
from mtcore.modeling.load import find_base
from mtcore.preparation import Emit, PreparedTask, Preparer, group_work
from mtcore.probes import write_probes
from mtcore.references import Reference, with_references
from mtcore.registry import Registry
from mtcore.types import Cost, Fitted, Group, TaskProfile
from mtcore.verdicts import GroupResult, Measured, Prepared, judge_variant


def train(run: RunFile, registry: Registry, fitting: Fitting, folder: Path, *, restart: bool = False) -> list[VariantOutcome]:
    """Do everything that the run file asks for and is not yet done; the same call resumes. `restart` drops its variants' earlier work."""
    with locked(folder, wanted=fitting.is_main):
        variants = begin(run, Preparer(registry, fitting.emit), fitting, folder, restart=restart)
        outcomes = []
        for prepared in variants:
            measured, reused = measure(prepared, registry, fitting)
            results = fit(prepared, measured, registry, fitting, folder)
            outcome = judge_variant(run.name, prepared, measured, results, reused, registry)
            outcomes.append(outcome)
            publish(outcome, folder, fitting)
        compare(run.name, outcomes, folder, fitting)
        return outcomes


def begin(run: RunFile, preparer: Preparer, fitting: Fitting, folder: Path, *, restart: bool) -> list[Prepared]:
    """Prepare all variants and write down what they resolved to; a run that means something else than the folder says is refused."""
    resumed = runfolder.is_begun(folder) and not restart
    if not restart:
        runfolder.refuse_changes(folder, run)
    fitting.emit(events.RunStarted(run.name, list(run.variants), next(iter(run.variants.values())).seeds, resumed))
    variants = [prepare(name, config, preparer, fitting.emit) for name, config in run.variants.items()]
    fitting.wait()
    if fitting.is_main:
        if restart:
            runfolder.drop(folder, list(run.variants))
        runfolder.write_resolved(folder, run, variants, preparer.registry)
        runfolder.write_quarantine(folder, variants)
    fitting.wait()
    return variants


def prepare(name: str, config: RunConfig, preparer: Preparer, emit: Emit) -> Prepared:
    """Resolve a variant and find its base; everything that can be wrong before training is found here."""
    resolved = preparer.resolve(name, config)
    base = find_base(config.model, Path(config.out) / "bases")
    if resolved.update is not None:
        resolved.update.live.require_base(base)
    warnings = list(resolved.warnings)
    for task, preview in resolved.method.preview({n: t.data for n, t in resolved.tasks.items()}, base).items():
        for text in preview.warnings:
            warnings.append(f"{task}: {text}")
            emit(events.Warned(task, text))
    emit(events.Grouped(name, resolved.groups))
    emit(events.WorkAhead(resolved.ahead))
    return Prepared(**{**vars(resolved), "warnings": warnings}, base=base)


def fit(prepared: Prepared, measured: Measured, registry: Registry, fitting: Fitting, folder: Path) -> dict[tuple[str, int], GroupResult]:
    """One model for every group and seed, by the variant's method and scheduler."""
    results = {}
    for seed in prepared.config.seeds:
        references = {p.name: measured[p.name, seed] for p in prepared.profiles}
        for group in prepared.groups:
            if prepared.scheduler.alone:
                results[group.name, seed] = GroupResult(
                    fingerprint="", fitted=None, answers={n: references[n].answers for n in group.tasks}, failures={}
                )
            else:
                results[group.name, seed] = _fit_group(prepared, group, seed, references, registry, fitting, folder)
    return results


def ask(
    predictor: Predictor, tasks: Mapping[str, PreparedTask], fitting: Fitting, *, fingerprint: str, fitted: Fitted | None
) -> GroupResult:
    """What a model, loaded as it would be served, answers to every row of the verdict."""
    judged = fitting.evaluate(predictor, {name: task.exam(task.judged_on) for name, task in tasks.items()})
    return GroupResult(
        fingerprint=fingerprint,
        fitted=fitted,
        answers={name: tuple(answers) for name, answers in judged.answers.items()},
        failures=dict(judged.failures),
        verdict_cost=Cost(tokens=judged.tokens, flops=judged.flops, seconds=judged.seconds),
    )


def publish(outcome: VariantOutcome, folder: Path, fitting: Fitting) -> None:
    """Leave the variant's report beside its bundles, and a card in each of them."""
    fitting.emit(events.VariantJudged(outcome.variant, outcome.average, sum(len(g.qualified) for g in outcome.groups), len(outcome.tasks)))
    if fitting.is_main:
        report = outcome.as_json()
        write_text(folder / outcome.variant / runfolder.SAMPLES, json.dumps(outcome.resampled, allow_nan=False))
        write_json(folder / outcome.variant / "report.json", report)
        write_text(folder / outcome.variant / "report.md", markdown(outcome))
        leave_cards(report)


def compare(run: str, outcomes: Sequence[VariantOutcome], folder: Path, fitting: Fitting) -> None:
    """Leave the page of the run and the comparison over all variants that have a report, whether this call trained them or an earlier one."""
    reports = runfolder.reports(folder)
    if len(reports) > 1 and fitting.is_main:
        write_json(folder / "comparison.json", comparison(run, reports))
        write_text(folder / "comparison.md", comparison_markdown(run, reports))
    where = folder / "comparison.md" if len(reports) > 1 else folder / outcomes[0].variant / "report.md"
    if fitting.is_main:
        try:
            where = runfolder.write_page(folder)
        except RunError as error:  # of variants that this call had no part in
            fitting.emit(events.Warned(runfolder.PAGE, str(error)))
    fitting.emit(events.RunEnded(run, str(where)))


def _fit_group(
    prepared: Prepared, group: Group, seed: int, references: Mapping[str, Reference], registry: Registry, fitting: Fitting, folder: Path
) -> GroupResult:
    """Fit one group, or find it fitted; its model, loaded as it would be served, answers every row of the verdict."""
    place = runfolder.model_place(folder, prepared.name, seed, group.name)
    known = [p for p in with_references(prepared.profiles, references) if p.name in group.tasks]
    fingerprint = _fingerprint(prepared, group, seed, known)
    if (place / "result.json").is_file():
        result = read_model(place / "result.json", GroupResult)
        if result.fingerprint == fingerprint:
            return result
        fitting.emit(events.Warned(group.name, "rows, references or settings changed since its model was trained: it is trained anew"))
    work = place / f"work-{fingerprint[:12]}"
    if any(begun != work for begun in place.glob("work-*")):
        fitting.emit(events.Warned(group.name, "rows, references or settings changed since its training was begun: it begins anew"))
    tasks = {name: prepared.tasks[name] for name in group.tasks}
    stream = StageStream(
        prepared.scheduler,
        registry.sampler,
        known,
        seed=seed,
        max_steps=prepared.config.max_steps,
        documents=lambda name: tasks[name].documents,
    )
    fitted = fitting.fit(
        prepared.method,
        group,
        stream,
        tasks=tasks,
        base=prepared.base,
        seed=seed,
        folder=work,
        bundle=place / (runfolder.BUNDLE if prepared.update is None else runfolder.CANDIDATE),
        work=group_work(prepared.name, group, seed, prepared.config),
        fingerprint=fingerprint,
        bars={name: references[name].selection_bar for name in group.tasks},
        update=prepared.update.live.folder if prepared.update else None,
    )
    fitting.wait()
    predictor = prepared.method.load(Path(fitted.bundle), renders(tasks))
    result = ask(predictor, tasks, fitting, fingerprint=fingerprint, fitted=fitted)
    if fitting.is_main:
        write_probes(Path(fitted.bundle), predictor)
        compiled = stream.replay(fitted.done, fitted.ledger)
        write_json(place / "plan.json", [c.plan.as_json() for c in compiled if c.plan])
        write_text(place / "result.json", result.model_dump_json(indent=1))
        for begun in place.glob("work-*"):
            shutil.rmtree(begun, ignore_errors=True)
    return result


def _fingerprint(prepared: Prepared, group: Group, seed: int, known: Sequence[TaskProfile]) -> str:
    """Everything that decides a group's model: components with all their options, cap, seed, base, rows and specs, what references said."""
    table: dict[str, Any] = {
        "components": prepared.components,
        "max_steps": prepared.config.max_steps,
        "seed": seed,
        "base": prepared.base.digest,
        "tasks": {name: prepared.tasks[name].digest for name in group.tasks},
        "metrics": {name: [prepared.tasks[name].metric.name, prepared.tasks[name].metric.version] for name in group.tasks},
        "profiles": [[p.name, p.resource, p.bar, p.saturation_epoch] for p in known],
    }
    if prepared.update is not None:
        table["update"] = [prepared.update.live.digest, *prepared.update.kept]
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
