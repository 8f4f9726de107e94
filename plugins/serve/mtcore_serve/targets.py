"""What the command line names, as bundles to put online: bundles, runs and run files, each bundle under a name that is its own."""

from collections.abc import Sequence
from pathlib import Path

from mtcore.bundle import MANIFEST
from mtcore.cli.common import read_run
from mtcore.errors import ConfigError
from mtcore.runfolder import BUNDLE, CANDIDATE, published
from mtcore_serve.fleet import Source


def sources(targets: Sequence[str], variant: str | None = None, seed: int | None = None) -> list[Source]:
    """The bundles of all targets. Raises ConfigError where two would have the same name, RunError where a run left none."""
    found: dict[str, Source] = {}
    for target in targets:
        for source in _sources(target, variant, seed):
            other = found.setdefault(source.group, source)
            if other is not source:
                raise ConfigError(
                    f"{other.folder} and {source.folder} would both be called {source.group!r}; name bundles yourself: NAME={source.folder}"
                )
    return list(found.values())


def successor(group: str, target: str, variant: str | None = None, seed: int | None = None) -> Source:
    """The bundle that is to follow a group's: a bundle's folder, or a run that has a group of that name."""
    found = _sources(target, variant, seed)
    if (Path(target) / MANIFEST).is_file():
        return Source(group, found[0].folder)
    for source in found:
        if source.group == group:
            return source
    raise ConfigError(
        f"{target} has no group {group!r}; it has {', '.join(source.group for source in found)}. A bundle's folder can be named too."
    )


def _sources(target: str, variant: str | None, seed: int | None) -> list[Source]:
    name, has_name, rest = target.partition("=")
    if has_name and not Path(target).exists():
        if not (Path(rest) / MANIFEST).is_file():
            raise ConfigError(f"{target}: only a bundle's folder can be given a name, and {rest} is none (it has no {MANIFEST})")
        return [Source(name, Path(rest).resolve())]
    path = Path(target)
    if (path / MANIFEST).is_file():
        return [Source(_name(path.resolve()), path.resolve())]
    if path.suffix == ".toml":
        file = read_run(path, (), () if variant is None else (variant,))
        path = Path(next(iter(file.variants.values())).out) / file.name
    if not path.is_dir():
        raise ConfigError(f"{target} is neither a bundle's folder, nor a run's, nor a run file")
    return [Source(model.group, model.bundle.resolve(), dict(model.qualified)) for model in published(path, variant, seed)]


def _name(bundle: Path) -> str:
    """A bundle in its run's folder is called as its group is: seed-1/classification/bundle."""
    return bundle.parent.name if bundle.name in (BUNDLE, CANDIDATE) and bundle.parent.name else bundle.name
