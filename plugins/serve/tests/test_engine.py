"""The engine answers what it accepted, refuses what it cannot answer in time, and lets no request fail another."""

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import pytest
from mtcore_serve.device import Device
from mtcore_serve.engine import Engine
from mtcore_serve.errors import Late, NotReady, Overloaded, Refused, TooLarge, Unanswerable
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics
from mtcore_serve.pace import Pace, Shape
from mtcore_serve.tickets import Answers

from mtcore.contracts import Predictor
from mtcore.errors import ConfigError
from mtcore.testing.toys import toy_spec
from mtcore.types import Prediction, Prepared, Request, TaskError, TaskSpec

LIMITS = Limits(batch_tokens=100, queue_tokens=300, queue_requests=20, deadline=5.0, hang=0.05, encoders=1)


class Toy(Predictor):
    """Costs as many tokens as there are signs, and does what a text says."""

    def __init__(self, gate: threading.Event | None = None, together: set[str] | None = None) -> None:
        self.gate = gate
        """What "wait" waits for."""
        self.prepared: list[str] = []
        self.batches: list[list[str]] = []
        self.together = together if together is not None else set()
        self.most_together = 0

    @property
    def tasks(self) -> Mapping[str, TaskSpec]:
        return {"t/a": toy_spec("binary"), "t/b": toy_spec("binary")}

    def prepare(self, request: Request) -> Prepared:
        text = request.fields["text"]
        self.prepared.append(text)
        if "unreadable" in text:
            raise ConfigError(f"cannot read {text}")
        name = text.split("|")[0] if "|" in text else ""
        return Prepared(request, max(1, len(text)), {}, text, document=name, document_cost=len(name))

    def predict(self, prepared: Sequence[Prepared]) -> list[dict[str, Prediction | TaskError]]:
        texts = [p.payload for p in prepared]
        self.batches.append(texts)
        self.together.add(str(id(self)))
        self.most_together = max(self.most_together, len(self.together))
        try:
            if any("wait" in text for text in texts) and self.gate is not None:
                self.gate.wait(10)
            if any("poison" in text for text in texts):
                raise ValueError(f"cannot stomach {texts}")
            if any("lost" in text for text in texts):
                return []
            if any("bad b" in text and "t/b" in p.request.tasks for text, p in zip(texts, prepared, strict=True)):
                raise ValueError(f"cannot stomach {texts}")
            if sum(map(len, texts)) > 50 and "big" in texts[0]:
                raise MemoryError
            return [{task: self._answer(task, text) for task in p.request.tasks} for p, text in zip(prepared, texts, strict=True)]
        finally:
            self.together.discard(str(id(self)))

    def _answer(self, task: str, text: str) -> Prediction | TaskError:
        if "no answer" in text:
            return TaskError(task, f"will not speak of {text}")
        numbers: dict[str, Any] = {"nan": math.nan, "null": None}
        return Prediction(task, math.inf if text == "infinite" else text, {"0": numbers.get(text, 1.0)})


def run(story: Callable[[Engine], Coroutine[Any, Any, None]], toy: Toy, limits: Limits = LIMITS, metrics: Metrics | None = None) -> None:
    """Tell a story of one engine."""

    async def told() -> None:
        engine = Engine(toy, "toys", "v1", limits=limits, metrics=metrics or Metrics(), device=Device(limits.batch_tokens))
        try:
            await story(engine)
        finally:
            engine.close()
            if toy.gate:
                toy.gate.set()

    asyncio.run(told())


def request(text: str, *tasks: str) -> Request:
    return Request({"text": text}, tasks or ("t/a",))


def ask(engine: Engine, *texts: str, timeout: float = 5.0) -> list[asyncio.Future[Answers]]:
    """Check and submit."""
    requests = [request(text) for text in texts]
    engine.check(requests, timeout)
    return engine.submit(requests, asyncio.get_running_loop().time() + timeout)


async def until(claim: Callable[[], bool]) -> None:
    """Let other things happen until it holds."""
    async with asyncio.timeout(5):
        while not claim():
            await asyncio.sleep(0.001)


def said(answers: Answers, task: str = "t/a") -> object:
    """The answer, or the class of the refusal."""
    answer = answers.by_task[task]
    return type(answer) if isinstance(answer, Refused) else answer.answer


def test_a_request_that_raises_fails_alone_and_nothing_it_said_is_repeated(caplog):
    toy = Toy()

    async def story(engine: Engine) -> None:
        texts = ["one", "poison", "two", "no answer", "nan", "null", "infinite", "unreadable", "lost", "three"]
        found = await asyncio.gather(*ask(engine, *texts))
        assert [said(answers) for answers in found] == ["one", Unanswerable, "two", *[Unanswerable] * 6, "three"]
        errors = [str(answers.by_task["t/a"]) for answers in found if isinstance(answers.by_task["t/a"], Refused)]
        assert not any(text in error for text in ("poison", "nan", "unreadable") for error in errors)
        assert engine.is_healthy

    with caplog.at_level(logging.DEBUG):
        run(story, toy)
    assert "ValueError at " in caplog.text
    assert "poison" not in caplog.text


