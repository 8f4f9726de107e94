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


def judge(metric: Metric, reference: Sequence[Array], shared: Sequence[Array], majority: Array, *, name: str) -> Verdict:
    """Judge a task from per-row statistics [rows, k] of reference and shared model, one pair a seed, on the same rows.

    Qualified is `reaches` on the means over seeds, unless the reference is at chance. The paired bootstrap resamples rows, the same
    ones for reference, shared model and majority answer.
    """
    counts = resampled_counts(len(majority), key("bootstrap", name))
    reference_score, score = _mean_score(metric, reference), _mean_score(metric, shared)
    reference_B, shared_B, majority_B = (
        np.mean([metric.score(counts @ s) for s in side], axis=0) for side in (reference, shared, [majority])
    )
    at_chance = bool(np.quantile(reference_B - majority_B, 0.025) <= 0)
    has_ratio = reference_score > 0
    ratios = shared_B[reference_B > 0] / reference_B[reference_B > 0]
    return Verdict(
        reference=reference_score,
        score=score,
        ratio=score / reference_score if has_ratio else None,
        is_qualified=bool(reaches(score, reference_score)) and not at_chance,
        p_qualified=0.0 if at_chance else float(np.mean(reaches(shared_B, reference_B))),
        interval=(float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))) if has_ratio and len(ratios) else None,
        is_at_chance=at_chance,
    )


def reaches(score: Array | float, reference: Array | float) -> NDArray[np.bool_]:
    """Score ≥ 0.99 × reference, unrounded; score ≥ reference where that is 0 or less, and a share of it says nothing."""
    reference = np.asarray(reference)
    return np.asarray(score >= np.where(reference > 0, BAR * reference, reference) - SLACK)


def score_interval(metric: Metric, statistics: Array, *, name: str) -> tuple[float, float]:
    """95 % bootstrap interval of a score."""
    scores = metric.score(resampled_counts(len(statistics), key("bootstrap", name)) @ statistics)
    return float(np.quantile(scores, 0.025)), float(np.quantile(scores, 0.975))


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
    overhead: float
    """Models online over tasks."""


def deployment(qualified: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> Deployment:
    """Shared models serve what qualifies in them; the rest keeps its own. A shared model that serves fewer than one task is not used."""
    shared = {group: list(names) for group, names in qualified.items() if names}
    single = [task for task in tasks if not any(task in names for names in shared.values())]
    return Deployment(shared, single, (len(shared) + len(single)) / len(tasks))


def _mean_score(metric: Metric, sides: Sequence[Array]) -> float:
    return float(np.mean([metric.score(s.sum(0)) for s in sides]))
