"""Filters: which tasks may share one model, by what they answer and by what they read."""

from collections.abc import Mapping, Sequence

from mtcore.contracts import TaskFilter
from mtcore.types import Group, TaskProfile


def grouped(profiles: Sequence[TaskProfile], names: Mapping[str, str], reasons: Mapping[str, str]) -> list[Group]:
    """Groups in the order of `reasons`; `names` maps each task to its group."""
    return [
        Group(name=name, reason=reason, tasks=tuple(p.name for p in profiles if names[p.name] == name))
        for name, reason in reasons.items()
        if name in names.values()
    ]


class OutputKind(TaskFilter):
    """Generation apart from everything that answers from a closed set (paper, section 4.1.1)."""

    name = "output-kind"

    def group(self, profiles: Sequence[TaskProfile]) -> Sequence[Group]:
        names = {p.name: "generation" if p.spec.output == "generation" else "classification" for p in profiles}
        return grouped(
            profiles,
            names,
            {
                "classification": "these tasks answer from a closed set, which free text would disturb",
                "generation": "these tasks answer in free text, which hinders tasks with a closed set and is hindered by them",
            },
        )


class InputKind(TaskFilter):
    """By what a task reads: one text, or a pair (paper, appendix D, SS); generation apart."""

    name = "input-kind"

    def group(self, profiles: Sequence[TaskProfile]) -> Sequence[Group]:
        def kind(profile: TaskProfile) -> str:
            if profile.spec.output == "generation":
                return "generation"
            return "pair" if profile.spec.input in ("sentence-pair", "passage-question") else "single"

        return grouped(
            profiles,
            {p.name: kind(p) for p in profiles},
            {
                "single": "these tasks judge one text by itself",
                "pair": "these tasks judge how two texts relate",
                "generation": "these tasks answer in free text",
            },
        )


class ClassCount(TaskFilter):
    """By how many answers there are: two, or more (paper, appendix D, BM); generation apart."""

    name = "class-count"

    def group(self, profiles: Sequence[TaskProfile]) -> Sequence[Group]:
        def count(profile: TaskProfile) -> str:
            return profile.spec.output if profile.spec.output in ("binary", "generation") else "multi-class"

        return grouped(
            profiles,
            {p.name: count(p) for p in profiles},
            {
                "binary": "these tasks choose between two answers",
                "multi-class": "these tasks choose among more than two answers",
                "generation": "these tasks answer in free text",
            },
        )


class OutputScale(TaskFilter):
    """By the scale of the answer: binary, ordinal, or multi-class with multi-label (paper, table 5); generation apart."""

    name = "output-scale"

    def group(self, profiles: Sequence[TaskProfile]) -> Sequence[Group]:
        scales = {"multi-label": "multi-class", "regression": "ordinal"}
        return grouped(
            profiles,
            {p.name: scales.get(p.spec.output, p.spec.output) for p in profiles},
            {
                "binary": "these tasks choose between two answers",
                "ordinal": "these tasks place a text on a scale",
                "multi-class": "these tasks choose one or several of many answers",
                "generation": "these tasks answer in free text",
            },
        )


class NoFilter(TaskFilter):
    """All tasks in one group."""

    name = "none"

    def group(self, profiles: Sequence[TaskProfile]) -> Sequence[Group]:
        return [Group(name="all", reason="no filter: every task shares one model", tasks=tuple(p.name for p in profiles))]
