"""UniMax (Chung et al., 2023): every task gets the same number of draws, unless that would repeat it more than N times."""

from collections.abc import Sequence

from pydantic import Field

from mtcore.contracts import Options, Sampler
from mtcore.hookspecs import hookimpl
from mtcore.types import Ledger, Mixture, TaskProfile


class UniMax(Sampler):
    """Walk the tasks from the smallest up and give each an equal part of what is left of the budget, but at most N passes.

    Where all tasks together allow fewer draws than the budget, the run is shortened and says so.
    """

    name = "unimax"

    class Config(Options):
        passes: float = Field(default=5.0, gt=0)
        """N: the most passes over any task."""

    config: Config

    def epoch_draws(self, profiles: Sequence[TaskProfile]) -> int:
        return sum(p.train_rows for p in profiles)

    def mix(self, profiles: Sequence[TaskProfile], draws: int, ledger: Ledger) -> Mixture:
        left, given = float(draws), {}
        by_size = sorted(profiles, key=lambda p: (p.train_rows, p.name))
        for number, profile in enumerate(by_size):
            given[profile.name] = min(left / (len(by_size) - number), self.config.passes * profile.train_rows)
            left -= given[profile.name]
        total = sum(given.values())
        shares = {p.name: given[p.name] / total for p in profiles}
        if left < 1:
            return Mixture(shares=shares)
        note = f"UniMax: {self.config.passes:g} passes over every task are {total:,.0f} draws, so the stage is shortened from {draws:,}"
        return Mixture(shares=shares, draws=max(1, int(total)), note=note)


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [UniMax]
