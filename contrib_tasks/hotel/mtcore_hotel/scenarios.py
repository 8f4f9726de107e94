"""Latent scenarios: what happened in a conversation, a review, a ride or an email, from which both its text and its labels follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from mtcore_hotel.phrases import Language, below, pick

Source = Literal["phone", "chat", "reviews", "rides", "mail"]
Told = Literal["yes", "no", "claim confirmed", "claim denied", "inverse confirmed", "inverse denied"]
"""How a matter comes up: by itself, or as a question whose answer decides."""

TOPICS = {"noroom": 4.0, "cancel": 2.5, "circumstance": 1.5, "poaching": 1.0, "insult": 1.0, "public": 1.0, "shuttle": 0.7, "invoice": 0.7}
"""Matters of a conversation, and how often they come up."""
NEVER_ASKED = {"insult", "public", "invoice"}
"""Matters that are met in what is said and done, never in a question about them."""
ASPECTS = ("facilities", "service", "cleanliness", "location", "noise", "breakfast", "price")
ISSUES = ("detour", "overcharge", "late", "lost", "rude", "dropped", "unsafe")
LINES = ("hotel", "flight", "train", "car", "tour", "insurance", "finance", "business")


@dataclass(frozen=True)
class Conversation:
    """A guest and an agent: one or two matters, how the guest feels, how the agent behaves."""

    topics: Mapping[str, Told]
    feelings: tuple[int, ...]
    """0 calm, 1 cross, 2 furious; one after each matter."""
    is_warm: bool
    is_kind: bool
    is_solved: bool

    def happened(self, topic: str) -> bool:
        """Whether the matter is so in the end."""
        return self.topics.get(topic) in ("yes", "claim confirmed", "inverse denied")

    @property
    def quality(self) -> int:
        """1 to 4: one point each for a warm greeting, kindness and a solution; an agent who insults has none."""
        return 1 if self.happened("insult") else 1 + self.is_warm + self.is_kind + self.is_solved

    @property
    def agitation(self) -> int:
        """1 to 5: both feelings together."""
        return 1 + sum(self.feelings)


@dataclass(frozen=True)
class Review:
    """Aspects, and whether each is said of this hotel or of another."""

    aspects: Mapping[str, bool]


@dataclass(frozen=True)
class Ride:
    """Issues of a taxi ride: told by the guest, or asked by the agent and confirmed or denied."""

    issues: Mapping[str, Literal["told", "confirmed", "denied"]]


@dataclass(frozen=True)
class Email:
    """Two lines of business: one needs work, the other is only mentioned."""

    wanted: str
    other: str


Scenario = Conversation | Review | Ride | Email


def draw(rng: Random, source: Source) -> tuple[Language, Scenario]:
    """A language and a scenario of the source."""
    language: Language = "en" if rng.random() < 0.5 else "zh"
    match source:
        case "reviews":
            return language, Review({a: rng.random() < 0.55 for a in _some(rng, ASPECTS, 2 + below(rng, 3))})
        case "rides":
            ways = ("told", "told", "confirmed", "denied", "denied")
            return language, Ride({issue: pick(rng, ways) for issue in _some(rng, ISSUES, 1 + below(rng, 3))})
        case "mail":
            wanted, other = _some(rng, LINES, 2)
            return language, Email(wanted, other)
        case "phone" | "chat":
            return language, _conversation(rng)


def _conversation(rng: Random) -> Conversation:
    topics: dict[str, Told] = {}
    for _ in range(1 if rng.random() < 0.5 else 2):
        topic = _weighted(rng)
        topics[topic] = _told(rng, topic)
    return Conversation(
        topics=topics,
        feelings=tuple(pick(rng, (0, 0, 1, 2)) for _ in range(2)),
        is_warm=rng.random() < 0.6,
        is_kind=rng.random() < 0.6,
        is_solved=rng.random() < 0.6,
    )


def _told(rng: Random, topic: str) -> Told:
    if topic in NEVER_ASKED or rng.random() < 0.6:
        return "yes" if rng.random() < 0.5 else "no"
    asked: tuple[Told, ...] = ("claim confirmed", "claim denied", "inverse confirmed", "inverse denied")
    return asked[below(rng, 4)]


def _weighted(rng: Random) -> str:
    at = rng.random() * sum(TOPICS.values())
    for topic, weight in TOPICS.items():
        at -= weight
        if at < 0:
            return topic
    return "noroom"


def _some(rng: Random, options: tuple[str, ...], count: int) -> list[str]:
    left = list(options)
    return [left.pop(below(rng, len(left))) for _ in range(count)]
