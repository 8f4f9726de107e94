"""Real fits with mSFT: a roll back takes up the very weights that were kept, an interrupted fit ends in the same bits, and a run tells its rounds."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from mtcore_msft import Msft

from mtcore import events
from mtcore.cli.plan import plan
from mtcore.cli.train import train
from mtcore.contracts import Judged, Workspace
from mtcore.data.stages import StageStream
from mtcore.defaults import Text2Text
from mtcore.modeling.load import find_base
from mtcore.testing import toy_base, toy_data
from mtcore.testing.schedulers import box_samplers
from mtcore.types import Fitted, Group, TaskProfile

TASKS = {task.name: task for task in (toy_data("binary"), toy_data("ordinal"), toy_data("multi-class"))}
A, B, C = TASKS
OPTIONS = Msft.Config(learning_rate=3e-3, examples_per_step=8, evaluate_epochs=1 / 3, most_rounds=4)

# nine steps a round with three tasks, six with two, three with one; an evaluation after every third of a round
CURVES = {
    ("round-1", 3): (0.9, 0.5, 0.1),
    ("round-1", 6): (0.8, 0.4, 0.2),
    ("round-1", 9): (0.7, 0.6, 0.3),
    ("round-2", 2): (0.7, 0.5, 0.4),
    ("round-2", 4): (0.7, 0.8, 0.5),
    ("round-2", 6): (0.7, 0.7, 0.6),
    ("round-3", 1): (0.6, 0.7, 0.7),
    ("round-3", 2): (0.6, 0.7, 0.8),
    ("round-3", 3): (0.6, 0.7, 0.9),
    ("round-4", 1): (0.6, 0.7, 0.95),
    ("round-4", 2): (0.6, 0.7, 0.96),
    ("round-4", 3): (0.6, 0.7, 0.97),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_base(tmp_path_factory.mktemp("bases") / "toy", context=256)


class Killed(Exception):
    pass


class Run:
    """One process's fit: scores come from CURVES, weights are noted at every evaluation and at every start of a stage."""

    def __init__(self, base: Path, folder: Path, kill: Callable[[events.Event], bool] = lambda event: False) -> None:
        self.base, self.folder, self.kill = base, folder, kill
        self.place = ("", 0)
        self.predictor = None
        self.evaluated: dict[str, dict[str, object]] = {}
        self.started: dict[str, dict[str, object]] = {}

    def weights(self) -> dict[str, object]:
        assert self.predictor is not None
        return {name: value.clone() for name, value in self.predictor._model.state_dict().items()}

    def emit(self, event: events.Event) -> None:
        if isinstance(event, events.Stepped):
            self.place = (event.stage, event.step)
        if isinstance(event, events.Evaluated):
            self.evaluated[event.evaluation.checkpoint] = self.weights()
        if isinstance(event, events.StageStarted) and self.predictor is not None:
            self.started[event.stage.name] = self.weights()
        if self.kill(event):
            raise Killed

    def evaluate(self, predictor) -> Judged:
        self.predictor = predictor
        scores = CURVES[self.place]
        average = list(CURVES).index(self.place) / len(CURVES)  # the newest is the best, so that nothing but keep() saves an older one
        return Judged(dict(zip(TASKS, scores, strict=True)), {}, {}, None, average, 0, 0.0)

    def fit(self) -> Fitted:
        from mtcore.training.distributed import make_accelerator

        self.folder.mkdir(parents=True, exist_ok=True)
        profiles = [TaskProfile(name=n, spec=t.spec, train_rows=len(t.train), validation_rows=len(t.validation)) for n, t in TASKS.items()]
        workspace = Workspace(
            folder=self.folder / "work",
            bundle=self.folder / "bundle",
            seed=1,
            tasks=TASKS,
            base=find_base(str(self.base), self.base.parent),
            accelerator=make_accelerator,
            emit=self.emit,
            evaluate=self.evaluate,
            work="toys",
            fingerprint="toys",
        )
        workspace.folder.mkdir(exist_ok=True)
        stages = StageStream(Msft(OPTIONS), box_samplers, profiles, seed=1, max_steps=None)
        group = Group(name="toys", reason="toys", tasks=tuple(TASKS))
        return Text2Text(Text2Text.Config(max_length=64)).fit(group, stages, workspace)

    @property
    def final(self) -> bytes:
        return (self.folder / "bundle" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Fitted]:
    run = Run(base, tmp_path_factory.mktemp("whole"))
    return run, run.fit()


def are_equal(a: dict[str, object], b: dict[str, object]) -> bool:
    import torch

    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_rounds_are_those_that_the_scores_ask_for(whole):
    _, fitted = whole
    first, second, third, fourth = fitted.done
    assert [d.stage.name for d in fitted.done] == ["round-1", "round-2", "round-3", "round-4"]
    assert [d.stage.tasks for d in fitted.done] == [(A, B, C), (B, C), (C,), (C,)]
    assert [d.steps for d in fitted.done] == [9, 6, 3, 3]
    assert second.stage.start == first.evaluations[0].checkpoint
    assert third.stage.start == second.evaluations[1].checkpoint
    assert fourth.stage.start == "last"


def test_a_round_begins_with_the_very_weights_of_the_checkpoint_it_goes_back_to(whole):
    run, fitted = whole
    for before, after in zip(fitted.done[:2], fitted.done[1:3], strict=True):
        begun = run.started[after.stage.name]
        assert are_equal(begun, run.evaluated[after.stage.start])
        assert not are_equal(begun, run.evaluated[before.evaluations[-1].checkpoint])
    assert are_equal(run.started["round-4"], run.evaluated[fitted.done[2].evaluations[-1].checkpoint])


