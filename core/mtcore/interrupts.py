"""SIGTERM and Ctrl-C: work that must not be torn is finished and saved first; the second signal ends the process at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mtcore.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether this process has been asked to end. Outside of `deferred` blocks the first signal raises Interrupted where it falls."""

    def __init__(self) -> None:
        self.requested: int | None = None
        """The signal that came."""
        self._depth = 0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait. Whoever defers looks at `requested`, saves what is worth saving, and calls `obey`."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A short stretch that must not be torn: a signal that falls into it raises at its end, unless something around it defers."""
        was_requested = self.requested is not None
        with self.deferred():
            yield
        if self._depth == 0 and not was_requested:
            self.obey()

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within `deferred`, a stretch that may be torn: here too a signal raises where it falls, and one that waits raises now."""
        self.obey()
        depth, self._depth = self._depth, 0
        try:
            yield
        finally:
            self._depth = depth

    def obey(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self.requested = number
        if self._depth == 0:
            raise Interrupted(number)


@contextmanager
def listening() -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into an orderly end while the block lasts; only the main thread of a process can."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
