"""From documents and task names to what the fleet is asked: every field looked at, every error worded; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtcore.config import nearest
from mtcore.data.rows import text_problem
from mtcore_serve.errors import BadRequest, NotReady, TooLarge, UnknownTask
from mtcore_serve.fleet import Ask, Online
from mtcore_serve.limits import Limits

Document = str | Mapping[str, object]
"""Fields by name, or a text that stands for the field of every task that takes exactly one."""


LOOKED_AT = 100
"""Signs of an unknown name: looking for known ones like it takes time that grows with it."""


@dataclass(frozen=True)
class Asked:
    """A document as the fleet is asked it, and the tasks that were left out because it lacks a field of theirs."""

    ask: Ask
    skipped: tuple[str, ...] = ()


def asked_of(
    documents: Sequence[Document], tasks: Sequence[str] | None, online: Mapping[str, Online], limits: Limits, called: str = "documents"
) -> list[Asked]:
    """What is asked of each document: these tasks, or where `tasks` is None every task that it has the fields for.

    Messages call the first document `documents[0]`, and name tasks and fields that are online, never what a client wrote.
    """
    if not online:
        raise NotReady("no task is online yet")
    if len(documents) > limits.documents:
        raise TooLarge(f"{called}: at most {limits.documents} documents are taken at once")
    names = list(online)
    if tasks is not None:
        names = list(dict.fromkeys(known_task(name, online, i if len(tasks) > 1 else None) for i, name in enumerate(tasks)))
    fields = {field for one in online.values() for field in one.spec.fields}
    return [
        _ask(f"{called}[{i}]" if len(documents) > 1 else called, document, names, tasks is None, online, fields, limits)
        for i, document in enumerate(documents)
    ]


def known_task(name: str, online: Mapping[str, Online], number: int | None = None) -> str:
    """The name itself; raises UnknownTask where nothing online answers to it, with its number where it is one of several."""
    if name not in online:
        called = "the task asked for" if number is None else f"tasks[{number}]"
        raise UnknownTask(f"{called} is not online{nearest(name[:LOOKED_AT], list(online))} GET /v1/tasks lists those that are.")
    return name


def _ask(
    where: str, document: Document, names: list[str], is_all: bool, online: Mapping[str, Online], known: Iterable[str], limits: Limits
) -> Asked:
    if isinstance(document, str):
        _check(where, document, limits)
        lacking: dict[str, str | None] = {name: None for name in names if len(online[name].spec.fields) > 1}
    else:
        if not document.keys() <= set(known):
            raise BadRequest(f"{where} holds a field that no task online takes; they take {', '.join(sorted(known))}")
        for field, value in document.items():
            _check(f"{where}: field {field!r}", value, limits)
        lacking = {name: f for name in names if (f := next((f for f in online[name].spec.fields if f not in document), None))}
    if lacking and not is_all:
        name, missing = next(iter(lacking.items()))
        takes = ", ".join(online[name].spec.fields)
        problem = f"lacks the field {missing!r} of task {name}, which" if missing else f"is a text, and task {name}"
        raise BadRequest(f"{where} {problem} takes {takes}: give an object with {'it' if missing else 'these fields'}")
    asked = tuple(name for name in names if name not in lacking)
    if not asked:
        raise BadRequest(f"{where} has all fields of no task online; GET /v1/tasks says what each takes")
    used = dict.fromkeys(field for name in asked for field in online[name].spec.fields)
    fields = {field: document if isinstance(document, str) else str(document[field]) for field in used}
    return Asked(Ask(fields, asked), tuple(lacking))


def _check(where: str, value: object, limits: Limits) -> None:
    if isinstance(value, str) and len(value) > limits.text_characters:
        raise TooLarge(f"{where} is longer than the {limits.text_characters} characters that are taken")
    if problem := text_problem(value):
        raise BadRequest(f"{where} {problem}")
