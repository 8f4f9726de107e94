"""The doctor's look at what a run needs: plugins and components, a base, rows, room on the disk and in memory, the Hub."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sized
from pathlib import Path

from mtcore.config import RunConfig
from mtcore.doctor.finding import Finding, Subject
from mtcore.doctor.machine import existing, memory_size
from mtcore.errors import MissingData, ModelError, MtcoreError
from mtcore.estimates import FLOAT, KEPT, STATES, disk, parameters, size
from mtcore.modeling.load import find_base
from mtcore.plugins import COMMANDS, discover
from mtcore.registry import Entry, Registry
from mtcore.types import TaskProfile


def plugins(subject: Subject) -> Iterator[Finding]:
    """Can every plugin be loaded, and is every name one plugin's?"""
    loaded = [p.name for p in subject.registry.plugins if p.status == "loaded"]
    for plugin in subject.registry.plugins:
        if plugin.status == "failed":
            told = f"plugin {plugin.name!r} of {plugin.distribution} {plugin.version} provides nothing: {plugin.error}"
            yield Finding("warning", told, f"mend, reinstall or uninstall {plugin.distribution}")
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for entry_point, owner, _ in discover(COMMANDS):
        owners[entry_point.name].add(owner)
    for name, theirs in owners.items():
        if name in subject.commands or len(theirs) > 1:
            claimed = " and ".join([*(["mtcore itself"] if name in subject.commands else []), *sorted(theirs)])
            yield Finding("warning", f"command {name!r} is claimed by {claimed}", "uninstall all but one")
    yield Finding("fine", f"{counted(loaded, 'plugin')} loaded: {', '.join(loaded)}")


def components(subject: Subject) -> Iterator[Finding]:
    """Does the run file name only what is here, with options that exist?"""
    for name, config in subject.configs.items() if subject.has_run else ():
        where = f"variant {name}: " if name else ""
        try:
            for use in (config.filter, config.method, config.scheduler, config.reference, config.launcher, *config.observers):
                subject.registry.build(use)
            found = subject.registry.tasks(config.tasks)
        except MtcoreError as error:
            yield Finding("problem", f"{where}{error}", "correct the run file, or install what it names")
        else:
            yield Finding("fine", f"{where}{counted(found, 'task')}, method {config.method.use}, scheduler {config.scheduler.use}")


def precision(subject: Subject) -> Iterator[Finding]:
    """Can the device compute in what the methods ask for?"""
    import torch

    for name, config in subject.configs.items() if subject.has_run else ():
        wanted = config.method.options.get("precision")
        if wanted == "bf16" and not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()):
            where = f"variant {name}: " if name else ""
            yield Finding(
                "problem", f'{where}precision = "bf16" needs a GPU with bf16 units, and there is none here', 'set precision = "fp32"'
            )


def base(subject: Subject) -> Iterator[Finding]:
    """Is the base model here?"""
    for model in dict.fromkeys(config.model for config in subject.configs.values()):
        try:
            found = find_base(model, subject.out / "bases", weights=False)
        except ModelError as error:
            if "/" in model and subject.may_fetch and not Path(model).expanduser().is_absolute():
                yield Finding(
                    "warning", f"{model} is not here; a run would fetch it from the Hugging Face Hub", f"fetch it now: hf download {model}"
                )
            else:
                yield subject.missing(str(error))
            continue
        if (count := parameters(found)) is None:
            yield subject.missing(f"{model}: {found.folder} holds no *.safetensors", "fetch or convert its weights")
        else:
            yield Finding("fine", f"{model}: {count / 1e6:,.1f}M parameters in {found.folder}")


