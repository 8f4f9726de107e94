"""A predictor behind a watchdog: what it cannot encode or answer fails alone, and a thread in which it hangs is given up."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from mtcore.contracts import Predictor
from mtcore.errors import ConfigError
from mtcore.evaluation.evaluate import is_out_of_memory
from mtcore.types import Prediction, Prepared, Request
from mtcore_serve.errors import Refused, Unanswerable
from mtcore_serve.threads import Hung, Outcome, Thread, where

log = logging.getLogger(__name__)

ByTask = Mapping[str, Prediction | Refused]


class Asked(Protocol):
    """A request of a batch, as whoever asked sees it."""

    @property
    def prepared(self) -> Prepared: ...

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for it."""

    def answer(self, by_task: ByTask) -> None:
        """Take the answers."""


class Guarded:
    """One predictor, one thread in which it computes, and a few in which it encodes. No two batches may be computed at once."""

    def __init__(self, predictor: Predictor, name: str, *, encoders: int, hang: float) -> None:
        self.predictor = predictor
        self._name, self._hang = name, hang
        self._model = Thread(f"model of {name}")
        self._encoders = [Thread(f"encoder of {name}") for _ in range(encoders)]
        self._idle = list(self._encoders)
        self.abandoned = 0
        """Threads given up so far."""
        self.ran_out = False
        """Whether memory ran out in the last batch."""

    @property
    def can_encode(self) -> bool:
        """Whether an encoder has nothing to do."""
        return bool(self._idle)

    def take_encoder(self) -> Thread:
        """An encoder that has nothing to do, to be handed to `prepare`."""
        return self._idle.pop()

    async def run(self, job: Callable[[], Any], seconds: float) -> Outcome:
        """Do something else in the model's thread, before requests come. Raises Hung."""
        return await self._model.run(job, seconds)

    async def prepare(self, encoder: Thread, requests: Sequence[Request]) -> list[Prepared | Refused]:
        """Encode requests; each by itself, so that one that cannot be encoded fails alone."""
        try:
            found: list[Prepared | Refused] = (await encoder.run(partial(_prepare, self.predictor, requests), self._hang)).value
        except Hung:
            self._encoders.remove(encoder)
            encoder = Thread(f"encoder of {self._name}")
            self._encoders.append(encoder)
            self.abandoned += 1
            found = [Unanswerable("the request could not be encoded in time")] * len(requests)
        self._idle.append(encoder)
        return found

    async def predict(self, asked: Sequence[Asked]) -> bool:
        """Answer requests together and, where that fails, in ever smaller parts. Whether all went well at once."""
        self.ran_out = False
        return await self._predict(asked)

    def end(self) -> None:
        """Let the threads end once they are done."""
        for thread in (self._model, *self._encoders):
            thread.end()

    async def _predict(self, asked: Sequence[Asked]) -> bool:
        asked = [one for one in asked if one.is_wanted]
        if not asked:
            return False
        prepared = [one.prepared for one in asked]
        try:
            outcome = await self._model.run(partial(self.predictor.predict, prepared), self._hang)
        except Hung:
            log.error("%s: a batch of %d was given up after %g s", self._name, len(asked), self._hang)
            self._replace_model()
            if len(asked) == 1:
                _fail(asked[0], _hung())
            else:
                for one in asked:
                    await self._predict([one])
            return False
        if outcome.error is None and _fits(outcome.value, prepared):
            for one, found in zip(asked, outcome.value, strict=True):
                one.answer({task: _checked(found.get(task)) for task in one.prepared.request.tasks})
            return True
        error = outcome.error or TypeError("not one mapping for each request")
        log.error("%s: a batch of %d failed: %s", self._name, len(asked), where(error))
        if isinstance(error, MemoryError) or (isinstance(error, Exception) and is_out_of_memory(error)):
            self.ran_out = True
        del outcome, error  # its traceback holds the tensors of the pass
        half = (len(asked) + 1) // 2
        if len(asked) > 1:
            await self._predict(asked[:half])
            await self._predict(asked[half:])
        else:
            await self._predict_each(asked[0])
        return False

    async def _predict_each(self, asked: Asked) -> None:
        """Answer the tasks of one request one by one, so that only the task that cannot be answered is not."""
        request, error = asked.prepared.request, Unanswerable("the model failed on this request")
        if len(request.tasks) == 1:
            _fail(asked, error)
            return
        try:
            found = (await self._model.run(partial(_each, self.predictor, request), self._hang)).value
        except Hung:
            self._replace_model()
            _fail(asked, _hung())
            return
        asked.answer({task: error if found[task] is None else _checked(found[task]) for task in request.tasks})

    def _replace_model(self) -> None:
        self._model = Thread(f"model of {self._name}")
        self.abandoned += 1


def _prepare(predictor: Predictor, requests: Sequence[Request]) -> list[Prepared | Refused]:
    results: list[Prepared | Refused] = []
    for request in requests:
        try:
            results.append(predictor.prepare(request))
        except ConfigError:
            results.append(Unanswerable("a field is missing, empty, too long, or holds signs that are no text"))
        except BaseException as error:  # a panic of the tokenizer is no Exception
            log.error("a request could not be encoded: %s", where(error))
            results.append(Unanswerable("the request could not be encoded"))
    return results


def _each(predictor: Predictor, request: Request) -> dict[str, object]:
    """The answer of every task alone; None where the model raises."""
    found: dict[str, object] = {}
    for task in request.tasks:
        try:
            found[task] = predictor.predict([predictor.prepare(Request(request.fields, (task,)))])[0].get(task)
        except BaseException as error:
            log.error("task %s failed: %s", task, where(error))
            found[task] = None
    return found


def _fits(found: object, prepared: Sequence[Prepared]) -> bool:
    return isinstance(found, list) and len(found) == len(prepared) and all(isinstance(answers, Mapping) for answers in found)


def _checked(found: object) -> Prediction | Refused:
    """A prediction, or why there is none. A reason of the model's may quote the text, so it is not passed on."""
    if not isinstance(found, Prediction):
        return Unanswerable("the model has no answer to this task")
    numbers: list[object] = list((found.probabilities or {}).values())
    if isinstance(found.answer, float):
        numbers.append(found.answer)
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):  # JSON has no others
        return Unanswerable("the model's numbers are none")
    return found


def _fail(asked: Asked, error: Refused) -> None:
    asked.answer(dict.fromkeys(asked.prepared.request.tasks, error))


def _hung() -> Unanswerable:
    return Unanswerable("the model did not come to an end on this request")
