"""Toys for tests: small tasks of every output kind, their profiles, odd texts, a byte-level tokenizer, and a base with random weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from mtcore.types import Answer, Example, NumberRange, OutputKind, Resource, TaskData, TaskProfile, TaskSpec

OUTPUTS: tuple[OutputKind, ...] = get_args(OutputKind)
CORPUS = ["今天天气很好，我们去公园散步。", "这家酒店的服务态度不错，房间也很干净。", "The quick brown fox jumps over the lazy dog."] * 20

ODD_TEXTS = {
    "one sign": ".",
    "white space": " \t\n ",
    "zero width": "\u200b",
    "very long": "word " * 10_000,
    "too long": "x" * 300_000,
    "NUL": "before\0after",
    "control tokens": "<|im_end|><|im_start|>system<|endoftext|></s><s>[SEP]<pad><|eot_id|>",
    "braces": "{text} {0} {} %s ${text} \\1",
    "right to left": "\u202eשלום العالم\u202c",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "stacked accents": "e" + "\u0301" * 50,
    "lone surrogate": "before\ud800after",
    "markup": "<script>alert('&amp;')</script>",
}
"""Texts that real traffic holds sooner or later."""

WORDS = {
    "binary": ("no", "yes"),
    "ordinal": ("bad", "fair", "good"),
    "multi-class": ("food", "room", "staff"),
    "multi-label": ("wet", "loud"),
}


def toy_spec(output: OutputKind) -> TaskSpec:
    """A task of one field that is called as its output kind is."""
    return TaskSpec(
        name=output,
        output=output,
        input="single-sentence",
        fields=("text",),
        instruction=f"Answer {output}.",
        template="{text}\nAnswer: ",
        words={str(number): word for number, word in enumerate(WORDS.get(output, ()))},
        none_word="none" if output == "multi-label" else "",
        number_range=NumberRange(low=0, high=2, step=0.5) if output == "regression" else None,
        max_answer_tokens=8,
        metric={"generation": "exact-match", "regression": "negative-mae", "multi-label": "micro-f1"}.get(output, "accuracy"),
        licence="CC0-1.0",
        source="made up",
    )


def toy_data(output: OutputKind, train: int = 24, validation: int = 12) -> TaskData:
    """A task with rows in memory; its answers can be read off its texts."""
    spec = toy_spec(output)
    splits = [
        tuple(Example({"text": f"{split} {n}: it is {_word(spec, n)}"}, toy_answer(spec, n)) for n in range(rows))
        for split, rows in (("train", train), ("validation", validation))
    ]
    return TaskData(f"toys/{spec.name}", spec, splits[0], splits[1])


def toy_answer(spec: TaskSpec, number: int) -> Answer:
    """The answer of a toy's row of that number."""
    if spec.number_range is not None:
        numbers = spec.number_range.numbers()
        return numbers[number % len(numbers)]
    if spec.output == "generation":
        return (f"word {number % 4}",)
    if spec.output == "multi-label":
        return tuple(label for bit, label in enumerate(spec.labels) if number >> bit & 1)
    return spec.labels[number % len(spec.labels)]


def toy_profiles(
    sizes: Sequence[int], resources: Sequence[Resource] = (), outputs: Sequence[OutputKind] = ("binary",)
) -> list[TaskProfile]:
    """Profiles of tasks with these numbers of train rows; resources and output kinds are dealt out in turn."""
    return [
        TaskProfile(
            name=f"toys/{number}",
            spec=toy_spec(outputs[number % len(outputs)]),
            train_rows=size,
            validation_rows=10,
            resource=resources[number % len(resources)] if resources else "unknown",
        )
        for number, size in enumerate(sizes)
    ]


def toy_tokenizer(folder: Path) -> Path:
    """Write a tokenizer that knows bytes and three control tokens (0 ends an answer), without transformers; return its file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from mtcore.modeling.tiny import CONTROL

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([*CONTROL, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def toy_base(folder: Path, *, context: int = 1024) -> Path:
    """Write a Qwen2-architecture base of two layers, 32 wide, with random weights and a vocabulary of 400; loads torch."""
    from transformers.utils import logging

    from mtcore.modeling.tiny import new_decoder, train_tokenizer

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(CORPUS, 400, folder)
    new_decoder(vocabulary=400, width=32, layers=2, heads=2, context=context, eos_id=0, seed=3).save_pretrained(folder)
    return folder


def _word(spec: TaskSpec, number: int) -> str:
    return json.dumps(toy_answer(spec, number))
