"""Write a scenario as text: turns of a conversation, a review, an email; what happened stands in the wording and in who says it."""

import re
from random import Random

from mtcore_hotel.phrases import Language, phrases, pick, write
from mtcore_hotel.scenarios import Conversation, Email, Review, Ride, Scenario

TURN = re.compile(r"(?:^|\s)([GA]): ")
SPEAKERS: dict[Language, dict[str, str]] = {"en": {"G": "Guest: ", "A": "Agent: "}, "zh": {"G": "客人：", "A": "客服："}}
FEELINGS = ("calm", "cross", "furious")


def written(rng: Random, language: Language, scenario: Scenario) -> str:
    """The scenario in one of its many wordings."""
    match scenario:
        case Conversation():
            return _turns(_conversation(rng, language, scenario), language)
        case Ride():
            return _turns(_ride(rng, language, scenario), language)
        case Review():
            return _review(rng, language, scenario)
        case Email():
            return _email(rng, language, scenario)


def summary(language: Language, conversation: Conversation) -> str:
    """What an agent notes down after the conversation."""
    book = phrases("conversation", language)["summary"]
    parts = [book[topic][0 if conversation.happened(topic) else 1] for topic in conversation.topics]
    return "; ".join([*parts, book["solved" if conversation.is_solved else "open"]])


def sequel(rng: Random, language: Language, scenario: Scenario) -> str:
    """What an archive holds after the document: an agent's note, the answer to a review, a ride or an email."""
    book = phrases("writing", language)
    match scenario:
        case Conversation():
            note = write(rng, phrases("conversation", language)["summary"]["note"], {}, language)
            return note + summary(language, scenario)
        case Review(aspects):
            return _answer(rng, language, "review", [aspect for aspect, is_here in aspects.items() if is_here])
        case Ride(issues):
            return _answer(rng, language, "ride", [issue for issue, way in issues.items() if way != "denied"])
        case Email(wanted):
            item = write(rng, pick(rng, book["email"]["item"][wanted]), {}, language)
            return write(rng, book["email"]["reply"], book["words"], language, line=book["email"]["desk"][wanted], wanted=item)


def _answer(rng: Random, language: Language, kind: str, matters: list[str]) -> str:
    book = phrases("writing", language)[kind]
    start = write(rng, book["reply"]["start"], {}, language)
    listed = (", " if language == "en" else "、").join(book["noun"][matter] for matter in matters)
    return start + write(rng, book["reply"]["some" if matters else "none"], {}, language, list=listed)


def _conversation(rng: Random, language: Language, conversation: Conversation) -> list[str]:
    book = phrases("conversation", language)

    def say(section: str, way: str) -> str:
        return write(rng, pick(rng, book[section][way]), book["words"], language)

    lines = [say("greeting", "warm" if conversation.is_warm else "cold"), say("opening", "any")]
    blocks = []
    for topic, told in conversation.topics.items():
        way, _, reply = told.partition(" ")
        blocks.append([say(topic, way), *([say("reply", "confirm" if reply == "confirmed" else "deny")] if reply else [])])
    if rng.random() < 0.3:
        blocks.insert(int(rng.random() * (len(blocks) + 1)), [say("chatter", "any")])
    feelings = [say("feeling", FEELINGS[level]) for level in conversation.feelings if level or rng.random() < 0.3]
    reaction = say("reaction", "kind" if conversation.is_kind else "curt")
    lines += blocks[0] + feelings[:1] + [reaction]
    for block in blocks[1:]:
        lines += block
    return [*lines, *feelings[1:], say("ending", "solved" if conversation.is_solved else "open")]


def _ride(rng: Random, language: Language, ride: Ride) -> list[str]:
    book = phrases("writing", language)
    lines = [write(rng, pick(rng, book["ride"]["opening"]), book["words"], language)]
    for issue, way in ride.issues.items():
        clause = write(rng, pick(rng, book["ride"]["clause"][issue]), book["words"], language)
        answer = write(rng, pick(rng, book["ride"]["yes" if way == "confirmed" else "no"]), book["words"], language)
        frame = pick(rng, book["ride"]["claim" if way == "told" else "asked"])
        lines.append(write(rng, frame, book["words"], language, clause=clause, answer=answer))
    return lines


def _review(rng: Random, language: Language, review: Review) -> str:
    book = phrases("writing", language)
    sentences = [write(rng, pick(rng, book["review"]["start"]), book["words"], language)]
    for aspect, is_here in review.aspects.items():
        clause = write(rng, pick(rng, book["review"]["clause"][aspect]), book["words"], language)
        frame = pick(rng, book["review"]["here" if is_here else "elsewhere"])
        sentences.append(write(rng, frame, book["words"], language, clause=clause))
    if rng.random() < 0.5:
        sentences.append(write(rng, pick(rng, book["review"]["end"]), book["words"], language))
    return (" " if language == "en" else "").join(map(_capital, sentences))


def _email(rng: Random, language: Language, email: Email) -> str:
    book = phrases("writing", language)
    wanted, other = (write(rng, pick(rng, book["email"]["item"][line]), book["words"], language) for line in (email.wanted, email.other))
    one, two = (wanted, other) if rng.random() < 0.5 else (other, wanted)
    fine, work = (write(rng, pick(rng, book["email"][way]), book["words"], language) for way in ("fine", "work"))
    lines = [
        write(
            rng, pick(rng, book["email"][part]), book["words"], language, wanted=wanted, other=other, one=one, two=two, fine=fine, work=work
        )
        for part in ("subject", "body", "end")
    ]
    return "\n".join(lines)


def _turns(exchanges: list[str], language: Language) -> str:
    """Exchanges such as `G: … A: …` as one line a turn; turns of one speaker that meet are one."""
    lines: list[str] = []
    last = ""
    for exchange in exchanges:
        parts = TURN.split(exchange)[1:]
        for who, said in zip(parts[::2], parts[1::2], strict=True):
            if who == last:
                lines[-1] += (" " if language == "en" else "") + _capital(said.strip())
            else:
                lines.append(SPEAKERS[language][who] + _capital(said.strip()))
            last = who
    return "\n".join(lines)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
