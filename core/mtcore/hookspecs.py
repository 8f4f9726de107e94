"""The hooks of mtcore. A hook takes nothing and returns classes: plain data that can be looked at without a run."""

from collections.abc import Iterable

import pluggy

from mtcore.contracts import Launcher, Method, Observer, Sampler, StageScheduler, TaskAdapter, TaskFilter

PROJECT = "mtcore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_tasks() -> Iterable[type[TaskAdapter]]:  # type: ignore[empty-body]
    """Return task adapters; a task is known as `plugin/task`."""


@hookspec
def register_filters() -> Iterable[type[TaskFilter]]:  # type: ignore[empty-body]
    """Return task filters, which split tasks into groups that may share a model."""


@hookspec
def register_samplers() -> Iterable[type[Sampler]]:  # type: ignore[empty-body]
    """Return samplers, which turn task sizes into shares."""


@hookspec
def register_schedulers() -> Iterable[type[StageScheduler]]:  # type: ignore[empty-body]
    """Return stage schedulers, which say which stage comes next."""


@hookspec
def register_methods() -> Iterable[type[Method]]:  # type: ignore[empty-body]
    """Return methods, which make one model for a group of tasks."""


@hookspec
def register_launchers() -> Iterable[type[Launcher]]:  # type: ignore[empty-body]
    """Return launchers, which say where references are measured and how many at a time."""


@hookspec
def register_observers() -> Iterable[type[Observer]]:  # type: ignore[empty-body]
    """Return observers, which see what happens in a run."""
