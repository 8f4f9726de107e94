"""The doctor: whether this machine, this installation and this run file will do, said before anything is trained."""

from mtcore.doctor.checks import examine
from mtcore.doctor.finding import Finding, Subject

__all__ = ["Finding", "Subject", "examine"]
