"""What ships in the box, registered through the same hooks as everyone else's."""

from mtcore.contracts import Launcher, Method, Observer, Sampler, StageScheduler, TaskFilter
from mtcore.defaults.few_shot import FewShot
from mtcore.defaults.filters import ClassCount, InputKind, NoFilter, OutputKind, OutputScale
from mtcore.defaults.launchers import InTurn, Processes
from mtcore.defaults.observers import EventLog, Progress
from mtcore.defaults.samplers import ClassBalanced, InstanceBalanced, Temperature
from mtcore.defaults.schedulers import MixtureStage, SingleTask, TwoStage
from mtcore.defaults.text2text import Text2Text
from mtcore.defaults.trackers import Trackers
from mtcore.hookspecs import hookimpl


@hookimpl
def register_filters() -> list[type[TaskFilter]]:
    return [OutputKind, InputKind, ClassCount, OutputScale, NoFilter]


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [InstanceBalanced, ClassBalanced, Temperature]


@hookimpl
def register_schedulers() -> list[type[StageScheduler]]:
    return [TwoStage, MixtureStage, SingleTask]


@hookimpl
def register_methods() -> list[type[Method]]:
    return [Text2Text, FewShot]


@hookimpl
def register_launchers() -> list[type[Launcher]]:
    return [InTurn, Processes]


@hookimpl
def register_observers() -> list[type[Observer]]:
    return [Progress, EventLog, Trackers]
