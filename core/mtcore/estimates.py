"""What a run will take, said before it: floating-point operations and room on the disk, and time where a run here has shown the pace."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtcore import events
from mtcore.data.stages import CompiledStage
from mtcore.evaluation.tables import flop, span
from mtcore.modeling.flops import ModelSize
from mtcore.preparation import Resolved, group_work, told_seed
from mtcore.registry import Registry
from mtcore.types import Base, Preview, Stage, TaskProfile

FLOAT = 4
"""Bytes of a number in fp32, in which weights and moments are kept."""
STATES = 1 + 2
"""A checkpoint holds weights and AdamW's two moments."""
KEPT = 4
"""Checkpoints that are there at once while one is saved: that one, the newest before it, the one to go back to, and the best."""
GATED = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose matrices follow from their configuration."""
TARGETS = 2
"""Tokens of an answer; a guess that counts for little beside the prompt's."""


@dataclass(frozen=True)
class Pace:
    """Floating-point operations a second of a run that was done here, evaluation included."""

    run: str
    flops_per_second: float


@dataclass(frozen=True)
class Estimate:
    """At most: references that are measured already cost nothing, and patience ends work sooner."""

    flops: float | None
    """Of training and of evaluating on the way; None where the base or its rows are not here to be counted."""
    disk: int | None
    """Bytes of checkpoints and of what stays: bundles, and weights of references that are kept.

    Checkpoints that a scheduler keeps for later stages (`StageScheduler.keep`) come on top: how many there are shows as it trains.
    """
    pace: Pace | None
    """None where no run here has shown it for this model."""

    @property
    def seconds(self) -> float | None:
        return self.flops / self.pace.flops_per_second if self.flops and self.pace else None

    def __str__(self) -> str:
        if self.flops is None:
            told = ["how much there is to compute is unknown: the base's shapes or the lengths of its rows are not here"]
        else:
            told = [f"at most {flop(self.flops)}FLOP, references included"]
            if self.pace is None or self.seconds is None:
                told.append("how long that takes is unknown: no run here has measured this model")
            else:
                told.append(f"about {span(self.seconds)} at the {flop(self.pace.flops_per_second)}FLOP/s of run {self.pace.run}")
        if self.disk is not None:
            told.append(f"about {size(self.disk)} on the disk, without checkpoints that a scheduler keeps for later stages")
        return "; ".join(told)

    def as_json(self) -> dict[str, Any]:
        pace = {"flops_per_second": self.pace.flops_per_second, "measured_by": self.pace.run} if self.pace else None
        return {"flops": self.flops, "disk_bytes": self.disk, "seconds": self.seconds, "pace": pace}


def estimate(resolved: Resolved, previews: Mapping[str, Preview], base: Base, registry: Registry) -> Estimate:
    """Estimate a variant from its steps, the mean lengths of its rows and the base's shapes; torch is not loaded."""
    shapes = weight_shapes(base) or configured_shapes(base.config)
    size = base_size(base.config, shapes)
    is_known = size is not None and all(p.name in previews for p in resolved.profiles)
    return Estimate(
        flops=_flops(resolved, previews, size, registry) if size and is_known else None,
        disk=disk(sum(map(math.prod, shapes)), _models(resolved)) if shapes else None,
        pace=newest_pace(Path(resolved.config.out), resolved.config.model),
    )


def disk(count: int, models: int) -> int:
    """Bytes of so many models of `count` parameters, and of the checkpoints of one of them at a time."""
    return count * FLOAT * (models + STATES * KEPT)


def parameters(base: Base) -> int | None:
    """Numbers in the weights of a base, from the headers of its files; None where it has none."""
    shapes = weight_shapes(base)
    return sum(map(math.prod, shapes)) if shapes else None


