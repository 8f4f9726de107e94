"""From a folder to an engine that can be trusted: verified, loaded, tested on its own probes, and warm."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mtcore.contracts import Predictor
from mtcore.errors import ModelError, MtcoreError
from mtcore.opening import OpenBundle, open_bundle
from mtcore.probes import Probe, disagreements, read_probes
from mtcore.registry import Registry
from mtcore.types import Prepared, Request, TaskSpec
from mtcore_serve.device import Device
from mtcore_serve.engine import Engine
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics
from mtcore_serve.pace import measure
from mtcore_serve.threads import Hung, Outcome, Thread

log = logging.getLogger(__name__)

PATIENCE = 4
"""How many times as long as a forward pass the first ones may last: a device compiles and allocates in them."""
ENOUGH = 5.0
"""Seconds that one warm-up pass is expected to take at most; a larger one is left out."""
FILLER = "word " * 48


async def open_engine(
    group: str, folder: Path, registry: Registry, *, limits: Limits, metrics: Metrics, device: Device
) -> tuple[Engine, Mapping[str, TaskSpec]]:
    """Load a bundle beside whatever is online. Raises ModelError where it cannot be served or answers otherwise than when it was published."""
    loader = Thread(f"loader of {group}")
    try:
        outcome = await loader.run(partial(_open, folder, registry))
    finally:
        loader.end()
    bundle, probes = _value(outcome, folder, "could not be loaded")
    engine = Engine(bundle.predictor, group, bundle.manifest.version, limits=limits, metrics=metrics, device=device)
    try:
        await _test(engine, folder, probes, limits.hang * PATIENCE)
        await _warm(engine, folder, limits)
    except BaseException:
        engine.close()
        raise
    return engine, dict(bundle.predictor.tasks)


def _open(folder: Path, registry: Registry) -> tuple[OpenBundle, tuple[Probe, ...]]:
    return open_bundle(folder, registry), read_probes(folder)


async def _test(engine: Engine, folder: Path, probes: Sequence[Probe], seconds: float) -> None:
    if not probes:
        log.warning("%s carries no probes, so that nothing shows whether it answers as it did when it was published", folder)
        return
    wrong = await _run(engine, partial(disagreements, engine.predictor, probes), folder, "failed on its own probes", seconds)
    if wrong:
        raise ModelError(
            f"{folder} answers {len(wrong)} of its {len(probes)} probes otherwise than when it was published: {'; '.join(wrong[:3])}"
        )


async def _warm(engine: Engine, folder: Path, limits: Limits) -> None:
    """Measure what tasks cost, and compute batches of growing size up to a full one: the first of a size is slow."""
    seconds, what = limits.hang * PATIENCE, "failed when it was warmed up"
    await _run(engine, engine.predictor.warm_up, folder, what, seconds)
    engine.pace = await _run(engine, partial(measure, engine.predictor.tasks, engine.predictor.prepare), folder, what, seconds)
    for tokens in (1, limits.batch_tokens // 8, limits.batch_tokens):
        if engine.seconds(tokens) < ENOUGH:
            engine.pace.seconds_a_token = await _run(engine, partial(_seconds_a_token, engine.predictor, tokens), folder, what, seconds)


def _seconds_a_token(predictor: Predictor, tokens: int) -> float:
    """Predict at least so many tokens, of all tasks in turn."""
    prepared: list[Prepared] = []
    cost = 0
    names = list(predictor.tasks)
    while cost < tokens and len(prepared) < 512:
        name = names[len(prepared) % len(names)]
        fields = {field: f"{len(prepared)} {FILLER}" for field in predictor.tasks[name].fields}
        prepared.append(predictor.prepare(Request(fields, (name,))))
        cost += max(1, prepared[-1].cost)
    begun = time.monotonic()
    predictor.predict(prepared)
    return (time.monotonic() - begun) / cost


async def _run(engine: Engine, job: Callable[[], Any], folder: Path, what: str, seconds: float) -> Any:
    try:
        outcome = await engine.borrow(job, seconds)
    except Hung:
        raise ModelError(f"{folder} {what}: it gave no answer in {seconds:g} s") from None
    return _value(outcome, folder, what)


def _value(outcome: Outcome, folder: Path, what: str) -> Any:
    if isinstance(outcome.error, MtcoreError):
        raise outcome.error
    if outcome.error is not None:
        raise ModelError(f"{folder} {what}: {type(outcome.error).__name__}: {outcome.error}") from outcome.error
    return outcome.value
