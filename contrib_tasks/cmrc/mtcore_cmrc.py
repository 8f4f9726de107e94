"""CMRC 2018 for mtcore: answer a question from a Chinese passage, scored by the official exact match and F1."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, ClassVar

import numpy as np

from mtcore.contracts import Array, Metric, TaskAdapter
from mtcore.data.sources import HubSource, RawRow, task_rows
from mtcore.hookspecs import hookimpl
from mtcore.types import Answer, TaskSpec

# The official list also holds "……", but compares it with single characters, so an ellipsis is never deleted.
DELETE_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")

# A Chinese character; or a word of anything else, with the marks inside it ("3.5", "3,000", "it's"); or a single mark.
# The official script cuts what is not Chinese with nltk's word_tokenize; this comes near it without the dependency.
CHINESE, WORD = r"[一-龥]", r"[^\s一-龥!-/:-@\[-`{-~]+"
TOKEN = re.compile(rf"{CHINESE}|{WORD}(?:[.']{WORD}|,\d+)*|\S")


def clean(text: str) -> str:
    return text.lower().strip().translate(DELETE_PUNCTUATION)


def exact_match(prediction: str, reference: str) -> float:
    return float(clean(prediction) == clean(reference))


def f1(prediction: str, reference: str) -> float:
    """F1 of the longest run of tokens that both texts hold: order counts, scattered tokens do not add up."""
    ours, theirs = TOKEN.findall(clean(prediction)), TOKEN.findall(clean(reference))
    common = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


class BestOverReferences(Metric):
    """Mean over all rows of the best value against any acceptable text; an unanswered row counts 0."""

    @abstractmethod
    def value(self, prediction: str, reference: str) -> float:
        """How well one text answers, 0 to 1."""

    def statistics(self, spec: TaskSpec, predictions: Sequence[Answer], answers: Sequence[Answer]) -> Array:
        values = []
        for prediction, answer in zip(predictions, answers, strict=True):
            (text,) = _texts(prediction)
            values.append(max(self.value(text, reference) for reference in _texts(answer)) if text.strip() else 0.0)
        return np.column_stack([values, np.ones(len(values))])

    def score(self, totals: Array) -> Array:
        return np.asarray(totals[..., 0] / totals[..., 1])


class CmrcExactMatch(BestOverReferences):
    name = "cmrc-em"

    def value(self, prediction: str, reference: str) -> float:
        return exact_match(prediction, reference)


class CmrcF1(BestOverReferences):
    name = "cmrc-f1"

    def value(self, prediction: str, reference: str) -> float:
        return f1(prediction, reference)


def _texts(answer: Answer) -> tuple[str, ...]:
    """The texts of an answer: predictions may come as plain text or as a tuple of one."""
    if isinstance(answer, float):
        raise TypeError(f"{answer!r} is a number, not text")
    return (answer,) if isinstance(answer, str) else answer


class Cmrc2018(TaskAdapter):
    spec = TaskSpec(
        name="cmrc2018",
        output="generation",
        input="passage-question",
        fields=("context", "question"),
        document_fields=("context",),
        instruction="根据文章回答问题，答案取自原文。",
        template="文章：{context}\n问题：{question}\n答案：",
        max_answer_tokens=48,
        metric="cmrc-em",
        beside=("cmrc-f1",),
        licence="CC BY-SA 4.0",
        source="CMRC 2018: github.com/ymcui/cmrc2018 (Hub: hfl/cmrc2018; copy: github.com/cingtiye/Chinese_question_sentence_judgment)",
    )
    metrics: ClassVar[Mapping[str, type[Metric]]] = {metric.name: metric for metric in (CmrcExactMatch, CmrcF1)}

    def rows(self, split: str) -> Iterable[RawRow]:
        return task_rows(self.data, "clue/cmrc2018", split, HubSource("hfl/cmrc2018"))

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        return {"context": row["context"], "question": row["question"]}

    def answer(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        match row["answers"]:
            case [_, *_] as answers:  # in files: one {text, answer_start} an answer
                return tuple(dict.fromkeys(answer["text"] for answer in answers))
            case {"text": [_, *_] as texts}:  # on the Hub: all texts in one list
                return tuple(dict.fromkeys(texts))
            case other:
                raise TypeError(f"answers is {other!r}: it holds no list of texts")


@hookimpl
def register_tasks() -> list[type[TaskAdapter]]:
    return [Cmrc2018]
