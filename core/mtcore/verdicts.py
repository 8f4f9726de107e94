"""From answers to verdicts: every task against its reference, what to deploy, what it cost, what a reader must know."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mtcore.data.mixture import extremes
from mtcore.data.rows import digest_rows
from mtcore.evaluation.evaluate import Exam, score, statistics
from mtcore.evaluation.qualify import deployment, judge
from mtcore.evaluation.report import GroupOutcome, TaskOutcome, VariantOutcome
from mtcore.modeling.load import hub_revision
from mtcore.preparation import PreparedTask, Resolved
from mtcore.references import Reference, with_references
from mtcore.registry import Registry
from mtcore.types import Answer, Base, Cost, Fitted, Frozen, Group

Measured = Mapping[tuple[str, int], Reference]
"""References by task and seed."""


@dataclass(frozen=True)
class Prepared(Resolved):
    """One variant, ready to be trained."""

    base: Base


class GroupResult(Frozen):
    """One group fitted under one seed, and what its model answered."""

    fingerprint: str
    fitted: Fitted | None
    """None where every task is its own model: the reference is the result."""
    answers: dict[str, tuple[Answer, ...]]
    failures: dict[str, str]
    verdict_cost: Cost = Cost()
    """What answering the rows of the verdict took."""


def judge_variant(
    run: str,
    prepared: Prepared,
    measured: Measured,
    results: Mapping[tuple[str, int], GroupResult],
    reused: int,
    registry: Registry,
) -> VariantOutcome:
    """Verdicts of all tasks, what to deploy, and what it cost."""
    seeds = prepared.config.seeds
    beside, beside_warnings = _beside(prepared, results)
    groups = [
        GroupOutcome(
            name=group.name,
            reason=group.reason,
            tasks=[_judge_task(name, group, prepared, measured, results, beside[name]) for name in group.tasks],
            stages=[stage for seed in seeds for stage in _stages(results[group.name, seed].fitted, seed, prepared)],
            bundles={seed: fitted.bundle for seed in seeds if (fitted := results[group.name, seed].fitted)},
        )
        for group in prepared.groups
    ]
    cost = {"references": sum((r.cost for r in measured.values()), Cost())}
    for result in results.values():
        for done in result.fitted.done if result.fitted else ():
            cost[f"stage {done.stage.name}"] = cost.get(f"stage {done.stage.name}", Cost()) + done.cost
    cost["reference evaluation"] = sum((r.evaluation_cost for r in measured.values()), Cost())
    if not prepared.scheduler.alone:
        cost["evaluation"] = sum((r.fitted.evaluation_cost for r in results.values() if r.fitted), Cost())
        cost["verdict"] = sum((r.verdict_cost for r in results.values()), Cost())
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "accelerate", "numpy")}
    tasks = [name for group in prepared.groups for name in group.tasks]
    return VariantOutcome(
        run=run,
        variant=prepared.name,
        model=prepared.config.model,
        base={"digest": prepared.base.digest, "revision": hub_revision(prepared.base)},
        method=prepared.config.method.use,
        seeds=seeds,
        groups=groups,
        deployment=deployment(
            {} if prepared.scheduler.alone else {g.name: g.qualified for g in groups},
            tasks,
            [t.name for g in groups for t in g.tasks if t.verdict is None or t.verdict.is_at_chance],
        ),
        is_alone=prepared.scheduler.alone,
        cost=cost,
        reference_reused=reused,
        warnings=[*prepared.warnings, *_verdict_warnings(prepared, measured, results), *beside_warnings],
        versions={"python": platform.python_version(), **packages, **_plugin_versions(prepared, results, registry)},
    )


def _plugin_versions(prepared: Prepared, results: Mapping[tuple[str, int], GroupResult], registry: Registry) -> dict[str, str]:
    """Distribution and version of every plugin that had a part in the variant."""
    named = [(kind, str(prepared.components[kind]["use"])) for kind in ("method", "scheduler", "filter")]
    named += [("sampler", d.stage.sampler.use) for r in results.values() if r.fitted for d in r.fitted.done]
    owners = [registry.find(kind, name).plugin for kind, name in named] + [t.plugin for t in prepared.tasks.values()]
    return {plugin.distribution: plugin.version for plugin in owners}


def _judge_task(
    name: str,
    group: Group,
    prepared: Prepared,
    measured: Measured,
    results: Mapping[tuple[str, int], GroupResult],
    beside: Mapping[str, float | None],
) -> TaskOutcome:
    task, seeds = prepared.tasks[name], prepared.config.seeds
    references = [measured[name, seed] for seed in seeds]
    mine = [results[group.name, seed] for seed in seeds]
    failure = next((r.failure for r in references if r.failure), "") or next((r.failures[name] for r in mine if name in r.failures), "")
    exam, verdict = task.exam(task.judged_on), None
    floors: dict[str, float | None] = {"majority": None, "bag-of-words": None}
    if not failure:
        floors = {"majority": task.floors.majority, "bag-of-words": task.floors.bag_of_words}
        own = [statistics(exam, r.answers) for r in references]
        shared = [statistics(exam, r.answers[name]) for r in mine]
        verdict = judge(task.metric, own, shared, task.floors.majority_statistics, name=name)
    profile = next(
        p for p in with_references(prepared.profiles, {p.name: measured[p.name, seeds[0]] for p in prepared.profiles}) if p.name == name
    )
    return TaskOutcome(
        name=name,
        metric=task.metric.name,
        verdict=verdict,
        failure=failure,
        floors=floors,
        beside=beside,
        saturation_epoch=[r.saturation_epoch for r in references],
        resource=profile.resource,
        resource_is_assumed=profile.resource_is_assumed,
        data=_data(task),
        references=[_reference(r) for r in references],
    )


def _data(task: PreparedTask) -> dict[str, Any]:
    """Where a task's rows are from, and which of them decide."""
    spec = task.data.spec
    return {
        "output": spec.output,
        "licence": spec.licence,
        "source": spec.source,
        "plugin": f"{task.plugin.distribution} {task.plugin.version}",
        "train_rows": len(task.data.train),
        "judged_rows": len(task.judged_on),
        "judged_on": "test" if task.data.test else "validation",
        "judged_digest": digest_rows(task.judged_on),
        "metric_version": task.metric.version,
        "digest": task.digest,
    }


