"""Fit a text-to-text model stage by stage: train, evaluate, save, choose the best checkpoint, leave it as a bundle; resumable."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from mtcore import events
from mtcore.bundle import BundleManifest, bundled, write_bundle
from mtcore.contracts import Stages, Workspace
from mtcore.data.packing import Sample, micro_batches
from mtcore.data.stages import CompiledStage
from mtcore.data.text import Encoded, TextEncoder, render, text_pair
from mtcore.errors import ResumeMismatch
from mtcore.inference.predictor import TextPredictor, served_task
from mtcore.modeling.load import load_model
from mtcore.training.checkpoint import newest_checkpoint, prune
from mtcore.training.loop import StepBatch, warm_up_then_decay
from mtcore.training.state import Trainee
from mtcore.types import Cost, Evaluation, Fitted, Frozen, Group, Ledger, LedgerEntry, Render, Stage, StageDone, TaskData, TaskSpec

if TYPE_CHECKING:
    from mtcore.defaults.text2text import Text2Text, Text2TextConfig


class Progress(Frozen):
    """Everything beside tensors that a resumed fit needs."""

    fingerprint: str
    saved: int = 0
    """Checkpoints written so far: the number in the next one's name."""
    step: int = 0
    """Steps done in the stage at hand."""
    done: tuple[StageDone, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    """Of the stage at hand."""
    ledger: Ledger = Ledger()
    cost: Cost = Cost()
    """Training in the stage at hand."""
    evaluation_cost: Cost = Cost()

    def with_(self, changes: Mapping[str, Any]) -> "Progress":
        return self.model_copy(update=dict(changes))

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the most qualified tasks, then the highest average; the earliest of equals."""
        everything = [e for d in self.done for e in d.evaluations] + list(self.evaluations)
        return max(everything, key=lambda e: e.rank, default=None)


def fit(method: "Text2Text", group: Group, stages: Stages, workspace: Workspace, origin: Path) -> Fitted:
    """Walk the stages; every evaluation is a checkpoint from which the same call goes on, and the best of them becomes the bundle.

    `origin` holds the weights to begin with: the base's, or those of a bundle on that base.
    """
    config = method.config
    encoder = method.encoder(workspace.base)
    tasks = {name: workspace.tasks[name] for name in group.tasks}
    encoded = {name: encode_rows(task, encoder, config) for name, task in tasks.items()}
    for name, rows in encoded.items():
        if cut := sum(bool(e.cut) for e in rows):
            workspace.emit(events.Warned(name, f"{cut} of {len(rows)} train texts do not fit into {encoder.max_length} tokens and are cut"))
    torch.manual_seed(workspace.seed)
    trainee = Trainee(
        load_model(origin),
        workspace.accelerator(config.precision),
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        clip=config.clip,
    )
    asked = predictor(
        trainee.model, encoder, {n: t.spec for n, t in tasks.items()}, {n: t.render for n, t in tasks.items() if t.render}, config
    )
    progress = _resume(trainee, workspace)
    while (compiled := stages.next(progress.done, progress.ledger)) is not None:
        progress = _run_stage(compiled, progress, trainee, encoded, asked, workspace, config, origin)
    best = progress.best
    if best is not None:
        trainee.load(workspace.folder / best.checkpoint, optimizer=False)
    bundle = _publish(trainee, workspace, group, method, encoder)
    return Fitted(bundle=str(bundle), done=progress.done, chosen=best, evaluation_cost=progress.evaluation_cost)


def encode_rows(task: TaskData, encoder: TextEncoder, config: "Text2TextConfig") -> list[Encoded]:
    pairs = [text_pair(task.spec, e.fields, e.answer, config.layout, task.render) for e in task.train]
    return encoder.encode(pairs, encoder.room_for_answers(task.spec))


def predictor(
    model: PreTrainedModel,
    encoder: TextEncoder,
    specs: Mapping[str, TaskSpec],
    codes: Mapping[str, Render],
    config: "Text2TextConfig",
) -> TextPredictor:
    def prompt(spec: TaskSpec, code: Render | None) -> Any:
        return lambda fields: code(fields, config.layout) if code else render(spec, fields, config.layout)

    served = {name: served_task(spec, prompt(spec, codes.get(name)), encoder) for name, spec in specs.items()}
    return TextPredictor(model, encoder, served, batch_tokens=config.batch_tokens)


def step_batches(
    compiled: CompiledStage, encoded: Mapping[str, Sequence[Encoded]], config: "Text2TextConfig", *, rank: int, processes: int
) -> Callable[[int], StepBatch]:
    """This process's part of every step: each `processes`-th example of the global batch, its weight its share of the step's loss."""
    (mixture, plan, _), size = compiled.decided, compiled.stage.examples_per_step
    names = [t.name for t in plan.tasks]
    loss_weights = np.array([mixture.loss_weights.get(name, 1.0) for name in names])

    def batch(step: int) -> StepBatch:
        window = plan.window(step * size, (step + 1) * size)
        weights = loss_weights[window.task] / loss_weights[window.task].sum()
        mine = list(range(rank, len(window.task), processes))
        # a process without an example in the last, short step takes part with weight 0, or the others would wait for its gradients
        chosen, shares = (mine, weights[mine]) if mine else ([0], np.zeros(1))
        examples = [encoded[names[window.task[i]]][window.row[i]] for i in chosen]
        samples = [Sample(np.concatenate([e.prompt, e.answer]), len(e.prompt), number) for number, e in enumerate(examples)]
        return StepBatch(micro_batches(samples, config.row_tokens, config.batch_tokens), shares.tolist())

    return batch


def _run_stage(
    compiled: CompiledStage,
    progress: Progress,
    trainee: Trainee,
    encoded: Mapping[str, Sequence[Encoded]],
    asked: TextPredictor,
    workspace: Workspace,
    config: "Text2TextConfig",
    origin: Path,
) -> Progress:
    """Train one stage from where it stands to its end or its patience."""
    stage, (mixture, plan, steps) = compiled.stage, compiled.decided
    if progress.step == 0:
        _start(trainee, stage.start, workspace, origin)
        progress = progress.with_(
            {"ledger": progress.ledger.append(LedgerEntry(stage=stage.name, number=compiled.number, position=0, mixture=mixture))}
        )
        workspace.emit(events.StageStarted(workspace.work, stage, steps, mixture.shares))
    workspace.emit(events.WorkStarted(workspace.work, steps, progress.step, workspace.fingerprint))
    marks = evaluation_marks(stage, plan.draws)
    batch = step_batches(compiled, encoded, config, rank=trainee.accelerator.process_index, processes=trainee.accelerator.num_processes)
    rate = warm_up_then_decay(stage.learning_rate, steps, config.warm_up, config.decay)
    is_exhausted = _is_exhausted(progress.evaluations, stage.patience)
    if not is_exhausted:
        for step in trainee.steps(batch, rate, progress.step, steps):
            examples = min(step.number * stage.examples_per_step, plan.draws) - (step.number - 1) * stage.examples_per_step
            spent = Cost(steps=1, examples=examples, tokens=step.tokens, padding=step.padding, flops=step.flops, seconds=step.seconds)
            progress = progress.with_({"step": step.number, "cost": progress.cost + spent})
            workspace.emit(
                events.Stepped(workspace.work, stage.name, step.number, steps, step.loss, step.learning_rate, step.tokens, step.seconds)
            )
            if step.number in marks:
                progress = _evaluate_and_save(compiled, progress, marks[step.number], trainee, asked, workspace)
                if is_exhausted := _is_exhausted(progress.evaluations, stage.patience):
                    break
    drawn = plan.drawn() if progress.step == steps else _counts(compiled, progress.step * stage.examples_per_step)
    ended = StageDone(
        stage=stage,
        mixture=mixture,
        steps=progress.step,
        draws=drawn,
        evaluations=progress.evaluations,
        ended="patience" if is_exhausted and progress.step < steps else "complete",
        cost=progress.cost,
    )
    workspace.emit(events.StageEnded(workspace.work, stage.name, progress.step, ended.ended))
    return progress.with_({"done": (*progress.done, ended), "evaluations": (), "step": 0, "cost": Cost()})


def evaluation_marks(stage: Stage, draws: int) -> dict[int, float]:
    """After which steps a stage is evaluated, and how many epochs are then done: each multiple of `evaluate_every` draws, and the end.

    A mark falls on the first step that completes its draws; its epoch is the multiple itself, so that epochs stay whole numbers.
    """
    size, epoch = stage.examples_per_step, stage.epoch_draws or draws
    marks = {-(-draws // size): draws / epoch}
    if every := stage.evaluate_every:
        marks |= {-(-number * every // size): number * every / epoch for number in range(1, draws // every + 1)}
    return marks


def _evaluate_and_save(
    compiled: CompiledStage, progress: Progress, epoch: float, trainee: Trainee, asked: TextPredictor, workspace: Workspace
) -> Progress:
    """Evaluate every task, note it in the ledger, and save; only the newest and the best checkpoint are kept."""
    judged = workspace.evaluate(asked)
    stage, name = compiled.stage, f"ckpt-{progress.saved}"
    draws = min(progress.step * stage.examples_per_step, compiled.decided[1].draws)
    evaluation = Evaluation(
        stage=stage.name,
        step=progress.step,
        draws=draws,
        epoch=epoch,
        scores={**dict(judged.scores), **dict.fromkeys(judged.failures)},
        qualified=judged.qualified,
        average=judged.average,
        checkpoint=name,
    )
    # prompts and tries through the body; attention and head are left out, so this is a lower bound
    spent = Cost(tokens=judged.tokens, flops=trainee.size.forward_flops(judged.tokens, 0, 0), seconds=judged.seconds)
    workspace.emit(events.Evaluated(workspace.work, evaluation))
    for task, reason in judged.failures.items():
        workspace.emit(events.Warned(task, f"evaluation failed: {reason}"))
    progress = progress.with_(
        {
            "saved": progress.saved + 1,
            "evaluations": (*progress.evaluations, evaluation),
            "ledger": progress.ledger.append(LedgerEntry(stage=stage.name, number=compiled.number, position=draws, evaluation=evaluation)),
            "evaluation_cost": progress.evaluation_cost + spent,
        }
    )
    trainee.save(workspace.folder, name, json.loads(progress.model_dump_json()))
    if trainee.accelerator.is_main_process:
        best = progress.best
        prune(workspace.folder, "ckpt", keep={name, best.checkpoint if best else name})
    trainee.accelerator.wait_for_everyone()
    return progress


def _resume(trainee: Trainee, workspace: Workspace) -> Progress:
    """Go on from the newest complete checkpoint; refuse one that was made from another configuration or other data."""
    checkpoint = newest_checkpoint(workspace.folder, "ckpt") if workspace.folder.is_dir() else None
    if checkpoint is None:
        return Progress(fingerprint=workspace.fingerprint)
    progress = Progress.model_validate_json((checkpoint / "state.json").read_text())
    if progress.fingerprint != workspace.fingerprint:
        raise ResumeMismatch(
            f"{workspace.folder} holds a checkpoint of another configuration or other data ({progress.fingerprint[:12]}, now "
            f"{workspace.fingerprint[:12]}). Restore what changed, give the run file another name, or delete the folder."
        )
    trainee.load(checkpoint)
    return progress


def _start(trainee: Trainee, start: str, workspace: Workspace, origin: Path) -> None:
    """Weights that a stage begins with, and an empty optimizer."""
    if start == "base":
        fresh = load_model(origin).state_dict()
        trainee.model.load_state_dict(fresh)
    elif start != "last":
        trainee.load(workspace.folder / start, optimizer=False)
    trainee.new_optimizer()


def _counts(compiled: CompiledStage, draws: int) -> dict[str, int]:
    _, plan, _ = compiled.decided
    window = plan.window(0, draws)
    return {t.name: int((window.task == index).sum()) for index, t in enumerate(plan.tasks)}


def _is_exhausted(evaluations: Sequence[Evaluation], patience: int | None) -> bool:
    if patience is None or not evaluations:
        return False
    best = max(range(len(evaluations)), key=lambda i: (evaluations[i].average, -i))
    return len(evaluations) - 1 - best >= patience


def _publish(trainee: Trainee, workspace: Workspace, group: Group, method: "Text2Text", encoder: TextEncoder) -> Path:
    manifest = BundleManifest(
        method=method.name,
        options=json.loads(method.config.model_dump_json()),
        tasks={name: bundled(workspace.tasks[name]) for name in group.tasks},
        base=workspace.base.name,
        base_digest=workspace.base.digest,
    )

    def fill(folder: Path) -> None:
        trainee.model.save_pretrained(folder)
        copy_tokenizer(workspace.base.folder, folder)

    if workspace.is_main:
        write_bundle(workspace.bundle, manifest, fill)
    trainee.accelerator.wait_for_everyone()
    return workspace.bundle


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer's files as they are, so that it loads like the base's own."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "added_tokens.json", "chat_template*"):
        for path in source.glob(pattern):
            (folder / path.name).write_bytes(path.read_bytes())
