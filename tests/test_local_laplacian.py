"""Local Laplacian filtering against its definition: each coefficient from a remapped image of its own."""

import math
import time

import numpy as np
import pytest
import torch

from unflicker.checks import InputError
from unflicker.data.local_laplacian import MODERATE, STRONG, local_laplacian
from unflicker.functional import luma


def remap(image, around, sigma, alpha, beta, noise):
    """The 2011 paper's point-wise function for details and edges."""
    difference = image - around
    size = np.abs(difference)
    kept = np.clip(size / noise - 1, 0, 1) if noise and alpha < 1 else np.ones_like(size)
    kept = kept * kept * (3 - 2 * kept)
    detail = kept * sigma * (np.minimum(size, sigma) / sigma) ** alpha + (1 - kept) * size
    return around + np.sign(difference) * np.where(size <= sigma, detail, sigma + beta * (size - sigma))


def shrinking(n):
    """The matrix that halves a line of n pixels."""
    matrix = np.zeros(((n + 1) // 2, n))
    for i in range(len(matrix)):
        for step, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            matrix[i, min(max(2 * i + step, 0), n - 1)] += weight / 16
    return matrix


def growing(n):
    """The matrix that brings it back to n pixels."""
    half = (n + 1) // 2
    matrix = np.zeros((n, half))
    for i in range(n):
        for j in range(-1, half + 1):
            matrix[i, min(max(j, 0), half - 1)] += {0: 6, 1: 4, 2: 1}.get(abs(2 * j - i), 0) / 8
    return matrix


def gaussian(x, levels):
    pyramid = [x]
    for _ in range(levels - 1):
        x = shrinking(x.shape[0]) @ x @ shrinking(x.shape[1]).T
        pyramid.append(x)
    return pyramid


def grown(x, shape):
    return growing(shape[0]) @ x @ growing(shape[1]).T


def by_definition(x, sigma, alpha, beta=1.0, noise=0.01, levels=None):
    """Filter a plane (H, W), a remapped copy of it and its pyramid for every coefficient."""
    levels = levels or int(math.log2(min(x.shape))) + 1
    guides = gaussian(x, levels)
    result = guides[-1]
    for level in reversed(range(levels - 1)):
        band = np.zeros_like(guides[level])
        for place in np.ndindex(band.shape):
            fine, coarse = gaussian(remap(x, guides[level][place], sigma, alpha, beta, noise), level + 2)[-2:]
            band[place] = fine[place] - grown(coarse, fine.shape)[place]
        result = band + grown(result, band.shape)
    return np.clip(result, 0, 1)


@pytest.fixture(scope="module")
def crop():
    from skimage.data import astronaut

    return astronaut()[70:92, 210:237].mean(-1) / 255


@pytest.fixture(scope="module")
def photo():
    from skimage.data import astronaut

    return torch.from_numpy(astronaut()[:90, 100:260]).permute(2, 0, 1) / 255


SETTINGS = [
    # settings, error with 24 samples and with 128, of the change the filter makes
    (MODERATE, 0.1, 0.03),
    (STRONG, 0.1, 0.03),
    ({"sigma": 0.4, "alpha": 2.0}, 0.02, 0.002),
    ({"sigma": 0.2, "alpha": 0.5, "beta": 0.5}, 0.15, 0.04),
    ({"sigma": 0.2, "alpha": 1.0, "beta": 2.0}, 0.06, 0.01),
    ({"sigma": 0.4, "alpha": 0.5, "levels": 2}, 0.15, 0.03),
]


@pytest.mark.parametrize(("settings", "few", "many"), SETTINGS, ids=str)
def test_it_is_the_definition_and_nears_it_with_more_samples(crop, settings, few, many):
    expected = by_definition(crop, **settings)
    change = np.sqrt(np.square(expected - crop).mean())
    assert change > 0.01
    errors = []
    for samples in (8, 24, 128):
        found = local_laplacian(torch.from_numpy(crop)[None], samples=samples, **settings)[0].numpy()
        errors.append(np.sqrt(np.square(found - expected).mean()) / change)
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < few and errors[2] < many


def test_without_care_for_noise(crop):
    expected = by_definition(crop, **MODERATE, noise=0.0)
    found = local_laplacian(torch.from_numpy(crop)[None], **MODERATE, noise=0.0, samples=256)[0].numpy()
    assert np.abs(found - expected).max() < 0.03


@pytest.mark.parametrize("shape", [(9, 8), (7, 16), (5, 5), (2, 31), (3, 1), (1, 1)], ids=str)
def test_sizes_odd_and_tiny(shape):
    plane = np.random.default_rng(0).uniform(0, 1, shape)
    expected = by_definition(plane, 0.4, 2.0)
    found = local_laplacian(torch.from_numpy(plane)[None], alpha=2.0, samples=200)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("colour", ["luminance", "separate"])
@pytest.mark.parametrize("settings", [MODERATE, STRONG, {"alpha": 3.0}, {"beta": 0.2}], ids=str)
def test_constant_images_stay(settings, colour):
    image = torch.tensor([0.2, 0.7, 0.1]).view(3, 1, 1).expand(3, 13, 18)
    torch.testing.assert_close(local_laplacian(image, colour=colour, **settings), image, rtol=0, atol=1e-6)
    for value in (0.0, 1.0):
        image = torch.full((3, 13, 18), value)
        torch.testing.assert_close(local_laplacian(image, colour=colour, **settings), image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("colour", ["luminance", "separate"])
def test_an_alpha_of_one_is_the_identity(photo, colour):
    assert torch.equal(local_laplacian(photo, alpha=1.0, colour=colour), photo)
    nearly = local_laplacian(photo, alpha=1.0 + 1e-6, colour=colour)
    torch.testing.assert_close(nearly, photo, rtol=0, atol=1e-4)


def test_details_grow_and_shrink_and_edges_stay(photo):
    fine = [
        (image - torch.nn.functional.avg_pool2d(image, 5, 1, 2)).std().item()
        for image in (
            local_laplacian(photo, alpha=3.0),
            photo,
            local_laplacian(photo, **MODERATE),
            local_laplacian(photo, **STRONG),
        )
    ]
    assert fine == sorted(fine) and fine[3] > 1.5 * fine[1]
    step = torch.zeros(1, 16, 32)
    step[..., 16:] = 0.9  # more than sigma
    torch.testing.assert_close(local_laplacian(step, **STRONG, samples=200), step, rtol=0, atol=0.1)


def test_luminance_keeps_colours(photo):
    image = photo * 0.4 + 0.2
    result = local_laplacian(image, **MODERATE)
    grey = local_laplacian(luma(image[None])[0], **MODERATE)
    inside = (result > 0).all(0) & (result < 1).all(0)  # where nothing was clipped
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(luma(result[None])[0, 0][inside], grey[0][inside], rtol=0, atol=1e-5)
    bright = inside & (image.min(0).values > 0.3)
    ratios = [(each[0] / each[2])[bright] for each in (image, result)]
    torch.testing.assert_close(ratios[0], ratios[1], rtol=0.03, atol=0)


def test_separate_channels_are_grey_images(photo):
    result = local_laplacian(photo, **MODERATE, colour="separate")
    for channel in range(3):
        assert torch.equal(result[channel], local_laplacian(photo[channel : channel + 1], **MODERATE)[0])


def test_batches_clips_and_types(photo):
    clip = torch.stack([photo, photo.flip(-1), photo * 0.5, photo**2]).view(2, 2, *photo.shape)
    result = local_laplacian(clip, **STRONG)
    assert result.shape == clip.shape
    assert torch.equal(result[1, 0], local_laplacian(clip[1, 0], **STRONG))
    half = local_laplacian(photo.half(), **STRONG)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), result[0, 0], rtol=0, atol=0.02)
    last = clip[0].contiguous(memory_format=torch.channels_last)
    assert torch.equal(local_laplacian(last, **STRONG), result[0])


def test_bad_pixels_stay_alone(photo):
    given = photo.clone()
    given[0, 5, 7], given[1, 40, 3], given[2, 80, 90] = torch.nan, torch.inf, -torch.inf
    bad = ~torch.isfinite(given).all(0)
    result = local_laplacian(given, **MODERATE)
    assert torch.equal(torch.isfinite(result).all(0), ~bad)
    black = torch.where(bad, 0, given)
    assert torch.equal(result[:, ~bad], local_laplacian(black, **MODERATE)[:, ~bad])
    beyond = local_laplacian(photo * 4 - 1, **MODERATE)
    assert beyond.min() >= 0 and beyond.max() <= 1
    assert torch.equal(given.isnan(), result.isnan())


@pytest.mark.parametrize(
    ("image", "settings", "words"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.uint8), {}, "torch.uint8; divide bytes by 255"),
        (np.zeros((3, 4, 4)), {}, "got ndarray"),
        (torch.zeros(4, 4), {}, r"got \(4, 4\)"),
        (torch.zeros(4, 4, 3), {}, r"got \(4, 4, 3\); select or permute"),
        (torch.zeros(3, 0, 4), {}, r"got \(3, 0, 4\)"),
        (torch.zeros(3, 4, 4), {"sigma": 0.0}, "sigma must be above 0 .* got 0.0"),
        (torch.zeros(3, 4, 4), {"sigma": math.nan}, "sigma must be"),
        (torch.zeros(3, 4, 4), {"alpha": 0.0}, "alpha must be above 0"),
        (torch.zeros(3, 4, 4), {"beta": -1.0}, "beta must be 0 or more"),
        (torch.zeros(3, 4, 4), {"colour": "lab"}, "'luminance', 'separate', got 'lab'"),
        (torch.zeros(3, 4, 4), {"levels": 0}, "levels must be 1 or more"),
        (torch.zeros(3, 4, 4), {"samples": 1}, "samples must be 2 or more"),
        (torch.zeros(3, 4, 4), {"noise": 1.0}, r"noise must be in \[0, 1\)"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told(image, settings, words):
    with pytest.raises(InputError, match=words):
        local_laplacian(image, **settings)


def test_it_is_fast_enough_to_make_targets():
    image = torch.rand(3, 180, 320)
    local_laplacian(image, **STRONG)
    start = time.process_time()
    local_laplacian(image, **STRONG)
    assert time.process_time() - start < 0.5  # 0.02 s when nothing else runs