def test_one_task_of_a_request_that_raises_fails_alone():
    async def story(engine: Engine) -> None:
        (found,) = await asyncio.gather(*engine.submit([request("bad b", "t/a", "t/b")], math.inf))
        assert (said(found, "t/a"), said(found, "t/b")) == ("bad b", Unanswerable)

    run(story, Toy())


def test_a_request_that_hangs_is_given_up_and_its_mates_are_answered():
    async def story(engine: Engine) -> None:
        found = await asyncio.gather(*ask(engine, "one", "wait", "two"))
        assert [said(answers) for answers in found] == ["one", Unanswerable, "two"]
        assert engine.abandoned == 2  # with its mates, and alone
        assert engine.is_healthy
        assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith(("model", "encoder")))

    run(story, Toy(threading.Event()))


def test_an_engine_whose_threads_keep_hanging_refuses_what_waits_and_what_comes():
    async def story(engine: Engine) -> None:
        hanging = ask(engine, "wait")
        await until(lambda: bool(toy.batches))
        waiting = ask(engine, "one", "two")
        assert said((await asyncio.gather(*hanging))[0]) is Unanswerable
        assert not engine.is_healthy
        assert all(isinstance(error, NotReady) for error in await asyncio.gather(*waiting, return_exceptions=True))
        with pytest.raises(NotReady):
            ask(engine, "three")

    run(story, toy := Toy(threading.Event()), LIMITS.model_copy(update={"abandoned": 0}))


def test_while_the_model_computes_the_next_batch_gathers():
    async def story(engine: Engine) -> None:
        first = ask(engine, "wait")
        await until(lambda: bool(toy.batches))
        later = ask(engine, "one", "two", "two") + ask(engine, "three")
        await until(lambda: len(toy.prepared) == 4)
        toy.gate.set()
        await asyncio.gather(*first, *later)
        assert toy.batches == [["wait"], ["one", "two", "three"]]
        assert toy.prepared.count("two") == 1  # asked twice, encoded and computed once

    run(story, toy := Toy(threading.Event()), LIMITS.model_copy(update={"hang": 5.0}))


def test_what_is_withdrawn_late_or_refused_is_never_computed():
    async def story(engine: Engine) -> None:
        first = ask(engine, "wait")
        await until(lambda: bool(toy.batches))
        gone, late, stays = ask(engine, "gone") + ask(engine, "late", timeout=0.2) + ask(engine, "stays")
        engine.pace.seconds_a_token = 0.01
        with pytest.raises(TooLarge):
            ask(engine, "x" * 301)
        with pytest.raises(TooLarge):
            ask(engine, *["x"] * 21)
        with pytest.raises(Overloaded, match="the queue is full") as full:
            ask(engine, "x" * 290)
        with pytest.raises(Overloaded, match="the answer would take about") as slow:
            ask(engine, "x" * 100, timeout=1.0)
        assert full.value.retry_after > slow.value.retry_after >= 1.0
        gone.cancel()
        with pytest.raises(Late):
            await late
        assert 'mtcore_queue_requests{group="toys"} 1.0' in metrics.render()[0].decode()
        toy.gate.set()
        await asyncio.gather(*first, stays)
        assert toy.batches == [["wait"], ["stays"]]
        assert not any("x" in text for text in toy.prepared)
        assert engine.outstanding == 0

    run(story, toy := Toy(threading.Event()), LIMITS.model_copy(update={"hang": 5.0}), metrics := Metrics())


def test_while_a_batch_is_overdue_nobody_is_left_waiting_who_is_in_more_of_a_hurry():
    async def story(engine: Engine) -> None:
        first = ask(engine, "wait")
        await until(lambda: bool(toy.batches))
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded):
            ask(engine, "one", timeout=0.02)
        toy.gate.set()
        await asyncio.gather(*first)

    run(story, toy := Toy(threading.Event()), LIMITS.model_copy(update={"hang": 5.0}))


def test_an_idle_engine_takes_what_it_expects_to_be_slow_and_learns_better():
    async def story(engine: Engine) -> None:
        engine.pace.seconds_a_token = 10.0
        await asyncio.gather(*ask(engine, "x" * 90))
        assert engine.pace.seconds_a_token < 10.0

    run(story, Toy())


def test_one_who_leaves_while_a_request_is_encoded_does_no_harm():
    async def story(engine: Engine) -> None:
        for text in ("unreadable", "one"):
            (leaving,) = ask(engine, text)
            leaving.cancel()
            await until(lambda text=text: text in toy.prepared)
        assert said((await asyncio.gather(*ask(engine, "two")))[0]) == "two"
        assert toy.batches == [["two"]]
        assert engine.is_healthy

    run(story, toy := Toy())


