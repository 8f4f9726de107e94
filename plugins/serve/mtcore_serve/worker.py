"""A worker of several: serves by settings that come on stdin, on sockets that it inherits, and ends soon after whoever started it."""

import os
import signal
import socket
import sys
import threading

from pydantic import TypeAdapter

from mtcore.errors import MtcoreError
from mtcore_serve.server import Settings, work


def main() -> None:
    """`python -m mtcore_serve.worker FD…`"""
    settings = TypeAdapter(Settings).validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        code = work(settings, [socket.socket(fileno=int(number)) for number in sys.argv[1:]])
    except MtcoreError as error:
        print(f"error: {error}", file=sys.stderr)
        code = UNUSABLE
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a model that hangs in a thread must not keep the process


UNUSABLE = 2
"""Exit code where what is to be served cannot be: another try would end alike."""


def _end_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
