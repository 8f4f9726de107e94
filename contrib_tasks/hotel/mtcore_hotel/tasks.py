"""The 17 classification tasks and the summary: what each asks of a scenario, how many rows it has, how noisy its labels are."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, ClassVar

from mtcore.contracts import TaskAdapter
from mtcore.data.sources import task_rows
from mtcore.types import Answer, InputKind, OutputKind, TaskSpec
from mtcore_hotel.documents import Document, documents
from mtcore_hotel.phrases import pick
from mtcore_hotel.scenarios import ASPECTS, ISSUES, LINES, Conversation, Email, Review, Ride, Scenario, Source
from mtcore_hotel.writing import summary

HELD_OUT, LEAST_HELD_OUT = 0.1, 500
"""Validation and test rows: a share of the train rows, and at least so many."""
UNRELATED = 0.06
"""Share of the conversations without a task's matter that were labelled for it all the same."""
ANY = 0.3
"""Share of the conversations that were labelled for a task on all of them."""


@dataclass(frozen=True)
class HotelTask:
    """One task of the platform."""

    name: str
    source: Source
    rows: int
    """Train rows at full size (paper, table 8)."""
    noise: float
    """Share of rows whose label is another than the scenario's: nothing can score above 1 - noise, and knowing the scenario scores that."""
    topic: str = ""
    """The matter of a binary task."""

    def wants(self, name: str, scenario: Scenario) -> bool:
        """Whether a document was labelled for this task."""
        if not isinstance(scenario, Conversation):
            return True
        chance = Random(f"{self.name} wants {name}").random()
        return chance < ANY if not self.topic else self.topic in scenario.topics or chance < UNRELATED

    def label(self, document: Document) -> Answer:
        """The label that stands in the data: the truth, or with the task's noise another one."""
        truth = self.truth(document)
        rng = Random(f"{self.name} labels {document.name}")
        if rng.random() >= self.noise:
            return truth
        if isinstance(truth, tuple) and self.name == "cs":
            return (truth[0].rsplit("; ", 1)[0],)
        if isinstance(truth, tuple):
            other = pick(rng, ASPECTS if self.name == "rtc" else ISSUES)
            return tuple(sorted({*truth} ^ {other}))
        return str(pick(rng, [label for label in WORDS[self.name] if label != truth]))

    def truth(self, document: Document) -> Answer:
        """The label that follows from the scenario."""
        match document.scenario:
            case Review(aspects):
                return tuple(sorted(aspect for aspect, is_here in aspects.items() if is_here))
            case Ride(issues):
                return tuple(sorted(issue for issue, way in issues.items() if way != "denied"))
            case Email(wanted):
                return wanted
            case Conversation() as conversation:
                if self.name == "cs":
                    return (summary(document.language, conversation),)
                if self.name in ("csqr", "see"):
                    return str(conversation.quality if self.name == "csqr" else conversation.agitation)
                return "yes" if conversation.happened(self.topic) else "no"

    def made(self, scale: float = 1.0, least: int = 0, held_out: int | None = None) -> "Rows":
        """All rows: `scale` of the train rows, though at least `least` of them where there are so many."""
        train = max(math.ceil(self.rows * scale), min(least, self.rows))
        held = held_out or max(LEAST_HELD_OUT, math.ceil(train * HELD_OUT))
        return Rows(self, {"train": train, "validation": held, "test": held})


