"""Find, check, hash and load base models: a Hub id, a local folder, or a base that `mtcore base` built."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mtcore.errors import ModelError
from mtcore.types import Base

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOREIGN_KEYS = ("auto_map", "custom_pipelines")


def find_base(model: str, bases: Path, *, weights: bool = True) -> Base:
    """Resolve `model =` to local files without importing torch; a Hub id is downloaded at its current revision, which the digest pins.

    `bases` is where `mtcore base` leaves what it builds. With `weights=False` they are neither fetched nor hashed, and the digest says nothing.
    """
    folder = Path(model).expanduser()
    if (bases / model / "config.json").is_file():
        folder = bases / model
    elif not folder.is_dir():
        folder = _download(model, bases, weights=weights)
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelError(f"model = {model!r}: {folder} has no {name}. A base needs config.json, tokenizer.json and *.safetensors.")
    if weights and not any(folder.glob("*.safetensors")):
        raise ModelError(f"model = {model!r}: {folder} has no *.safetensors. Pickled weights are never read; convert them first.")
    config = json.loads((folder / "config.json").read_text())
    foreign = [key for key in FOREIGN_KEYS if key in config]
    if foreign:
        raise ModelError(
            f"model = {model!r}: its config.json asks for code of its own ({', '.join(foreign)}). mtcore runs none; remove the keys."
        )
    return Base(name=model, folder=folder, digest=digest_folder(folder) if weights else "", config=config)


def digest_folder(folder: Path) -> str:
    """SHA-256 over names and contents of configuration, tokenizer and weights."""
    total = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        if path.name == "mtcore.json":
            continue
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def hub_revision(base: Base) -> str | None:
    """The commit that a base from the Hub was downloaded at; None for a base from anywhere else."""
    snapshots = base.folder.parent
    return base.folder.name if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--") else None


def load_model(folder: Path, *, to_device: bool = False) -> "PreTrainedModel":
    """Load a causal language model in fp32; safetensors only, no code from the folder, attention by blocks where it is given some.

    For inference `to_device` moves it to this process's GPU, where there is one; training leaves that to accelerate.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    from mtcore.modeling.attention import install
    from mtcore.modeling.head import require_plain_head

    logging.disable_progress_bar()  # progress is told by observers
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
    )
    model.config.use_cache = False
    # a base's own defaults (penalties, sampling) would change what greedy decoding answers
    model.generation_config = GenerationConfig.from_model_config(model.config)
    if to_device and torch.cuda.is_available():
        model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")  # type: ignore[arg-type]
    install(model)
    require_plain_head(model.eval())
    return model


def _download(model: str, bases: Path, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    built = sorted(p.parent.name for p in bases.glob("*/config.json"))
    if "/" not in model:
        raise ModelError(
            f"model = {model!r}: no such folder, and no base of that name was built here (built: {', '.join(built) or 'none'} in {bases}). "
            f"Build it with: mtcore base {model} --corpus FOLDER"
        )
    patterns = ["*.json", "*.txt", "*.model"] + (["*.safetensors"] if weights else [])
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(
            f"model = {model!r}: neither a local folder nor to be had from the Hugging Face Hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Give a folder with config.json, tokenizer.json and *.safetensors, or check the id and the network."
        ) from error
