"""All checks of the doctor, in their order; one that fails itself is a finding too."""

from collections.abc import Iterator, Mapping

from mtcore.doctor import machine, needs
from mtcore.doctor.finding import Check, Finding, Subject

CHECKS: Mapping[str, Check] = {
    "python": machine.python,
    "packages": machine.packages,
    "extras": machine.extras,
    "device": machine.device,
    "processors": machine.processors,
    "out": machine.out_folder,
    "plugins": needs.plugins,
    "components": needs.components,
    "precision": needs.precision,
    "base": needs.base,
    "rows": needs.rows,
    "room": needs.room,
    "hub": needs.hub,
}


def examine(subject: Subject) -> Iterator[tuple[str, Finding]]:
    """Every check's findings, by its name, as they come."""
    for name, check in CHECKS.items():
        try:
            for finding in check(subject):
                yield name, finding
        except Exception as error:  # the machine that breaks a check is the one that needs the others
            yield name, Finding("problem", f"this could not be looked at: {type(error).__name__}: {error}", "mend what the message names")
