"""A live bundle and what a run would change in it: the tasks that it keeps, those that are replaced, those that are new."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtcore.bundle import MANIFEST, BundledTask, BundleManifest, read_bundle
from mtcore.config import RunFile
from mtcore.contracts import Method, StageScheduler
from mtcore.errors import ConfigError, ModelError
from mtcore.types import Base, Group


@dataclass(frozen=True)
class LiveBundle:
    """A verified bundle, which requests may be served from while a successor is trained: it is read, and never written."""

    folder: Path
    manifest: BundleManifest
    digest: str
    """Of its manifest, which knows all its files."""

    @property
    def workplace(self) -> str:
        """Where, below the run's folder, it is updated: apart from the run itself and from updates of other bundles."""
        return f"update-{self.digest[:12]}"

    def require_unchanged(self) -> None:
        """Raise ModelError where another bundle has taken its place since it was read."""
        if _digest(self.folder) != self.digest:
            raise ModelError(
                f"{self.folder} is not the bundle any more that this update began with; start anew from the one that is there now"
            )

    def require_base(self, base: Base) -> None:
        """Raise ModelError unless the bundle was trained from just this base, whose tokenizer and references it shares."""
        if base.digest != self.manifest.base_digest:
            raise ModelError(
                f"{self.folder} was trained from {self.manifest.base!r} as it then was (digest {self.manifest.base_digest[:12]}), and model = "
                f"{base.name!r} is another (digest {base.digest[:12]}); name or restore that base, or train without --update"
            )


@dataclass(frozen=True)
class Update:
    """What a run changes in a live bundle."""

    live: LiveBundle
    group: Group
    kept: Sequence[str]
    """Tasks that the bundle answers, and goes on answering as they are."""
    new: Sequence[str]
    replaced: Mapping[str, str]
    """Tasks that the bundle answers and learns anew, and what has changed in them."""
    warnings: Sequence[str]


def read_live(folder: Path) -> LiveBundle:
    """Read and verify a bundle that is to be updated. Raises ModelError where it is none, or not the one that was written."""
    manifest = read_bundle(folder)
    return LiveBundle(folder, manifest, _digest(folder))


def require_one_model(run: RunFile) -> None:
    """Raise ConfigError unless a run has one variant and one seed, as an update must."""
    if len(run.variants) > 1:
        raise ConfigError(f"--update makes one model: choose its variant with --variant ({', '.join(run.variants)})")
    (config,) = run.variants.values()
    if len(config.seeds) > 1:
        raise ConfigError(
            f"--update makes one model, and seeds = {list(config.seeds)} ask for {len(config.seeds)}; add --set 'seeds=[{config.seeds[0]}]'"
        )


def plan_update(
    live: LiveBundle, method: Method, scheduler: StageScheduler, groups: Sequence[Group], tasks: Mapping[str, BundledTask]
) -> Update:
    """Find the group that the bundle is the model of, and compare its tasks, as they would be bundled now, with those in the bundle.

    Raises ConfigError where the run could not go on from the bundle, would drop one of its tasks, or has nothing to teach it.
    """
    folder, old = live.folder, live.manifest.tasks
    _require_method(live, method)
    if scheduler.alone:
        raise ConfigError(f"scheduler {scheduler.name!r} trains every task by itself, so it has no shared model to update; choose another")
    if missing := [name for name in old if name not in tasks]:
        raise ConfigError(f"{folder} also answers {', '.join(missing)}; an update drops no task, so name them in `tasks` too")
    holders = [group for group in groups if set(group.tasks) & set(old)]
    if len(holders) > 1:
        split = "; ".join(f"{group.name}: {', '.join(t for t in group.tasks if t in old)}" for group in holders)
        raise ConfigError(
            f"a bundle is the model of one group, and this run's filter splits the tasks of {folder} ({split}); change `filter`"
        )
    (group,) = holders
    others = [
        f"{name}: is in group {g.name}, which {folder} is not the model of: left out" for g in groups if g != group for name in g.tasks
    ]
    replaced = {name: why for name in group.tasks if name in old and (why := _change(old[name], tasks[name]))}
    new = [name for name in group.tasks if name not in old]
    kept = [name for name in group.tasks if name in old and name not in replaced]
    if not new and not replaced:
        left_out = f" Of the run's other tasks, {'; '.join(others)}." if others else ""
        raise ConfigError(f"{folder} answers every task of group {group.name} as it is: there is nothing to teach it.{left_out}")
    if not kept:
        why = "; ".join(f"{name}: {reason}" for name, reason in replaced.items())
        raise ConfigError(
            f"nothing that {folder} answers stays as it is ({why}), so there is nothing to go on from; train without --update"
        )
    warnings = [f"{name}: is replaced in {folder}: {why}" for name, why in replaced.items()]
    untold = [f"{name}: {folder} does not say which rows it learned; they are taken for today's" for name in kept if not old[name].digest]
    return Update(live, group, kept, new, replaced, [*warnings, *untold, *others])


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _require_method(live: LiveBundle, method: Method) -> None:
    """Raise ConfigError unless the method can go on from the bundle, and reads and writes prompts as the bundle does."""
    manifest = live.manifest
    if method.name != manifest.method:
        raise ConfigError(f"{live.folder} was made by method {manifest.method!r} and can only be updated by it, not by {method.name!r}")
    if method.update_keeps is None:
        raise ConfigError(f"method {method.name!r} cannot go on from a bundle; train without --update")
    now = json.loads(method.config.model_dump_json())
    if changed := [option for option in sorted(method.update_keeps) if now[option] != manifest.options.get(option)]:
        what = "; ".join(f"{option}: is {json.dumps(manifest.options.get(option))}, here {json.dumps(now[option])}" for option in changed)
        raise ConfigError(f"{live.folder} was trained with other options of method {method.name!r}, which an update must keep. {what}.")


def _change(old: BundledTask, new: BundledTask) -> str:
    """What makes a task another one than the bundle learned; empty where nothing does."""
    before, after = old.spec.model_dump(), new.spec.model_dump()
    if keys := [key for key in after if after[key] != before[key]]:
        return f"its spec changed ({', '.join(keys)})"
    if old.code != new.code:
        return f"its prompts are written by {new.code or 'its spec'}, and were by {old.code or 'its spec'}"
    return "its rows changed" if old.digest and old.digest != new.digest else ""
