"""The fleet: each answer from exactly one version, no request lost when versions change, and a bad bundle changes nothing."""

import asyncio
import gc
import json
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from mtcore_serve.engine import Engine
from mtcore_serve.errors import Conflict, Late, NotReady, UnknownTask
from mtcore_serve.fleet import Ask, Fleet, Source
from mtcore_serve.groups import Group, Live
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics

from mtcore.bundle import BundledTask, BundleManifest, write_bundle
from mtcore.contracts import Method, Options, Predictor
from mtcore.defaults.few_shot import FewShot
from mtcore.defaults.text2text import Text2Text
from mtcore.errors import ConfigError, ModelError, UnknownName
from mtcore.opening import open_bundle
from mtcore.probes import write_probes
from mtcore.registry import Entry, Plugin, Registry
from mtcore.testing import toy_base
from mtcore.testing.toys import toy_spec
from mtcore.types import Prediction, Prepared, Request, TaskSpec

LIMITS = Limits(batch_tokens=64, queue_tokens=10_000, queue_requests=500, deadline=5.0, hang=2.0)
LOADED: "weakref.WeakSet[Says]" = weakref.WeakSet()


class Says(Predictor):
    """Says one label to everything."""

    def __init__(self, tasks: Sequence[str], label: str) -> None:
        self._tasks = {name: toy_spec("binary") for name in tasks}
        self._label = label
        LOADED.add(self)

    @property
    def tasks(self) -> Mapping[str, TaskSpec]:
        return self._tasks

    def prepare(self, request: Request) -> Prepared:
        flags = ("truncated",) if "long" in request.fields["text"] else ()
        return Prepared(request, 4 * len(request.tasks), dict.fromkeys(request.tasks, flags), None)

    def predict(self, prepared: Sequence[Prepared]) -> list[dict[str, Prediction]]:
        return [{name: self._answer(name, p.flags[name]) for name in p.request.tasks} for p in prepared]

    def _answer(self, name: str, flags: tuple[str, ...]) -> Prediction:
        return Prediction(name, self._label, {label: float(label == self._label) for label in ("0", "1")}, flags)


class Saying(Method):
    """Bundles of `Says`."""

    name = "saying"

    class Config(Options):
        label: str
        then: str = ""
        """What it says once it is published."""

    config: Config

    def fit(self, group, stages, workspace, update=None):
        raise NotImplementedError

    def load(self, bundle: Path, renders: Mapping[str, Any]) -> Predictor:
        tasks = json.loads((bundle / "tasks.json").read_text())
        return Says(tasks, self.config.then if (bundle / "probes.json").is_file() and self.config.then else self.config.label)


class Watched(FewShot):
    """Few-shot bundles whose weights are seen to go."""

    name = "watched"
    weights: "weakref.WeakSet[Any]" = weakref.WeakSet()

    def load(self, bundle: Path, renders: Mapping[str, Any]) -> Predictor:
        predictor = super().load(bundle, renders)
        self.weights.update(predictor._model.parameters())
        return predictor


PLUGIN = Plugin("ours", "ours", "1", "loaded")
REGISTRY = Registry([PLUGIN], [Entry("method", cls.name, cls, PLUGIN) for cls in (Saying, Watched, Text2Text)])


def bundle(folder: Path, label: str = "0", tasks: Sequence[str] = ("t/a", "t/b"), then: str = "") -> Path:
    """Publish one; `then`: it will say something else from then on."""
    manifest = BundleManifest(
        method="saying",
        options={"label": label, "then": then},
        tasks={name: BundledTask(spec=toy_spec("binary")) for name in tasks},
        base="toy",
        base_digest="",
    )
    write_bundle(folder, manifest, lambda where: (where / "tasks.json").write_text(json.dumps(tasks)))
    write_probes(folder, open_bundle(folder, REGISTRY).predictor)
    return folder


def run(story: Callable[[Fleet, Metrics], Coroutine[Any, Any, None]]) -> None:
    """Tell a story of a fleet."""

    async def told() -> None:
        metrics = Metrics()
        fleet = Fleet(REGISTRY, LIMITS, metrics)
        try:
            await story(fleet, metrics)
        finally:
            await fleet.close()

    asyncio.run(told())


async def ask(fleet: Fleet, *tasks: str, text: str = "it") -> tuple[set[object], set[str]]:
    """The labels and the versions of the answer to one document."""
    (answered,) = await fleet.answer([Ask({"text": text}, tasks or ("t/a", "t/b"))])
    return {answer.answer for answer in answered.answers.values()}, set(answered.versions.values())


def lines(metrics: Metrics, start: str) -> list[str]:
    return [line for line in metrics.render()[0].decode().splitlines() if line.startswith(start)]


