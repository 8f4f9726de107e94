"""What servers are asked: documents that are new or shared, as arrivals of a Poisson process."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from servers.load import Arrival, Call, message

CONSUMERS, TASKS_EACH, WITHIN = 5, 2, 0.1
"""In the shared mix every conversation is asked by so many consumers, each so many tasks, within so many seconds."""

Plan = Callable[[float, float], list[Arrival]]
"""Arrivals for a rate in answers a second, over so many seconds."""


@dataclass
class Documents:
    """Texts that are handed out one after the other, so that servers meet each of them once in a long while."""

    texts: list[str]
    next: int = 0

    def take(self) -> str:
        self.next += 1
        return self.texts[self.next % len(self.texts)]


def body(text: str, tasks: Sequence[str]) -> bytes:
    return json.dumps({"documents": [text], "tasks": list(tasks)}, ensure_ascii=False).encode()


def new_documents(port: int, path: str, tasks: Sequence[str], documents: Documents) -> Plan:
    """Every request brings a document of its own and asks all tasks of it."""

    def plan(rate: float, seconds: float) -> list[Arrival]:
        return [
            Arrival(at, (Call(port, message(path, body(documents.take(), tasks))),), len(tasks))
            for at in moments(rate / len(tasks), seconds)
        ]

    return plan


def shared_documents(port: int, path: str, tasks: Sequence[str], documents: Documents) -> Plan:
    """Several consumers ask different tasks of the same conversation within a short time."""
    random = Random(7)

    def plan(rate: float, seconds: float) -> list[Arrival]:
        arrivals = []
        for at in moments(rate / (CONSUMERS * TASKS_EACH), seconds):
            text, order = documents.take(), random.sample(list(tasks), len(tasks))
            for consumer in range(CONSUMERS):
                asked = order[consumer * TASKS_EACH : (consumer + 1) * TASKS_EACH]
                call = Call(port, message(path, body(text, asked)))
                arrivals.append(Arrival(at + random.uniform(0, WITHIN), (call,), TASKS_EACH))
        return sorted(arrivals, key=lambda arrival: arrival.at)

    return plan


MIXES = {"new documents": new_documents, "shared documents": shared_documents}


def separate_servers(ports: Sequence[int], path: str, tasks: Sequence[str], documents: Documents) -> Plan:
    """Every document is asked at as many servers as tasks, at once; it is answered when the last of them has."""

    def plan(rate: float, seconds: float) -> list[Arrival]:
        arrivals = []
        for at in moments(rate / len(tasks), seconds):
            text = documents.take()
            calls = tuple(Call(port, message(path, body(text, [task]))) for port, task in zip(ports, tasks, strict=True))
            arrivals.append(Arrival(at, calls, len(tasks)))
        return arrivals

    return plan


def moments(rate: float, seconds: float) -> list[float]:
    """A Poisson process that is known to have just `rate * seconds` events: they lie anywhere, each by itself."""
    random = Random(round(rate * 1000))
    return sorted(random.uniform(0, seconds) for _ in range(max(2, round(rate * seconds))))
