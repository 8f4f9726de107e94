"""Speech as a recogniser hears it: no punctuation, fillers, and now and then a word that only sounds right."""

import re
from random import Random

from mtcore_hotel.phrases import Language, pick

# A wrong form stands nowhere else in the phrase books, so that what was said can always be told, and the ceiling of a task holds.
MISHEARD: dict[Language, dict[str, str]] = {
    "en": {
        "booking": "bo king",
        "cancelled": "can sold",
        "withdrew": "with drew",
        "hotel": "ho tell",
        "room": "rheum",
        "night": "knight",
        "manager": "man is her",
        "airport": "air pot",
        "taxi": "tacks he",
        "confirmed": "con firmed",
        "site": "sight",
        "key": "quay",
    },
    "zh": {
        "酒店": "九店",
        "订单": "定单",
        "取消": "曲消",
        "确认": "却认",
        "前台": "钱台",
        "经理": "京里",
        "网站": "往站",
        "平台": "瓶台",
        "机场": "鸡场",
        "房": "防",
        "客满": "可满",
        "转账": "赚账",
    },
}
FILLERS: dict[Language, tuple[str, ...]] = {"en": ("um", "uh", "you know", "well"), "zh": ("嗯", "那个", "就是说", "呃")}
MISHEARS, HESITATES = 0.15, 0.3
"""How often a turn mishears a word that can be misheard, and how often it holds a filler."""


def heard(rng: Random, text: str, language: Language) -> str:
    """The conversation as a recogniser writes it down; speakers are told apart."""
    return "\n".join(_turn(rng, line, language) for line in text.split("\n"))


def _turn(rng: Random, line: str, language: Language) -> str:
    speaker, colon, said = re.split(r"(: |：)", line, maxsplit=1)
    said = " ".join(re.sub(r"[,.!?:，。！？：]", " ", said).split()).lower()
    for right, wrong in MISHEARD[language].items():
        pattern = rf"\b{right}\b" if language == "en" else right
        said = re.sub(pattern, wrong if rng.random() < MISHEARS else right, said)
    words = said.split(" ")
    if rng.random() < HESITATES:
        words.insert(int(rng.random() * (len(words) + 1)), pick(rng, FILLERS[language]))
    return speaker + colon + " ".join(words)
