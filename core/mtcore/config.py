"""The run file: strict and short. It names components; what their options mean is theirs to say."""

import difflib
import glob
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from mtcore.errors import ConfigError
from mtcore.types import FilterUse, Frozen, LauncherUse, MethodUse, ObserverUse, SchedulerUse, Use

Model = TypeVar("Model", bound=BaseModel)
OFFLOADS = {
    "ddp": ("none",),
    "fsdp": ("none", "all"),
    "zero-1": ("none", "optimizer"),
    "zero-2": ("none", "optimizer"),
    "zero-3": ("none", "optimizer", "all"),
}
"""What each engine can leave in the memory of the host."""
WHOLE_RUN = ("plugins", "out", "observers", "distribution")
"""Keys that no variant may change."""


class RowLimits(Frozen):
    """Which rows are used, and what is tolerated in them."""

    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of every task's train rows, chosen once by the task's name."""
    validation: int | None = Field(default=None, gt=0)
    """At most so many validation (and test) rows a task."""
    bad: float = Field(default=0.01, ge=0, lt=1)
    """Share of malformed rows above which a task stops the run."""
    allow_leaks: tuple[str, ...] = ()
    """Tasks (or patterns) whose validation and test rows may also be train rows."""


class Distribution(Frozen):
    """How several processes share the training of one model; one process needs none of it."""

    engine: Literal["ddp", "fsdp", "zero-1", "zero-2", "zero-3"] = "ddp"
    """What is divided among processes: nothing (DDP), moments (ZeRO-1), gradients too (ZeRO-2), weights too (ZeRO-3, FSDP)."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in the memory of the host: nothing, the optimizer's part (ZeRO), or weights too (ZeRO-3, FSDP)."""

    @model_validator(mode="after")
    def _offers_it(self) -> "Distribution":
        offered = OFFLOADS[self.engine]
        if self.offload not in offered:
            raise ValueError(f"engine {self.engine!r} offers offload = {' or '.join(repr(o) for o in offered)}, not {self.offload!r}")
        return self

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds the whole model, so that all must run it together."""
        return self.engine in ("fsdp", "zero-3")


class PluginRules(Frozen):
    """Which plugins may be loaded, by plugin or distribution name."""

    allow: tuple[str, ...] | None = None
    """Only these; where absent, all that are not denied."""
    deny: tuple[str, ...] = ()
    """None of these."""


class RunConfig(Frozen):
    """One run, fully stated."""

    model: str = "tiny"
    """A Hub id, a local folder (one that begins with a dot is relative to the run file), or a base that `mtcore base` built."""
    tasks: tuple[str, ...] = ("*",)
    """Task names or patterns: `clue/tnews`, `clue/*`; files that declare tasks: `tasks/refund.toml`, `tasks/*.toml`."""
    data: str | None = None
    """Folder with local rows; MTCORE_DATA where absent."""
    out: str = "runs"
    """Where run folders, references and bases are kept."""
    filter: FilterUse = FilterUse(use="output-kind")
    """Which tasks may share one model: it splits them into groups."""
    method: MethodUse = MethodUse(use="text2text")
    """How a model is made for a group."""
    scheduler: SchedulerUse = SchedulerUse(use="two-stage")
    """Which stages a group is trained in, and how each of them draws its tasks."""
    reference: SchedulerUse = SchedulerUse(use="single-task")
    """How long, and at what rate, each task is trained alone."""
    launcher: LauncherUse = LauncherUse(use="in-turn")
    """Where references are measured, and how many at a time; it changes no result."""
    observers: tuple[ObserverUse, ...] = (ObserverUse(use="progress"), ObserverUse(use="events"))
    """Who is told what happens."""
    seeds: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Every variant, references included, is trained under each of them."""
    max_steps: int | None = Field(default=None, gt=0)
    """Cap on optimizer steps over all stages of a group; references are exempt."""
    keep_reference_weights: bool = False
    """Keep single-task bundles, which a deployment needs for tasks that do not qualify."""
    resource: dict[str, Literal["high", "low"]] = {}
    """Assume tasks to be high- or low-resource instead of measuring it."""
    distribution: Distribution = Distribution()
    """How several processes share the training of one model."""
    rows: RowLimits = RowLimits()
    """Which rows are used, and what is tolerated in them."""
    plugins: PluginRules = PluginRules()
    """Which plugins may be loaded."""


@dataclass(frozen=True)
class RunFile:
    """A run file as read: its name, and one configuration a variant (one variant without a name where there are none)."""

    name: str
    variants: Mapping[str, RunConfig]
    own: RunConfig | None = None
    """What the run file says above its variants, where it has any."""


