"""Verdicts: is a task as good in the shared model as in its own, and how sure is that; what must be put online to serve every task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtcore.contracts import Array, Metric
from mtcore.data.permutation import key

BAR = 0.99
"""Share of the reference score that qualifies (paper, section 3.2)."""
SLACK = 1e-12
"""Far below what one row changes: without it, rounding would fail some of the scores that stand exactly at the bar."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """One task in one shared model against its reference, over all seeds."""

    reference: float
    score: float
    ratio: float | None
    """None where the reference is 0 or less, and a ratio says nothing."""
    is_qualified: bool
    p_qualified: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the ratio."""
    is_at_chance: bool
    """The reference does not beat the majority answer by its own interval: nothing can be qualified against it."""
    resampled: tuple[float, ...] = ()
    """The score on every bootstrap sample: beside another model's on the same rows, what a difference between the two is worth."""


def judge(metric: Metric, reference: Sequence[Array], shared: Sequence[Array], majority: Array, *, name: str) -> Verdict:
    """Judge a task from per-row statistics [rows, k] of reference and shared model, one pair a seed, on the same rows.

    Qualified is `reaches` on the means over seeds, unless the reference is at chance. The paired bootstrap resamples rows, the same
    ones for reference, shared model and majority answer, and, where there are several, seeds.
    """
    counts = resampled_counts(len(majority), key("bootstrap", name))
    reference_score, score = _mean_score(metric, reference), _mean_score(metric, shared)
    seeds_B = _resampled_seeds(len(reference), key("bootstrap seeds", name))
    reference_B, shared_B = (_over_seeds(metric, side, counts, seeds_B) for side in (reference, shared))
    # a resample on which a metric is no number does not speak for the reference
    above_B = np.nan_to_num(reference_B - metric.score(counts @ majority), nan=0.0)
    at_chance = bool(np.quantile(above_B, 0.025) <= 0)
    has_ratio = reference_score > 0
    is_ratio_B = (reference_B > 0) & np.isfinite(shared_B)
    ratios = shared_B[is_ratio_B] / reference_B[is_ratio_B]
    return Verdict(
        reference=reference_score,
        score=score,
        ratio=score / reference_score if has_ratio else None,
        is_qualified=bool(reaches(score, reference_score)) and not at_chance,
        p_qualified=0.0 if at_chance else float(np.mean(reaches(shared_B, reference_B))),
        interval=(float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))) if has_ratio and len(ratios) else None,
        is_at_chance=at_chance,
        resampled=tuple(shared_B.tolist()),
    )


def reaches(score: Array | float, reference: Array | float) -> NDArray[np.bool_]:
    """Score ≥ 0.99 × reference, unrounded; score ≥ reference where that is 0 or less, and a share of it says nothing."""
    reference = np.asarray(reference)
    return np.asarray(score >= np.where(reference > 0, BAR * reference, reference) - SLACK)


def difference_interval(old: Array, new: Array, *, is_paired: bool) -> tuple[float, float] | None:
    """95 % interval of new minus old from their scores on bootstrap samples (`Verdict.resampled`); None where no sample gives two numbers.

    Where both answered the same rows, the n-th samples of both are the same rows. Where they did not, each is set against the other's next
    sample, which is drawn independently of it.
    """
    differences = (new if is_paired else np.roll(new, 1)) - old
    differences = differences[np.isfinite(differences)]
    return (float(np.quantile(differences, 0.025)), float(np.quantile(differences, 0.975))) if len(differences) else None


def resampled_counts(rows: int, seed: int) -> Array:
    """How often each row stands in each bootstrap sample: [RESAMPLES, rows]."""
    draws = np.random.Generator(np.random.Philox(key=seed)).integers(0, rows, (RESAMPLES, rows))
    counts = np.zeros((RESAMPLES, rows))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], draws), 1)
    return counts


def overhead(qualified: Sequence[int], *, alone: bool = False) -> float | None:
    """The paper's overhead: 1 over the most qualified tasks of any one model; None where no task qualifies, 1 for single-task models."""
    if alone:
        return 1.0
    return 1 / max(qualified) if qualified and max(qualified) > 0 else None


@dataclass(frozen=True)
class Deployment:
    """What to put online to serve every task at its bar."""

    shared: Mapping[str, Sequence[str]]
    """Shared model (group) → tasks it serves."""
    single: Sequence[str]
    """Tasks that still need a model of their own."""
    not_ready: Sequence[str]
    """Those among them whose own model is at chance or failed: nothing serves them yet."""
    overhead: float
    """Models online over tasks."""


def deployment(qualified: Mapping[str, Sequence[str]], tasks: Sequence[str], not_ready: Sequence[str] = ()) -> Deployment:
    """Shared models serve what qualifies in them; the rest keeps its own. A shared model in which nothing qualifies is not used."""
    shared = {group: list(names) for group, names in qualified.items() if names}
    single = [task for task in tasks if not any(task in names for names in shared.values())]
    return Deployment(shared, single, [t for t in single if t in not_ready], (len(shared) + len(single)) / len(tasks))


def _resampled_seeds(seeds: int, number: int) -> NDArray[np.int64]:
    """Which seeds each bootstrap sample takes: [RESAMPLES, seeds]; every seed as it is where there is only one."""
    raw = np.random.Philox(key=number).random_raw(RESAMPLES * seeds).reshape(RESAMPLES, seeds)
    return (raw % np.uint64(seeds)).astype(np.int64)


def _over_seeds(metric: Metric, side: Sequence[Array], counts: Array, seeds_B: NDArray[np.int64]) -> Array:
    """Mean over each sample's seeds of the score on each sample's rows: [RESAMPLES]."""
    scores_SB = np.stack([metric.score(counts @ statistics) for statistics in side])
    return np.asarray(np.take_along_axis(scores_SB, seeds_B.T, axis=0).mean(axis=0))


def _mean_score(metric: Metric, sides: Sequence[Array]) -> float:
    return float(np.mean([metric.score(s.sum(0)) for s in sides]))
