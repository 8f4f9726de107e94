"""Customer service of a hotel platform: 17 classification tasks and a summary (paper, appendix C), from a deterministic generator."""

from mtcore.contracts import TaskAdapter
from mtcore.hookspecs import hookimpl


@hookimpl
def register_tasks() -> list[type[TaskAdapter]]:
    from mtcore_hotel.tasks import ADAPTERS

    return list(ADAPTERS)
