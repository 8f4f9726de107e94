"""Words of launchers: work as plain data, which any process can do."""

from typing import Any

from mtcore.types.frozen import Frozen


class Job(Frozen):
    """A piece of work for any process that has the same plugins installed and sees the same files."""

    name: str
    """What errors call it: `reference clue/tnews`."""
    call: str
    """The function that does it, as `module:function`: it takes `data`, a function that takes events, and a `Stop`, and returns JSON."""
    data: dict[str, Any]
    """JSON; its paths are absolute."""