def weight_shapes(base: Base) -> list[tuple[int, ...]]:
    """The shape of every tensor of a base."""
    from safetensors import safe_open

    shapes: list[tuple[int, ...]] = []
    for path in sorted(base.folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as weights:
            shapes += [tuple(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118 (no mapping)
    return shapes


def configured_shapes(config: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The shapes of a decoder's matrices where only its configuration is here; none where they do not follow from it."""
    if config.get("model_type") not in GATED:
        return []
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    vocabulary, width, inner, heads, groups, layers = (int(config[name]) for name in names)
    head = int(config.get("head_dim") or width // heads)
    layer = [(heads * head, width), (groups * head, width), (groups * head, width), (width, heads * head)]
    layer += [(inner, width), (inner, width), (width, inner)]
    return [*layer * layers, *[(vocabulary, width)] * (1 if config.get("tie_word_embeddings") else 2)]


def base_size(config: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> ModelSize | None:
    """What decides the cost of a base that is trained as a whole; None where its files do not say."""
    config = config.get("text_config") or config
    try:
        vocabulary, width, layers, heads = (
            int(config[key]) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        )
    except (KeyError, TypeError):
        return None
    matrices = [(shape[0], shape[1]) for shape in shapes if len(shape) == 2 and shape[0] < vocabulary]
    if not matrices:
        return None
    body = sum(map(math.prod, matrices))
    return ModelSize(
        body_parameters=body,
        trained_body_parameters=body,
        head_parameters=vocabulary * width,
        is_head_trained=True,
        layers=layers,
        attention_width=heads * int(config.get("head_dim") or width // heads),
        widest=max(matrices, key=lambda shape: (math.prod(shape), shape)),
    )


def newest_pace(out: Path, model: str) -> Pace | None:
    """The pace of the newest run below `out` that trained this model."""
    found = sorted([*out.glob("*/report.json"), *out.glob("*/*/report.json")], key=lambda path: -path.stat().st_mtime)
    for path in found:
        report = json.loads(path.read_text(encoding="utf-8"))
        cost = report.get("cost", {}).get("total references + shared", {})
        if report.get("model") == model and cost.get("flops") and cost.get("seconds"):
            return Pace(report["run"], cost["flops"] / cost["seconds"])
    return None


def _flops(resolved: Resolved, previews: Mapping[str, Preview], size: ModelSize, registry: Registry) -> float:
    config, by_name = resolved.config, {p.name: p for p in resolved.profiles}
    alone, total = registry.scheduler(config.reference), 0.0
    for profile in resolved.profiles:
        stage = alone.next_stage([profile], [], registry.sampler)
        if stage is not None:
            steps = sum(resolved.ahead.get(events.reference_work(profile.name, told_seed(seed, config)), 0) for seed in config.seeds)
            total += _trained({profile.name: 1.0}, steps * stage.examples_per_step, stage, [profile], previews, size)
    for group in resolved.groups:
        stages = resolved.stages[group.name]
        steps = sum(resolved.ahead.get(group_work(resolved.name, group, seed, config), 0) for seed in config.seeds)
        if steps and stages:
            stage = stages[-1].stage
            members = [by_name[name] for name in group.tasks]
            total += _trained(_shares(stages, members), steps * stage.examples_per_step, stage, members, previews, size)
    return total


def _shares(stages: Sequence[CompiledStage], members: Sequence[TaskProfile]) -> Mapping[str, float]:
    """Shares of the last stage that is known, which is the longest as a rule; equal ones where none is."""
    known = [compiled.mixture.shares for compiled in stages if compiled.mixture]
    return known[-1] if known else {p.name: 1 / len(members) for p in members}


def _trained(
    shares: Mapping[str, float],
    draws: int,
    stage: Stage,
    members: Sequence[TaskProfile],
    previews: Mapping[str, Preview],
    size: ModelSize,
) -> float:
    """So many draws by their shares, and an evaluation of all members as often as the stage has one."""
    lengths = {name: round(preview.mean_tokens) for name, preview in previews.items()}
    pairs = {name: length * (length + 1) // 2 for name, length in lengths.items()}
    steps = sum(share * size.training_flops(lengths[name], pairs[name], TARGETS) for name, share in shares.items())
    rows = sum(p.validation_rows * size.forward_flops(lengths[p.name], pairs[p.name], TARGETS) for p in members)
    return draws * steps + max(1, draws // (stage.evaluate_every or draws or 1)) * rows


def _models(resolved: Resolved) -> int:
    """Models with weights of their own that a variant leaves."""
    shared = len(resolved.groups) if resolved.method.uses_stages and not resolved.scheduler.alone else 0
    return (shared + (len(resolved.profiles) if resolved.config.keep_reference_weights else 0)) * len(resolved.config.seeds)


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, {"B": "KB", "KB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{count:.3g} {unit}"
