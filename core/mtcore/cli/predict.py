"""`mtcore predict`: answer JSON lines with a bundle."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mtcore.errors import MtcoreError

BATCH = 64


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--task", required=True, metavar="NAME", help="The task to ask, as plugin/task.")
@click.option("--top", type=click.IntRange(1), help="Print only the most probable labels.")
def predict(bundle: Path, task: str, top: int | None) -> None:
    """Read one JSON object of fields a line from stdin; write one answer a line, in order.

    An answer is {"task", "answer", "probabilities", "flags"}, or {"task", "error"} for a line that cannot be answered (exit code 1 at the end).
    """
    from mtcore.bundle import read_bundle
    from mtcore.cli.common import load_registry
    from mtcore.config import nearest
    from mtcore.errors import UnknownName
    from mtcore.opening import open_bundle

    manifest = read_bundle(bundle, verify=False)
    if task not in manifest.tasks:
        raise UnknownName(f"task {task!r} is not in {bundle}{nearest(task, list(manifest.tasks))} It answers: {', '.join(manifest.tasks)}.")
    predictor = open_bundle(bundle, load_registry()).predictor
    failed = False
    for answer in _answers(predictor, task, top):
        failed |= "error" in answer
        click.echo(json.dumps(answer, ensure_ascii=False))
    sys.exit(1 if failed else 0)


def _answers(predictor: Any, task: str, top: int | None) -> Iterator[dict[str, Any]]:
    from mtcore.types import Prediction, Request

    pending: list[Any] = []
    for line in sys.stdin.buffer:
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError("a line must be one JSON object of fields")
            pending.append(predictor.prepare(Request(fields, (task,))))
        except (ValueError, RecursionError, MtcoreError) as error:
            pending.append({"task": task, "error": str(error)})
        if len(pending) >= BATCH:
            yield from _flush(predictor, pending, task, top, Prediction)
            pending = []
    yield from _flush(predictor, pending, task, top, Prediction)


def _flush(predictor: Any, pending: list[Any], task: str, top: int | None, prediction: type) -> Iterator[dict[str, Any]]:
    results = iter(predictor.predict([p for p in pending if not isinstance(p, dict)]))
    for item in pending:
        outcome = item if isinstance(item, dict) else next(results)[task]
        if isinstance(outcome, dict):
            yield outcome
        elif isinstance(outcome, prediction):
            yield _as_json(outcome, top)
        else:
            yield {"task": task, "error": outcome.reason}


def _as_json(outcome: Any, top: int | None) -> dict[str, Any]:
    answer = outcome.answer
    if isinstance(answer, tuple) and outcome.probabilities is None:
        answer = answer[0]
    probabilities = outcome.probabilities
    if probabilities is not None and top is not None:
        probabilities = dict(sorted(probabilities.items(), key=lambda p: -p[1])[:top])
    return {"task": outcome.task, "answer": answer, "probabilities": probabilities, "flags": list(outcome.flags)}
