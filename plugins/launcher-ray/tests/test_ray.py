"""Ray keeps what every launcher promises, on a cluster of this machine alone."""

from collections.abc import Iterator

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed: pip install ./plugins/launcher-ray")

from mtcore_ray import Ray  # noqa: E402

from mtcore.testing import launcher_checks  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("check", launcher_checks(Ray), ids=str)
def test_the_launcher_keeps_its_promises(check):
    check()
