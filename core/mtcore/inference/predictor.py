"""Answer requests with a causal language model: label sets by tries, free text by generation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from mtcore.config import nearest
from mtcore.contracts import Predictor
from mtcore.data.rows import text_problem
from mtcore.data.text import Encoded, TextEncoder
from mtcore.errors import ConfigError, UnknownName
from mtcore.inference.generation import generate
from mtcore.inference.multilabel import choose_labels
from mtcore.inference.scoring import Query, score_labels, softmax
from mtcore.inference.trie import LabelTrie, build_trie
from mtcore.modeling.flops import ModelSize, model_size
from mtcore.types import Answer, Piece, Prediction, Prepared, Request, TaskError, TaskSpec, TextPair

Prompt = Callable[[Mapping[str, str]], tuple[Piece, ...]]


@dataclass(frozen=True)
class ServedTask:
    """A task ready to be asked: how its prompt is written, and its label set as a trie (None: answered otherwise)."""

    spec: TaskSpec
    prompt: Prompt
    room: int
    trie: LabelTrie | None

    def flops(self, size: ModelSize, prompt: int) -> float:
        """What scoring all labels after a prompt of so many tokens takes; of an answer that grows, only what its beginning takes."""
        pairs = prompt * (prompt + 1) // 2
        if self.trie is None:
            return size.forward_flops(prompt, pairs, 1)
        nodes = len(self.trie.tokens_M)
        return size.forward_flops(prompt + nodes, pairs + nodes * prompt + self.trie.pairs, self.trie.asked)


def served_task(spec: TaskSpec, prompt: Prompt, encoder: TextEncoder) -> ServedTask:
    """Lay out a task's label set once."""
    closed = spec.output not in ("generation", "multi-label")
    trie = build_trie(encoder.label_paths(spec), encoder.eos_id) if closed else None
    return ServedTask(spec, prompt, encoder.room_for_answers(spec), trie)


class TextPredictor(Predictor):
    """Label sets are scored exactly, all labels of a prompt in one forward pass; multi-label answers grow greedily in canonical order."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: TextEncoder,
        tasks: Mapping[str, ServedTask],
        *,
        batch_tokens: int,
        size: ModelSize | None = None,
    ) -> None:
        """`size` must be given for a model whose weights are distributed over processes."""
        self._model = model
        self._size = size or model_size(model)
        self._encoder = encoder
        self._tasks = dict(tasks)
        self._batch_tokens = batch_tokens

    @property
    def tasks(self) -> Mapping[str, TaskSpec]:
        return {name: task.spec for name, task in self._tasks.items()}

    def prepare(self, request: Request) -> Prepared:
        encoded: dict[str, Encoded] = {}
        for name in request.tasks:
            if name not in self._tasks:
                raise UnknownName(
                    f"task {name!r} is not in this bundle{nearest(name, list(self._tasks))} It answers: {', '.join(self._tasks)}."
                )
            task = self._tasks[name]
            for field in task.spec.fields:
                problem = "is missing" if field not in request.fields else text_problem(request.fields[field])
                if problem:
                    raise ConfigError(f"task {name}: field {field!r} {problem}; it takes {', '.join(task.spec.fields)}")
            encoded[name] = self._encoder.encode([TextPair(task.prompt(request.fields), ())], task.room)[0]
        return Prepared(
            request=request,
            cost=sum(len(e.prompt) + self._extra(name) for name, e in encoded.items()),
            flags={name: ("truncated",) if e.cut else () for name, e in encoded.items()},
            payload=encoded,
            flops=sum(self._tasks[name].flops(self._size, len(e.prompt)) for name, e in encoded.items()),
        )

    def predict(self, prepared: Sequence[Prepared]) -> list[dict[str, Prediction | TaskError]]:
        self._model.eval()  # training may have gone on since the last time
        asked = [(i, name, p.payload[name].prompt) for i, p in enumerate(prepared) for name in p.request.tasks]
        answers: list[dict[str, Prediction | TaskError]] = [{} for _ in prepared]
        for answer in (self._closed, self._several, self._free):
            for (i, name, _), (value, probabilities) in answer(asked):
                answers[i][name] = Prediction(name, value, probabilities, tuple(prepared[i].flags[name]))
        return answers

    def _extra(self, name: str) -> int:
        trie = self._tasks[name].trie
        return len(trie.tokens_M) if trie else 0

    def _closed(self, asked: Sequence["_Asked"]) -> list[tuple["_Asked", "_Answered"]]:
        mine = [(a, trie) for a in asked if (trie := self._tasks[a[1]].trie) is not None]
        scores = score_labels(self._model, [Query(a[2], trie) for a, trie in mine], self._batch_tokens)
        result: list[tuple[_Asked, _Answered]] = []
        for (a, trie), logs_L in zip(mine, scores, strict=True):
            label = trie.labels[int(np.argmax(logs_L))]
            probabilities = dict(zip(trie.labels, softmax(logs_L).tolist(), strict=True))
            result.append((a, (float(label) if self._tasks[a[1]].spec.number_range else label, probabilities)))
        return result

    def _several(self, asked: Sequence["_Asked"]) -> list[tuple["_Asked", "_Answered"]]:
        mine = [a for a in asked if self._tasks[a[1]].spec.output == "multi-label"]
        specs = [self._tasks[name].spec for _, name, _ in mine]
        chosen = choose_labels(self._model, [p for _, _, p in mine], specs, self._encoder, self._batch_tokens)
        return [(a, (tuple(labels), labels)) for a, labels in zip(mine, chosen, strict=True)]

    def _free(self, asked: Sequence["_Asked"]) -> list[tuple["_Asked", "_Answered"]]:
        mine = [a for a in asked if self._tasks[a[1]].spec.output == "generation"]
        limits = [self._tasks[name].spec.max_answer_tokens for _, name, _ in mine]
        ids = generate(
            self._model, [p for _, _, p in mine], limits, self._encoder.eos_id, sorted(self._encoder.control_ids), self._batch_tokens
        )
        return [(a, ((self._encoder.decode(new).strip(),), None)) for a, new in zip(mine, ids, strict=True)]


_Asked = tuple[int, str, NDArray[np.int32]]
_Answered = tuple[Answer, dict[str, float] | None]
