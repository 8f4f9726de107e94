"""The doctor's look at the machine: Python, packages, torch and its device, processors, memory, folders."""

import fcntl
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mtcore.doctor.finding import Finding, Subject
from mtcore.estimates import size
from mtcore.registry import OWN

DEVELOPMENT = ("dev", "docs")
"""Extras that no run needs."""
CGROUP = Path("/sys/fs/cgroup")


def python(subject: Subject) -> Iterator[Finding]:
    """Is Python as new as mtcore needs?"""
    needed, found = distribution(OWN).metadata["Requires-Python"], platform.python_version()
    if SpecifierSet(needed).contains(found, prereleases=True):
        yield Finding("fine", f"Python {found} ({needed} is needed)")
    else:
        yield Finding("problem", f"Python {found}, and {needed} is needed", "make the virtual environment anew with a newer Python")


def packages(subject: Subject) -> Iterator[Finding]:
    """Are the packages as new as mtcore's own metadata asks?"""
    fine = []
    for requirement in map(Requirement, distribution(OWN).requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            problem = outdated(requirement)
            if problem:
                yield Finding("problem", problem, f"pip install '{requirement.name}{requirement.specifier}'")
            else:
                fine.append(f"{requirement.name} {version(requirement.name)}")
    yield Finding("fine", f"{len(fine)} packages are as new as is needed: {', '.join(fine)}")


def extras(subject: Subject) -> Iterator[Finding]:
    """Which optional packages are here?"""
    own = distribution(OWN)
    for extra in own.metadata.get_all("Provides-Extra") or ():
        for requirement in map(Requirement, own.requires or ()):
            if extra in DEVELOPMENT or requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                continue
            if requirement.marker.evaluate({"extra": extra}):
                problem = outdated(requirement)
                if not problem:
                    yield Finding("fine", f"{requirement.name} {version(requirement.name)}")
                elif "not installed" in problem:
                    yield Finding("fine", f"{requirement.name} is not installed, and optional (pip install '{OWN}[{extra}]')")
                else:
                    yield Finding("warning", problem, f"pip install '{OWN}[{extra}]'")


def outdated(requirement: Requirement) -> str:
    """Why what is installed does not meet a requirement; empty where it does."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed, and {requirement.specifier or 'some version'} is needed"
    is_new_enough = requirement.specifier.contains(found, prereleases=True)
    return "" if is_new_enough else f"{requirement.name} is {found}, and {requirement.specifier} is needed"


def device(subject: Subject) -> Iterator[Finding]:
    """Can torch be loaded, and on what would it train?"""
    import torch

    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            bf16 = "with" if found.major >= 8 else "without"
            yield Finding("fine", f"{build}, GPU {number}: {found.name}, {size(found.total_memory)}, {bf16} bf16")
    elif any(Path("/dev").glob("nvidia[0-9]*")):
        built = torch.version.cuda is not None
        todo = "run nvidia-smi: the driver may be too old" if built else "install a torch that is built for CUDA, as pytorch.org says"
        yield Finding("warning", f"{build} cannot use the NVIDIA GPU of this machine", todo)
    else:
        yield Finding("fine", f"{build}, no GPU: models are trained on the CPU")


def processors(subject: Subject) -> Iterator[Finding]:
    """Will torch start as many threads as it may use processors?"""
    seen, quota = len(os.sched_getaffinity(0)), cpu_quota()
    usable = min(seen, max(1, round(quota))) if quota else seen
    threads = os.environ.get("OMP_NUM_THREADS")
    if odd := odd_threads(threads, seen=seen, usable=usable):
        yield Finding("warning", odd, f"export OMP_NUM_THREADS={usable}")
    else:
        yield Finding("fine", f"{usable} CPUs{'' if threads is None else f', OMP_NUM_THREADS={threads}'}")


def odd_threads(threads: str | None, *, seen: int, usable: int) -> str:
    """What is odd about a value of OMP_NUM_THREADS, or about its absence, where `usable` of the CPUs that are seen may be used."""
    if threads is None:
        return f"this container may use {usable} of the {seen} CPUs that it sees, and torch starts {seen} threads" if usable < seen else ""
    if not re.fullmatch(r"[1-9]\d*", threads):
        return f"OMP_NUM_THREADS={threads!r} is no number of threads"
    if int(threads) > usable:
        return f"OMP_NUM_THREADS={threads}, and {usable} CPUs may be used: threads wait for each other"
    if int(threads) == 1 and usable > 2:
        return f"OMP_NUM_THREADS=1 leaves {usable - 1} of {usable} CPUs idle where models are trained on the CPU by one process"
    return ""


def cpu_quota() -> float | None:
    """CPUs that the container may use; None where nothing bounds them."""
    try:
        allowed, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if allowed == "max" else int(allowed) / int(period)


def memory_size() -> int:
    """Bytes of memory that this machine or container has."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int((CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def out_folder(subject: Subject) -> Iterator[Finding]:
    """Can run folders be written, renamed in and locked?"""
    place = existing(subject.out)
    elsewhere = 'choose another place: out = "/path" in the run file, or --set out=/path'
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".mtcore-doctor-") as name:
            folder = Path(name)
            (folder / "new").write_text("new")
            (folder / "old").write_text("old")
            (folder / "new").replace(folder / "old")
            if (folder / "old").read_text() != "new":
                yield Finding("problem", f"{place}: a file that replaces another is not read back", elsewhere)
            with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
                fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not is_locked(second.fileno()):
                    yield Finding("problem", f"{place}: locks do not hold here, so two runs could write the same files", elsewhere)
    except OSError as error:
        yield Finding("problem", f"{place}: run folders cannot be written here ({error.strerror})", elsewhere)
        return
    yield Finding("fine", f"{subject.out} can be written, renamed in and locked")


def is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