def test_every_task_is_answered_by_the_bundle_that_has_it(tmp_path):
    async def story(fleet: Fleet, metrics: Metrics) -> None:
        assert not fleet.is_ready
        with pytest.raises(NotReady):
            await ask(fleet, "t/a")
        one, two = bundle(tmp_path / "one"), bundle(tmp_path / "two", "1", ["t/c"])
        await fleet.load([Source("one", one, {"t/a": True}), Source("two", two)])
        assert fleet.is_ready
        assert [(n, o.group, o.is_qualified) for n, o in fleet.tasks.items()] == [
            ("t/a", "one", True),
            ("t/b", "one", None),
            ("t/c", "two", None),
        ]
        first, second = await fleet.answer([Ask({"text": "long"}, ("t/c", "t/a")), Ask({"text": "it"}, ("t/b",))])
        assert {name: answer.answer for name, answer in first.answers.items()} == {"t/c": "1", "t/a": "0"}
        assert first.versions == {name: fleet.tasks[name].version for name in ("t/c", "t/a")}
        assert (first.tokens, second.tokens) == (8, 4)
        with pytest.raises(UnknownTask) as error:
            await fleet.answer([Ask({"text": "it"}, ("t/a", "t/secret"))])
        assert "secret" not in str(error.value)
        assert lines(metrics, "mtcore_truncated_total") == [
            'mtcore_truncated_total{task="t/c"} 1.0',
            'mtcore_truncated_total{task="t/a"} 1.0',
        ]
        assert lines(metrics, "mtcore_refused_total{")[-1:] == ['mtcore_refused_total{code="unknown_task"} 1.0']
        assert json.loads(json.dumps(fleet.status()))["groups"]["two"]["online"]["tasks"] == ["t/c"]

    run(story)


def test_bundles_that_cannot_go_online_together_are_refused_and_leave_what_was(tmp_path):
    async def story(fleet: Fleet, _: Metrics) -> None:
        good = bundle(tmp_path / "good")
        await fleet.load([Source("good", good)])
        before = len(LOADED)
        with pytest.raises(ModelError, match="both answer t/b"):
            await fleet.load(
                [Source("fine", bundle(tmp_path / "fine", tasks=["t/c"])), Source("same", bundle(tmp_path / "same", tasks=["t/b"]))]
            )
        with pytest.raises(ConfigError, match="good"):
            await fleet.load([Source("good", bundle(tmp_path / "other", tasks=["t/d"]))])
        assert list(fleet.tasks) == ["t/a", "t/b"]
        await asyncio.sleep(0.01)
        assert len(LOADED) == before
        assert await ask(fleet) == ({"0"}, {fleet.tasks["t/a"].version})

    run(story)


@pytest.mark.parametrize(
    ("fault", "words"),
    {
        "a changed file": r"tasks\.json missing or changed",
        "other answers": "answers 6 of its 6 probes otherwise",
        "a task less": "does not answer t/b",
        "a task too many": "both answer t/c",
        "no bundle": "is no bundle",
    }.items(),
)
def test_a_bad_successor_leaves_the_old_one_serving(tmp_path, fault, words):
    async def story(fleet: Fleet, _: Metrics) -> None:
        await fleet.load([Source("one", bundle(tmp_path / "one")), Source("two", bundle(tmp_path / "two", tasks=["t/c"]))])
        tasks = {"a task less": ["t/a"], "a task too many": ["t/a", "t/b", "t/c"]}.get(fault, ["t/a", "t/b"])
        new = bundle(tmp_path / "new", "1", tasks, then="0" if fault == "other answers" else "")
        if fault == "a changed file":
            (new / "tasks.json").write_text("[]")
        folder = tmp_path if fault == "no bundle" else new
        with pytest.raises(ModelError, match=words):
            await fleet.prepare(Source("one", folder))
        assert await ask(fleet) == ({"0"}, {fleet.tasks["t/a"].version})
        with pytest.raises(Conflict, match="no successor"):
            await fleet.switch("one")
        if fault == "a task less":
            await fleet.prepare(Source("one", folder), may_drop_tasks=True)
            await fleet.switch("one")
            assert list(fleet.tasks) == ["t/a", "t/c"]

    run(story)


