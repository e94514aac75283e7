import pytest
import torch

from divsel_ray.cluster import screen


@pytest.fixture(params=["float16", "float32"])
def screen_types(request, monkeypatch):
    """Runs a test with every precision that a screen may have on this machine."""
    kind = getattr(torch, request.param)
    if kind == torch.float16 and screen.screening_type("cpu") != kind:
        pytest.skip("this processor multiplies float16 slowly")
    monkeypatch.setattr(screen, "screening_type", lambda device: kind)
