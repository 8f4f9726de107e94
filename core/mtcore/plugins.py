"""Find plugins by their metadata, load them one by one, and keep what is broken from breaking anything else."""

import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

import pluggy

from mtcore import API, hookspecs
from mtcore.contracts import Options, TaskAdapter
from mtcore.errors import PluginError
from mtcore.registry import KINDS, OWN, Entry, Plugin, Registry
from mtcore.types import TaskSpec

GROUP = "mtcore"
COMMANDS = "mtcore.commands"
HOOKS = {"task": "register_tasks", **{kind: f"register_{kind}s" for kind in KINDS}}


def load_plugins(*, environment: str | None = None, allow: Sequence[str] | None = None, deny: Sequence[str] = ()) -> Registry:
    """Load every allowed plugin and return the registry of what they provide.

    `environment` is the value of MTCORE_PLUGINS: only these load (empty: none). `allow` and `deny` are the run file's. Names are of
    plugins or distributions; what is not allowed is never imported. A plugin that fails in any way is listed as failed, and provides nothing.
    """
    commands = discover(COMMANDS)
    found = [
        (e, owner, version, "" if owner == OWN else _blocked({e.name, owner}, environment, allow, deny))
        for e, owner, version in discover(GROUP)
    ]
    owners: defaultdict[str, list[str]] = defaultdict(list)
    for entry_point, distribution, _, blocked in found:
        if not blocked:
            owners[entry_point.name].append(distribution)
    plugins: list[Plugin] = []
    entries: list[Entry] = []
    for entry_point, distribution, version, blocked in found:
        name = entry_point.name
        provides = {"commands": tuple(command.name for command, owner, _ in commands if owner == distribution)}
        if blocked:
            plugins.append(Plugin(name, distribution, version, "blocked", provides, blocked))
            continue
        try:
            if len(owners[name]) > 1 and distribution != OWN:
                raise PluginError(_clash(name, owners[name]))
            with redirect_stdout(sys.stderr):  # what a plugin prints while it is imported must not end up in our JSON
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
    """Entry points of a group with their distribution's name and version, in the order of names; nothing is imported.

    Of a distribution that is installed twice the first on the path counts, as it does for imports.
    """
    found = [(e, e.dist.name, e.dist.version) for e in entry_points(group=group) if e.dist is not None and _has_name(e.dist)]
    return sorted(found, key=lambda f: (f[0].name, f[1], f[0].value))


def _has_name(distribution: Distribution) -> bool:
    """Whether the distribution is whole: half-removed ones are left behind without their metadata."""
    return isinstance(distribution.metadata["Name"], str)


def _blocked(names: set[str], environment: str | None, allow: Sequence[str] | None, deny: Sequence[str]) -> str:
    """Why a plugin that answers to these names (its own, its distribution's) may not be loaded; empty where it may."""
    if environment is not None and not _same(names, environment.split(",")):
        return "not named in MTCORE_PLUGINS"
    if allow is not None and not _same(names, allow):
        return "not in the run file's plugins.allow"
    return "in the run file's plugins.deny" if _same(names, deny) else ""


def _same(names: Iterable[str], listed: Iterable[str]) -> bool:
    # as pip compares names: a deny-list that says mtcore_clue must not let mtcore-clue pass
    return not {_normal(name) for name in names}.isdisjoint(_normal(name) for name in listed)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _clash(name: str, owners: Sequence[str]) -> str:
    if len(set(owners)) == 1:
        return f"{owners[0]} names {len(owners)} plugins {name!r}; its author must rename all but one"
    return f"more than one plugin is called {name!r}: in {' and '.join(sorted(set(owners)))}; uninstall or deny all but one of these"


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
        caller = getattr(manager.hook, hook)
        returned = caller()
        if len(returned) < len(caller.get_hookimpls()):  # pluggy drops None, so that a forgotten `return` would provide nothing, silently
            raise PluginError(f"{hook}() returned None; it must return classes in a list")
        for classes in returned:
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
    contract: type = TaskAdapter if kind == "task" else KINDS[kind]
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise PluginError(f"{hook}() returned {cls!r}, which is no subclass of mtcore.contracts.{contract.__name__}")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise PluginError(f"{cls.__name__} does not define {', '.join(missing)}")
    _check_signatures(cls, contract)
    if kind == "task":
        spec = getattr(cls, "spec", None)
        if not isinstance(spec, TaskSpec):
            raise PluginError(f"task {cls.__name__} has no `spec = TaskSpec(…)`")
        return spec.name
    name, options = getattr(cls, "name", None), getattr(cls, "Config", None)
    if not (isinstance(name, str) and isinstance(options, type) and issubclass(options, Options)):
        raise PluginError(f'{kind} {cls.__name__} needs `name = "…"` and a nested `class Config(Options)`')
    return name


def _check_signatures(cls: type, contract: type) -> None:
    """A method that takes other arguments than the contract's would fail in the middle of a run: it fails here."""
    for name in ("__init__", *sorted(getattr(contract, "__abstractmethods__", ()))):
        theirs, ours = inspect.signature(getattr(cls, name)), inspect.signature(getattr(contract, name))
        arguments = list(ours.parameters)
        if isinstance(inspect.getattr_static(cls, name), (staticmethod, classmethod)):
            arguments.remove("self")
        try:
            theirs.bind(*arguments)
        except TypeError as error:
            raise PluginError(f"{cls.__name__}.{name}{theirs} cannot take the contract's arguments {ours}: {error}") from None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
