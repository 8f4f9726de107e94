"""Fit a text-to-text model: encode the rows, walk the stages, leave the best checkpoint as a bundle."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from mtcore import events
from mtcore.bundle import BundleManifest, bundled, write_bundle
from mtcore.contracts import Stages, Workspace
from mtcore.data.packing import MicroBatch, Sample, count_batches, deal, micro_batches
from mtcore.data.stages import CompiledStage
from mtcore.data.text import Encoded, TextEncoder, render, text_pair
from mtcore.errors import ConfigError
from mtcore.inference.predictor import TextPredictor, served_task
from mtcore.modeling.flops import ModelSize
from mtcore.modeling.load import load_model
from mtcore.modeling.lora import add_lora
from mtcore.training.distributed import agree
from mtcore.training.flops import peak
from mtcore.training.loop import StepBatch
from mtcore.training.state import Trainee
from mtcore.training.walk import Pace, Walk
from mtcore.types import Example, Fitted, Group, Render, TaskData, TaskSpec

if TYPE_CHECKING:
    from mtcore.defaults.text2text import Text2Text, Text2TextConfig


def fit(method: "Text2Text", group: Group, stages: Stages, workspace: Workspace, origin: Path) -> Fitted:
    """Train one model for the group; every checkpoint is a place from which the same call goes on, and the best one becomes the bundle.

    `origin` holds the weights to begin with: the base's, or those of a bundle on that base.
    """
    config = method.config
    encoder = method.encoder(workspace.base)
    tasks = {name: workspace.tasks[name] for name in group.tasks}
    encoded = {name: encode_rows(task, task.train, encoder, config) for name, task in tasks.items()}
    _tell_cuts(encoded, encoder, workspace)
    require_budget(encoded, config.batch_tokens)
    accelerator = workspace.accelerator(config.precision)
    torch.manual_seed(workspace.seed + accelerator.process_index)
    model = load_model(origin)
    if config.lora is not None:
        add_lora(
            model,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            targets=config.lora.targets,
            seed=workspace.seed,
        )
    trainee = Trainee(
        model,
        accelerator,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        clip=config.clip,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    renders = {n: t.render for n, t in tasks.items() if t.render}
    asked = predictor(trainee.model, encoder, {n: t.spec for n, t in tasks.items()}, renders, config, trainee.size)

    @cache
    def validation() -> dict[str, tuple[list[MicroBatch], int]]:
        """Of each task, its validation rows as batches, and how many they are."""
        rows = {name: encode_rows(task, task.validation, encoder, config) for name, task in tasks.items()}
        return {
            name: (micro_batches([_sample(e, number) for number, e in enumerate(own)], config.batch_tokens), len(own))
            for name, own in rows.items()
        }

    walk = Walk(
        trainee,
        workspace,
        stages,
        origin,
        Pace(config.warm_up, config.decay, config.batch_tokens, config.save_minutes),
        batches=lambda compiled: step_batches(compiled, encoded, rank=accelerator.process_index, processes=accelerator.num_processes),
        ask=lambda: trainee.asking(lambda: workspace.evaluate(asked)),
        validation_losses=lambda: validation_losses(trainee, validation()),
        peak=peak(accelerator.device, config.precision, trainee.size),
    )
    progress = walk.to_the_end()
    bundle = _publish(trainee, workspace, group, method)
    return Fitted(
        bundle=str(bundle),
        done=progress.done,
        chosen=progress.best,
        evaluation_cost=progress.evaluation_cost,
        ledger=progress.ledger,
    )


# --- rows as batches -----------------------------------------------------------------------------------------------------------------------


def encode_rows(task: TaskData, rows: Sequence[Example], encoder: TextEncoder, config: "Text2TextConfig") -> list[Encoded]:
    pairs = [text_pair(task.spec, e.fields, e.answer, config.layout, task.render) for e in rows]
    return encoder.encode(pairs, encoder.room_for_answers(task.spec))


def require_budget(encoded: Mapping[str, Sequence[Encoded]], batch_tokens: int) -> None:
    """Raise ConfigError where one example alone is more than may go through the model at once."""
    longest, name, row = max((len(e.prompt) + len(e.answer), name, row) for name, rows in encoded.items() for row, e in enumerate(rows))
    if longest > batch_tokens:
        raise ConfigError(
            f"method.batch_tokens = {batch_tokens}, but the longest example ({name}, train row {row}) has {longest} tokens. "
            f"Raise batch_tokens to at least {longest}, or lower method.max_length so that texts are cut."
        )


def step_batches(
    compiled: CompiledStage, encoded: Mapping[str, Sequence[Encoded]], *, rank: int, processes: int
) -> Callable[[int, int], StepBatch]:
    """This process's part of every step: its share of the global batch by tokens, each example weighing what it weighs in the whole step."""
    (_, plan, _), size = compiled.decided, compiled.stage.examples_per_step
    names = [t.name for t in plan.tasks]
    if size < processes:
        raise ConfigError(
            f"examples_per_step = {size} of stage {compiled.stage.name!r}, and {processes} processes were launched: some would never have an "
            "example. Raise examples_per_step, or launch fewer."
        )

    def batch(step: int, batch_tokens: int) -> StepBatch:
        window = plan.window(step * size, (step + 1) * size)
        loss_weights = compiled.mixture_at(step * size).loss_weights
        weights = np.array([loss_weights.get(names[task], 1.0) for task in window.task])
        weights /= weights.sum()
        samples = [_sample(encoded[names[t]][r], number) for number, (t, r) in enumerate(zip(window.task, window.row, strict=True))]
        hands = deal(samples, processes)
        mine, most = hands[rank], max(count_batches([samples[i] for i in hand], batch_tokens) for hand in hands)
        own = micro_batches([replace(samples[i], example=number) for number, i in enumerate(mine)], batch_tokens) if mine else []
        tasks, shares = [int(window.task[i]) for i in mine], weights[mine].tolist()
        if len(own) < most:
            # all processes must go through the model equally often: one that has less to do repeats the shortest example with weight 0
            shortest = min(range(len(samples)), key=lambda i: (len(samples[i].ids), i))
            filler = micro_batches([_sample(encoded[names[window.task[shortest]]][window.row[shortest]], len(mine))], batch_tokens)
            own, tasks, shares = own + filler * (most - len(own)), [*tasks, int(window.task[shortest])], [*shares, 0.0]
        return StepBatch(own, shares, tasks)

    return batch


