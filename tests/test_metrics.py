"""Metrics against numpy, scikit-image and known identities."""

import itertools

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from unflicker.checks import InputError
from unflicker.metrics import instability, psnr, temporal_difference_error


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(6, 3, 10, 14, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def test_psnr_is_the_mean_over_frames_of_scikit_image(clips):
    preds, target = clips
    preds = torch.lerp(target, preds, torch.linspace(0.2, 2, 6).view(-1, 1, 1, 1))  # frames of unlike quality
    each = [peak_signal_noise_ratio(t.numpy(), p.numpy(), data_range=1) for p, t in zip(preds, target, strict=True)]
    assert psnr(preds, target).item() == pytest.approx(np.mean(each), abs=1e-4)
    assert psnr(target, target).item() == float("inf")


def test_instability_is_the_norm_of_the_difference(clips):
    preds = clips[0].numpy().astype(np.float64)
    norms = [np.linalg.norm((b - a).ravel()) for a, b in itertools.pairwise(preds)]
    assert instability(clips[0]).item() == pytest.approx(np.mean(norms), rel=1e-5)
    normalized = instability(clips[0], normalized=True).item()
    assert normalized == pytest.approx(np.mean(norms) / np.sqrt(3 * 10 * 14), rel=1e-5)


def test_normalized_instability_does_not_depend_on_size(clips):
    large = clips[0].repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert instability(large, normalized=True).item() == pytest.approx(instability(clips[0], normalized=True).item())
    assert instability(large).item() == pytest.approx(2 * instability(clips[0]).item())


def test_temporal_difference_error_is_that_of_numpy(clips):
    preds, target = (clip.numpy().astype(np.float64) for clip in clips)
    expected = np.sqrt(np.mean((np.diff(preds, axis=0) - np.diff(target, axis=0)) ** 2))
    assert temporal_difference_error(*clips).item() == pytest.approx(expected, rel=1e-5)


def test_what_does_not_flicker_costs_nothing(clips):
    _, target = clips
    still = target[:1].expand(4, -1, -1, -1)
    assert instability(still) == 0
    assert temporal_difference_error(target + 0.25, target).item() == pytest.approx(0, abs=1e-6)
    assert temporal_difference_error(still, target[:4]).item() == pytest.approx(
        target[:4].diff(dim=0).square().mean().sqrt().item()
    )


def test_errors_name_the_shapes(clips):
    preds, target = clips
    with pytest.raises(InputError, match=r"two frames or more is needed, got \(1, 3, 10, 14\)"):
        instability(preds[:1])
    with pytest.raises(InputError, match=r"alike, got \(6, 3, 10, 14\) and \(5, 3, 10, 14\)"):
        temporal_difference_error(preds, target[:5])
    with pytest.raises(InputError, match=r"clips \(T, C, H, W\) alike, got \(3, 10, 14\)"):
        psnr(preds[0], target[0])
