"""The checks of a method: it fits toys on a tiny base, and what it leaves answers every request alike."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import SkipTest

from mtcore.contracts import Method, Predictor
from mtcore.data.rows import text_problem
from mtcore.errors import ConfigError, MtcoreError
from mtcore.testing.check import Body, Check, Failed, checks
from mtcore.testing.component import SHARED
from mtcore.testing.method import MethodUnderTest
from mtcore.testing.toys import ODD_TEXTS, OUTPUTS
from mtcore.types import Answer, OutputKind, Prediction, Prepared, Request, TaskError, TaskSpec

ROUNDING = 1e-4
"""Probabilities that differ by less are the same: sums of floats depend on the size of a batch."""
Outcome = Prediction | TaskError


def method_checks(
    cls: type[Method],
    *,
    options: Mapping[str, Any] = {},
    outputs: Sequence[OutputKind] = OUTPUTS,
    module: str | None = "",
    expected_failures: Mapping[str, str] = {},
) -> list[Check]:
    """Every check of a method, built with `options`; `outputs` are the output kinds that it can learn. Loads torch when the first is tried."""
    bodies: list[Body] = [
        leaves_a_bundle,
        previews_its_tasks,
        answers_every_task,
        answers_are_valid,
        probabilities_sum_to_one,
        answers_repeat,
        answers_alone_as_in_a_batch,
        refuses_unknown_tasks,
        refuses_missing_fields,
        survives_odd_requests,
        *SHARED,
    ]
    return checks(bodies, MethodUnderTest(cls, options, module, outputs), cls.name, expected_failures)


def leaves_a_bundle(subject: MethodUnderTest) -> str:
    """Fitting toys leaves a bundle in the workspace, and it loads."""
    if isinstance(subject.fitted, Exception):
        raise subject.fitted
    if not (subject.bundle / "mtcore.json").is_file() or Path(subject.fitted.bundle) != subject.bundle:
        raise Failed(
            f"no bundle in workspace.bundle; fit returned {subject.fitted.bundle!r}", "write it there with mtcore.bundle.write_bundle"
        )
    subject.load()
    return f"stages: {len(subject.fitted.done)}; {sum(p.stat().st_size for p in subject.bundle.rglob('*') if p.is_file()):,} bytes"


def previews_its_tasks(subject: MethodUnderTest) -> str:
    """A preview speaks of tasks it was given, in finite numbers."""
    previews = subject.build().preview(subject.tasks, subject.base)
    if strange := sorted(set(previews) - set(subject.tasks)):
        raise Failed(f"it speaks of {strange[0]}, which it was not given", "return previews of the tasks that are passed, or {}")
    for name, preview in previews.items():
        if not (math.isfinite(preview.mean_tokens) and 0 <= preview.truncated <= 1):
            raise Failed(f"{name}: {preview}", "mean_tokens is a number of tokens, truncated a share of rows")
    return f"previews: {len(previews)}"


def answers_every_task(subject: MethodUnderTest) -> str:
    """The predictor answers every task that it was fitted on, under its name."""
    predictor = subject.predictor
    if missing := sorted(set(subject.tasks) ^ set(predictor.tasks)):
        raise Failed(f"{missing[0]} is in the group or in the bundle, and not in both", "let the bundle hold the group's tasks")
    for name, outcome in zip([r.tasks[0] for r in subject.requests], _ask(predictor, subject.requests), strict=True):
        if isinstance(outcome, TaskError) or outcome.task != name:
            raise Failed(f"{name}: {outcome}", "return a Prediction for every task that a request asks")
    return f"{len(subject.requests)} requests to {len(subject.tasks)} tasks"


def answers_are_valid(subject: MethodUnderTest) -> str:
    """Every answer is one that its task has."""
    for request, outcome in zip(subject.requests, _ask(subject.predictor, subject.requests), strict=True):
        spec = subject.tasks[request.tasks[0]].spec
        if isinstance(outcome, Prediction) and not _is_valid(spec, outcome.answer):
            raise Failed(f"{request.tasks[0]}: {outcome.answer!r}", f"a {spec.output} task is answered as mtcore.types.Answer says")
    return f"{len(subject.requests)} answers"


def probabilities_sum_to_one(subject: MethodUnderTest) -> str:
    """Probabilities sum to 1 over all labels, the answer's the highest."""
    seen = 0
    for request, outcome in zip(subject.requests, _ask(subject.predictor, subject.requests), strict=True):
        spec = subject.tasks[request.tasks[0]].spec
        if isinstance(outcome, TaskError) or outcome.probabilities is None or not spec.words or spec.output == "multi-label":
            continue
        seen += 1
        values = outcome.probabilities
        if set(values) != set(spec.labels) or abs(math.fsum(values.values()) - 1) > ROUNDING or min(values.values()) < 0:
            raise Failed(f"{request.tasks[0]}: {dict(values)}", "give every label of the spec its probability, normalised over the labels")
        if values[str(outcome.answer)] < max(values.values()) - ROUNDING:
            raise Failed(f"{request.tasks[0]} is answered {outcome.answer!r} with {dict(values)}", "answer the most probable label")
    if not seen:
        raise SkipTest("no answer comes with probabilities over labels")
    return f"{seen} distributions"


