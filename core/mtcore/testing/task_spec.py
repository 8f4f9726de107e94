"""Checks of a task's spec and prompt: what can be said without a row."""

import unicodedata

from pydantic import ValidationError

from mtcore.data.rows import text_problem
from mtcore.data.text import Encoded, label_texts
from mtcore.errors import MtcoreError, UnknownName
from mtcore.evaluation.metrics import find_metric
from mtcore.testing.check import Failed
from mtcore.testing.task import TaskUnderTest
from mtcore.testing.toys import ODD_TEXTS
from mtcore.types import Layout, TaskSpec, TextPair

PLACEHOLDERS = ("", "?", "-", "n/a", "na", "tbd", "todo", "fixme", "unknown", "xxx")
ROOM = 64
"""Tokens kept for an answer."""
LAYOUTS: tuple[Layout, ...] = ("task-first", "document-first")


def spec_is_data(task: TaskUnderTest) -> str:
    """The spec is consistent and comes back from JSON as it went in."""
    try:
        back = TaskSpec.model_validate_json(task.spec.model_dump_json(warnings=False))
    except ValidationError as error:
        raise Failed(
            "; ".join(problem["msg"] for problem in error.errors()), "write the spec as TaskSpec(…), which says so at once"
        ) from None
    if back != task.spec:
        raise Failed("the spec that comes back is another one", "give the spec nothing but text, numbers, tuples and dicts of text")
    return f"{task.spec.output}, {task.spec.input}: {', '.join(task.spec.fields)}"


def metrics_exist(task: TaskUnderTest) -> str:
    """The metric that decides and those beside it are known."""
    names = (task.spec.metric, *task.spec.beside)
    for name in names:
        try:
            find_metric(task.adapter, name)
        except UnknownName as error:
            raise Failed(str(error), "name one of these, or bring it: metrics = {name: class} in the adapter") from None
    return ", ".join(names)


def licence_and_source(task: TaskUnderTest) -> str:
    """The licence and the source of the rows are stated."""
    stated = {"licence": task.spec.licence, "source": task.spec.source}
    if missing := [name for name, text in stated.items() if _is_placeholder(text)]:
        raise Failed(
            ", ".join(f"{name} is {stated[name]!r}" for name in missing),
            "say under which terms the rows may be used and where they are from; 'none stated' is an answer, a placeholder is not",
        )
    return f"{task.spec.licence}; {task.spec.source}"


def words_distinguishable(task: TaskUnderTest) -> str:
    """Every answer word can be told from every other."""
    try:
        task.encoder.label_paths(task.spec)
    except MtcoreError as error:
        raise Failed(str(error), "choose other answer words") from None
    folded: dict[str, str] = {}
    for word in label_texts(task.spec).values():
        if (same := folded.setdefault(_fold(word), word)) != word:
            raise Failed(
                f"{same!r} and {word!r} differ in case, width or space alone, which some tokenizers fold away",
                "choose words that differ in their letters",
            )
    return f"{len(folded)} words"


def prompt_is_whole(task: TaskUnderTest) -> str:
    """The prompt holds every field in each layout, the same each time."""
    marked = {name: f"the text of field {number}" for number, name in enumerate(task.spec.fields)}
    for layout in LAYOUTS:
        prompt = task.prompt(marked, layout)
        if prompt != task.prompt(marked, layout):
            raise Failed(f"two {layout} prompts of the same fields differ", "let render depend on nothing but the fields and the layout")
        text = "".join(piece.text for piece in prompt)
        if missing := [name for name, value in marked.items() if value not in text]:
            raise Failed(f"the {layout} prompt leaves out {', '.join(missing)}", "write every field of the spec into the prompt, unchanged")
    return f"{', '.join(marked)}; {', '.join(LAYOUTS)}"


def odd_texts(task: TaskUnderTest) -> str:
    """Odd texts are encoded or refused; none becomes a control token."""
    plain = dict.fromkeys(task.spec.fields, "plain")
    usual = _controls(task, task.encoder.encode([TextPair(task.prompt(plain), ())], ROOM)[0])
    refused = 0
    for field in task.spec.fields:
        for name, text in ODD_TEXTS.items():
            if text_problem(text):
                refused += 1  # mtcore sets such a row aside, and refuses such a request
                continue
            try:
                encoded = task.encoder.encode([TextPair(task.prompt({**plain, field: text}), ())], ROOM)[0]
            except MtcoreError:
                refused += 1
                continue
            except Exception as error:
                raise Failed(
                    f"{name} in field {field!r}: {type(error).__name__}: {error}",
                    "let render take any text as it stands: no formatting of it, no look-up by it",
                ) from error
            if _controls(task, encoded) != usual:
                raise Failed(
                    f"{name} in field {field!r} changes the control tokens of the prompt",
                    "let render put every field into a piece of its own, Piece(text, is_user=True)",
                )
    return f"{len(ODD_TEXTS)} texts, {refused // len(plain)} of them refused"


def _controls(task: TaskUnderTest, encoded: Encoded) -> list[int]:
    return [i for i in encoded.prompt.tolist() if i in task.encoder.control_ids]


def _fold(word: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())


def _is_placeholder(text: str) -> bool:
    first = text.strip().rstrip(".:").casefold()
    return first in PLACEHOLDERS or first.startswith(("todo", "fixme", "tbd"))