def test_switches_under_load_lose_nothing_mix_nothing_and_leave_nothing_behind(tmp_path):
    async def story(fleet: Fleet, metrics: Metrics) -> None:
        folders = [bundle(tmp_path / label, label) for label in "01"]
        await fleet.load([Source("one", folders[0])])
        before, given, seen, is_over = len(LOADED), 0, set(), False

        async def client(number: int) -> None:
            nonlocal given
            while not is_over:
                labels, versions = await ask(fleet, text=f"{number} {given}")
                assert (len(labels), len(versions)) == (1, 1)
                seen.add((*labels, *versions))
                given += 1

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for turn in range(10):
            version = await fleet.prepare(Source("one", folders[(turn + 1) % 2]))
            assert await fleet.switch("one") == version == fleet.tasks["t/a"].version
            known = given
            while given < known + 20:
                await asyncio.sleep(0)
        is_over = True
        await asyncio.gather(*clients)
        assert {label for label, _ in seen} == {"0", "1"}
        assert len(seen) == 2
        await asyncio.sleep(0.01)
        assert len(LOADED) == before
        assert f'mtcore_online_info{{group="one",version="{version}"}} 1.0' in lines(metrics, "mtcore_online_info")

    run(story)


def test_a_second_successor_is_refused_until_the_first_is_gone(tmp_path):
    async def story(fleet: Fleet, _: Metrics) -> None:
        old, new = bundle(tmp_path / "old"), bundle(tmp_path / "new", "1")
        await fleet.load([Source("one", old)])
        first = asyncio.create_task(fleet.prepare(Source("one", new)))
        await asyncio.sleep(0)
        with pytest.raises(Conflict, match="being prepared"):
            await fleet.prepare(Source("one", new))
        version = await first
        with pytest.raises(Conflict, match=version):
            await fleet.prepare(Source("one", new))
        await fleet.discard("one")
        assert await ask(fleet) == ({"0"}, {fleet.tasks["t/a"].version})
        assert await fleet.prepare(Source("one", new)) == version
        for call in (fleet.switch, fleet.discard):
            with pytest.raises(UnknownName, match="online: one"):
                await call("two")

    run(story)


def test_two_successors_that_bring_the_same_task_do_not_both_go_online(tmp_path):
    async def story(fleet: Fleet, _: Metrics) -> None:
        await fleet.load([Source(name, bundle(tmp_path / name, tasks=[f"t/{name}"])) for name in "ab"])
        for name in "ab":
            await fleet.prepare(Source(name, bundle(tmp_path / f"next {name}", tasks=[f"t/{name}", "t/new"])))
        await fleet.switch("a")
        with pytest.raises(ModelError, match="both answer t/new"):
            await fleet.switch("b")
        assert [(task, online.group) for task, online in fleet.tasks.items()] == [("t/a", "a"), ("t/new", "a"), ("t/b", "b")]

    run(story)


def test_a_canary_answers_its_share_and_a_shadow_is_compared_unseen(tmp_path):
    async def story(fleet: Fleet, metrics: Metrics) -> None:
        await fleet.load([Source("one", bundle(tmp_path / "old"))])
        with pytest.raises(Conflict):
            fleet.share("one", canary=0.1)
        version = await fleet.prepare(Source("one", bundle(tmp_path / "new", "1", ["t/a", "t/b", "t/new"])))
        with pytest.raises(ConfigError):
            fleet.share("one", canary=1.5)
        fleet.share("one", canary=0.25)
        answers = [await ask(fleet) for _ in range(12)]
        assert [labels for labels, _ in answers] == 3 * [{"0"}, {"0"}, {"0"}, {"1"}]
        assert Counter(v for _, versions in answers for v in versions)[version] == 3
        fleet.share("one", shadow=1.0)
        for number in range(1, 4):
            assert (await ask(fleet, "t/a"))[0] == {"0"}
            counted = f'mtcore_shadow_answers_total{{agrees="no",group="one"}} {number:.1f}'
            async with asyncio.timeout(5):
                while lines(metrics, "mtcore_shadow_answers_total{") != [counted]:
                    await asyncio.sleep(0.001)
        assert 'mtcore_answer_seconds_count{group="one",role="canary"} 3.0' in lines(metrics, "mtcore_answer_seconds_count")
        await fleet.switch("one")
        assert fleet.status()["groups"]["one"]["canary"] == fleet.status()["groups"]["one"]["shadow"] == 0
        assert list(fleet.tasks) == ["t/a", "t/b", "t/new"]

    run(story)


def test_a_response_is_of_one_version_even_where_the_canary_lacks_a_task_or_asks_it_in_another_form(tmp_path):
    async def story(fleet: Fleet, metrics: Metrics) -> None:
        await fleet.load([Source("one", bundle(tmp_path / "old"))])
        old = fleet.tasks["t/a"].version
        new = await fleet.prepare(Source("one", bundle(tmp_path / "new", "1", ["t/a"])), may_drop_tasks=True)
        fleet.share("one", canary=1.0, shadow=1.0)
        assert await ask(fleet, "t/a") == ({"1"}, {new})
        assert await ask(fleet, "t/a", "t/b") == ({"0"}, {old})
        answers = await fleet.answer([Ask({"text": "it"}, ("t/a",)), Ask({"text": "it"}, ("t/b",))])
        assert {version for answered in answers for version in answered.versions.values()} == {old}

    run(story)
    spec = toy_spec("binary")
    online, other = (Live("one", tmp_path, {}, cast(Engine, None), tasks) for tasks in ({"t/a": spec, "t/b": spec}, {"t/b": spec}))
    for change in ({"fields": ("title",), "template": "{title}"}, {"output": "multi-class"}):
        other.tasks = {"t/a": spec.model_copy(update=change), "t/b": spec}
        assert Group(online, other).common(("t/a", "t/b")) == ("t/b",)


