"""One model in memory: what may wait for it, what waits, and when it computes."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from typing import Any

from mtcore.contracts import Predictor
from mtcore.types import Prepared, Request
from mtcore_serve.batching import Queue, Waiting
from mtcore_serve.device import Device
from mtcore_serve.errors import Late, NotReady, Overloaded, TooLarge
from mtcore_serve.guarded import Guarded
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics
from mtcore_serve.pace import Pace, characters
from mtcore_serve.threads import Outcome, Thread, where
from mtcore_serve.tickets import Alike, Answers, Ticket

log = logging.getLogger(__name__)

MARGIN = 0.8
"""Share of a request's time that the expected wait may take: what is accepted shall be answered in time though estimates err."""
CHUNK = 50_000
"""Characters that are encoded in one go."""


class Engine:
    """Answers requests with one predictor, as many together as the budget allows; a batch starts as soon as the model is free.

    To be used in the event loop's thread only.
    """

    def __init__(self, predictor: Predictor, group: str, version: str, *, limits: Limits, metrics: Metrics, device: Device) -> None:
        self.group, self.version = group, version
        self.pace = Pace()
        self._limits, self._metrics, self._device = limits, metrics, device
        self._model = Guarded(predictor, group, encoders=limits.encoders, hang=limits.hang)
        self._queue: Queue[Ticket] = Queue()
        self._budget = limits.batch_tokens
        self._open: set[Ticket] = set()
        self._characters = 0
        self._computing: tuple[float, float] | None = None
        """When the batch was begun that is computed now, and how long it should take."""
        self._abandoned = 0
        """As far as it was told."""
        self._unencoded: dict[Hashable, Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._is_retiring = False
        self._is_closed = False
        device.models.append(self)
        self._spawn(self._run())

    # --- what others must know ----------------------------------------------------------------------------------------------------

    @property
    def predictor(self) -> Predictor:
        return self._model.predictor

    @property
    def abandoned(self) -> int:
        """Threads given up by the watchdog."""
        return self._model.abandoned

    @property
    def is_healthy(self) -> bool:
        """Whether it answers: not closed, and not given up by the watchdog."""
        return not self._is_closed and self.abandoned <= self._limits.abandoned

    @property
    def outstanding(self) -> int:
        """Requests accepted and not answered."""
        return len(self._open)

    @property
    def waiting_tokens(self) -> int:
        return self._queue.tokens

    @property
    def waiting_requests(self) -> int:
        return len(self._queue)

    @property
    def backlog(self) -> float:
        """Seconds that what waits and what is computed will take; a batch that is overdue, as long as it has been so."""
        begun, expected = self._computing or (time.monotonic(), 0.0)
        return self.seconds(self._queue.tokens) + abs(begun + expected - time.monotonic())

    def seconds(self, tokens: int) -> float:
        """How long the model computes so many tokens, by what was measured."""
        return tokens * self.pace.seconds_a_token

    # --- from outside -------------------------------------------------------------------------------------------------------------

    def parts(self, request: Request) -> list[Request]:
        """A request as requests for some of its tasks each, which should fit into a batch: many tasks of a long text must neither make all
        others wait nor look like a model that hangs."""
        return self.pace.parts(request, self._budget)

    def check(self, requests: Sequence[Request], timeout: float) -> None:
        """Refuse what cannot be answered in time, before any work is spent on it.

        Raises NotReady, TooLarge for what could never be taken, Overloaded with the seconds after which there should be room.
        """
        limits = self._limits
        if not self.is_healthy or self._is_retiring:
            raise _gone()
        tokens = sum(self.pace.estimate(request) for request in requests)
        if tokens > limits.queue_tokens or len(requests) > limits.queue_requests:
            raise TooLarge(
                f"about {tokens} tokens in {len(requests)} parts are asked for; {limits.queue_tokens} tokens in {limits.queue_requests} parts "
                "are taken at most: ask fewer tasks or documents at once"
            )
        if not self._open:
            return  # whatever the estimates say: only computing can correct them
        expected = self._device.expected(self, tokens)
        # so late that half of what waits is done, and not all who are refused come back for one place
        after = max(1.0, expected / 2)
        if (
            self._queue.tokens + tokens > limits.queue_tokens
            or len(self._queue) + len(requests) > limits.queue_requests
            or self._characters + sum(map(characters, requests)) > limits.queue_characters
        ):
            raise Overloaded("the queue is full; ask again later", after)
        if expected > MARGIN * timeout:
            raise Overloaded(f"the answer would take about {expected:.1f} s, and {timeout:g} s is what it may take; ask again later", after)

    def submit(self, requests: Sequence[Request], deadline: float) -> list[asyncio.Future[Answers]]:
        """Accept requests; each future comes to answers, Late, or NotReady. Deadlines are those of `time.monotonic`."""
        futures = [self._accept(request, deadline) for request in requests]
        self._feed()
        self._tell()
        return futures

    async def borrow(self, job: Callable[[], Any], seconds: float) -> Outcome:
        """Have the model's thread do something else before requests come. Raises Hung.

        Not in the model's turn: a bundle that hangs when it is tried must not stop those that are online.
        """
        return await self._model.run(job, seconds)

    def retire(self) -> None:
        """Take nothing more, and close once all that was accepted is answered."""
        self._is_retiring = True
        self._close_if_done()

    def close(self) -> None:
        """Let go of threads; what is not answered is refused. A thread that computes ends when it is done."""
        if self._is_closed:
            return
        self._is_closed = True
        for ticket in list(self._open):
            ticket.settle(_gone())
        self._device.models.remove(self)
        for task in self._tasks:
            task.cancel()
        self._model.end()
        self._tell()

    def _close_if_done(self) -> None:
        # what is computed is waited for even if nobody wants it any more: the next model must not compute beside it
        if self._is_retiring and not self._open and self._computing is None:
            self.close()

    # --- the way of a request -----------------------------------------------------------------------------------------------------

    def _accept(self, request: Request, deadline: float) -> asyncio.Future[Answers]:
        loop = asyncio.get_running_loop()
        ticket = Ticket(request, loop.create_future())
        key = (request.tasks, tuple(request.fields.items()))
        twin = self._queue.alike(key)
        if twin is None:
            one = Waiting(ticket, key, deadline, self.pace.estimate(request))
            self._unencoded[key] = request
        else:
            one = Waiting(ticket, key, deadline, twin.cost, twin.document, twin.document_cost, twin.is_ready)
            ticket.encoded = twin.item.encoded
        self._queue.add(one)
        size = characters(request)
        self._open.add(ticket)
        self._characters += size
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._expire, one)

        def leave(_: asyncio.Future[Answers]) -> None:
            timer.cancel()
            if self._queue.remove(one):
                self._tell()
            if self._queue.alike(key) is None:
                self._unencoded.pop(key, None)
            self._open.discard(ticket)
            self._characters -= size
            self._close_if_done()

        ticket.future.add_done_callback(leave)
        return ticket.future

    def _expire(self, one: Waiting[Ticket]) -> None:
        if self._queue.remove(one):  # else it is being computed, and will be answered
            one.item.settle(_late())
            self._tell()

    def _feed(self) -> None:
        """Hand what is not encoded to the encoders that have nothing to do."""
        while self._unencoded and self._model.can_encode:
            chunk: dict[Hashable, Request] = {}
            size = 0
            while self._unencoded and size < CHUNK:
                key = next(iter(self._unencoded))
                chunk[key] = self._unencoded.pop(key)
                size += characters(chunk[key]) * len(chunk[key].tasks)
            self._spawn(self._encode(self._model.take_encoder(), chunk))

    async def _encode(self, encoder: Thread, chunk: Mapping[Hashable, Request]) -> None:
        prepared = await self._model.prepare(encoder, list(chunk.values()))
        self._watch()
        for (key, request), result in zip(chunk.items(), prepared, strict=True):
            alike = self._queue.every(key)
            if isinstance(result, Prepared):
                self.pace.encoded(result)
                for one in alike:
                    one.item.encoded = result
                self._queue.encoded(key, result.cost, result.document, result.document_cost)
            else:
                for one in alike:
                    self._queue.remove(one)
                    one.item.settle(Answers(dict.fromkeys(request.tasks, result), 0))
        self._wake.set()
        self._tell()
        self._feed()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            # what comes while other models compute still goes into this batch
            async with self._device.turn:
                self._wake.clear()
                batch = self._queue.take(time.monotonic(), self._budget)
                for one in batch.late:
                    one.item.settle(_late())
                self._tell()
                if batch.chosen:
                    alike = [Alike([one.item for one in group], lambda: self.is_healthy) for group in batch.chosen]
                    await self._compute(alike, batch.tokens)
            self._close_if_done()
            if self._queue.has_ready:
                self._wake.set()

    async def _compute(self, batch: Sequence[Alike], tokens: int) -> None:
        begun = time.monotonic()
        self._computing = begun, self.seconds(tokens)
        is_whole = await self._model.predict(batch)
        self._watch()
        for alike in batch:
            alike.give_up(_gone())  # what was left out when the watchdog had enough
        self._computing = None
        seconds = time.monotonic() - begun
        if is_whole:
            self.pace.computed(tokens, seconds, self._limits.batch_tokens)
        if self._model.ran_out and len(batch) > 1:
            self._budget = max(1, self._budget // 2)
            log.error("%s: memory ran out; batches are of %d tokens from now on", self.group, self._budget)
        self._metrics.batch(self.group, sum(len(alike.tickets) for alike in batch), tokens, seconds)

    def _watch(self) -> None:
        """Tell of threads that were given up, and refuse what waits once they are too many."""
        if self.abandoned == self._abandoned:
            return
        self._metrics.abandoned(self.group, self.abandoned - self._abandoned)
        self._abandoned = self.abandoned
        if not self.is_healthy:
            log.critical("%s: %d threads hang; nothing more is taken until this process is replaced", self.group, self.abandoned)
            for one in self._queue:
                one.item.settle(_gone())

    def _tell(self) -> None:
        self._metrics.queue(self.group, *self._device.waiting(self.group))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s: the engine itself failed, nothing more is taken: %s", self.group, where(error))
            self.close()


def _gone() -> NotReady:
    return NotReady("the model is being replaced; ask again")


def _late() -> Late:
    return Late("the deadline passed before the model came to this request; ask again later")
