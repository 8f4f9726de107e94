"""Names to classes, each with its owner; resolves what a run file names and checks its options."""

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from mtcore.config import is_pattern, is_task_file, nearest, validate, with_default_use
from mtcore.contracts import Component, Launcher, Method, Observer, Sampler, StageScheduler, TaskAdapter, TaskFilter
from mtcore.data.declared import DeclaredTask, find_task_files, read_task_file
from mtcore.errors import ConfigError, PluginError, UnknownName
from mtcore.types import FilterUse, LauncherUse, MethodUse, ObserverUse, SamplerUse, SchedulerUse, Use

KINDS: Mapping[str, type[Component]] = {
    "filter": TaskFilter,
    "sampler": Sampler,
    "scheduler": StageScheduler,
    "method": Method,
    "launcher": Launcher,
    "observer": Observer,
}
OWN = "mtcore"
"""The distribution that is the program itself: its plugins always load, and a bare name that it knows is its own."""
LOCAL = "local"
"""What stands for the plugin in the name of a task that a file declares."""
Built = TypeVar("Built", bound=Component)


@dataclass(frozen=True)
class Plugin:
    """A discovered plugin: who ships it, what it provides, and why it is not loaded where it is not."""

    name: str
    distribution: str
    version: str
    status: Literal["loaded", "failed", "blocked"]
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Entry:
    """A registered class and the plugin it is from."""

    kind: str
    name: str
    cls: Any
    """The class itself: a TaskAdapter for tasks, a Component for all other kinds."""
    plugin: Plugin


