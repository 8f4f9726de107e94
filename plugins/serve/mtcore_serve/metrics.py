"""What is counted and timed, in Prometheus's text format."""


class Metrics:
    """The metrics of one process, in a registry of their own; with `folder`, shared by all worker processes through files in it."""

    def __init__(self, folder: str | None = None) -> None:
        raise NotImplementedError

    def render(self) -> tuple[bytes, str]:
        """The text for /metrics and its content type; of all workers together where they share a folder."""
        raise NotImplementedError

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request; `route` is the route's pattern, never its path."""
        raise NotImplementedError