def test_a_successor_that_is_given_up_while_it_is_prepared_leaves_nothing_behind(tmp_path):
    async def story(fleet: Fleet, _: Metrics) -> None:
        await fleet.load([Source("one", bundle(tmp_path / "old"))])
        threads, new = threading.active_count(), Source("one", bundle(tmp_path / "new", "1"))
        leaving = asyncio.create_task(fleet.prepare(new))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        async with asyncio.timeout(5):
            while threading.active_count() > threads:
                await asyncio.sleep(0.001)
        overtaken = asyncio.create_task(fleet.prepare(new))
        await asyncio.sleep(0)
        await fleet.close()
        with pytest.raises(Conflict, match="about to end"):
            await overtaken
        async with asyncio.timeout(5):
            while any(thread.name.endswith(" of one") for thread in threading.enumerate()):
                await asyncio.sleep(0.001)

    run(story)


def test_a_fleet_that_drains_answers_what_it_took_and_takes_nothing_more(tmp_path):
    async def story(fleet: Fleet, _: Metrics) -> None:
        await fleet.load([Source("one", bundle(tmp_path / "one"))])
        taken = [asyncio.create_task(ask(fleet, text=str(number))) for number in range(50)]
        await asyncio.sleep(0)
        assert await fleet.drain(5.0)
        assert all(task.done() and task.exception() is None for task in taken)
        assert not fleet.is_ready
        with pytest.raises(NotReady):
            await ask(fleet)

    run(story)


def test_a_client_that_leaves_and_one_that_cannot_wait_leave_nothing_behind(tmp_path):
    async def story(fleet: Fleet, _: Metrics) -> None:
        await fleet.load([Source("one", bundle(tmp_path / "one"))])
        leaving = asyncio.create_task(ask(fleet, text="leaving"))
        await asyncio.sleep(0)
        assert fleet.status()["open_requests"] == 1
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        with pytest.raises(Late):
            await fleet.answer([Ask({"text": "it"}, ("t/a",))], timeout=1e-9)
        assert fleet.status()["open_requests"] == 0
        assert await fleet.drain(1.0)

    run(story)


def test_a_real_bundle_answers_as_its_predictor_does_and_its_weights_go_with_it(tmp_path):
    from mtcore.modeling.load import find_base

    base = find_base(str(toy_base(tmp_path / "base", context=256)), tmp_path)
    spec = toy_spec("multi-class")
    folders = []
    for shot in ("room", "food"):
        manifest = BundleManifest(
            method="watched",
            options=json.loads(Watched.Config(shots=1).model_dump_json()),
            tasks={"t/a": BundledTask(spec=spec)},
            base=str(base.folder),
            base_digest=base.digest,
            settings={"shots": {"t/a": [({"text": f"the {shot} was good"}, (shot,))]}},
        )
        folders.append(write_bundle(tmp_path / shot, manifest, lambda folder: None))
        write_probes(folders[-1], open_bundle(folders[-1], REGISTRY).predictor)
    texts = [f"number {number} {'and so on ' * number}" for number in range(12)]
    expected = []
    for folder in folders:
        predictor = open_bundle(folder, REGISTRY).predictor
        expected.append([predictor.predict([predictor.prepare(Request({"text": text}, ("t/a",)))])[0]["t/a"] for text in texts])
    del predictor

    async def story(fleet: Fleet, _: Metrics) -> None:
        await fleet.load([Source("one", folders[0])])
        sizes = [len(Watched.weights)]
        for wanted, following in zip(expected, [folders[1], folders[0]], strict=True):
            found = await fleet.answer([Ask({"text": text}, ("t/a",)) for text in texts])
            for answered, want in zip(found, wanted, strict=True):
                answer = answered.answers["t/a"]
                assert (answer.answer, answer.flags) == (want.answer, want.flags)
                assert answer.probabilities == pytest.approx(want.probabilities, abs=1e-5)
            await fleet.prepare(Source("one", following))
            await fleet.switch("one")
            await asyncio.sleep(0.05)
            sizes.append(len(Watched.weights))
        assert len({*sizes}) == 1 < sizes[0]

    gc.collect()
    gc.disable()  # what is online is frozen, so nothing may wait for the collector
    try:
        run(story)
    finally:
        gc.enable()
