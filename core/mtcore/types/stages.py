"""Words of training: stages, mixtures, what has happened in them, what it cost."""

from typing import Literal

from mtcore.types.frozen import Frozen
from mtcore.types.uses import SamplerUse

Signal = Literal["train-loss", "validation-loss", "scores"]


class Cost(Frozen):
    """What a piece of work took."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    """Useful ones that went through the model: a document that examples share counts once, padding not at all."""
    padding: int = 0
    example_tokens: int = 0
    """What the examples are one by one: more than `tokens` where documents are shared, and never less."""
    flops: float = 0.0
    """What the model's shapes demand; what is only computed again to save memory is not counted."""
    seconds: float = 0.0
    metered_flops: float = 0.0
    """The part of `flops` that was done on devices whose peak is known."""
    capacity: float = 0.0
    """What those devices could have done in the same time at their peak."""
    peaks: tuple[str, ...] = ()
    """Where the peaks are from."""

    def __add__(self, other: "Cost") -> "Cost":
        summed = ("steps", "examples", "tokens", "padding", "flops", "seconds", "metered_flops", "capacity")
        return Cost(
            **{name: getattr(self, name) + getattr(other, name) for name in summed},
            example_tokens=sum(max(c.tokens, c.example_tokens) for c in (self, other)),
            peaks=tuple(dict.fromkeys((*self.peaks, *other.peaks))),
        )

    def metered(self, peak: float, source: str) -> "Cost":
        """The same on devices that together do `peak` floating-point operations a second at most."""
        return self.model_copy(update={"metered_flops": self.flops, "capacity": self.seconds * peak, "peaks": (source,)})

    @property
    def saved(self) -> int:
        """Tokens that sharing documents saved."""
        return max(0, self.example_tokens - self.tokens)

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    @property
    def utilisation(self) -> float | None:
        """Model-FLOPs utilisation (MFU): what the model demands over what the devices could have done; None where no peak is known."""
        return self.metered_flops / self.capacity if self.metered_flops and self.capacity else None


class Mixture(Frozen):
    """What a sampler decides: shares that sum to one, weights on losses, and, where it must, a shorter run."""

    shares: dict[str, float]
    loss_weights: dict[str, float] = {}
    """Weight of a task's examples in the loss (1 where absent); a step's loss is Σ wℓ / Σ w."""
    draws: int | None = None
    """Fewer draws than asked for, because the sampler's own limits leave no more."""
    note: str = ""


class Stage(Frozen):
    """A span of training. `tasks` or `draws` are None while they cannot be known yet (before references)."""

    name: str
    tasks: tuple[str, ...] | None
    sampler: SamplerUse
    draws: int | None
    epoch_draws: int | None
    """What one epoch of this stage is, in draws."""
    examples_per_step: int
    learning_rate: float
    grouping: Literal["mixed", "one-task", "shared-documents"] = "mixed"
    """Whether a step mixes tasks freely, is one task's, or brings rows of one document together (which changes the order of rows)."""
    evaluate_every: int | None = None
    """Draws between two evaluations; the end of the stage is always evaluated."""
    patience: int | None = None
    """End the stage after so many evaluations without a new best."""
    start: str = "last"
    """`base`, `last`, or the name of a checkpoint of an earlier stage."""
    note: str = ""
    """What a reader of the report must know about this stage."""


class Evaluation(Frozen):
    """Scores at one point of a stage, and the checkpoint that holds the weights."""

    stage: str
    step: int
    draws: int
    epoch: float
    scores: dict[str, float | None]
    """None where a task's metric or parser failed."""
    qualified: int | None
    """How many tasks reach their bar; None while there are no bars."""
    average: float
    losses: dict[str, float] = {}
    checkpoint: str = ""

    @property
    def rank(self) -> tuple[int, float]:
        """Most qualified tasks first, then the macro average."""
        return (self.qualified or 0, self.average)


class StageDone(Frozen):
    """A finished stage."""

    stage: Stage
    mixture: Mixture
    steps: int
    draws: dict[str, int]
    evaluations: tuple[Evaluation, ...]
    ended: Literal["complete", "patience", "diverged"]
    """`diverged`: its model went wrong again and again; what was best before counts."""
    cost: Cost = Cost()


class LedgerEntry(Frozen):
    """One thing that happened: a mixture that came into force, an evaluation, or the losses that a sampler asked for."""

    stage: str
    number: int
    """Of the stage, from 0: names may come back."""
    position: int
    """Draws of the stage done before it."""
    mixture: Mixture | None = None
    evaluation: Evaluation | None = None
    train_losses: dict[str, float] = {}
    """Mean over the examples drawn since the last such entry, by task."""
    validation_losses: dict[str, float] = {}
    """Mean over validation rows of each row's mean token loss, by task."""


class Ledger(Frozen):
    """What has happened so far that later decisions may use; append-only."""

    entries: tuple[LedgerEntry, ...] = ()

    def append(self, entry: LedgerEntry) -> "Ledger":
        return Ledger(entries=(*self.entries, entry))


class Fitted(Frozen):
    """What a method leaves: the bundle's folder, its history, and what evaluating took along the way."""

    bundle: str
    done: tuple[StageDone, ...]
    chosen: Evaluation | None
    evaluation_cost: Cost = Cost()
    ledger: Ledger = Ledger()
    """What was in force when: with it the stages' orders can be told again."""

    @property
    def cost(self) -> Cost:
        """Training in all stages."""
        return sum((d.cost for d in self.done), Cost())
