"""The text-to-text method: every task becomes instruction + input → answer text, and one causal language model learns them all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from mtcore.bundle import read_bundle
from mtcore.contracts import Component, Method, Predictor, Stages, Workspace
from mtcore.data.text import TextEncoder, text_pair
from mtcore.errors import ModelError
from mtcore.types import Base, Fitted, Frozen, Group, Layout, Preview, Render, TaskData

SAMPLE = 256
"""Rows a task that a preview encodes."""


class Lora(Frozen):
    """Low-rank adapters in place of full fine-tuning."""

    rank: int = Field(default=16, gt=0)
    """Inner width of an adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """What an adapter adds is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that a training step leaves out."""
    targets: tuple[str, ...] = ()
    """Names (or their ends, as in `q_proj`) of the linear layers that get one; all but the head where empty."""


class Text2TextConfig(Component.Config):
    """The paper gives rate and batch; what it leaves open is stated here."""

    indifferent = frozenset({"batch_tokens", "gradient_checkpointing", "save_minutes"})
    layout: Layout = "task-first"
    """Whether a prompt begins with the task's instruction, or with the document that tasks may share."""
    max_length: int = Field(default=1024, gt=8)
    """Tokens of prompt and answer together."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the model computes in while it trains."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW, on matrices only."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of AdamW: decay of the mean gradient."""
    beta2: float = Field(default=0.98, ge=0, lt=1)
    """Of AdamW: decay of the mean squared gradient."""
    clip: float = Field(default=1.0, gt=0)
    """Norm above which a gradient is scaled down."""
    warm_up: float = Field(default=0.05, ge=0, lt=1)
    """Share of a stage's steps in which the rate rises from 0."""
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls after warm-up: not at all, or to 0."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Tokens that go through the model at once, at most: bounds memory, changes no result."""
    lora: Lora | None = None
    """Train adapters and leave the base's weights as they are; the bundle holds them merged. None: every weight is trained."""
    gradient_checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping what they were: less memory, a quarter more work, the same result."""
    save_minutes: float = Field(default=10.0, ge=0)
    """Minutes between two checkpoints, beside those of evaluations: what a kill can cost at most."""


class Text2Text(Method):
    """Full fine-tuning of a causal language model on instruction + input → answer (paper, section 4.1.2)."""

    name = "text2text"
    update_keeps = frozenset({"layout", "max_length"})
    Config = Text2TextConfig
    config: Text2TextConfig

    def preview(self, tasks: Mapping[str, TaskData], base: Base) -> Mapping[str, Preview]:
        encoder = self.encoder(base)
        return {name: preview_task(task, encoder, self.config.layout) for name, task in tasks.items()}

    def fit(self, group: Group, stages: Stages, workspace: Workspace, update: Path | None = None) -> Fitted:
        from mtcore.defaults.text2text_fit import fit

        return fit(self, group, stages, workspace, update or workspace.base.folder)

    def load(self, bundle: Path, renders: Mapping[str, Render]) -> Predictor:
        from mtcore.defaults.text2text_fit import predictor
        from mtcore.modeling.load import find_base, load_model

        manifest = read_bundle(bundle)
        require_code(bundle, {name: task.code for name, task in manifest.tasks.items()}, renders)
        specs = {name: task.spec for name, task in manifest.tasks.items()}
        encoder = self.encoder(find_base(str(bundle), bundle.parent))
        return predictor(load_model(bundle, to_device=True), encoder, specs, renders, self.config, is_final=True)

    def encoder(self, base: Base) -> TextEncoder:
        return TextEncoder(base.folder / "tokenizer.json", base.eos_id, min(self.config.max_length, base.context))


def preview_task(task: TaskData, encoder: TextEncoder, layout: Layout) -> Preview:
    """Encode some rows and say how long they are and how many are cut."""
    pairs = [text_pair(task.spec, e.fields, e.answer, layout, task.render) for e in task.train[:SAMPLE]]
    encoded = encoder.encode(pairs, encoder.room_for_answers(task.spec))
    cut = sum(bool(e.cut) for e in encoded) / len(encoded)
    return Preview(
        mean_tokens=sum(len(e.prompt) + len(e.answer) for e in encoded) / len(encoded),
        truncated=cut,
        warnings=(f"{cut:.0%} of the texts do not fit into {encoder.max_length} tokens and are cut",) if cut else (),
    )


def require_code(bundle: Path, codes: Mapping[str, str], renders: Mapping[str, Render]) -> None:
    """A prompt written by code can only be asked through the same code."""
    if needed := {name: code for name, code in codes.items() if code and name not in renders}:
        raise ModelError(
            f"{bundle}: the prompts of {', '.join(needed)} are written by code of {', '.join(sorted(set(needed.values())))}; "
            "it must be installed and loaded in just that version"
        )
