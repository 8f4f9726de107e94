"""Answer requests with a causal language model: label sets by tries, free text by generation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from transformers import PreTrainedModel

from mtcore.config import nearest
from mtcore.contracts import Predictor
from mtcore.data.rows import text_problem
from mtcore.data.text import Encoded, Ids, TextEncoder
from mtcore.errors import ConfigError, UnknownName
from mtcore.inference.cache import PrefixCache
from mtcore.inference.costs import measured, nominal
from mtcore.inference.generation import generate
from mtcore.inference.multilabel import Grammar, choose_labels
from mtcore.inference.prefill import common
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

    @property
    def nodes(self) -> int:
        """Tokens of the trie."""
        return len(self.trie.tokens_M) if self.trie else 0

    def flops(self, size: ModelSize, prompt: int, shared: int = 0) -> float:
        """What scoring all labels after a prompt takes, of whose tokens the first `shared` are counted elsewhere; of an answer that grows,
        only what its beginning takes."""
        tokens, pairs, asked = prompt - shared, _triangle(prompt) - _triangle(shared), 1
        if self.trie is not None:
            tokens, pairs, asked = tokens + self.nodes, pairs + self.nodes * prompt + self.trie.pairs, self.trie.asked
        return size.forward_flops(tokens, pairs, asked)


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
        is_final: bool = False,
    ) -> None:
        """`size` must be given for a model whose weights are distributed over processes.

        `is_final` says that the weights stay as they are: then what prompts begin with is kept between calls, at most `batch_tokens` of it.
        """
        self._model = model
        self._size = size or model_size(model)
        self._encoder = encoder
        self._tasks = dict(tasks)
        self._grammars = {name: Grammar(task.spec, encoder) for name, task in tasks.items() if task.spec.output == "multi-label"}
        self._batch_tokens = batch_tokens
        self._texts = PrefixCache(batch_tokens) if is_final else None
        self._costs = nominal(self._size)
        self._beginnings: dict[str, Ids] = {}
        """Of every task, what all its prompts have had in common so far."""

    def warm_up(self) -> None:
        self._costs = measured(self._model, self._size)

    @property
    def tasks(self) -> Mapping[str, TaskSpec]:
        return {name: task.spec for name, task in self._tasks.items()}

    def prepare(self, request: Request) -> Prepared:
        tasks = [self._task(name, request.fields) for name in request.tasks]
        pairs = [TextPair(task.prompt(request.fields), ()) for task in tasks]
        encoded = self._encoder.encode_each(pairs, [task.room for task in tasks])
        document, size = _document(encoded), self._size
        shares = [len(document) if e.document else 0 for e in encoded]
        return Prepared(
            request=request,
            cost=len(document) + sum(len(e.prompt) - s + t.nodes for t, e, s in zip(tasks, encoded, shares, strict=True)),
            flags={name: ("truncated",) if e.cut else () for name, e in zip(request.tasks, encoded, strict=True)},
            payload=dict(zip(request.tasks, encoded, strict=True)),
            flops=size.forward_flops(len(document), _triangle(len(document)), 0)
            + sum(t.flops(size, len(e.prompt), s) for t, e, s in zip(tasks, encoded, shares, strict=True)),
            document=blake2b(document.tobytes(), digest_size=16).hexdigest() if len(document) else "",
            document_cost=len(document),
        )

    def predict(self, prepared: Sequence[Prepared]) -> list[dict[str, Prediction | TaskError]]:
        if self._model.training:  # it may have gone on since the last time
            self._model.eval()
        asked = [_Asked(i, name, p.payload[name], p.document_cost) for i, p in enumerate(prepared) for name in p.request.tasks]
        answers: list[dict[str, Prediction | TaskError]] = [{} for _ in prepared]
        for answer in (self._closed, self._several, self._free):
            for a, (value, probabilities) in answer(asked):
                answers[a.request][a.task] = Prediction(a.task, value, probabilities, tuple(prepared[a.request].flags[a.task]))
        return answers

    def _task(self, name: str, fields: Mapping[str, str]) -> ServedTask:
        """The task, if the request can be asked of it."""
        if name not in self._tasks:
            raise UnknownName(
                f"task {name!r} is not in this bundle{nearest(name, list(self._tasks))} It answers: {', '.join(self._tasks)}."
            )
        task = self._tasks[name]
        for field in task.spec.fields:
            problem = "is missing" if field not in fields else text_problem(fields[field])
            if problem:
                raise ConfigError(f"task {name}: field {field!r} {problem}; it takes {', '.join(task.spec.fields)}")
        return task

    def _closed(self, asked: Sequence["_Asked"]) -> Iterator[tuple["_Asked", "_Answered"]]:
        mine = [(a, trie) for a in asked if (trie := self._tasks[a.task].trie) is not None]
        queries = [Query(a.encoded.prompt, trie, self._stem(a)) for a, trie in mine]
        scores = score_labels(self._model, queries, self._batch_tokens, self._costs, self._texts) if queries else []
        for (a, trie), logs_L in zip(mine, scores, strict=True):
            label = trie.labels[int(np.argmax(logs_L))]
            probabilities = dict(zip(trie.labels, softmax(logs_L).tolist(), strict=True))
            yield a, (float(label) if self._tasks[a.task].spec.number_range else label, probabilities)

    def _several(self, asked: Sequence["_Asked"]) -> Iterator[tuple["_Asked", "_Answered"]]:
        mine = [a for a in asked if self._tasks[a.task].spec.output == "multi-label"]
        grammars = [self._grammars[a.task] for a in mine]
        prompts, stems = [a.encoded.prompt for a in mine], [self._stem(a) for a in mine]
        chosen = choose_labels(self._model, prompts, grammars, self._batch_tokens, self._texts, stems)
        for a, labels in zip(mine, chosen, strict=True):
            yield a, (tuple(labels), labels)

    def _free(self, asked: Sequence["_Asked"]) -> Iterator[tuple["_Asked", "_Answered"]]:
        mine = [a for a in asked if self._tasks[a.task].spec.output == "generation"]
        limits = [self._tasks[a.task].spec.max_answer_tokens for a in mine]
        prompts, stems = [a.encoded.prompt for a in mine], [self._stem(a) for a in mine]
        end, forbidden = self._encoder.eos_id, sorted(self._encoder.control_ids)
        ids = generate(self._model, prompts, limits, end, forbidden, self._batch_tokens, self._texts, stems)
        for a, new in zip(mine, ids, strict=True):
            yield a, ((self._encoder.decode(new).strip(),), None)

    def _stem(self, asked: "_Asked") -> int:
        """How many leading ids other prompts begin with too: the document's, or those that all prompts of the task have begun with so far."""
        if asked.encoded.document:
            return asked.document
        if self._texts is None:
            return 0
        prompt, known = asked.encoded.prompt, self._beginnings.get(asked.task)
        self._beginnings[asked.task] = prompt if known is None else prompt[: common(known, prompt)]
        return 0 if known is None else len(self._beginnings[asked.task])


@dataclass(frozen=True)
class _Asked:
    """One task of one of the requests."""

    request: int
    task: str
    encoded: Encoded
    document: int
    """Leading ids that the request's prompts share as their document."""


def _document(encoded: Sequence[Encoded]) -> Ids:
    """The leading ids that prompts share with each other as their document: all of it, where it was cut for none of them."""
    documents = [e.prompt[: e.document] for e in encoded if e.document]
    if not documents:
        return np.empty(0, np.int32)
    shortest = min(documents, key=len)
    return shortest[: min(common(shortest, document) for document in documents)]


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


_Answered = tuple[Answer, dict[str, float] | None]
