"""Multi-label answers grow over prompts that are read once, to what running the whole prompt again at every turn gives."""

import numpy as np
import pytest
import torch

from mtcore.data.text import TextEncoder, TextPair
from mtcore.inference.cache import PrefixCache
from mtcore.inference.multilabel import Grammar, choose_labels
from mtcore.inference.scoring import Query, score_labels, softmax
from mtcore.inference.trie import next_labels
from mtcore.modeling.load import load_model
from mtcore.testing import toy_spec
from mtcore.types import Piece, TaskSpec


def spec(name, words, none_word, separator):
    changes = {"name": name, "words": words, "none_word": none_word, "separator": separator}
    return TaskSpec(**{**toy_spec("multi-label").model_dump(), **changes})


SPECS = [
    spec("few", {"a": "a", "b": "b"}, "n", ","),
    spec("many", {word: word for word in ("a", "b", "cd", "ce", "cfg", "h", "i", "jk", "jl")}, "n", ";"),
    spec("one", {"x": "好"}, "n", "、"),
    spec("long", {"p": "cd", "q": "cel", "r": "jkl"}, "nnnn", ","),
]


@pytest.fixture(scope="module")
def model(base_folder, encoder):
    """Weights that are large enough for prompts to tell, and an inclination to what answers are made of."""
    model = load_model(base_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    leaning = torch.zeros(model.config.vocab_size)
    leaning[encoder.answer_ids(list("abcdefghijkln,;"))] = 4.0
    leaning[encoder.answer_ids([",", ";"])] = 6.0
    model.lm_head.bias = torch.nn.Parameter(leaning)
    return model


@pytest.fixture(scope="module")
def encoder(base_folder):
    return TextEncoder(base_folder / "tokenizer.json", eos_id=0, max_length=256)


@pytest.fixture(scope="module")
def asked(encoder):
    """Prompts and their specs, among them several tasks asked of one document."""
    texts = ["今天", "the quick brown fox", "房间也很干净。" * 8, "?", "x y z" * 5, "服务"]
    pairs = [TextPair((Piece(text, is_user=True), Piece(f"\n{spec.name}: ")), ()) for text in texts for spec in SPECS]
    return [e.prompt for e in encoder.encode(pairs, 0)], [spec for _ in texts for spec in SPECS]


def again_and_again(model, prompt, spec, encoder):
    """The slow, obvious way."""
    chosen = {}
    while True:
        trie = next_labels(spec, encoder, list(chosen))
        (logs_L,) = score_labels(model, [Query(prompt, trie)], 10_000)
        label = trie.labels[best := int(np.argmax(logs_L))]
        if not label:
            return chosen
        added = encoder.answer_ids([*([spec.separator] if chosen else []), spec.words[label]])
        prompt = np.concatenate([prompt, np.array(added, np.int32)])
        chosen[label] = float(softmax(logs_L)[best])


@pytest.mark.parametrize("batch_tokens", [1, 400, 100_000])
def test_labels_and_their_probabilities_are_those_of_reading_the_prompt_at_every_turn(model, encoder, asked, batch_tokens):
    prompts, specs = asked
    grammars = {spec.name: Grammar(spec, encoder) for spec in SPECS}
    ours = choose_labels(model, prompts, [grammars[spec.name] for spec in specs], batch_tokens)
    held, stems = PrefixCache(100), [len(prompt) - 4 for prompt in prompts]
    for _ in range(2):  # reads the stems, and is spared it
        over_stems = choose_labels(model, prompts, [grammars[spec.name] for spec in specs], batch_tokens, held, stems)
        assert over_stems == [pytest.approx(labels, abs=1e-5) for labels in ours]
    theirs = [again_and_again(model, prompt, spec, encoder) for prompt, spec in zip(prompts, specs, strict=True)]
    assert [list(labels) for labels in ours] == [list(labels) for labels in theirs]
    for labels, expected in zip(ours, theirs, strict=True):
        assert labels == pytest.approx(expected, abs=1e-5)
    numbers = {len(labels) for labels in theirs}
    assert numbers >= {0, 1, 2}  # the toy has an opinion


def test_nobody_is_asked_for_nothing(model):
    assert choose_labels(model, [], [], 100) == []


def test_a_task_without_choice_left_is_not_asked_again(encoder):
    grammar = Grammar(SPECS[0], encoder)
    assert grammar.after("").labels == ("a", "b", "")
    assert grammar.after("b").labels == ("",)
    assert grammar.after("a") is grammar.after("a")
    assert encoder.decode([*grammar.ids("a", ""), *grammar.ids("b", "a")]) == "a,b"