def _reference(reference: Reference) -> dict[str, Any]:
    """A task's own model under one seed, as the report tells it: the score on the rows of the verdict, the curve on validation rows."""
    kept = ("seed", "score", "selection_bar", "is_at_chance", "is_cut_short", "saturation_epoch", "bundle", "failure")
    curve = [{"epoch": e.epoch, "score": e.scores.get(reference.task)} for e in reference.curve]
    return {key: getattr(reference, key) for key in kept} | {"curve": curve}


def _beside(prepared: Prepared, results: Mapping[tuple[str, int], GroupResult]) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """The metrics beside each task's own, as means over seeds; None and a warning where one fails."""
    scores: dict[str, dict[str, float | None]] = {}
    told = []
    for group in prepared.groups:
        mine = [results[group.name, seed] for seed in prepared.config.seeds]
        for name in group.tasks:
            scores[name], task = {}, prepared.tasks[name]
            for other, metric in task.beside.items() if all(r.answers.get(name) for r in mine) else ():
                try:
                    exam = Exam(task.data.spec, metric, task.judged_on)
                    scores[name][other] = sum(score(exam, r.answers[name]) for r in mine) / len(mine)
                except Exception as error:
                    scores[name][other] = None
                    told.append(f"{name}: {other}, reported beside its own metric, failed: {type(error).__name__}: {error}")
    return scores, told


def _stages(fitted: Fitted | None, seed: int, prepared: Prepared) -> list[dict[str, Any]]:
    """What each stage did, as the report tells it."""
    if fitted is None:
        return []
    return [
        {
            "name": done.stage.name,
            "seed": seed,
            "steps": done.steps,
            "ended": done.ended,
            "note": done.mixture.note,
            "learning_rate": done.stage.learning_rate,
            "examples_per_step": done.stage.examples_per_step,
            "tasks": {
                name: {"share": done.mixture.shares[name], "draws": draws, "passes": draws / len(prepared.tasks[name].data.train)}
                for name, draws in done.draws.items()
            },
            "evaluations": [
                e.model_dump(mode="json", exclude={"stage", "checkpoint"}) | {"is_chosen": e == fitted.chosen} for e in done.evaluations
            ],
        }
        for done in fitted.done
    ]


def _verdict_warnings(prepared: Prepared, measured: Measured, results: Mapping[tuple[str, int], GroupResult]) -> list[str]:
    """What a reader of the verdicts must know."""
    told = []
    for (name, seed), reference in measured.items():
        when = f" under seed {seed}" if len(prepared.config.seeds) > 1 else ""
        if reference.failure:
            told.append(f"{name}: its own model could not be scored{when}: {reference.failure}")
        elif reference.is_at_chance:
            told.append(f"{name}: its own model{when} is at chance ({reference.score:.4f}); it cannot be qualified against that")
        if reference.is_cut_short:
            told.append(
                f"{name}: its best epoch{when} is the last one allowed ({reference.saturation_epoch}); its reference may be too low"
            )
    for (group, _), result in results.items():
        notes = [note for d in (result.fitted.done if result.fitted else ()) for note in (d.stage.note, d.mixture.note) if note]
        told += [f"group {group}: {note}" for note in notes]
        if result.fitted and result.fitted.done:
            rows = {name: len(prepared.tasks[name].data.train) for name in result.answers}
            drawn = {name: sum(d.draws.get(name, 0) for d in result.fitted.done) for name in rows}
            told += extremes(drawn, rows, {})
    for name, task in prepared.tasks.items():
        if len(task.judged_on) < 1000:
            told.append(f"{name}: {len(task.judged_on)} rows decide; a bar of 1 % lies inside their noise, read P and the interval")
    return list(dict.fromkeys(told))
