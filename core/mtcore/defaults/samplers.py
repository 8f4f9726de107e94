"""Samplers: the share of each task in a stage, from the tasks' sizes (paper, sections 3.1 and 4.2)."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from mtcore.contracts import Options, Sampler
from mtcore.types import Ledger, Mixture, TaskProfile


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


class InstanceBalanced(Sampler):
    """Every row is equally likely: p = n / Σ n (equation 1)."""

    name = "instance-balanced"

    def epoch_draws(self, profiles: Sequence[TaskProfile]) -> int:
        return sum(p.train_rows for p in profiles)

    def mix(self, profiles: Sequence[TaskProfile], draws: int, ledger: Ledger) -> Mixture:
        return Mixture(shares=normalised({p.name: p.train_rows for p in profiles}))


class ClassBalanced(Sampler):
    """Every task is equally likely."""

    name = "class-balanced"

    def epoch_draws(self, profiles: Sequence[TaskProfile]) -> int:
        return sum(p.train_rows for p in profiles)

    def mix(self, profiles: Sequence[TaskProfile], draws: int, ledger: Ledger) -> Mixture:
        return Mixture(shares=normalised({p.name: 1.0 for p in profiles}))


class Temperature(Sampler):
    """Sizes capped at K, then flattened by a temperature: q ∝ (min(n, K) / Σ min(n, K))^(1/τ) (equations 3 and 4).

    The cap bounds a task's rate and the length of an epoch; every row stays reachable. The temperature changes shares only.
    """

    name = "temperature"

    class Config(Options):
        tau: float = Field(default=2.0, gt=0)
        """τ: 1 keeps the capped sizes' shares, more flattens them."""
        cap: int | None = Field(default=None, gt=0)
        """K: rows above which a task counts as if it had no more."""

    config: Config

    def epoch_draws(self, profiles: Sequence[TaskProfile]) -> int:
        return sum(self._capped(p) for p in profiles)

    def mix(self, profiles: Sequence[TaskProfile], draws: int, ledger: Ledger) -> Mixture:
        rates = normalised({p.name: self._capped(p) for p in profiles})
        weights = {name: rate ** (1 / self.config.tau) for name, rate in rates.items()}
        if not any(weights.values()):  # a τ so near 0 leaves the largest tasks alone, and numbers too small to be told from 0
            weights = {name: float(rate == max(rates.values())) for name, rate in rates.items()}
        return Mixture(shares=normalised(weights))

    def _capped(self, profile: TaskProfile) -> int:
        return min(profile.train_rows, self.config.cap or profile.train_rows)
