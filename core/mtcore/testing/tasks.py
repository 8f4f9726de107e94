"""The checks of a task, in the order in which a team meets them."""

import os
from collections.abc import Mapping
from pathlib import Path

from mtcore.contracts import TaskAdapter
from mtcore.testing import modules, task_answers, task_rows, task_spec
from mtcore.testing.check import Body, Check, checks
from mtcore.testing.task import TaskUnderTest
from mtcore.types import Base


def task_checks(
    cls: type[TaskAdapter],
    *,
    data: Path | None = None,
    base: Base | None = None,
    module: str | None = "",
    expected_failures: Mapping[str, str] = {},
) -> list[Check]:
    """Every check of a task that its output kind has.

    `data` is the data folder (MTCORE_DATA where it is not given); checks that need rows are skipped where there are none. `base` is the model
    whose tokenizer is tried (a byte-level toy where it is not given). `module` is the one that registers the task (the class's own where it is
    not given, None for a task that a file declares). `expected_failures` maps the names of checks that are known to fail to
    the reasons.
    """
    environment = os.environ.get("MTCORE_DATA")
    folder = data or (Path(environment) if environment else None)
    has_words, is_closed = bool(cls.spec.words), cls.spec.output != "generation"
    bodies: list[Body] = [
        task_spec.spec_is_data,
        task_spec.metrics_exist,
        task_spec.licence_and_source,
        task_spec.prompt_is_whole,
        task_spec.odd_texts,
        *([task_spec.words_distinguishable] if is_closed else []),
        task_rows.rows_well_formed,
        task_rows.splits_disjoint,
        *([task_rows.labels_used, task_rows.labels_in_train] if has_words else []),
        task_answers.answers_round_trip,
        *([] if is_closed else [task_answers.answers_fit]),
        task_answers.every_answer_scored,
        task_answers.metric_on_gold,
        task_answers.metric_adds_up,
        task_rows.rows_repeat,
        task_rows.rows_elsewhere,
        task_rows.picklable,
        modules.import_light,
        modules.import_fast,
    ]
    return checks(bodies, TaskUnderTest(cls, folder, base, module), cls.spec.name, expected_failures)
