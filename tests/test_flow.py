"""Optical flow against motion that is known, and the masks against the published formulas written out."""

import functools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from unflicker.checks import InputError
from unflicker.flow import consistent, flow, warp


def texture(height, width, seed=0):
    plane = gaussian_filter(np.random.default_rng(seed).random((height, width)), 2.0)
    plane = (plane - plane.min()) / (plane.max() - plane.min())
    return torch.from_numpy(plane.astype(np.float32)).expand(3, -1, -1)


@pytest.fixture
def shifted():
    """Two frames of a texture that moves by 2 pixels to the right and 1 down."""
    large = texture(80, 96)
    return large[None, :, 8:72, 8:88], large[None, :, 7:71, 6:86]


@pytest.mark.parametrize(
    ("preset", "scale", "within"),
    [("medium", 1.0, 0.3), ("fast", 1.0, 0.3), ("ultrafast", 1.0, 0.3), ("medium", 0.5, 0.5)],
)
def test_dis_finds_a_shift(shifted, preset, scale, within):
    a, b = shifted
    found = flow(a, b, preset=preset, scale=scale)
    assert found.shape == (1, 2, 64, 80) and found.dtype == a.dtype
    error = (found - torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)).norm(dim=1)[:, 8:-8, 8:-8]
    assert error.mean() < within
    assert (a - warp(b, found))[..., 8:-8, 8:-8].abs().mean() < 0.1 * (a - b)[..., 8:-8, 8:-8].abs().mean()


def test_frames_of_a_batch_do_not_see_each_other(shifted):
    a, b = shifted
    both = flow(torch.cat([a, a]), torch.cat([b, a]))
    assert torch.equal(both[:1], flow(a, b))
    assert both[1].abs().max() < 0.05


def test_grey_double_and_values_out_of_range_are_taken(shifted):
    a, b = (frame[:, :1].double() for frame in shifted)
    found = flow(a, b)
    assert found.dtype == torch.float64
    assert (found.median() - 1.5).abs() < 0.6
    a = a.clone()
    a[..., 0, 0], a[..., 0, 1] = torch.nan, 9.0
    assert flow(a, b).isfinite().all()


def test_a_callable_is_asked_and_none_stands_still(shifted):
    a, b = shifted
    known = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)
    assert torch.equal(flow(a, b, method=lambda a, b: known.expand(1, 2, 64, 80))[0, :, 5, 5], known.flatten())
    assert flow(a, b, method="none").abs().max() == 0
    fast = flow(a, b, method=functools.partial(flow, preset="fast"))
    assert torch.equal(fast, flow(a, b, preset="fast"))


def test_warp_is_scipys_bilinear_interpolation():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 9, 11, generator=generator, dtype=torch.float64)
    shift = torch.randn(2, 2, 9, 11, generator=generator, dtype=torch.float64) * 3
    found = warp(image, shift)
    y, x = np.mgrid[:9, :11]
    for i in range(2):
        at = [y + shift[i, 1].numpy(), x + shift[i, 0].numpy()]
        for c in range(3):
            expected = map_coordinates(image[i, c].numpy(), at, order=1, mode="nearest")
            np.testing.assert_allclose(found[i, c].numpy(), expected, atol=1e-10)
    assert torch.allclose(warp(image, torch.zeros_like(shift)), image)


def test_consistent_is_the_published_formula_pixel_by_pixel():
    generator = torch.Generator().manual_seed(1)
    forward = torch.randn(1, 2, 12, 14, generator=generator) * 0.12 + 2
    backward = -warp(forward, -forward) + 0.4 * torch.randn(1, 2, 12, 14, generator=generator)
    found = consistent(forward, backward)[0, 0]
    back = warp(backward, forward)[0].double().numpy()
    w = forward[0].double().numpy()
    for y in range(12):
        for x in range(14):
            inside = 0 <= x + w[0, y, x] <= 13 and 0 <= y + w[1, y, x] <= 11
            total = ((w[:, y, x] + back[:, y, x]) ** 2).sum()
            length = (w[:, y, x] ** 2).sum()
            occluded = total > 0.01 * (length + (back[:, y, x] ** 2).sum()) + 0.5
            gradient = sum(
                (w[:, min(y + dy, 11), min(x + dx, 13)] - w[:, y, x]).astype(np.float64)
                @ (w[:, min(y + dy, 11), min(x + dx, 13)] - w[:, y, x])
                for dy, dx in ((0, 1), (1, 0))
            )
            boundary = gradient > 0.01 * length + 0.002
            assert bool(found[y, x]) == (inside and not occluded and not boundary), (y, x)
    assert 0 < found.float().mean() < 1
    assert consistent(forward, backward, boundary=None).sum() > found.sum()


def test_errors_say_what_came(shifted):
    a, b = shifted
    with pytest.raises(InputError, match=r"two frames alike.*got \(1, 3, 64, 80\) and \(1, 3, 64, 79\)"):
        flow(a, b[..., 1:])
    with pytest.raises(InputError, match=r"no flow 'dsi'; did you mean 'dis'\?"):
        flow(a, b, method="dsi")
    with pytest.raises(InputError, match=r"no preset 'fats'; did you mean 'fast'\?"):
        flow(a, b, preset="fats")
    with pytest.raises(InputError, match=r"12 pixels a side, got 6 x 8 \(height x width\) at scale 0.1"):
        flow(a, b, scale=0.1)
    with pytest.raises(InputError, match="at most 1, got 2"):
        flow(a, b, scale=2)
    with pytest.raises(InputError, match=r"must return a tensor \(1, 2, 64, 80\), got \(1, 3, 64, 80\)"):
        flow(a, b, method=lambda a, b: a)
    with pytest.raises(InputError, match=r"must return a tensor \(1, 2, 64, 80\), got NoneType"):
        flow(a, b, method=lambda a, b: None)
    with pytest.raises(InputError, match=r"warp needs.*got \(1, 3, 64, 80\) and \(1, 2, 64, 79\)"):
        warp(a, torch.zeros(1, 2, 64, 79))
    with pytest.raises(InputError, match=r"Flows must be alike.*\(1, 2, 4, 4\) and \(1, 2, 4, 5\)"):
        consistent(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))
