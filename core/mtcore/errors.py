"""Every error that mtcore raises on purpose, as one tree.

MtcoreError
├── ConfigError        the run file, an option or a component's settings are not usable
│   └── UnknownName    a name that nothing installed answers to
├── PluginError        a plugin that the run names cannot be used
├── DataError          a task's rows cannot be used
│   ├── MissingData    nothing to read where the rows should be
│   └── BadRows        too many rows are malformed
├── ModelError         a base model or a bundle cannot be used
└── RunError           the run cannot go on as asked
    ├── ResumeMismatch what is in the run folder came from another configuration
    └── RunLocked      another process works in the run folder

Interrupted stands beside the tree: it is no error, and nothing that catches errors may swallow it.

A message names what was asked, what exists, and what to do next. The command line prints it without a traceback.
"""

import signal


class MtcoreError(Exception):
    """The root of everything that mtcore raises on purpose."""


class ConfigError(MtcoreError):
    """The run file, an option or a component's settings are not usable."""


class UnknownName(ConfigError):
    """A name that nothing installed answers to."""


class PluginError(MtcoreError):
    """A plugin that the run names cannot be used."""


class DataError(MtcoreError):
    """A task's rows cannot be used."""


class MissingData(DataError):
    """Nothing to read where the rows should be."""


class BadRows(DataError):
    """Too many rows of one task are malformed."""


class ModelError(MtcoreError):
    """A base model or a bundle cannot be used."""


class RunError(MtcoreError):
    """The run cannot go on as asked."""


class ResumeMismatch(RunError):
    """What is in the run folder came from another configuration."""


class RunLocked(RunError):
    """Another process works in the run folder."""


class Interrupted(BaseException):
    """The process was asked to end by a signal; what was worth saving is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number