def test_many_tasks_of_a_long_text_are_asked_in_parts_that_fit():
    async def story(engine: Engine) -> None:
        short, long = request("x" * 40, "t/a", "t/b"), request("x" * 80, "t/a", "t/b")
        assert [part.tasks for part in engine.parts(short)] == [("t/a", "t/b")]
        assert [part.tasks for part in engine.parts(long)] == [("t/a",), ("t/b",)]
        engine.pace.shares = True
        assert [part.tasks for part in engine.parts(long)] == [("t/a", "t/b")]

    run(story, Toy())


def test_parts_keep_to_the_budget_and_however_many_they_are_the_text_is_measured_once():
    class Measured(dict[str, str]):
        times = 0

        def values(self) -> Any:
            self.times += 1
            return super().values()

    fields = Measured(text="x" * 30)
    tasks = tuple(f"t/{number}" for number in range(200))
    for shares, sizes in ((False, [3] * 66 + [2]), (True, [17] * 11 + [13])):
        pace = Pace({task: Shape(5 if shares else 3, 35) for task in tasks}, shares)
        fields.times = 0
        parts = pace.parts(Request(fields, tasks), 116)
        assert fields.times == 1
        assert [len(part.tasks) for part in parts] == sizes
        assert tuple(task for part in parts for task in part.tasks) == tasks
        assert max(map(pace.estimate, parts)) <= 116


def test_when_memory_runs_out_the_batch_is_halved_and_so_are_later_ones():
    async def story(engine: Engine) -> None:
        texts = [f"big {number} {'x' * 14}" for number in range(10)]
        found = await asyncio.gather(*ask(engine, *texts))
        assert [said(answers) for answers in found] == texts
        assert max(sum(map(len, batch)) for batch in toy.batches[-2:]) <= 50

    run(story, toy := Toy())


def test_requests_that_share_a_document_go_together():
    async def story(engine: Engine) -> None:
        first = ask(engine, "wait")
        await until(lambda: bool(toy.batches))
        document, other = "d" * 60, "e" * 60
        later = ask(engine, f"{document}|1", f"{other}|1", f"{document}|2")
        await until(lambda: len(toy.prepared) == 4)
        toy.gate.set()
        await asyncio.gather(*first, *later)
        assert toy.batches[1:] == [[f"{document}|1", f"{document}|2"], [f"{other}|1"]]

    run(story, toy := Toy(threading.Event()), LIMITS.model_copy(update={"hang": 5.0}))


def test_models_of_one_process_take_turns():
    async def story() -> None:
        device, together = Device(100), set()
        engines = [Engine(Toy(together=together), name, "v", limits=LIMITS, metrics=Metrics(), device=device) for name in "ab"]
        await asyncio.gather(*(f for n in range(20) for e in engines for f in e.submit([request(f"{'x' * 60}{n}")], math.inf)))
        assert [engine.predictor.most_together for engine in engines] == [1, 1]
        engines[0].pace.seconds_a_token = engines[1].pace.seconds_a_token = 0.01
        waits = [f for e in engines for f in e.submit([request("y" * 99)], math.inf)]
        assert device.expected(engines[0], 1) == pytest.approx(2 * 0.99, rel=0.3)  # the other is let in once between its own two
        await asyncio.gather(*waits)
        for engine in engines:
            engine.close()

    asyncio.run(story())


def test_an_engine_that_retires_while_it_computes_what_nobody_wants_keeps_its_turn():
    async def story() -> None:
        device, limits, gate = Device(100), LIMITS.model_copy(update={"hang": 5.0}), threading.Event()
        old, new = (Engine(Toy(gate), "a", name, limits=limits, metrics=Metrics(), device=device) for name in ("old", "new"))
        (leaving,) = ask(old, "wait")
        await until(lambda: bool(old.predictor.batches))
        leaving.cancel()
        await until(lambda: not old.outstanding)
        old.retire()
        (staying,) = ask(new, "one")
        await until(lambda: bool(new.predictor.prepared))
        await asyncio.sleep(0.01)
        assert not new.predictor.batches
        gate.set()
        await staying
        assert device.models == [new]  # the old one is gone
        new.close()

    asyncio.run(story())


def test_an_engine_that_is_closed_leaves_nobody_waiting():
    async def story(engine: Engine) -> None:
        waits = ask(engine, "wait")
        await until(lambda: bool(toy.batches))
        waits += ask(engine, "one")
        engine.close()
        assert all(isinstance(error, NotReady) for error in await asyncio.gather(*waits, return_exceptions=True))

    run(story, toy := Toy(threading.Event()))