def test_tasks_left_out_are_not_drawn_and_still_evaluated(whole):
    _, fitted = whole
    for done in fitted.done[1:]:
        assert set(done.draws) == set(done.stage.tasks or ())
        assert all(set(e.scores) == set(TASKS) for e in done.evaluations)


def at_step(stage: str, step: int) -> Callable[[events.Event], bool]:
    return lambda event: isinstance(event, events.Stepped) and (event.stage, event.step) == (stage, step)


def at_start(stage: str) -> Callable[[events.Event], bool]:
    return lambda event: isinstance(event, events.StageStarted) and event.stage.name == stage


KILLS = {
    "before the first evaluation": at_step("round-1", 2),
    "after the point that will be gone back to": at_step("round-1", 5),
    "at the start of the round that goes back": at_start("round-2"),
    "in that round, before its first evaluation": at_step("round-2", 1),
    "in that round, between two evaluations": at_step("round-2", 3),
    "at the start of the second that goes back": at_start("round-3"),
    "in the last round": at_step("round-4", 2),
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS.keys())
def test_an_interrupted_fit_ends_in_the_same_bits(base, tmp_path, whole, kill):
    with pytest.raises(Killed):
        Run(base, tmp_path, kill).fit()
    again = Run(base, tmp_path)
    fitted = again.fit()
    run, expected = whole
    assert [d.stage for d in fitted.done] == [d.stage for d in expected.done]
    assert [d.evaluations for d in fitted.done] == [d.evaluations for d in expected.done]
    assert again.final == run.final


def test_a_fit_that_is_interrupted_after_each_of_its_checkpoints_ends_in_the_same_bits(base, tmp_path, whole):
    kills = 0
    while True:
        again = Run(base, tmp_path, lambda event: isinstance(event, events.Saved))
        try:
            again.fit()
            break
        except Killed:
            kills += 1
            assert kills <= len(CURVES) + 3
    assert kills == len(CURVES) + 3  # one an evaluation, and one at the start of every round but the first
    assert again.final == whole[0].final


# --- a whole run, with real scores ------------------------------------------------------------------------------------------------------

SPEC = """
name = "{name}"
output = "binary"
input = "single-sentence"
instruction = "Is {name} in it?"
template = "{{text}}\\nAnswer: "
words = {{ no = "no", yes = "yes" }}
metric = "accuracy"
licence = "none"
source = "made up"

[rows]
train = "{name}-train.csv"
validation = "{name}-validation.csv"
"""


def declare(folder: Path, name: str, rows: int, *, is_random: bool = False) -> None:
    """A task whose answer stands in every sign of its text, or has nothing to do with it."""
    source = random.Random(name)
    (folder / f"{name}.toml").write_text(SPEC.format(name=name), encoding="utf-8")
    for split, count in (("train", rows), ("validation", 40)):
        lines = ["text,answer"]
        for _ in range(count):
            answer = source.randrange(2)
            sign = source.randrange(2) if is_random else answer
            lines.append(f"{''.join(source.choices(('abcdefgh', 'stuvwxyz')[sign], k=12))},{('no', 'yes')[answer]}")
        (folder / f"{name}-{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_run_goes_by_its_real_scores_and_its_plan_says_what_it_cannot_know(base, tmp_path):
    (tmp_path / "tasks").mkdir()
    declare(tmp_path / "tasks", "sign", 200)
    for name in ("noise", "chance", "luck"):
        declare(tmp_path / "tasks", name, 24, is_random=True)
    table = [
        f'model = "{base}"',
        f'out = "{tmp_path / "runs"}"',
        'tasks = ["tasks/*.toml"]',
        "observers = []",
        'method = { use = "text2text", max_length = 64, decay = "constant" }',
        'scheduler = { use = "msft", learning_rate = 1e-2, examples_per_step = 8, most_rounds = 5 }',
        'reference = { use = "single-task", learning_rate = 3e-3, examples_per_step = 8, epochs = 1 }',
    ]
    (tmp_path / "toy.toml").write_text("\n".join(table) + "\n", encoding="utf-8")
    planned = CliRunner().invoke(plan, [str(tmp_path / "toy.toml"), "--json"])
    assert planned.exit_code == 0, planned.output
    told = json.loads(planned.stdout)
    assert [s["name"] for s in told["groups"][0]["stages"]] == ["round-1"]
    assert any("evaluations decide" in warning for warning in told["warnings"])

    trained = CliRunner().invoke(train, [str(tmp_path / "toy.toml")])
    assert trained.exit_code == 0, trained.output
    report = json.loads((tmp_path / "runs/toy/report.json").read_text(encoding="utf-8"))
    (group,) = report["groups"]
    rounds = group["stages"]
    assert [s["name"] for s in rounds] == [f"round-{number + 1}" for number in range(len(rounds))]
    assert set(rounds[-1]["tasks"]) < set(rounds[0]["tasks"])  # with three tasks of pure chance some score falls before the end
    assert any("goes on from ckpt-" in warning for warning in report["warnings"])
    assert all(set(e["scores"]) == set(rounds[0]["tasks"]) for s in rounds for e in s["evaluations"])
    assert {t["name"] for t in group["tasks"]} == set(rounds[0]["tasks"])
