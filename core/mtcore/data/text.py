"""From fields to token ids: one encoder for training, evaluation and serving, in which user text never becomes a control token."""

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mtcore.errors import ConfigError
from mtcore.types import Answer, Layout, Piece, Render, TaskSpec, TextPair

Ids = NDArray[np.int32]


# --- text ------------------------------------------------------------------------------------------------------------------------------


def render(spec: TaskSpec, fields: Mapping[str, str], layout: Layout) -> tuple[Piece, ...]:
    """Write the prompt of one example by its spec.

    `task-first` is instruction, then template. `document-first` is the bare document fields, then instruction and the template's other
    lines, so that tasks which share a document share a prefix.
    """
    if layout == "task-first" or not spec.document_fields:
        return _fill(spec.instruction, f"\n{spec.template}", fields)
    documents: list[Piece] = []
    for name in spec.document_fields:
        documents += [Piece(fields[name], is_user=True, is_document=True), Piece("\n", is_document=True)]
    lines = [line for line in spec.template.split("\n") if not _placeholders(line) & set(spec.document_fields)]
    return (*documents, *_fill(spec.instruction, "\n".join(["", *lines]), fields))


def answer_texts(spec: TaskSpec, answer: Answer) -> tuple[str, ...]:
    """The answer as the pieces of text that are encoded one by one: a word, words and separators, a number, or the first acceptable text."""
    if spec.output == "multi-label":
        words = [spec.words[label] for label in spec.words if label in _as_tuple(answer)]
        return tuple(part for i, word in enumerate(words) for part in ([spec.separator] if i else []) + [word]) or (spec.none_word,)
    if spec.number_range is not None:
        return (number_text(spec.number_range.nearest(float(str(answer)))),)
    if spec.output == "generation":
        return (_as_tuple(answer)[0],)
    return (spec.words[str(answer)],)


def text_pair(spec: TaskSpec, fields: Mapping[str, str], answer: Answer | None, layout: Layout, code: Render | None = None) -> TextPair:
    """The text-to-text form of an example; without an answer, of a request."""
    prompt = code(fields, layout) if code else render(spec, fields, layout)
    return TextPair(prompt, () if answer is None else answer_texts(spec, answer))


def number_text(number: float) -> str:
    """A number without needless digits: 3, 2.5, 1000001."""
    return f"{number:.10f}".rstrip("0").rstrip(".")


def label_texts(spec: TaskSpec) -> dict[str, str]:
    """Every single answer of a task with a closed set of them: label (or number) → text; for multi-label, "" is no label at all."""
    if spec.number_range:
        return {number_text(number): number_text(number) for number in spec.number_range.numbers()}
    return {**spec.words, "": spec.none_word} if spec.output == "multi-label" else dict(spec.words)


# --- ids -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """An example as ids: the prompt, then the answer with its end token (empty for a request)."""

    prompt: Ids
    answer: Ids
    document: int = 0
    """Leading prompt ids that belong to the document, which other tasks may share."""
    cut: int = 0
    """User-text ids left out because they did not fit."""


@dataclass(frozen=True)
class LaidOut:
    """An example as ids, piece by piece."""

    pieces: list[list[int]]
    """Of every piece of the prompt, as far as it fits."""
    cut: list[list[int]]
    """Of every piece, what does not fit."""
    answer: list[int]
    """With its end token; empty for a request."""