def answers_repeat(subject: MethodUnderTest) -> str:
    """The same requests get the same answers, asked and loaded again."""
    first = _ask(subject.predictor, subject.requests)
    for when, predictor in (("asked again", subject.predictor), ("loaded anew", subject.load())):
        _require_alike(subject.requests, first, _ask(predictor, subject.requests), when)
    return f"{len(first)} answers, three times"


def answers_alone_as_in_a_batch(subject: MethodUnderTest) -> str:
    """An answer does not depend on the requests beside it, nor on their order."""
    requests = subject.requests
    alone = [_ask(subject.predictor, [request])[0] for request in requests]
    _require_alike(requests, alone, _ask(subject.predictor, requests), "in a batch")
    _require_alike(requests, alone, _ask(subject.predictor, requests[::-1])[::-1], "in a batch, backwards")
    return f"{len(requests)} requests, alone and together"


def refuses_unknown_tasks(subject: MethodUnderTest) -> str:
    """A request for a task that is not in the bundle is refused with a ConfigError."""
    return _refused(subject.predictor, Request(subject.requests[0].fields, ("toys/not-there",)))


def refuses_missing_fields(subject: MethodUnderTest) -> str:
    """A request without one of the task's fields is refused with a ConfigError."""
    return _refused(subject.predictor, Request({}, subject.requests[0].tasks))


def survives_odd_requests(subject: MethodUnderTest) -> str:
    """An odd request is answered or refused, and disturbs no other."""
    predictor, beside, refused = subject.predictor, subject.requests[0], 0
    for name, text in ODD_TEXTS.items():
        odd = [prepared for task in subject.tasks if (prepared := _prepared(predictor, name, Request({"text": text}, (task,)))) is not None]
        refused += len(subject.tasks) - len(odd)
        if odd and text_problem(text):
            raise Failed(f"{name} is taken", "refuse what mtcore.data.rows.text_problem finds fault with, as rows are refused")
        plain = [Request(beside.fields, prepared.request.tasks) for prepared in odd]
        usual = _ask(predictor, [*plain, beside])[-1]
        try:
            answers = predictor.predict([*odd, predictor.prepare(beside)])
        except Exception as error:
            raise Failed(f"{name}: {type(error).__name__}: {error}", "return a TaskError for what cannot be answered") from error
        _require_alike([beside], [usual], [answers[-1][beside.tasks[0]]], f"beside requests of {name}")
    return f"{len(ODD_TEXTS)} texts to {len(subject.tasks)} tasks, {refused} refused"


def _ask(predictor: Predictor, requests: Sequence[Request]) -> list[Outcome]:
    """The outcome of each request, which asks one task."""
    answers = predictor.predict([predictor.prepare(request) for request in requests])
    return [answer[request.tasks[0]] for request, answer in zip(requests, answers, strict=True)]


def _prepared(predictor: Predictor, name: str, request: Request) -> Prepared | None:
    """An odd request prepared; None where it is refused."""
    try:
        return predictor.prepare(request)
    except MtcoreError:
        return None
    except Exception as error:
        raise Failed(f"{name}: {type(error).__name__}: {error}", "refuse in prepare, with ConfigError, what cannot be encoded") from error


def _refused(predictor: Predictor, request: Request) -> str:
    fix = "raise ConfigError in prepare, with what the bundle does take"
    try:
        predictor.prepare(request)
    except ConfigError as error:
        return str(error)
    except Exception as error:
        raise Failed(f"{type(error).__name__}: {error}", fix) from error
    raise Failed("it is prepared", fix)


def _require_alike(requests: Sequence[Request], before: Sequence[Outcome], after: Sequence[Outcome], when: str) -> None:
    for request, a, b in zip(requests, before, after, strict=True):
        if not _is_alike(a, b):
            raise Failed(
                f"{request.tasks[0]}: {a}; {when}: {b}", "mask padding, mix no requests, and draw no random numbers when answering"
            )


def _is_alike(a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes say the same; two labels of equal probability are one as good as the other."""
    if isinstance(a, TaskError) or isinstance(b, TaskError):
        return type(a) is type(b)
    if a.probabilities is None or b.probabilities is None:
        return a.answer == b.answer
    names = {*a.probabilities, *b.probabilities}
    is_close = all(abs(a.probabilities.get(n, 0.0) - b.probabilities.get(n, 0.0)) <= ROUNDING for n in names)
    best = sorted(a.probabilities.values(), reverse=True)
    return is_close and (a.answer == b.answer or (len(best) > 1 and best[0] - best[1] <= ROUNDING))


def _is_valid(spec: TaskSpec, answer: Answer) -> bool:
    if spec.output == "multi-label":
        return isinstance(answer, tuple) and answer == tuple(label for label in spec.labels if label in answer)
    if spec.number_range is not None:
        return isinstance(answer, float) and answer in spec.number_range.numbers()
    if spec.output == "generation":
        return isinstance(answer, tuple) and len(answer) == 1 and isinstance(answer[0], str)
    return answer in spec.labels
