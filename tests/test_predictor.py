"""A predictor answers many tasks of one document as it answers each alone, reads the document once, and says beforehand what that costs."""

import pytest

from mtcore.data.text import TextEncoder, render
from mtcore.inference.predictor import TextPredictor, served_task
from mtcore.modeling.flops import model_size
from mtcore.modeling.load import load_model
from mtcore.testing.toys import OUTPUTS, toy_spec
from mtcore.types import Request

TEXTS = ["the room was cold and the heating loud", "我们去公园散步。" * 3, "x"]
CLOSED = tuple(name for name in OUTPUTS if name not in ("generation", "multi-label"))


@pytest.fixture(scope="module")
def model(base_folder):
    return load_model(base_folder)


def predictor(base_folder, model, *, layout="document-first", max_length=256, batch_tokens=4096, encoder=TextEncoder, is_final=False):
    encoder = encoder(base_folder / "tokenizer.json", 0, max_length)
    specs = [toy_spec(output).model_copy(update={"document_fields": ("text",)}) for output in OUTPUTS]
    tasks = {s.name: served_task(s, lambda fields, s=s: render(s, fields, layout), encoder) for s in specs}
    return TextPredictor(model, encoder, tasks, batch_tokens=batch_tokens, is_final=is_final)


def answers(predictor, requests):
    return predictor.predict([predictor.prepare(request) for request in requests])


def require_same(found, expected):
    assert found.answer == expected.answer
    assert found.flags == expected.flags
    if expected.probabilities is not None:
        assert dict(found.probabilities) == pytest.approx(dict(expected.probabilities), abs=1e-5)


@pytest.mark.parametrize(("layout", "is_final"), [("task-first", True), ("document-first", True), ("document-first", False)])
def test_all_tasks_of_a_document_are_answered_as_each_alone_however_often_and_with_whomever(base_folder, model, layout, is_final):
    alone = predictor(base_folder, model, layout=layout)
    expected = [{name: answers(alone, [Request({"text": text}, (name,))])[0][name] for name in OUTPUTS} for text in TEXTS]
    together = predictor(base_folder, model, layout=layout, is_final=is_final, batch_tokens=300)
    for turn in range(2):
        requests = [Request({"text": text}, OUTPUTS[turn:]) for text in TEXTS]
        for answered, known in zip(answers(together, requests), expected, strict=True):
            assert tuple(sorted(answered)) == tuple(sorted(OUTPUTS[turn:]))
            for name, found in answered.items():
                require_same(found, known[name])
        together.warm_up()


def test_a_document_counts_once_and_has_a_name_that_every_request_for_it_shares(base_folder, model):
    asked = predictor(base_folder, model)
    one, other, all_tasks = (asked.prepare(Request({"text": TEXTS[0]}, tasks)) for tasks in (CLOSED[:1], CLOSED[1:2], OUTPUTS))
    each = [asked.prepare(Request({"text": TEXTS[0]}, (name,))) for name in OUTPUTS]
    assert one.document == other.document == all_tasks.document != asked.prepare(Request({"text": TEXTS[1]}, OUTPUTS)).document
    assert one.document_cost == all_tasks.document_cost > 0
    assert all_tasks.cost == sum(p.cost for p in each) - (len(each) - 1) * one.document_cost
    read = one.document_cost
    reading = model_size(model).forward_flops(read, read * (read + 1) // 2, 0)
    assert all_tasks.flops == pytest.approx(sum(p.flops for p in each) - (len(each) - 1) * reading)


def test_nothing_is_shared_where_the_task_stands_first(base_folder, model):
    prepared = predictor(base_folder, model, layout="task-first").prepare(Request({"text": TEXTS[0]}, OUTPUTS))
    assert (prepared.document, prepared.document_cost) == ("", 0)


def test_what_tasks_share_of_a_document_that_is_cut_for_each_elsewhere_counts_once(base_folder, model):
    asked = predictor(base_folder, model, max_length=60)
    prepared = asked.prepare(Request({"text": "word " * 200}, OUTPUTS))
    assert set(prepared.flags.values()) == {("truncated",)}
    shortest = min(e.document for e in prepared.payload.values())
    assert shortest - 1 <= prepared.document_cost <= shortest  # but for the line break behind the text
    assert prepared.cost < sum(len(e.prompt) for e in prepared.payload.values())


class CountingEncoder(TextEncoder):
    texts = ()

    def user_ids(self, texts):
        self.texts = (*self.texts, *texts)
        return super().user_ids(texts)


def test_a_text_is_tokenised_once_for_all_tasks_and_cut_for_each_as_by_itself(base_folder, model):
    for length in (60, 256):
        asked = predictor(base_folder, model, max_length=length, encoder=CountingEncoder)
        for text in (*TEXTS, "word " * 200):
            before = asked._encoder.texts.count(text)
            together = asked.prepare(Request({"text": text}, OUTPUTS)).payload
            assert asked._encoder.texts.count(text) == before + 1
            for name, encoded in together.items():
                (single,) = asked.prepare(Request({"text": text}, (name,))).payload.values()
                assert encoded.prompt.tolist() == single.prompt.tolist()
                assert (encoded.document, encoded.cut) == (single.document, single.cut)