def _sample(encoded: Encoded, example: int) -> Sample:
    return Sample(np.concatenate([encoded.prompt, encoded.answer]), len(encoded.prompt), example, encoded.document)


def validation_losses(trainee: Trainee, batches: Mapping[str, tuple[list[MicroBatch], int]]) -> dict[str, float]:
    """Mean over a task's validation rows of each row's mean token loss, with the model as it stands; the first process's, on all of them."""
    return agree({name: float(trainee.losses(own, rows).mean()) for name, (own, rows) in batches.items()})


def _tell_cuts(encoded: Mapping[str, Sequence[Encoded]], encoder: TextEncoder, workspace: Workspace) -> None:
    for name, rows in encoded.items():
        if cut := sum(bool(e.cut) for e in rows):
            workspace.emit(events.Warned(name, f"{cut} of {len(rows)} train texts do not fit into {encoder.max_length} tokens and are cut"))


# --- the model asked, and left as a bundle ---------------------------------------------------------------------------------------------------


def predictor(
    model: PreTrainedModel,
    encoder: TextEncoder,
    specs: Mapping[str, TaskSpec],
    codes: Mapping[str, Render],
    config: "Text2TextConfig",
    size: ModelSize | None = None,
    *,
    is_final: bool = False,
) -> TextPredictor:
    """`size` must be given for a model that is divided among processes, and `is_final` only for one whose weights stay as they are."""

    def prompt(spec: TaskSpec, code: Render | None) -> Any:
        return lambda fields: code(fields, config.layout) if code else render(spec, fields, config.layout)

    served = {name: served_task(spec, prompt(spec, codes.get(name)), encoder) for name, spec in specs.items()}
    return TextPredictor(model, encoder, served, batch_tokens=config.batch_tokens, size=size, is_final=is_final)


def _publish(trainee: Trainee, workspace: Workspace, group: Group, method: "Text2Text") -> Path:
    manifest = BundleManifest(
        method=method.name,
        options=json.loads(method.config.model_dump_json()),
        tasks={name: bundled(workspace.tasks[name]) for name in group.tasks},
        base=workspace.base.name,
        base_digest=workspace.base.digest,
    )

    whole = workspace.folder / "whole"
    trainee.export(whole)  # all processes gather; the first one writes

    def fill(folder: Path) -> None:
        for path in whole.iterdir():
            path.replace(folder / path.name)
        copy_tokenizer(workspace.base.folder, folder)

    if workspace.is_main:
        write_bundle(workspace.bundle, manifest, fill)
        whole.rmdir()
    trainee.accelerator.wait_for_everyone()
    return workspace.bundle


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer's files as they are, so that it loads like the base's own."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "added_tokens.json", "chat_template*"):
        for path in source.glob(pattern):
            (folder / path.name).write_bytes(path.read_bytes())
