"""A method under test: what it is fitted on, and the bundle that it leaves after a few steps on toys."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest

from mtcore.contracts import Predictor, Workspace
from mtcore.data.stages import StageStream
from mtcore.defaults.schedulers import MixtureStage
from mtcore.evaluation.evaluate import Exam, evaluate
from mtcore.evaluation.metrics import METRICS
from mtcore.modeling.load import find_base
from mtcore.testing.component import ComponentUnderTest
from mtcore.testing.schedulers import box_samplers
from mtcore.testing.toys import OUTPUTS, toy_base, toy_data
from mtcore.types import Base, Fitted, Group, OutputKind, Request, SamplerUse, TaskData, TaskProfile

STEPS = 4
CONTEXT = 512
"""Tokens; long enough for a prompt with a few examples."""
ASKED = 3
"""Rows of each task that predictors are asked."""


@dataclass(frozen=True)
class MethodUnderTest(ComponentUnderTest):
    """A method, and the bundle that it leaves after a few steps on toys."""

    outputs: Sequence[OutputKind] = OUTPUTS

    @cached_property
    def tasks(self) -> dict[str, TaskData]:
        return {task.name: task for task in map(toy_data, self.outputs)}

    @cached_property
    def _folder(self) -> "TemporaryDirectory[str]":
        return TemporaryDirectory()

    @cached_property
    def base(self) -> Base:
        folder = toy_base(Path(self._folder.name) / "base", context=CONTEXT)
        return find_base(str(folder), folder.parent)

    @property
    def bundle(self) -> Path:
        return Path(self._folder.name) / "bundle"

    @cached_property
    def fitted(self) -> Fitted | Exception:
        from mtcore.training.distributed import make_accelerator

        exams = {name: Exam(task.spec, METRICS[task.spec.metric](), task.validation) for name, task in self.tasks.items()}
        profiles = [
            TaskProfile(name=n, spec=t.spec, train_rows=len(t.train), validation_rows=len(t.validation)) for n, t in self.tasks.items()
        ]
        scheduler = MixtureStage(
            MixtureStage.Config(sampler=SamplerUse(use="class-balanced"), epochs=1.0, examples_per_step=8, learning_rate=1e-3)
        )
        workspace = Workspace(
            folder=Path(self._folder.name) / "work",
            bundle=self.bundle,
            seed=1,
            tasks=self.tasks,
            base=self.base,
            accelerator=make_accelerator,
            emit=lambda event: None,
            evaluate=lambda predictor: evaluate(predictor, exams),
            work="toys",
            fingerprint="toys",
        )
        workspace.folder.mkdir()
        group = Group(name="toys", reason="toys", tasks=tuple(self.tasks))
        stages = StageStream(scheduler, box_samplers, profiles, seed=1, max_steps=STEPS)
        try:
            fitted: Fitted = self.build().fit(group, stages, workspace)
        except Exception as error:
            return error
        return fitted

    @cached_property
    def predictor(self) -> Predictor:
        """What loads from the bundle; skips the check where there is none."""
        if isinstance(self.fitted, Exception):
            raise SkipTest("there is no bundle to ask: see leaves-a-bundle")
        try:
            return self.load()
        except Exception:
            raise SkipTest("the bundle does not load: see leaves-a-bundle") from None

    def load(self) -> Predictor:
        predictor: Predictor = self.build().load(self.bundle, {})
        return predictor

    @property
    def requests(self) -> list[Request]:
        """Rows of every task, the tasks in turn."""
        return [Request(task.validation[turn].fields, (name,)) for turn in range(ASKED) for name, task in self.tasks.items()]
