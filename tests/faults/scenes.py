"""What is run and killed: a fit of toys as a run drives it, the command line, and scripts."""

import os
import resource
import runpy
import signal
import sys
from pathlib import Path
from typing import Any


def preload() -> None:
    """Import what every run imports, so that a fork of this process begins at once; no thread may be started here."""
    import torch
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    import mtcore.cli.train
    import mtcore.defaults.text2text_fit
    import mtcore.pipeline  # noqa: F401

    torch.set_num_threads(1)


def fit(folder: Path, base_folder: str, largest_file: int | None = None) -> None:
    """Fit two toys in two stages: checkpoints in `folder/work`, the bundle in `folder/bundle`. Files may be bounded, as by a full disk."""
    from mtcore.contracts import Workspace
    from mtcore.data.stages import StageStream
    from mtcore.defaults.schedulers import TwoStage
    from mtcore.defaults.text2text import Text2Text
    from mtcore.evaluation.evaluate import Exam, evaluate
    from mtcore.evaluation.metrics import METRICS
    from mtcore.modeling.load import find_base
    from mtcore.testing import toy_data
    from mtcore.testing.schedulers import box_samplers
    from mtcore.training.distributed import agree, make_accelerator
    from mtcore.types import Group, TaskProfile

    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    tasks = {task.name: task for task in (toy_data("binary", 24, 4), toy_data("multi-class", 8, 4))}
    exams = {name: Exam(task.spec, METRICS[task.spec.metric](), task.validation) for name, task in tasks.items()}
    profiles = [
        TaskProfile(
            name=name,
            spec=task.spec,
            train_rows=len(task.train),
            validation_rows=len(task.validation),
            resource="high" if task.spec.output == "multi-class" else "low",
        )
        for name, task in tasks.items()
    ]
    scheduler = TwoStage(TwoStage.Config(examples_per_step=8, learning_rate=1e-2, stage2_epochs=1.0, evaluate_epochs=0.6))
    workspace = Workspace(
        folder=folder / "work",
        bundle=folder / "bundle",
        seed=1,
        tasks=tasks,
        base=find_base(base_folder, folder),
        accelerator=make_accelerator,
        emit=_tell,
        evaluate=lambda predictor: agree(evaluate(predictor, exams)),
        work="toys",
        fingerprint="toys",
        is_main=os.environ.get("RANK", "0") == "0",
    )
    method = Text2Text(Text2Text.Config(max_length=64, batch_tokens=512))
    group = Group(name="toys", reason="toys", tasks=tuple(tasks))
    method.fit(group, StageStream(scheduler, box_samplers, profiles, seed=1, max_steps=None), workspace)


def _tell(event: Any) -> None:
    if type(event).__name__ in ("Warned", "WorkStarted"):
        print(event, flush=True)


def command(folder: Path, *arguments: str) -> None:
    """Type `mtcore ARGUMENTS` in the folder."""
    from mtcore.cli import main

    os.chdir(folder)
    sys.argv = ["mtcore", *arguments]
    main()


def script(folder: Path, path: str, *arguments: str) -> None:
    """Type `python PATH ARGUMENTS` in the folder."""
    os.chdir(folder)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


SCENES = {"fit": fit, "command": command, "script": script}
