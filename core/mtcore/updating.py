"""The story of an update: ask the live bundle · measure what is new · fit on from it · judge both · publish where no task is lost."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

from mtcore import events, pipeline, runfolder
from mtcore.config import RunFile
from mtcore.evaluation.comparison import Judgement, compare
from mtcore.evaluation.report import VariantOutcome
from mtcore.files import locked, put_folder, read_model, settle_folder, write_text
from mtcore.fitting import Fitting, renders
from mtcore.live import LiveBundle, Update, require_one_model
from mtcore.measuring import measure, measurements
from mtcore.preparation import Preparer
from mtcore.references import ReferenceStore
from mtcore.registry import Registry
from mtcore.verdicts import GroupResult, Prepared, judge_variant

GONE = "no reference with these rows and settings is in the store any more: it is measured again"


def update(run: RunFile, registry: Registry, fitting: Fitting, folder: Path, live: LiveBundle, *, restart: bool = False) -> VariantOutcome:
    """Teach a live bundle what the run adds to it; the same call resumes. The bundle itself is only read.

    Its successor becomes `bundle` in the run's folder if every task that is qualified in the live bundle is so in it too, on the same rows
    and against the same references. Otherwise it stays there as `candidate`, and the outcome's `update` says what would be lost.
    """
    require_one_model(run)
    with locked(folder, wanted=fitting.is_main):
        (prepared,) = pipeline.begin(run, Preparer(registry, fitting.emit, live), fitting, folder, restart=restart)
        (group,), (seed,) = prepared.groups, prepared.config.seeds
        place, known = runfolder.model_place(folder, prepared.name, seed, group.name), _known_to(live, prepared)
        answered = _ask(live, known, fitting, place / "live.json")
        prepared = _tell_of_lost_references(prepared, registry, fitting)
        measured, reused = measure(prepared, registry, fitting)
        live.require_unchanged()
        results = pipeline.fit(prepared, measured, registry, fitting, folder)
        before = judge_variant(run.name, known, measured, {(group.name, seed): answered}, reused, registry)
        after = judge_variant(run.name, prepared, measured, results, reused, registry)
        comparison = compare(
            Judgement("the live bundle", before.as_json(), before.resampled), Judgement("the candidate", after.as_json(), after.resampled)
        )
        path = place / runfolder.CANDIDATE if comparison.lost else _publish(place, fitting)
        change = cast(Update, prepared.update)  # the preparer was given a live bundle
        outcome = replace(
            after,
            groups=[replace(g, bundles={seed: str(path)}) for g in after.groups],
            cost={**after.cost, "live bundle": answered.verdict_cost},
            update={
                "bundle": str(live.folder),
                "digest": live.digest,
                "group": group.name,
                "kept": list(change.kept),
                "new": list(change.new),
                "replaced": dict(change.replaced),
                "is_published": not comparison.lost,
                "path": str(path),
                "comparison": comparison.as_json(),
            },
        )
        pipeline.publish(outcome, folder, fitting)
        pipeline.compare(run.name, [outcome], folder, fitting)
        return outcome


def _known_to(live: LiveBundle, prepared: Prepared) -> Prepared:
    """The variant as if it named the live bundle's tasks alone."""
    names = set(live.manifest.tasks)
    return replace(
        prepared,
        tasks={name: task for name, task in prepared.tasks.items() if name in names},
        profiles=[p for p in prepared.profiles if p.name in names],
        groups=[g.model_copy(update={"tasks": tuple(t for t in g.tasks if t in names)}) for g in prepared.groups],
    )


def _ask(live: LiveBundle, known: Prepared, fitting: Fitting, path: Path) -> GroupResult:
    """What the live bundle answers to every row of the verdict; asked once."""
    table = {"bundle": live.digest, "tasks": {name: task.digest for name, task in known.tasks.items()}}
    fingerprint = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    if path.is_file() and (kept := read_model(path, GroupResult)).fingerprint == fingerprint:
        return kept
    predictor = known.method.load(live.folder, renders(known.tasks))
    result = pipeline.ask(predictor, known.tasks, fitting, fingerprint=fingerprint, fitted=None)
    if fitting.is_main:
        write_text(path, result.model_dump_json(indent=1))
    return result


def _tell_of_lost_references(prepared: Prepared, registry: Registry, fitting: Fitting) -> Prepared:
    """Warn of tasks that are not new and have to be measured all the same."""
    store = ReferenceStore(Path(prepared.config.out) / "references", registry, fitting)
    taught = {p.name for p in prepared.profiles if p.is_taught}
    gone = [m.name for m in measurements(prepared, registry).values() if m.name in taught and not store.has(m)]
    for name in gone:
        fitting.emit(events.Warned(name, GONE))
    return replace(prepared, warnings=[*prepared.warnings, *(f"{name}: {GONE}" for name in gone)])


def _publish(place: Path, fitting: Fitting) -> Path:
    """Make the candidate the bundle; where that is done already, nothing is left to do."""
    candidate, bundle = place / runfolder.CANDIDATE, place / runfolder.BUNDLE
    if fitting.is_main:
        settle_folder(bundle)
        if candidate.is_dir():
            put_folder(candidate, bundle)
    fitting.wait()
    return bundle
