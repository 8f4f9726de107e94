"""What a document is asked follows from its fields, and every error speaks in the server's own words."""

import pytest
from mtcore_serve.asking import Document, asked_of
from mtcore_serve.errors import BadRequest, NotReady, Refused, TooLarge, UnknownTask
from mtcore_serve.fleet import Ask, Online
from mtcore_serve.limits import Limits

from mtcore.testing.toys import toy_spec

LIMITS = Limits(documents=2, text_characters=100)
PAIR = toy_spec("binary").model_copy(update={"fields": ("premise", "hypothesis")})
ONLINE = {
    "t/a": Online(toy_spec("binary"), "one", "v1"),
    "t/b": Online(toy_spec("binary").model_copy(update={"fields": ("email",)}), "one", "v1"),
    "t/pair": Online(PAIR, "two", "v2"),
}


def test_all_asks_the_tasks_that_a_document_has_the_fields_for_and_names_the_others():
    (whole, some) = asked_of([{"premise": "a", "hypothesis": "b", "text": "c"}, {"email": "d", "premise": "e"}], None, ONLINE, LIMITS)
    assert whole.ask == Ask({"text": "c", "premise": "a", "hypothesis": "b"}, ("t/a", "t/pair"))
    assert whole.skipped == ("t/b",)
    assert some.ask == Ask({"email": "d"}, ("t/b",))
    assert some.skipped == ("t/a", "t/pair")


def test_a_text_stands_for_the_field_of_every_task_that_takes_one():
    (asked,) = asked_of(["hello"], None, ONLINE, LIMITS)
    assert asked.ask == Ask({"text": "hello", "email": "hello"}, ("t/a", "t/b"))
    assert asked.skipped == ("t/pair",)


def test_a_task_named_twice_is_asked_once():
    (asked,) = asked_of(["hello"], ["t/b", "t/b"], ONLINE, LIMITS)
    assert asked.ask.tasks == ("t/b",)


@pytest.mark.parametrize(
    ("documents", "tasks", "error", "words"),
    [
        ([{"premise": "SECRET"}], ["t/pair"], BadRequest, "lacks the field 'hypothesis' of task t/pair"),
        (["SECRET"], ["t/pair"], BadRequest, "is a text, and task t/pair takes premise, hypothesis"),
        ([{"text": "a", "SECRET": "b"}], None, BadRequest, "a field that no task online takes"),
        ([{"premise": "SECRET"}], None, BadRequest, "has all fields of no task"),
        ([{"text": 1}], None, BadRequest, "'text' is a int"),
        (["SECRET\0"], None, BadRequest, "NUL"),
        (["SECRET\ud800"], None, BadRequest, "lone surrogate"),
        ([" "], None, BadRequest, "empty"),
        (["a", "SECRET" * 50], None, TooLarge, r"documents\[1\] is longer than the 100"),
        (["SECRET"] * 3, None, TooLarge, "at most 2 documents"),
        (["a"], ["t/a", "t/pairSECRET"], UnknownTask, r"tasks\[1\] is not online; did you mean 't/pair'\?"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words_that_repeat_nothing(
    documents: list[Document], tasks: list[str] | None, error: type[Refused], words: str
):
    with pytest.raises(error, match=words) as caught:
        asked_of(documents, tasks, ONLINE, LIMITS)
    assert "SECRET" not in str(caught.value)


def test_while_nothing_is_online_nothing_is_asked():
    with pytest.raises(NotReady):
        asked_of(["hello"], None, {}, LIMITS)