class Rows:
    """The rows of a task, made when they are asked for and kept."""

    def __init__(self, task: HotelTask, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self._task = task
        self._documents = documents(task.source, wanted=task.wants)
        self._made: dict[str, list[dict[str, Any]]] = {split: [] for split in sizes}

    def split(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows of a split, one by one."""
        made = self._made[name]
        for number in range(self.sizes[name]):
            while len(made) <= number:
                document = next(self._documents)
                split = document.split
                if len(self._made[split]) < self.sizes[split]:
                    self._made[split].append({"id": document.name, "text": document.text, "label": self._task.label(document)})
            yield made[number]


TASKS = {
    task.name: task
    for task in (
        HotelTask("rc-a", "phone", 17_059, 0.04, "cancel"),
        HotelTask("rc-i", "chat", 6_056, 0.04, "cancel"),
        HotelTask("uc-a", "phone", 1_950, 0.05, "circumstance"),
        HotelTask("uc-i", "chat", 8_624, 0.05, "circumstance"),
        HotelTask("pg-a", "phone", 2_341, 0.05, "poaching"),
        HotelTask("pg-i", "chat", 2_108, 0.05, "poaching"),
        HotelTask("id", "chat", 6_884, 0.03, "insult"),
        HotelTask("csa", "chat", 5_011, 0.08, "public"),
        HotelTask("nr-a", "phone", 40_397, 0.03, "noroom"),
        HotelTask("nr-i", "chat", 19_726, 0.03, "noroom"),
        HotelTask("hs", "chat", 1_328, 0.03, "shuttle"),
        HotelTask("idm", "chat", 1_200, 0.03, "invoice"),
        HotelTask("csqr", "chat", 2_489, 0.08),
        HotelTask("see", "chat", 9_314, 0.08),
        HotelTask("rtc", "reviews", 8_447, 0.06),
        HotelTask("csc", "rides", 8_168, 0.06),
        HotelTask("ec", "mail", 6_564, 0.04),
        HotelTask("cs", "chat", 1_822, 0.1),
    )
}
NO_YES = {"no": "no", "yes": "yes"}
WORDS: dict[str, dict[str, str]] = {
    **{name: NO_YES for name, task in TASKS.items() if task.topic},
    "csqr": {str(level): str(level) for level in range(1, 5)},
    "see": {str(level): str(level) for level in range(1, 6)},
    "rtc": {aspect: aspect for aspect in ASPECTS},
    "csc": {issue: issue for issue in ISSUES},
    "ec": {line: line for line in LINES},
    "cs": {},
}
QUESTIONS = {
    "cancel": "Did the hotel cancel a confirmed booking?",
    "circumstance": "Do unforeseen circumstances keep the guest away?",
    "poaching": "Does the hotel lure the guest to another channel?",
    "insult": "Does the agent insult the guest?",
    "public": "Will the guest post this in public?",
    "noroom": "Is there no room for the guest on arrival?",
    "shuttle": "Does the hotel offer a shuttle?",
    "invoice": "Does the guest want an invoice?",
    "csqr": "Rate the agent's service from 1 to 4.",
    "see": "Rate the guest's agitation from 1 to 5.",
    "rtc": "Which aspects of this hotel does the review judge?",
    "csc": "Which issues did the taxi ride have?",
    "ec": "Which line of business must act on the email?",
    "cs": "Summarise the conversation.",
}
OUTPUTS: dict[str, OutputKind] = {
    "csqr": "ordinal",
    "see": "ordinal",
    "rtc": "multi-label",
    "csc": "multi-label",
    "ec": "multi-class",
    "cs": "generation",
}
FIELDS = {"reviews": "review", "mail": "email"}
"""What a source's text is called; a conversation elsewhere."""


class HotelAdapter(TaskAdapter):
    """A task's rows: from files in the data folder, or, where no folder is named, made on the spot at full size."""

    task: ClassVar[HotelTask]

    def rows(self, split: str) -> Iterable[Any]:
        return task_rows(self.data, f"hotel/{self.task.name}", split) if self.data else _made(self.task).split(split)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        return {self.spec.fields[0]: row["text"]}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        label = row["label"]
        return label if isinstance(label, str) else tuple(label)


@cache
def _made(task: HotelTask) -> Rows:
    return task.made()


def _adapter(task: HotelTask) -> type[HotelAdapter]:
    output = OUTPUTS.get(task.name, "binary")
    field = FIELDS.get(task.source, "conversation")
    kind: InputKind = "conversation" if field == "conversation" else "single-sentence"
    spec = TaskSpec(
        name=task.name,
        output=output,
        input=kind,
        fields=(field,),
        document_fields=(field,),
        instruction=QUESTIONS[task.topic or task.name],
        template=f"{{{field}}}\nAnswer: ",
        words=WORDS[task.name],
        none_word="none" if output == "multi-label" else "",
        separator=", " if output == "multi-label" else "、",
        max_answer_tokens=48,
        metric="exact-match" if output == "generation" else "accuracy",
        beside={"multi-label": ("micro-f1",), "ordinal": ("negative-mae",)}.get(output, ()),
        licence="Apache-2.0",
        source="made by the suite's generator; no real guest, agent or hotel is in it",
    )
    return type(f"Hotel_{task.name.replace('-', '_')}", (HotelAdapter,), {"task": task, "spec": spec, "__module__": __name__})


ADAPTERS: tuple[type[HotelAdapter], ...] = tuple(_adapter(task) for task in TASKS.values())
globals().update({adapter.__name__: adapter for adapter in ADAPTERS})  # a class is found again by its name, as pickle needs it
