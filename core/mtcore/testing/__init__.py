"""The conformance kit: what a plugin promises, as named checks for `mtcore check` and for pytest, and toys to try a plugin on."""

from mtcore.testing.check import Check, Outcome
from mtcore.testing.filters import filter_checks
from mtcore.testing.launchers import launcher_checks
from mtcore.testing.methods import method_checks
from mtcore.testing.observers import observer_checks
from mtcore.testing.samplers import sampler_checks
from mtcore.testing.schedulers import box_samplers, scheduler_checks
from mtcore.testing.tasks import task_checks
from mtcore.testing.toys import ODD_TEXTS, toy_base, toy_data, toy_profiles, toy_spec

__all__ = [
    "ODD_TEXTS",
    "Check",
    "Outcome",
    "box_samplers",
    "filter_checks",
    "launcher_checks",
    "method_checks",
    "observer_checks",
    "sampler_checks",
    "scheduler_checks",
    "task_checks",
    "toy_base",
    "toy_data",
    "toy_profiles",
    "toy_spec",
]
