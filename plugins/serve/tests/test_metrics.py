"""What is counted can be read, of one process and of all workers together."""

import subprocess
import sys

import pytest
from mtcore_serve.metrics import Metrics, forget_worker
from prometheus_client.parser import text_string_to_metric_families

from mtcore.errors import ConfigError

WORKER = """
import sys
from mtcore_serve.metrics import Metrics

metrics = Metrics(sys.argv[1])
metrics.request("/v1/predict", 200, 0.1)
metrics.queue("one", 3, 30)
metrics.online("one", sys.argv[2], is_online=True)
if len(sys.argv) > 3:
    print(metrics.render()[0].decode())
else:
    import os
    print(os.getpid())
"""


def figures(text: str) -> dict[str, float]:
    """Samples by name and labels."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_everything_that_is_counted_is_rendered_and_said_what_it_is():
    metrics = Metrics()
    metrics.request("/v1/predict", 200, 0.02)
    metrics.refused("overloaded")
    metrics.answer("t/a", "v1", is_truncated=True)
    metrics.answered("one", "online", 0.2)
    metrics.queue("one", 2, 20)
    metrics.batch("one", 2, 20, 0.5)
    metrics.abandoned("one", 2)
    metrics.online("one", "v1", is_online=True)
    metrics.shadow("one", "yes")
    text, kind = metrics.render()
    assert kind.startswith("text/plain")
    found = figures(text.decode())
    assert found["mtcore_requests_total /v1/predict 200"] == 1
    assert found["mtcore_truncated_total t/a"] == 1
    assert found["mtcore_model_seconds_total one"] == 0.5
    assert (found["mtcore_queue_requests one"], found["mtcore_queue_tokens one"]) == (2, 20)
    ours = [family for family in text_string_to_metric_families(text.decode()) if family.name.startswith("mtcore_")]
    assert len(ours) == 14
    assert all(family.samples and family.documentation.endswith(".") for family in ours)
    assert not figures(Metrics().render()[0].decode()).keys() & {"mtcore_refused_total overloaded"}


def test_workers_that_share_a_folder_are_counted_together_and_the_dead_no_longer_wait(tmp_path):
    def worker(*arguments: str) -> str:
        return subprocess.run([sys.executable, "-c", WORKER, str(tmp_path), *arguments], check=True, capture_output=True, text=True).stdout

    first = int(worker("v1"))
    both = figures(worker("v2", "tell"))
    assert both["mtcore_requests_total /v1/predict 200"] == 2
    assert both["mtcore_queue_tokens one"] == 60
    forget_worker(str(tmp_path), first)
    later = figures(worker("v2", "tell"))
    assert later["mtcore_requests_total /v1/predict 200"] == 3
    assert later["mtcore_queue_tokens one"] == 60
    assert "mtcore_online_info one v1" not in later


def test_a_folder_that_comes_too_late_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="PROMETHEUS_MULTIPROC_DIR"):
        Metrics(str(tmp_path))
