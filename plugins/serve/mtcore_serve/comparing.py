"""Shadows: a successor answers unseen what was just answered, and metrics tell how far the two agree."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from mtcore.types import Prediction, Request
from mtcore_serve.errors import Refused
from mtcore_serve.groups import Live
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics

Given = Mapping[str, Prediction | Refused]


async def compare(successor: Live, answered: Sequence[tuple[Request, Given]], limits: Limits, metrics: Metrics) -> None:
    """Ask the successor what was answered; nobody waits for it, so it may well be dropped."""
    begun = time.monotonic()
    requests = [request for request, _ in answered]
    try:
        successor.engine.check(requests, limits.deadline)
        found = await asyncio.gather(*successor.engine.submit(requests, begun + limits.deadline))
    except Refused:
        metrics.shadow(successor.group, "dropped")
        return
    metrics.answered(successor.group, "shadow", time.monotonic() - begun)
    for (_, given), answers in zip(answered, found, strict=True):
        for task, answer in answers.by_task.items():
            metrics.shadow(successor.group, _agreement(given[task], answer))


def _agreement(given: Prediction | Refused, again: Prediction | Refused) -> str:
    if isinstance(given, Refused) or isinstance(again, Refused):
        return "failed"
    return "yes" if given.answer == again.answer else "no"
