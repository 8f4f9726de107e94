"""Find plugins by their metadata, load them one by one, and keep what is broken from breaking anything else."""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, distributions
from typing import Any

import pluggy

from mtcore import API, hookspecs
from mtcore.contracts import Component, TaskAdapter
from mtcore.errors import PluginError
from mtcore.registry import KINDS, Entry, Plugin, Registry
from mtcore.types import TaskSpec

GROUP = "mtcore"
COMMANDS = "mtcore.commands"
OWN = "mtcore"
"""The distribution whose plugins always load: it is the program itself."""
HOOKS = {"task": "register_tasks", **{kind: f"register_{kind}s" for kind in KINDS}}


def load_plugins(*, environment: str | None = None, allow: Sequence[str] | None = None, deny: Sequence[str] = ()) -> Registry:
    """Load every allowed plugin and return the registry of what they provide.

    `environment` is the value of MTCORE_PLUGINS: only these load (empty: none). `allow` and `deny` are the run file's. Names are of
    plugins or distributions; what is not allowed is never imported. A plugin that fails in any way is listed as failed, and provides nothing.
    """
    found = discover(GROUP)
    owners = defaultdict(set)
    for entry_point, distribution, _ in found:
        owners[entry_point.name].add(distribution)
    plugins: list[Plugin] = []
    entries: list[Entry] = []
    commands = [(command.name, distribution) for command, distribution, _ in discover(COMMANDS)]
    for entry_point, distribution, version in found:
        name, own = entry_point.name, {entry_point.name, distribution}
        provides = {"commands": tuple(command for command, owner in commands if owner == distribution)}
        reason = "" if distribution == OWN else _blocked(own, environment, allow, deny)
        if reason:
            plugins.append(Plugin(name, distribution, version, "blocked", provides, reason))
            continue
        try:
            if len(owners[name]) > 1 or sum(e.name == name for e, _, _ in found) > 1:
                raise PluginError(
                    f"{len(found)} plugins found, and more than one is called {name!r}: in {', '.join(sorted(owners[name]))}; uninstall one"
                )
            mine = _load(entry_point)
            provides |= {f"{kind}s": tuple(n for k, n, _ in mine if k == kind) for kind in HOOKS}
            plugin = Plugin(name, distribution, version, "loaded", provides)
            entries.extend(Entry(kind, f"{name}/{n}" if kind == "task" else n, cls, plugin) for kind, n, cls in mine)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit in a plugin is a broken plugin, not the end of the program
            plugin = Plugin(name, distribution, version, "failed", provides, _reason(error))
        plugins.append(plugin)
    return Registry(plugins, entries)


def discover(group: str) -> list[tuple[EntryPoint, str, str]]:
    """Entry points of a group with their distribution's name and version, in the order of names; nothing is imported."""
    found: dict[tuple[str, str, str], tuple[EntryPoint, str, str]] = {}
    for distribution in distributions():
        for entry_point in distribution.entry_points:
            if entry_point.group == group:
                name = distribution.metadata["Name"]
                found.setdefault((entry_point.name, name, entry_point.value), (entry_point, name, distribution.version))
    return [found[key] for key in sorted(found)]


def _blocked(names: set[str], environment: str | None, allow: Sequence[str] | None, deny: Sequence[str]) -> str:
    if environment is not None and not names & {part.strip() for part in environment.split(",")}:
        return "not named in MTCORE_PLUGINS"
    if allow is not None and not names & set(allow):
        return "not in the run file's plugins.allow"
    return "in the run file's plugins.deny" if names & set(deny) else ""


def _load(entry_point: EntryPoint) -> list[tuple[str, str, type]]:
    """Import one plugin and ask its hooks, through a manager of its own: (kind, name, class) of all it provides, or an error."""
    module = entry_point.load()
    needed = getattr(module, "mtcore_api", API)
    if not isinstance(needed, int) or needed > API:
        raise PluginError(f"it asks for version {needed} of mtcore's plugin contracts, and this mtcore has version {API}: upgrade mtcore")
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=entry_point.name)
    manager.check_pending()
    provided: list[tuple[str, str, type]] = []
    for kind, hook in HOOKS.items():
        for classes in getattr(manager.hook, hook)():
            provided.extend((kind, _checked_name(kind, hook, cls), cls) for cls in _listed(hook, classes))
    seen: set[tuple[str, str]] = set()
    for kind, name, _ in provided:
        if (kind, name) in seen:
            raise PluginError(f"it registers two {kind}s called {name!r}")
        seen.add((kind, name))
    if not manager.get_hookcallers(module):
        raise PluginError(f"{entry_point.value} implements no hook: decorate register_… functions with mtcore.hookspecs.hookimpl")
    return provided


def _listed(hook: str, classes: Any) -> Iterable[Any]:
    if isinstance(classes, (str, Mapping, type)) or not isinstance(classes, Iterable):
        raise PluginError(f"{hook}() returned {classes!r}; it must return classes in a list")
    return classes


def _checked_name(kind: str, hook: str, cls: Any) -> str:
    contract = TaskAdapter if kind == "task" else KINDS[kind]
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise PluginError(f"{hook}() returned {cls!r}, which is no subclass of mtcore.contracts.{contract.__name__}")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise PluginError(f"{cls.__name__} does not define {', '.join(missing)}")
    if kind == "task":
        if not isinstance(getattr(cls, "spec", None), TaskSpec):
            raise PluginError(f"task {cls.__name__} has no `spec = TaskSpec(…)`")
        return cls.spec.name
    if not isinstance(getattr(cls, "name", None), str) or not issubclass(cls.Config, Component.Config.__base__ or object):
        raise PluginError(f'{kind} {cls.__name__} needs `name = "…"` and a nested `class Config(Options)`')
    _check_signatures(cls, contract)
    return str(cls.name)


def _check_signatures(cls: type, contract: type) -> None:
    """A method that takes other arguments than the contract's would fail in the middle of a run: it fails here."""
    for name in getattr(contract, "__abstractmethods__", ()):
        theirs, ours = inspect.signature(getattr(cls, name)), inspect.signature(getattr(contract, name))
        try:
            theirs.bind(*ours.parameters)
        except TypeError as error:
            raise PluginError(f"{cls.__name__}.{name}{theirs} cannot take the contract's arguments {ours}: {error}") from None


def _reason(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
