"""Every bound of the server in one place, with the reason for each."""

from pydantic import Field

from mtcore.types import Frozen


class Limits(Frozen):
    """Bounds on what is taken and on how long it may last."""

    body_bytes: int = Field(default=1 << 20, gt=0)
    """Of a request's body; read no further."""
    bodies_bytes: int = Field(default=1 << 26, gt=0)
    """Of the bodies of all requests under way: what they take of memory. Clients that have shown no key have as much of their own."""
    documents: int = Field(default=64, gt=0)
    """Of one request."""
    text_characters: int = Field(default=100_000, gt=0)
    """Of one field. Longer texts than the model reads are cut, with a flag; longer ones than this are refused."""
    batch_tokens: int = Field(default=4096, gt=0)
    """Tokens that go through a model together, documents that requests share counted once."""
    queue_tokens: int = Field(default=65_536, gt=0)
    """Tokens that wait for a model; what would be more is refused."""
    queue_requests: int = Field(default=1024, gt=0)
    """Requests that wait to be encoded or answered."""
    queue_characters: int = Field(default=1 << 25, gt=0)
    """Characters of all requests that are not answered yet: what waiting takes of memory."""
    deadline: float = Field(default=10.0, gt=0)
    """Seconds from arrival to answer unless a request says less (`timeout`); what cannot be answered by then is refused, early where it can be
    foreseen."""
    hang: float = Field(default=30.0, gt=0)
    """Seconds after which a forward pass is given up."""
    abandoned: int = Field(default=3, ge=0)
    """Forward passes given up until the process no longer counts as sound: each leaves a thread behind that may compute for ever."""
    encoders: int = Field(default=2, gt=0)
    """Threads that turn a model's requests into tokens."""
    header_seconds: float = Field(default=10.0, gt=0)
    """In which a client must have sent its headers, and then its body."""
    drain_seconds: float = Field(default=30.0, gt=0)
    """In which what was accepted is answered once the server is asked to end."""
