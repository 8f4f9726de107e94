"""The checks of a task filter: every task in one group, and a reason for each."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from unittest import SkipTest

from mtcore.contracts import TaskFilter
from mtcore.testing.check import Body, Check, Failed, checks
from mtcore.testing.component import SHARED, ComponentUnderTest
from mtcore.testing.toys import OUTPUTS, toy_profiles
from mtcore.types import Group, TaskProfile

SIZES = (50, 200, 1_000, 5_000, 20_000, 100_000, 500_000)


def filter_checks(
    cls: type[TaskFilter],
    *,
    options: Mapping[str, Any] = {},
    module: str | None = "",
    expected_failures: Mapping[str, str] = {},
) -> list[Check]:
    """Every check of a filter, built with `options` as a run file gives them."""
    bodies: list[Body] = [
        every_task_once,
        any_number_of_tasks,
        names_are_folders,
        reasons_given,
        deterministic,
        order_independent,
        *SHARED,
    ]
    return checks(bodies, ComponentUnderTest(cls, options, module), cls.name, expected_failures)


def every_task_once(subject: ComponentUnderTest) -> str:
    """Every task stands in exactly one group."""
    groups = subject.build().group(_profiles())
    _require_once(groups, _profiles())
    return f"{len(_profiles())} tasks in groups: {len(groups)}"


def any_number_of_tasks(subject: ComponentUnderTest) -> str:
    """One task and a hundred are grouped as well, into no group without tasks."""
    try:
        _require_once(subject.build().group(_profiles()), _profiles())
    except Failed:
        raise SkipTest(f"groups of {len(SIZES)} tasks are wrong already") from None
    for sizes in (SIZES[:1], range(1, 101)):
        profiles = toy_profiles(sizes, outputs=OUTPUTS)
        try:
            groups = subject.build().group(profiles)
        except Exception as error:
            raise Failed(f"{len(profiles)} tasks: {type(error).__name__}: {error}", "count on no number of tasks") from error
        _require_once(groups, profiles)
        if empty := [group.name for group in groups if not group.tasks]:
            raise Failed(f"of {len(profiles)} tasks group {empty[0]!r} has none", "leave out groups without tasks")
    return "1 and 100 tasks"


def names_are_folders(subject: ComponentUnderTest) -> str:
    """Groups have names of their own that can name folders."""
    names = [group.name for group in subject.build().group(_profiles())]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Failed(f"two groups are called {twice[0]!r}", "give every group a name of its own")
    if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name)]:
        raise Failed(f"a group is called {wrong[0]!r}", "use letters, digits, '-', '_' and '.': a model's folder is called so")
    return ", ".join(names)


def reasons_given(subject: ComponentUnderTest) -> str:
    """Every group says why its tasks may share a model."""
    groups = subject.build().group(_profiles())
    if silent := [group.name for group in groups if not group.reason.strip()]:
        raise Failed(f"group {silent[0]!r} gives no reason", "write the sentence that the plan and the report will show")
    return "; ".join(group.reason for group in groups)


def deterministic(subject: ComponentUnderTest) -> str:
    """The same tasks are grouped alike each time."""
    task_filter = subject.build()
    before = list(task_filter.group(_profiles()))
    with suppress(Exception):  # any-number-of-tasks says so
        task_filter.group(_profiles()[:2])
    if list(task_filter.group(_profiles())) != before or list(subject.build().group(_profiles())) != before:
        raise Failed("asked again, it gives other groups", "keep nothing in mind, draw no random numbers")
    return "asked three times"


def order_independent(subject: ComponentUnderTest) -> str:
    """Groups do not depend on the order in which tasks are named."""
    forwards, backwards = ({(g.name, *sorted(g.tasks)) for g in subject.build().group(p)} for p in (_profiles(), _profiles()[::-1]))
    if forwards != backwards:
        raise Failed(f"{sorted(forwards)} and, named backwards, {sorted(backwards)}", "go by what tasks are, never by their positions")
    return "forwards and backwards"


def _require_once(groups: Sequence[Group], profiles: Sequence[TaskProfile]) -> None:
    members = [task for group in groups for task in group.tasks]
    for profile in profiles:
        if (count := members.count(profile.name)) != 1:
            raise Failed(f"{profile.name} stands in {count} groups", "put every task into one group; a last group can take the others")
    if strange := sorted(set(members) - {p.name for p in profiles}):
        raise Failed(f"{strange[0]} is in a group and was not asked about", "group the profiles that are passed")


def _profiles() -> list[TaskProfile]:
    return toy_profiles(SIZES, resources=("high", "low", "unknown"), outputs=OUTPUTS)
