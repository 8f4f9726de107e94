"""What the server refuses, as one tree: each with the code a client reads, the HTTP status, and when to come again."""

from mtcore.errors import MtcoreError


class Refused(MtcoreError):
    """A request that is not answered. Its text never holds what the client sent."""

    code = "refused"
    status = 400
    retry_after: float | None = None
    """Seconds after which it is worth asking again."""


class BadRequest(Refused):
    """The body cannot be understood: wrong JSON, wrong types, missing or unknown fields, numbers that are none."""

    code = "bad_request"
    status = 422


class UnknownTask(Refused):
    """A task that nothing online answers."""

    code = "unknown_task"
    status = 404


class TooLarge(Refused):
    """More bytes, documents, tasks or tokens than are taken at once."""

    code = "too_large"
    status = 413


class Unauthorised(Refused):
    """No key, or a wrong one."""

    code = "unauthorised"
    status = 401


class Overloaded(Refused):
    """The queue is full, or the answer would come too late: refused before any work is done."""

    code = "overloaded"
    status = 429

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Late(Refused):
    """Accepted, but its deadline passed while it waited."""

    code = "late"
    status = 503
    retry_after = 1.0


class Conflict(Refused):
    """What is asked of a group does not go together with what is happening to it."""

    code = "conflict"
    status = 409


class NotReady(Refused):
    """Loading, draining, or stopped by the watchdog: another worker or machine will answer."""

    code = "not_ready"
    status = 503
    retry_after = 1.0


class Unanswerable(Refused):
    """The model raised or hung on this request, and on this request alone."""

    code = "unanswerable"
    status = 422
