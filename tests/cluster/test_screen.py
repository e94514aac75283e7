import numpy as np
import pytest
import torch

from divsel_ray.cluster import kernels
from divsel_ray.cluster.screen import Screen


def cases(kind, scale, d=48):
    generator = torch.Generator().manual_seed(d)
    rows = (torch.randn(300, d, generator=generator) * scale).to(kind)
    centroids = (torch.randn(40, d, generator=generator) * scale).numpy()
    half = (rows.double()[:, None] - torch.from_numpy(centroids).double()).square().sum(dim=2) / 2
    norms = rows.double().square().sum(dim=1)
    screen = Screen(centroids, kernels.squared_norms(centroids), float(norms.max().sqrt()), rows.dtype, rows.device)
    return screen, screen.products(rows, norms.float()), half


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-4, 0.05, 1.0, 1e3])
def test_the_exact_half_distance_lies_between_its_bounds(kind, scale, screen_types):
    screen, products, half = cases(kind, scale)
    assert (screen.lower(products).double() <= half).all()
    assert (screen.upper(products).double() >= half).all()


@pytest.mark.parametrize("scale", [0.05, 1.0, 1e3])
def test_the_bounds_are_narrow(scale, screen_types):
    screen, products, half = cases(torch.float16, scale)
    assert ((screen.upper(products) - screen.lower(products)).double() / half.mean()).max() < 0.02


def test_whatever_may_be_as_near_as_a_bound_is_within_reach(screen_types):
    screen, products, half = cases(torch.float16, 1.0)
    limit = half.quantile(0.3, dim=1)
    reach = screen.reach((limit * (1 + 1e-6)).float())
    assert ((products <= reach[:, None]) | (half > limit[:, None])).all()
    assert ((products <= reach[:, None]).double().mean() - 0.3).abs() < 0.05


def test_rows_in_several_batches_reuse_the_same_memory(screen_types):
    screen, products, _ = cases(torch.float16, 1.0, d=5)
    whole = products.clone()
    rows = (torch.randn(300, 5, generator=torch.Generator().manual_seed(5))).half()
    norms = rows.double().square().sum(dim=1).float()
    for part in (slice(0, 7), slice(7, 300)):
        np.testing.assert_allclose(screen.products(rows[part], norms[part]).float(), whole[part].float(), rtol=1e-3)