class TextEncoder:
    """Encodes prompts and answers with a base's tokenizer; needs `tokenizers` and no torch."""

    def __init__(self, tokenizer: Path, eos_id: int, max_length: int) -> None:
        self.eos_id = eos_id
        self.max_length = max_length
        self._structure = Tokenizer.from_file(str(tokenizer))
        # the file may hold a length that somebody once cut or padded to
        self._structure.no_truncation()
        self._structure.no_padding()
        table = json.loads(tokenizer.read_text(encoding="utf-8"))
        model = table["model"]
        added = {token["id"]: token["content"] for token in table["added_tokens"]}
        unknown = {i for i, content in added.items() if content == model.get("unk_token") or i == model.get("unk_id")}
        self.control_ids = frozenset(added) - unknown | {eos_id}
        # the same tokenizer without added tokens: nothing in user text can be matched as one
        self._user = Tokenizer.from_str(
            json.dumps({**table, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None})
        )
        self._known: dict[str, list[int]] = {}

    def encode(self, pairs: Sequence[TextPair], reserve: int) -> list[Encoded]:
        """Encode examples of one task. `reserve` is the room kept for answers (`room_for_answers`), so that training, evaluation and
        serving cut a text at the same place. What does not fit is cut from the end of the longest user text.

        Raises ConfigError where structure and answers alone fill the context.
        """
        return self.encode_each(pairs, [reserve] * len(pairs))

    def encode_each(self, pairs: Sequence[TextPair], reserves: Sequence[int]) -> list[Encoded]:
        """Encode examples of several tasks, each with the room for its own answers; a text that stands in several is tokenised once."""
        return [_joined(pair, laid) for pair, laid in zip(pairs, self._lay_out_each(pairs, reserves), strict=True)]

    def lay_out(self, pairs: Sequence[TextPair], reserve: int) -> Iterator[LaidOut]:
        """What `encode` joins, piece by piece."""
        return self._lay_out_each(pairs, [reserve] * len(pairs))

    def _lay_out_each(self, pairs: Sequence[TextPair], reserves: Sequence[int]) -> Iterator[LaidOut]:
        texts = list(dict.fromkeys(piece.text for pair in pairs for piece in pair.prompt if piece.is_user))
        user = dict(zip(texts, self.user_ids(texts), strict=True))
        for pair, reserve in zip(pairs, reserves, strict=True):
            yield self._fit(pair, [user[p.text] if p.is_user else self._structure_ids(p.text) for p in pair.prompt], reserve)

    def user_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of user texts; none of them is ever a control id."""
        return [
            self._without_control(e.ids, text)
            for e, text in zip(self._user.encode_batch(list(texts), add_special_tokens=False), texts, strict=True)
        ]

    def answer_ids(self, texts: Sequence[str]) -> list[int]:
        """Ids of an answer's pieces, each encoded on its own, without the end token."""
        return [i for text in texts for i in self._word_ids(text)]

    def label_paths(self, spec: TaskSpec) -> dict[str, tuple[int, ...]]:
        """Label → ids of its word.

        Raises ConfigError where two words have the same ids or, for multi-label tasks, where one begins another: there a separator or the
        end may follow a word, and which word was meant could not be told.
        """
        texts = label_texts(spec)
        paths = {label: tuple(self._word_ids(text)) for label, text in texts.items()}
        seen: dict[tuple[int, ...], str] = {}
        for label, path in paths.items():
            if not path or path in seen:
                other = f"the same tokens as {texts[seen[path]]!r}" if path in seen else "no tokens"
                raise ConfigError(f"task {spec.name}: answer word {texts[label]!r} is {other} in this tokenizer; choose another word")
            seen[path] = label
        if spec.output == "multi-label":
            for label, path in paths.items():
                if longer := next((other for other in paths if other != label and paths[other][: len(path)] == path), None):
                    raise ConfigError(
                        f"task {spec.name}: answer word {texts[label]!r} begins {texts[longer]!r} in this tokenizer; "
                        "several labels can only be told apart where no word begins another"
                    )
        return paths

    def room_for_answers(self, spec: TaskSpec) -> int:
        """Ids that the longest answer of a task may take, its end token included."""
        if spec.output == "generation":
            return spec.max_answer_tokens + 1
        longest = max(len(path) for path in self.label_paths(spec).values())
        if spec.output == "multi-label":
            longest = max(longest, len(self.answer_ids(answer_texts(spec, spec.labels))))
        return longest + 1

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._structure.decode(list(ids), skip_special_tokens=True))

    def token(self, i: int) -> str:
        """How the vocabulary writes an id."""
        return self._structure.id_to_token(i) or ""

    def _fit(self, pair: TextPair, parts: list[list[int]], reserve: int) -> LaidOut:
        answer = [*self.answer_ids(pair.answer), self.eos_id] if pair.answer else []
        users = [len(part) for part, piece in zip(parts, pair.prompt, strict=True) if piece.is_user]
        structure = sum(map(len, parts)) - sum(users)
        room = self.max_length - structure - max(reserve, len(answer))
        limit = _water_level(users, room)
        if room < 0 or (limit == 0 and any(users)):
            raise ConfigError(
                f"instruction, template and answers take {self.max_length - room} tokens and leave no room for the text "
                f"(max_length is {self.max_length}): shorten the instruction or raise the method's max_length"
            )
        ends = [limit if piece.is_user else len(part) for part, piece in zip(parts, pair.prompt, strict=True)]
        return LaidOut(
            [part[:end] for part, end in zip(parts, ends, strict=True)], [part[end:] for part, end in zip(parts, ends, strict=True)], answer
        )

    def _structure_ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._structure.encode(text, add_special_tokens=False).ids
        return self._known[text]

    def _word_ids(self, text: str) -> list[int]:
        return self.user_ids([text])[0]

    def _without_control(self, ids: list[int], text: str) -> list[int]:
        """Vocabularies of some models hold their control tokens as words: then the text is encoded character by character."""
        if self.control_ids.isdisjoint(ids):
            return ids
        ids = [i for e in self._user.encode_batch(list(text), add_special_tokens=False) for i in e.ids]
        if found := self.control_ids.intersection(ids):
            raise ConfigError(
                f"the tokenizer encodes a single character of user text as control id {sorted(found)}; it cannot be used safely"
            )
        return ids


def _joined(pair: TextPair, laid: LaidOut) -> Encoded:
    document = sum(len(part) for part, piece in zip(laid.pieces, pair.prompt, strict=True) if piece.is_document)
    prompt = [i for part in laid.pieces for i in part]
    return Encoded(np.array(prompt, np.int32), np.array(laid.answer, np.int32), document, sum(map(len, laid.cut)))


def _water_level(lengths: Sequence[int], room: int) -> int:
    """The greatest length to cut texts to so that together they fit: the longest are cut, short ones stay whole."""
    if sum(lengths) <= room:
        return max(lengths, default=0)
    left = room
    for count, length in zip(range(len(lengths), 0, -1), sorted(lengths), strict=True):
        if length * count > left:
            return left // count
        left -= length
    return 0


def _fill(instruction: str, template: str, fields: Mapping[str, str]) -> tuple[Piece, ...]:
    """The instruction as it stands (its braces are its own), and the template with its fields; structure stays in one piece up to a field."""
    pieces: list[Piece] = []
    structure = instruction
    for literal, name, _, _ in string.Formatter().parse(template):
        structure += literal
        if name is not None:
            pieces += [Piece(structure), Piece(fields[name], is_user=True)]
            structure = ""
    return tuple(piece for piece in (*pieces, Piece(structure)) if piece.text or piece.is_user)


def _placeholders(line: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(line) if name}


def _as_tuple(answer: Answer) -> tuple[str, ...]:
    return answer if isinstance(answer, tuple) else (str(answer),)
