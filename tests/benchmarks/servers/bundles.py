"""Bundles and documents to measure servers with: random weights, tasks and texts of the hotel suite."""

import json
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from mtcore_hotel.documents import documents
from mtcore_hotel.tasks import ADAPTERS

from mtcore.bundle import BundledTask, BundleManifest, write_bundle
from mtcore.types import TaskSpec

TOKENIZER = Path(__file__).parents[3] / "contrib_tasks" / "hotel" / "base"
CHAT = ("rc-i", "uc-i", "pg-i", "id", "csa", "nr-i", "hs", "idm", "csqr", "see")
"""The tasks that the platform asks of a chat, the summary aside."""
CONTACTS = 2
"""Conversations of a guest with the hotel that stand in one document: those of the generator are short."""


def hotel_specs() -> dict[str, TaskSpec]:
    """The 17 classification tasks."""
    return {f"hotel/{a.spec.name}": a.spec for a in ADAPTERS if a.spec.output != "generation"}


def chat_specs() -> dict[str, TaskSpec]:
    """The ten tasks of a chat, with answer words of one token, as yes and no are in large vocabularies: a peer then reads all labels of a
    prompt off one position."""
    chosen = {name: spec for name, spec in hotel_specs().items() if spec.name in CHAT}
    return {
        name: spec.model_copy(update={"words": {label: word[0] for label, word in spec.words.items()}}) for name, spec in chosen.items()
    }


def texts(count: int) -> list[str]:
    """Documents that all differ: several contacts of a guest by chat, one after the other."""
    chats = (document.text for document in documents("chat", world="benchmark"))
    return ["\n".join(islice(chats, CONTACTS)) for _ in range(count)]


def make_bundle(
    folder: Path, specs: Mapping[str, TaskSpec], width: int, layers: int, *, layout: str = "document-first", seed: int = 1
) -> Path:
    """Write a bundle of random weights, fixed by the seed; large enough weights that answers depend on texts."""
    import torch
    from transformers.utils import logging

    from mtcore.defaults.text2text_fit import copy_tokenizer
    from mtcore.modeling.tiny import new_decoder

    logging.disable_progress_bar()
    vocabulary = json.loads((TOKENIZER / "config.json").read_text())["vocab_size"]
    model = new_decoder(vocabulary=vocabulary, width=width, layers=layers, heads=width // 64, context=1024, eos_id=0, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 2.5
    manifest = BundleManifest(
        method="text2text",
        options={"layout": layout},
        tasks={name: BundledTask(spec=spec) for name, spec in specs.items()},
        base="random weights",
        base_digest="",
    )

    def fill(temporary: Path) -> None:
        model.save_pretrained(temporary)
        copy_tokenizer(TOKENIZER, temporary)

    return write_bundle(folder, manifest, fill)


def parameters(folder: Path) -> int:
    """How many numbers a bundle's weights are."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