def rows(subject: Subject) -> Iterator[Finding]:
    """Are there rows for every task?"""
    read: set[tuple[str, str | None]] = set()
    here: list[str] = []
    away: list[str] = []
    for config in subject.configs.values():
        if config.data is not None and not Path(config.data).is_dir():
            yield subject.missing(f"the data folder {config.data} is not there", "correct MTCORE_DATA or `data`")
        for entry in tasks(subject, config):
            if (entry.name, config.data) in read:
                continue
            read.add((entry.name, config.data))
            try:
                _require_rows(subject.registry, entry, config)
                here.append(entry.name)
            except Exception as error:  # a plugin's own code may raise anything
                if _is_on_the_hub(error, config) and subject.may_fetch:
                    away.append(entry.name)
                else:
                    told = str(error) if isinstance(error, MtcoreError) else f"{entry.name}: {type(error).__name__}: {error}"
                    yield subject.missing(told)
    if away:
        told = f"{counted(away, 'task')} without rows here; a run would fetch them from the Hugging Face Hub: {', '.join(away)}"
        yield Finding("warning", told, "or name a folder that holds them: MTCORE_DATA, or `data` in the run file")
    if here:
        yield Finding("fine", f"{counted(here, 'task')} with rows: {', '.join(here)}")


def _require_rows(registry: Registry, entry: Entry, config: RunConfig) -> None:
    adapter = registry.build_task(entry, Path(config.data) if config.data else None)
    for split in ("train", "validation"):
        if next(iter(adapter.rows(split)), None) is None:
            raise MissingData(f"{entry.name}: no {split} rows")


def _is_on_the_hub(error: Exception, config: RunConfig) -> bool:
    # of all missing rows, only those that were sought on the Hub have a cause
    return isinstance(error, MissingData) and config.data is None and error.__cause__ is not None


def room(subject: Subject) -> Iterator[Finding]:
    """Is there room for checkpoints and bundles on the disk, and for training in memory?"""
    place = existing(subject.out)
    free, needed, largest = shutil.disk_usage(place).free, 0, 0
    for config in subject.configs.values() if subject.has_run else ():
        try:
            models = _models(subject.registry, config)
            count = parameters(find_base(config.model, subject.out / "bases", weights=False)) or 0
        except MtcoreError:  # told by the checks of components and base
            continue
        needed += disk(count, models) - disk(count, 0)
        largest = max(largest, count)
    if not largest:
        yield Finding("fine", f"{size(free)} free in {place}")
        return
    needed += disk(largest, 0)
    text = f"{size(free)} free in {place}; the run needs about {size(needed)} (bundles, and {KEPT} checkpoints at a time)"
    yield Finding("fine", text) if free > needed else Finding("problem", text, "make room, or choose another place for `out`")
    memory, where = _memory()
    training = largest * FLOAT * (STATES + 1)
    text = f"{size(memory)} {where}; weights, gradients and moments take {size(training)}"
    yield Finding("fine", text) if memory > training else Finding("problem", text, "take a smaller model, or a larger machine")


def hub(subject: Subject) -> Iterator[Finding]:
    """Would what is fetched from the Hugging Face Hub find a place?"""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if not subject.may_fetch:
        yield Finding("fine", f"offline, as the environment says; the Hugging Face cache is {cache}")
    elif os.access(existing(cache), os.W_OK):
        yield Finding("fine", f"the Hugging Face cache is {cache}")
    else:
        yield Finding("warning", f"the Hugging Face cache {cache} cannot be written", "set HF_HOME to a folder of your own")


def counted(found: Sized, what: str) -> str:
    return f"{len(found)} {what}{'' if len(found) == 1 else 's'}"


def tasks(subject: Subject, config: RunConfig) -> list[Entry]:
    """The tasks that a run names, or all that are installed; none where what it names is not here, which another check says."""
    try:
        return subject.registry.tasks(config.tasks) if subject.has_run else subject.registry.entries("task")
    except MtcoreError:
        return []


def _models(registry: Registry, config: RunConfig) -> int:
    """Models with weights of their own that a variant leaves: one a group, as far as specs alone say, and references that are kept."""
    specs = {entry.name: entry.cls.spec for entry in registry.tasks(config.tasks)}
    shared = 0
    if registry.method(config.method).uses_stages and not registry.scheduler(config.scheduler).alone:
        profiles = [TaskProfile(name=name, spec=spec, train_rows=1, validation_rows=1) for name, spec in specs.items()]
        shared = len(registry.filter(config.filter).group(profiles))
    return (shared + (len(specs) if config.keep_reference_weights else 0)) * len(config.seeds)


def _memory() -> tuple[int, str]:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory), "of GPU memory"
    return memory_size(), "of memory"
