"""Measure the references of a run: in turn, or by the processes of its launcher, which do what a job says as plain data."""

import glob
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtcore.config import RunConfig, is_task_file
from mtcore.errors import RunError
from mtcore.fitting import Fitting
from mtcore.interrupts import Stop
from mtcore.modeling.load import find_base
from mtcore.plugins import load_plugins
from mtcore.preparation import Emit, Preparer, told_seed
from mtcore.references import Measurement, Reference, ReferenceStore
from mtcore.registry import LOCAL, Registry
from mtcore.types import Frozen, Job, LauncherUse
from mtcore.verdicts import Measured, Prepared


class Order(Frozen):
    """What a process is told that measures a reference: a run of that task alone, and what the run that asks expects of it."""

    config: RunConfig
    recipe: dict[str, Any]
    told_seed: int | None
    plugins: str | None
    """MTCORE_PLUGINS of the run that asks."""


def measure(prepared: Prepared, registry: Registry, fitting: Fitting) -> tuple[Measured, int]:
    """The reference of every task under every seed, and how many of them were already there."""
    store = ReferenceStore(Path(prepared.config.out) / "references", registry, fitting)
    wanted = measurements(prepared, registry)
    reused = sum(store.has(measurement) for measurement in wanted.values())
    launched = _launch([m for m in wanted.values() if store.find(m) is None], prepared.config, store)
    return {key: launched.get(measurement.key) or store.get(measurement) for key, measurement in wanted.items()}, reused


def measurements(prepared: Prepared, registry: Registry) -> dict[tuple[str, int], Measurement]:
    """How every task is measured alone, from the base, under every seed."""
    config = prepared.config
    method, scheduler = registry.method(prepared.reference), registry.scheduler(config.reference)
    described = {"method": registry.describe(prepared.reference), "scheduler": registry.describe(config.reference)}
    return {
        (p.name, seed): Measurement(
            p.name,
            prepared.tasks[p.name],
            p.model_copy(update={"is_taught": False}),
            method,
            scheduler,
            described,
            prepared.base,
            seed,
            config.keep_reference_weights,
            told_seed(seed, config),
        )
        for seed in config.seeds
        for p in prepared.profiles
    }


def measure_job(data: Mapping[str, Any], emit: Emit, stop: Stop) -> dict[str, Any]:
    """Measure the one reference that an `Order` names, into the store that it names; return it as JSON.

    Raises RunError where this process does not see the run's files, or where the same order means something else to it.
    """
    order = Order.model_validate_json(json.dumps(data))
    config = order.config
    _require_visible(config)
    registry = load_plugins(environment=order.plugins, allow=config.plugins.allow, deny=config.plugins.deny)
    # the run that asks has told what there is to say of the rows
    resolved = Preparer(registry, lambda event: None).resolve("", config)
    prepared = Prepared(**vars(resolved), base=find_base(config.model, Path(config.out) / "bases"))
    (wanted,) = measurements(prepared, registry).values()
    wanted = replace(wanted, told_seed=order.told_seed)
    _require_planned(order.recipe, wanted)
    reference = ReferenceStore(Path(config.out) / "references", registry, Fitting(emit, stop=stop, distribution=config.distribution)).get(
        wanted
    )
    return dict(json.loads(reference.model_dump_json()))


def order(config: RunConfig, wanted: Measurement) -> Order:
    """What to tell a process that is to measure a reference of this run; it may run anywhere below the same file system."""
    plugin, model = wanted.task.plugin, Path(config.model).expanduser()
    is_declared = plugin.name == LOCAL and is_task_file(plugin.distribution)
    is_folder = wanted.base.folder == model
    alone = config.model_copy(
        update={
            "model": str(model.absolute()) if is_folder else config.model,
            "tasks": (glob.escape(str(Path(plugin.distribution).absolute())) if is_declared else wanted.name,),
            "data": None if config.data is None else str(Path(config.data).absolute()),
            "out": str(Path(config.out).absolute()),
            "seeds": (wanted.seed,),
            "resource": {name: resource for name, resource in config.resource.items() if name == wanted.name},
            "launcher": LauncherUse(use="in-turn"),
            "observers": (),
        }
    )
    return Order(config=alone, recipe=_plain(wanted.recipe), told_seed=wanted.told_seed, plugins=os.environ.get("MTCORE_PLUGINS"))


def _launch(missing: list[Measurement], config: RunConfig, store: ReferenceStore) -> dict[str, Reference]:
    """What the run's launcher has measured of the references that are missing, by key."""
    if not missing:
        return {}
    jobs = {m.work: m for m in missing}
    store.folder.mkdir(parents=True, exist_ok=True)
    results = store.registry.launcher(config.launcher).run(
        [Job(name=name, call="mtcore.measuring:measure_job", data=order(config, m).model_dump(mode="json")) for name, m in jobs.items()],
        store.fitting.emit,
        store.fitting.stop,
    )
    measured = {jobs[name].key: Reference.model_validate_json(json.dumps(result)) for name, result in results.items()}
    for name, m in jobs.items():
        if m.key in measured and not measured[m.key].failure and not store.has(m):
            raise RunError(
                f"{name} was measured, but what it left is not in {store.folder.absolute()}: `out` must be on a file system that every process shares"
            )
    return measured


def _require_visible(config: RunConfig) -> None:
    named = {"out": Path(config.out) / "references", "data": config.data, "model": config.model if os.path.isabs(config.model) else None}
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            raise RunError(f"{socket.gethostname()} does not see {path}: `{key}` must be on a file system that every process shares")


def _require_planned(planned: Mapping[str, Any], wanted: Measurement) -> None:
    own = _plain(wanted.recipe)
    if different := [key for key in planned if planned[key] != own.get(key)]:
        told = "; ".join(f"{key}: {json.dumps(planned[key])} there, {json.dumps(own.get(key))} here" for key in different)
        raise RunError(
            f"{wanted.name} on {socket.gethostname()} would be measured otherwise than the run planned it: {told}. "
            "Every process needs the same versions of mtcore and its plugins, the same rows and the same base."
        )


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as it comes back from JSON."""
    return dict(json.loads(json.dumps(recipe)))
