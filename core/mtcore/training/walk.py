"""Walk the stages of a fit: train, evaluate, save; go on after any interruption, and round what goes wrong."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from mtcore import events
from mtcore.contracts import Judged, Stages, Workspace
from mtcore.data.stages import CompiledStage
from mtcore.errors import Interrupted
from mtcore.training.flops import Peak
from mtcore.training.loop import Schedule, Step, StepBatch, warm_up_then_decay
from mtcore.training.places import Places
from mtcore.training.progress import Progress
from mtcore.training.state import Trainee
from mtcore.types import Cost, Evaluation, LedgerEntry, Stage, StageDone


@dataclass(frozen=True)
class Pace:
    """How a method takes the steps of a stage, and how often it saves."""

    warm_up: float
    decay: str
    batch_tokens: int
    save_minutes: float


@dataclass
class Walk:
    """One fit on its way: what it trains, where it writes, how its batches are made and its tasks are asked."""

    trainee: Trainee
    workspace: Workspace
    stages: Stages
    origin: Path
    """The weights to begin with."""
    pace: Pace
    batches: Callable[[CompiledStage], Callable[[int, int], StepBatch]]
    """The steps of a stage as this process has them (`Schedule.batch`)."""
    ask: Callable[[], Judged]
    """Asks every task its validation rows."""
    validation_losses: Callable[[], Mapping[str, float]]
    """Mean token loss of every task's validation rows."""
    peak: Peak
    """Of one process's device."""
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.places = Places(self.trainee, self.workspace, self.stages)

    def to_the_end(self) -> Progress:
        """Walk from the newest checkpoint to the end of the last stage, and leave the best weights in the trainee."""
        with self.workspace.stop.deferred():
            self.progress = self.places.resumed()
            processes = self.trainee.accelerator.num_processes
            self._emit(events.MachineMeasured(self.peak.flops_per_second, self.peak.source, processes, self.workspace.work))
            while (compiled := self.stages.next(self.progress.done, self.progress.ledger)) is not None:
                if not self._stage(compiled):
                    break
            if (best := self.progress.best) is not None:
                self.trainee.load(self.places.path(best.checkpoint), optimizer=False)
        self.workspace.stop.obey()
        return self.progress

    # --- a stage ---------------------------------------------------------------------------------------------------------------------------

    def _stage(self, compiled: CompiledStage) -> bool:
        """Train one stage to its end or its patience; False where its model went wrong again and again."""
        stage, (mixture, plan, steps) = compiled.stage, compiled.decided
        if not self.progress.is_begun:
            self._begin(compiled)
        self._emit(events.WorkStarted(self.workspace.work, steps, self.progress.step, self.workspace.fingerprint))
        marks = evaluation_marks(stage, plan.draws)
        is_sound, is_exhausted = True, False
        while is_sound:
            if self.progress.step in marks and not self.progress.evaluated_at(self.progress.step):
                self._evaluate(compiled, marks[self.progress.step])
            is_exhausted = _is_exhausted(self.progress.evaluations, stage.patience)
            if self.progress.step >= steps or is_exhausted:
                break
            compiled = self._decided(compiled)
            border = compiled.border_after(self.progress.step * stage.examples_per_step)
            ends = [steps, *marks, *([] if border is None else [border // stage.examples_per_step])]
            is_sound = self._train(compiled, until=min(end for end in ends if end > self.progress.step))
        step = self.progress.step
        ended = StageDone(
            stage=stage,
            mixture=mixture,
            steps=step,
            draws=compiled.decided[1].drawn(min(step * stage.examples_per_step, plan.draws)),
            evaluations=self.progress.evaluations,
            ended="diverged" if not is_sound else "patience" if is_exhausted and step < steps else "complete",
            cost=self.progress.cost,
        )
        self._emit(events.StageEnded(self.workspace.work, stage.name, step, ended.ended))
        self.progress = self.progress.with_(
            {
                "done": (*self.progress.done, ended),
                "evaluations": (),
                "step": 0,
                "is_begun": False,
                "cost": Cost(),
                "losses": {},
                "avoided": (),
            }
        )
        return is_sound

    def _begin(self, compiled: CompiledStage) -> None:
        """Give a stage the weights it starts from and an empty optimizer, and note its mixture."""
        stage, (mixture, _, steps) = compiled.stage, compiled.decided
        if stage.start == "base":
            self.trainee.reset(self.origin)
        elif stage.start != "last":
            self.trainee.load(self.places.path(stage.start), optimizer=False)
        self.trainee.new_optimizer()
        entry = LedgerEntry(stage=stage.name, number=compiled.number, position=0, mixture=mixture)
        self.progress = self.progress.with_({"is_begun": True, "ledger": self.progress.ledger.append(entry)})
        self._emit(events.StageStarted(self.workspace.work, stage, steps, mixture.shares))
        if self.progress.done:  # a place to go back to; the first stage has its origin
            self.progress = self.places.save(self.progress, compiled, is_anchor=True)

    def _decided(self, compiled: CompiledStage) -> CompiledStage:
        """The stage with its shares decided beyond the position at hand: at a border, a sampler is asked anew by what it needs."""
        position = self.progress.step * compiled.stage.examples_per_step
        if compiled.undecided != position:
            return compiled
        name, number = compiled.stage.name, compiled.number
        if "scores" in compiled.needs and not self.progress.evaluated_at(self.progress.step):
            self._evaluate(compiled, position / (compiled.stage.epoch_draws or position))
        means = {task: total / count for task, (total, count) in self.progress.losses.items() if count}
        losses = dict(self.validation_losses()) if "validation-loss" in compiled.needs else {}
        seen = LedgerEntry(stage=name, number=number, position=position, train_losses=means, validation_losses=losses)
        ledger = self.progress.ledger.append(seen)
        extended: CompiledStage = self.stages.extend(compiled, ledger)
        decided = LedgerEntry(stage=name, number=number, position=position, mixture=extended.later[-1])
        self.progress = self.progress.with_({"ledger": ledger.append(decided), "losses": {}})
        return extended

    # --- steps -----------------------------------------------------------------------------------------------------------------------------

    def _train(self, compiled: CompiledStage, until: int) -> bool:
        """Take the stage's steps up to `until`; False where going back has helped too little."""
        stage, (_, plan, steps) = compiled.stage, compiled.decided
        is_main, minutes = self.trainee.accelerator.is_main_process, self.pace.save_minutes
        schedule = Schedule(
            batch=self.batches(compiled),
            learning_rate=warm_up_then_decay(stage.learning_rate, steps, self.pace.warm_up, self.pace.decay),
            tasks=[task.name for task in plan.tasks],
            batch_tokens=self.pace.batch_tokens,
            objection=lambda loss, shares: self.progress.guard.objection(loss, shares),
            asks=lambda: (
                is_main and self.places.age >= 60 * minutes,
                self.workspace.stop.requested is not None,
            ),
        )
        while (first := self.progress.passed_over(self.progress.step)) < until:
            last = min([until, *(start for start, _ in self.progress.avoided if start > first)])
            for step in self.trainee.steps(schedule, first, last):
                self._note(compiled, schedule, step)
                wants_save, wants_stop = step.asked
                if self.progress.guard.must_go_back:
                    if self.progress.guard.must_give_up:
                        return False
                    self._go_back(compiled)
                    return True
                if wants_stop:
                    self._interrupt(compiled)
                if wants_save and not step.skipped:
                    self.progress = self.places.save(self.progress, compiled)
        self.progress = self.progress.with_({"step": until})
        return True

    def _note(self, compiled: CompiledStage, schedule: Schedule, step: Step) -> None:
        """Count a step, remember its losses, and tell of it."""
        stage, (_, plan, steps), work = compiled.stage, compiled.decided, self.workspace.work
        window = plan.window((step.number - 1) * stage.examples_per_step, step.number * stage.examples_per_step)
        cost = Cost(
            steps=1,
            examples=len(window.task),
            tokens=step.tokens,
            example_tokens=step.example_tokens,
            padding=step.padding,
            flops=step.flops,
            seconds=step.seconds,
        )
        losses = {schedule.tasks[index]: pair for index, pair in step.losses.items()}
        means = {task: total / count for task, (total, count) in losses.items()}
        guard = self.progress.guard.after(means, step.skipped)
        self.progress = self.progress.with_({"step": step.number, "cost": self.progress.cost + self._metered(cost), "guard": guard})
        if step.skipped:
            rows = [(schedule.tasks[task], int(row)) for task, row in zip(window.task, window.row, strict=True)]
            self._emit(events.StepSkipped(work, stage.name, step.number, step.skipped, step.loss, rows))
        else:
            self.progress = self.progress.with_losses(losses)
        if step.halved is not None:
            self.pace = replace(self.pace, batch_tokens=step.halved)
            self._emit(events.MicroBatchHalved(work, step.halved))
        told = events.Stepped(
            work,
            stage.name,
            step.number,
            steps,
            step.loss,
            step.learning_rate,
            step.tokens,
            step.seconds,
            padding=step.padding,
            flops=step.flops,
            example_tokens=step.example_tokens,
            skipped=step.skipped,
        )
        self._emit(told)

    def _go_back(self, compiled: CompiledStage) -> None:
        """Take over the anchor and pass over all steps since: the model went wrong somewhere among them."""
        here = self.progress
        if (back := self.places.go_back(here)) is None:
            self.trainee.reset(self.origin)
            self.trainee.new_optimizer()
            back = here.with_({"step": 0, "evaluations": ()})
        reason = f"{sum(here.guard.skipped)} of the last {len(here.guard.skipped)} steps could not be taken"
        self._emit(events.RolledBack(self.workspace.work, compiled.stage.name, here.step, back.step, reason))
        self.progress = back.with_(
            {
                "cost": here.cost,
                "evaluation_cost": here.evaluation_cost,
                "guard": here.guard.gone_back(),
                # borders that were decided on the way stay decided
                "ledger": here.ledger,
                "losses": here.losses,
                "saved": here.saved,
                "avoided": (*back.avoided, (back.step, here.step)),
            }
        )

    # --- evaluating and saving -------------------------------------------------------------------------------------------------------------

    def _evaluate(self, compiled: CompiledStage, epoch: float) -> None:
        """Ask every task, note the scores in the ledger, and save."""
        stage, stop = compiled.stage, self.workspace.stop
        if self.trainee.accelerator.num_processes > 1:  # a process that left in the middle would leave the others waiting
            judged = self.ask()
        else:
            try:
                with stop.immediate():
                    judged = self.ask()
            except Interrupted:
                self._interrupt(compiled)
        draws = min(self.progress.step * stage.examples_per_step, compiled.decided[1].draws)
        evaluation = Evaluation(
            stage=stage.name,
            step=self.progress.step,
            draws=draws,
            epoch=epoch,
            scores={**dict(judged.scores), **dict.fromkeys(judged.failures)},
            qualified=judged.qualified,
            average=judged.average,
            checkpoint=self.places.next_name(self.progress),
        )
        spent = self._metered(Cost(tokens=judged.tokens, flops=judged.flops, seconds=judged.seconds))
        self._emit(events.Evaluated(self.workspace.work, evaluation))
        for task, reason in judged.failures.items():
            self._emit(events.Warned(task, f"evaluation failed: {reason}"))
        entry = LedgerEntry(stage=stage.name, number=compiled.number, position=draws, evaluation=evaluation)
        self.progress = self.progress.with_(
            {
                "evaluations": (*self.progress.evaluations, evaluation),
                "ledger": self.progress.ledger.append(entry),
                "evaluation_cost": self.progress.evaluation_cost + spent,
            }
        )
        self.progress = self.places.save(self.progress, compiled, is_anchor=True)

    def _interrupt(self, compiled: CompiledStage) -> NoReturn:
        """Save, and end the process as the signal asks."""
        number = self.workspace.stop.requested or signal.SIGTERM
        self.progress = self.places.save(self.progress, compiled)
        self._emit(events.Interrupted(self.workspace.work, self.progress.step, signal.Signals(number).name))
        raise Interrupted(number)

    def _metered(self, cost: Cost) -> Cost:
        return cost.metered(self.peak.flops_per_second * self.trainee.accelerator.num_processes, self.peak.source)

    def _emit(self, event: events.Event) -> None:
        self.workspace.emit(event)


def evaluation_marks(stage: Stage, draws: int) -> dict[int, float]:
    """After which steps a stage is evaluated, and how many epochs are then done: each multiple of `evaluate_every` draws, and the end.

    A mark falls on the first step that completes its draws; its epoch is the multiple itself, so that epochs stay whole numbers.
    """
    size, epoch = stage.examples_per_step, stage.epoch_draws or draws
    marks = {-(-draws // size): draws / epoch}
    if every := stage.evaluate_every:
        marks |= {-(-number * every // size): number * every / epoch for number in range(1, draws // every + 1)}
    return marks


def _is_exhausted(evaluations: Sequence[Evaluation], patience: int | None) -> bool:
    if patience is None or not evaluations:
        return False
    best = max(range(len(evaluations)), key=lambda i: (evaluations[i].average, -i))
    return len(evaluations) - 1 - best >= patience
