"""One small Ray for the whole session; no test reaches the network."""

from __future__ import annotations

import os

os.environ.update({"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "RAY_DATA_USE_DATASOURCE_V2": "0"})
# Tests have small arrays; threads that wait for each other cost more than they give, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from divsel_ray.resources import Cluster, connect

# The same examples in every run, however slow the machine is at that moment: a test fails for a change, or not at all.
settings.register_profile("tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A local Ray, started once."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    yield connect()
    ray.shutdown()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that fail are sent again at once, and no key of whoever runs the tests is sent anywhere."""
    from divsel_ray.models import api_client

    monkeypatch.setattr(api_client, "_FIRST_WAIT", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