class Registry:
    """Everything that the loaded plugins provide."""

    def __init__(self, plugins: Sequence[Plugin], entries: Sequence[Entry]) -> None:
        self.plugins = tuple(plugins)
        self._entries = tuple(entries)

    def entries(self, kind: str) -> list[Entry]:
        return [entry for entry in self._entries if entry.kind == kind]

    def find(self, kind: str, name: str) -> Entry:
        """The component of that name, or of that `plugin/name`.

        Raises PluginError where the plugin it names is not loaded, UnknownName with the nearest names, ConfigError where two answer.
        """
        found = [e for e in self.entries(kind) if name in (e.name, f"{e.plugin.name}/{e.name}")]
        # installing a plugin changes no run that does not name it, even where it takes a name of the box
        found = [e for e in found if e.plugin.distribution == OWN] or found
        if len(found) == 1:
            return found[0]
        if found:
            owners = " or ".join(repr(f"{e.plugin.name}/{e.name}") for e in found)
            raise ConfigError(f"{kind} {name!r} is provided by several plugins: say {owners}")
        self._require_plugin(name.split("/")[0], f"{kind} {name!r}")
        known = sorted(e.name for e in self.entries(kind))
        near = nearest(name, known)
        raise UnknownName(f"no {kind} is called {name!r}{near} Installed: {', '.join(known) or 'none'}.{self.not_loaded()}")

    def build(self, use: Use) -> Any:
        """Build the component that `use` names, and check the components that its options name in turn."""
        entry = self.find(use.kind, use.use)
        config = validate(entry.cls.Config, with_default_use(entry.cls.Config, use.options), f"{use.kind} {use.use!r}")
        for value in config.__dict__.values():
            if isinstance(value, Use):
                self.build(value)
        return entry.cls(config)

    def describe(self, use: Use) -> dict[str, Any]:
        """What `use` means, as data: `plugin/name`, and every option that matters with defaults, nested components alike."""
        entry = self.find(use.kind, use.use)
        config = validate(entry.cls.Config, use.options, f"{use.kind} {use.use!r}")
        options = {key: self.describe(value) if isinstance(value, Use) else value for key, value in config.__dict__.items()}
        plain = config.model_dump(mode="json")
        told = {k: v if isinstance(v, dict) and "use" in v else plain[k] for k, v in options.items() if k not in config.indifferent}
        return {"use": f"{entry.plugin.name}/{entry.name}", **told}

    def filter(self, use: FilterUse) -> TaskFilter:
        return cast(TaskFilter, self.build(use))

    def sampler(self, use: SamplerUse) -> Sampler:
        return cast(Sampler, self.build(use))

    def scheduler(self, use: SchedulerUse) -> StageScheduler:
        return cast(StageScheduler, self.build(use))

    def method(self, use: MethodUse) -> Method:
        return cast(Method, self.build(use))

    def launcher(self, use: LauncherUse) -> Launcher:
        return cast(Launcher, self.build(use))

    def observer(self, use: ObserverUse) -> Observer:
        return cast(Observer, self.build(use))

    def tasks(self, patterns: Sequence[str]) -> list[Entry]:
        """Task entries in the order of the patterns, each once. What ends in `.toml` is a file, or a pattern of files, that declares a task.

        A pattern that matches nothing is an error that says why, and so is one name for two tasks.
        """
        chosen: dict[str, Entry] = {}
        for pattern in patterns:
            found = [declared_entry(path) for path in find_task_files(pattern)] if is_task_file(pattern) else self._installed(pattern)
            for entry in found:
                other = chosen.setdefault(entry.name, entry).plugin.distribution
                if Path(other).resolve() != Path(entry.plugin.distribution).resolve():
                    raise ConfigError(f"{other} and {entry.plugin.distribution} both declare {entry.name}; give one of them another name")
        _require_one_local(list(chosen.values()))
        return list(chosen.values())

    def build_task(self, entry: Entry, data: Path | None) -> TaskAdapter:
        return cast(TaskAdapter, entry.cls(data))

    def not_loaded(self) -> str:
        """What to add to an unknown name: which plugins are installed and could not be asked."""
        broken = [
            f"{p.name} ({p.distribution}): {p.status}{': ' + p.error if p.error else ''}" for p in self.plugins if p.status != "loaded"
        ]
        return f" Not loaded: {'; '.join(broken)}." if broken else ""

    def missed(self, patterns: Sequence[str]) -> list[str]:
        """In words: plugins that failed to load and whose tasks, if they have any, a pattern would have taken."""
        wide = [pattern for pattern in patterns if is_pattern(pattern) and not is_task_file(pattern)]
        return [
            f"plugin {plugin.name} of {plugin.distribution} is failed ({plugin.error}): "
            f"tasks of its own are not in this run, though {pattern!r} asks for them"
            for plugin in self.plugins
            if plugin.status == "failed"
            for pattern in wide
            if fnmatch.fnmatch(plugin.name, pattern.split("/")[0])
        ]

    def _installed(self, pattern: str) -> list[Entry]:
        known = {e.name: e for e in self.entries("task")}
        names = sorted(fnmatch.filter(known, pattern)) if is_pattern(pattern) else [pattern] if pattern in known else []
        if not names:
            self._require_plugin(pattern.split("/")[0], f"task {pattern!r}")
            near = nearest(pattern, list(known))
            hint = " A task that a file declares is named by the file: 'FOLDER/NAME.toml'." if pattern.startswith(f"{LOCAL}/") else ""
            raise UnknownName(f"no task is called {pattern!r}{near}{hint} Installed: {', '.join(known) or 'none'}.{self.not_loaded()}")
        return [known[name] for name in names]

    def _require_plugin(self, name: str, what: str) -> None:
        """Raise PluginError where a plugin of that name is installed and not loaded: a run that names it must not go on without it."""
        if any(plugin.name == name and plugin.status == "loaded" for plugin in self.plugins):
            return  # it is the one that is meant; its namesakes are blocked
        for plugin in self.plugins:
            if name in (plugin.name, plugin.distribution) and plugin.status != "loaded":
                raise PluginError(
                    f"{what} is asked for, but plugin {plugin.name!r} of {plugin.distribution} {plugin.version} is {plugin.status}: {plugin.error}. "
                    f"{'Allow it' if plugin.status == 'blocked' else 'Mend or reinstall it'}, or take it out of the run."
                )


def declared_entry(path: Path) -> Entry:
    """The task that a file declares; the file and its hash stand where a plugin has its distribution and version."""
    adapter = read_task_file(path)
    version = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    name = adapter.spec.name
    return Entry("task", f"{LOCAL}/{name}", adapter, Plugin(LOCAL, str(path), version, "loaded", {"tasks": (name,)}))


def _require_one_local(entries: Sequence[Entry]) -> None:
    """A plugin may be called `local` too, but not in a run that names files: nobody could tell their tasks apart."""
    mine = [e for e in entries if e.plugin.name == LOCAL]
    installed = [e for e in mine if not issubclass(e.cls, DeclaredTask)]
    if 0 < len(installed) < len(mine):
        owner = installed[0].plugin.distribution
        raise ConfigError(
            f"tasks that files declare are known as {LOCAL}/NAME, and so are those of plugin {LOCAL!r} of {owner}, which this run names too "
            f"({installed[0].name}): leave out one or the other"
        )


__all__ = ["KINDS", "OWN", "Entry", "Plugin", "Registry"]
