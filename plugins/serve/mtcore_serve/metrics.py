"""What is counted and timed, in Prometheus's text format."""

import os
import sys

from mtcore.errors import ConfigError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks, once, when it is imported."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKENS = tuple(float(2**power) for power in range(5, 16))
REQUESTS = tuple(float(2**power) for power in range(9))


class Metrics:
    """The metrics of one process, in a registry of their own; with `folder`, shared by all worker processes through files in it.

    A label's value is always a name that the server itself knows: a route's pattern, a task, a group, a version, a code.
    """

    def __init__(self, folder: str | None = None) -> None:
        """Raises ConfigError where prometheus_client was imported before it could be told of the folder."""
        if folder is not None and os.environ.get(VARIABLE) != folder:
            if "prometheus_client" in sys.modules:
                raise ConfigError(f"prometheus_client is imported already and keeps its figures in memory: set {VARIABLE} before it is")
            os.environ[VARIABLE] = folder
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

        disable_created_metrics()  # when a counter began says nothing that Prometheus does not know
        self._folder = folder
        self._registry = r = CollectorRegistry()
        if folder is None:
            ProcessCollector(registry=r)
        self._requests = Counter("mtcore_requests_total", "HTTP requests, by route and status.", ["route", "status"], registry=r)
        self._seconds = Histogram("mtcore_request_seconds", "Seconds of HTTP requests.", ["route"], buckets=SECONDS, registry=r)
        self._refused = Counter("mtcore_refused_total", "Requests and answers refused, by the code clients read.", ["code"], registry=r)
        self._answers = Counter("mtcore_answers_total", "Answers given, by task and bundle version.", ["task", "version"], registry=r)
        self._truncated = Counter("mtcore_truncated_total", "Answers to texts that were cut to fit.", ["task"], registry=r)
        self._queue_tokens = Gauge(
            "mtcore_queue_tokens", "Tokens that wait for a model.", ["group"], multiprocess_mode="livesum", registry=r
        )
        self._queue_requests = Gauge(
            "mtcore_queue_requests", "Requests that wait for a model.", ["group"], multiprocess_mode="livesum", registry=r
        )
        self._batch_tokens = Histogram("mtcore_batch_tokens", "Tokens of a batch.", ["group"], buckets=TOKENS, registry=r)
        self._batch_requests = Histogram("mtcore_batch_requests", "Requests of a batch.", ["group"], buckets=REQUESTS, registry=r)
        self._model = Counter("mtcore_model_seconds_total", "Seconds that models computed.", ["group"], registry=r)
        self._abandoned = Counter("mtcore_abandoned_total", "Threads given up by the watchdog.", ["group"], registry=r)
        self._online = Gauge(
            "mtcore_online_info", "1 for a version that is online.", ["group", "version"], multiprocess_mode="livemax", registry=r
        )
        self._roles = Histogram(
            "mtcore_answer_seconds",
            "Seconds from acceptance to answer of a request, by what the version that answered was: online, canary or shadow.",
            ["group", "role"],
            buckets=SECONDS,
            registry=r,
        )
        self._shadow = Counter(
            "mtcore_shadow_answers_total",
            "Answers of a shadow, and whether they are those that were given: yes, no, failed, or dropped for want of time.",
            ["group", "agrees"],
            registry=r,
        )

    def render(self) -> tuple[bytes, str]:
        """The text for /metrics and its content type; of all workers together where they share a folder."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self._registry
        if self._folder is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=self._folder)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request; `route` is the route's pattern, never its path."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, code: str) -> None:
        """Count a refusal by the `code` of its error."""
        self._refused.labels(code).inc()

    def answer(self, task: str, version: str, *, is_truncated: bool) -> None:
        """Count a task's answer."""
        self._answers.labels(task, version).inc()
        if is_truncated:
            self._truncated.labels(task).inc()

    def answered(self, group: str, role: str, seconds: float) -> None:
        """Time a request's answers, by the role of the version that gave them."""
        self._roles.labels(group, role).observe(seconds)

    def queue(self, group: str, requests: int, tokens: int) -> None:
        """What waits now."""
        self._queue_requests.labels(group).set(requests)
        self._queue_tokens.labels(group).set(tokens)

    def batch(self, group: str, requests: int, tokens: int, seconds: float) -> None:
        """Count a batch that was computed."""
        self._batch_requests.labels(group).observe(requests)
        self._batch_tokens.labels(group).observe(tokens)
        self._model.labels(group).inc(seconds)

    def abandoned(self, group: str, number: int) -> None:
        """Count threads that were given up."""
        self._abandoned.labels(group).inc(number)

    def online(self, group: str, version: str, *, is_online: bool) -> None:
        """Note that a version went online or left."""
        self._online.labels(group, version).set(int(is_online))

    def shadow(self, group: str, agrees: str) -> None:
        """Count a shadow's answer."""
        self._shadow.labels(group, agrees).inc()


def forget_worker(folder: str, pid: int) -> None:
    """Leave a worker that ended out of gauges; what it counted stays. To be called by whoever outlives it."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, folder)