def load_run(path: Path | None, *, settings: Sequence[str] = (), data: str | None = None) -> RunFile:
    """Read a run file, apply `key.path=value` settings to it and to every variant, and check each resulting configuration.

    `data` is used where the file names none. Raises ConfigError with the nearest known key for unknown ones.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            near = ", ".join(sorted(str(p) for p in path.parent.glob("*.toml"))) or "none"
            raise ConfigError(f"{path}: no such run file. TOML files beside it: {near}.") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read as a run file: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None
    where = str(path or "the command line")
    variants = table.pop("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(v, dict) for v in variants.values()):
        raise ConfigError(f"{where}: [variants.NAME] must be tables that override keys")
    for name in variants:
        if shared := sorted(set(WHOLE_RUN) & set(variants[name])):
            raise ConfigError(f"{where} [variants.{name}]: {', '.join(shared)} hold for the whole run and stand above the variants")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ConfigError(f"{where}: variant {name!r} names a folder: use letters, digits, '-', '_' and '.'")
    changes = [parse_setting(setting) for setting in settings]
    configs: dict[str, RunConfig] = {}
    table = merge(RunConfig().model_dump(mode="json"), table)
    for name, override in {"": {}, **variants}.items():
        merged = merge(table, override)
        if path is not None and isinstance(merged["data"], str):
            merged["data"] = os.path.normpath(path.parent / merged["data"])
        if path is not None and str(merged["model"]).startswith("."):
            merged["model"] = os.path.normpath(path.parent / merged["model"])
        if path is not None and isinstance(merged["tasks"], list):
            merged["tasks"] = [_beside(path, task) if is_task_file(task) else task for task in merged["tasks"]]
        for change in changes:
            merged = merge(merged, change)
        if merged["data"] is None:
            merged["data"] = data
        configs[name] = validate(RunConfig, merged, f"{where}{f' [variants.{name}]' if name else ''}")
    own = configs[""] if not variants else configs.pop("")
    return RunFile(name=path.stem if path else "run", variants=configs, own=own)


def is_task_file(task: object) -> bool:
    """Whether an entry of `tasks` names a file that declares a task, or a pattern of such files."""
    return isinstance(task, str) and task.endswith(".toml")


def is_pattern(name: str) -> bool:
    return any(c in name for c in "*?[")


def _beside(run: Path, task: str) -> str:
    """A path or pattern of paths that is relative to the run file."""
    # the folder's own name may hold signs that mean something in a pattern
    return str(Path(glob.escape(str(run.parent)) if is_pattern(task) else run.parent) / task)


def merge(table: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Override keys table by table; a table that names another component (`use`) replaces the old one whole."""
    merged = dict(table)
    for key, value in override.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and value.get("use", old.get("use")) == old.get("use"):
            merged[key] = merge(old, value)
        elif isinstance(value, Mapping):
            merged[key] = merge({}, value)
        else:
            merged[key] = value
    return merged


def with_default_use(model: type[BaseModel], table: Mapping[str, Any]) -> dict[str, Any]:
    """Where a table sets options of a component that it does not name (`use`), add the component and options that are the default there."""
    filled = dict(table)
    for key, value in table.items():
        default = model.model_fields[key].get_default(call_default_factory=True) if key in model.model_fields else None
        if isinstance(default, Use) and isinstance(value, Mapping) and "use" not in value:
            filled[key] = merge(default.model_dump(), value)
    return filled


def validate(model: type[Model], table: Mapping[str, Any], where: str) -> Model:
    """Check a table against a strict model. Raises ConfigError that names every wrong key, its value, and the nearest right one."""
    try:
        # by way of JSON: strict validation takes a TOML array for a tuple there, and nothing else for anything else
        return model.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        problems = [_describe(model, problem) for problem in error.errors(include_url=False)]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from None


def _describe(model: type[BaseModel], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        # what is wrong with the whole is not made clearer by showing the whole
        given = f" (given: {problem['input']!r})" if path and problem["type"] != "missing" else ""
        return f"{path}: {message}{given}" if path else message
    owner: Any = model
    for part in problem["loc"][:-1]:
        field = getattr(owner, "model_fields", {}).get(part)
        owner = field.annotation if field is not None else owner
    known = list(getattr(owner, "model_fields", {}))
    return f"unknown key {path!r}{nearest(str(problem['loc'][-1]), known)} Known: {', '.join(known) or 'none'}"


def nearest(name: str, known: Sequence[str]) -> str:
    """How a sentence about an unknown name ends: `; did you mean …?` with the closest known names, or a full stop."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."


def parse_setting(setting: str) -> dict[str, Any]:
    """`key.path=value`, the value as in TOML or else as text, as nested tables."""
    key, found, text = setting.partition("=")
    if not found or not all(key.split(".")):
        raise ConfigError(f"--set {setting!r}: write key=value, as in --set scheduler.stage2.tau=3.33")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
