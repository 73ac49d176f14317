"""Metrics against numpy, scipy, scikit-image and torchmetrics, against known identities, and in chunks."""

import copy
import functools
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics import MetricCollection
from torchmetrics.segmentation import MeanIoU as TorchMeanIoU

from unflicker import metrics
from unflicker.checks import InputError
from unflicker.flow import consistent, flow, warp
from unflicker.metrics import (
    PSNR,
    SSIM,
    CategoricalInstability,
    CorruptionRobustness,
    CorruptionStability,
    DepthAccuracy,
    DepthInstability,
    Flicker,
    Instability,
    MeanIoU,
    PixelAccuracy,
    Smoothness,
    TemporalDifferenceError,
    WarpingError,
    abs_rel,
    align_affine,
    categorical_instability,
    corruption_robustness,
    corruption_stability,
    delta,
    flicker,
    instability,
    mean_iou,
    pixel_accuracy,
    psnr,
    smoothness,
    ssim,
    temporal_difference_error,
    warping_error,
)

NO_UPDATE = "ignore:The ``compute`` method of metric:UserWarning"  # torchmetrics warns, then ours raises


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(6, 3, 10, 14, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


@pytest.fixture
def moving():
    """A texture that moves by 2 pixels a frame to the right and 1 down: (7, 3, 32, 40)."""
    plane = gaussian_filter(np.random.default_rng(0).random((60, 80)), 2.0)
    plane = torch.from_numpy((plane - plane.min()) / np.ptp(plane)).float()
    return torch.stack([plane[20 - t : 52 - t, 30 - 2 * t : 70 - 2 * t] for t in range(7)])[:, None].repeat(1, 3, 1, 1)


def known_flow(a, b):
    """The flow of `moving`, forward or backward, told by where `a` fits `b`."""
    step = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1).expand(len(a), 2, *a.shape[-2:])
    ahead = (warp(b, step) - a).square().mean((1, 2, 3), keepdim=True)
    back = (warp(b, -step) - a).square().mean((1, 2, 3), keepdim=True)
    return torch.where(ahead < back, step, -step)


# -------------------------------------------------------------------------------------------- functions


def test_psnr_is_the_mean_over_frames_of_scikit_image(clips):
    preds, target = clips
    preds = torch.lerp(target, preds, torch.linspace(0.2, 2, 6).view(-1, 1, 1, 1))  # frames of unlike quality
    each = [peak_signal_noise_ratio(t.numpy(), p.numpy(), data_range=1) for p, t in zip(preds, target, strict=True)]
    assert psnr(preds, target).item() == pytest.approx(np.mean(each), abs=1e-4)
    assert psnr(target, target).item() == float("inf")
    hdr = [
        peak_signal_noise_ratio(9 * t.numpy(), 9 * p.numpy(), data_range=4) for p, t in zip(preds, target, strict=True)
    ]
    assert psnr(9 * preds, 9 * target, data_range=4).item() == pytest.approx(np.mean(hdr), abs=1e-4)


def test_ssim_is_the_formula_with_scipys_gaussian():
    """torchmetrics mirrors the border and counts it; scikit-image leaves it out, which is 0.01 apart here."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 24, 30, generator=generator, dtype=torch.float64)
    preds = (target + 0.2 * torch.randn(target.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    blur = functools.partial(gaussian_filter, sigma=1.5, truncate=3.5, mode="mirror", axes=(2, 3))
    x, y = target.numpy(), preds.numpy()
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    each = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert ssim(preds, target).item() == pytest.approx(each.mean(), abs=1e-6)
    scikit = [structural_similarity(a, b, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                    data_range=1.0) for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert ssim(preds, target).item() == pytest.approx(np.mean(scikit), abs=0.02)


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
    assert flicker(still, flow="none").item() == pytest.approx(0, abs=1e-6)
    assert corruption_stability(still) == 0
    assert temporal_difference_error(target + 0.25, target).item() == pytest.approx(0, abs=1e-6)
    assert temporal_difference_error(still, target[:4]).item() == pytest.approx(
        target[:4].diff(dim=0).square().mean().sqrt().item()
    )


def test_categorical_instability_counts_changed_pixels():
    logits = torch.randn(5, 4, 6, 7)
    classes = logits.numpy().argmax(1)
    expected = np.mean([np.mean(a != b) for a, b in itertools.pairwise(classes)])
    assert categorical_instability(logits).item() == pytest.approx(expected)
    assert categorical_instability(torch.from_numpy(classes)).item() == pytest.approx(expected)
    still = logits[:1].repeat(2, 1, 1, 1)
    still[1, 2, 0, 0] = torch.nan
    assert categorical_instability(still).item() == pytest.approx(1 / 42)


@pytest.mark.parametrize(("frames", "frame_rate"), [(60, 24.0), (9, 30.0), (3, 60.0), (2, 25.0)])
def test_smoothness_is_that_of_scipy(frames, frame_rate):
    generator = np.random.default_rng(0)
    target, preds = generator.random((2, frames, 2, 4, 5))
    sums = []
    for clip in (target, preds):
        low = gaussian_filter1d(clip, 0.15 * frame_rate, axis=0, mode="reflect", truncate=4)
        sums.append(((clip - low) ** 2).sum((0, 2, 3)))
    expected = np.sqrt(sums[0] / sums[1]).mean()
    found = smoothness(torch.from_numpy(preds), torch.from_numpy(target), frame_rate=frame_rate)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    metric = Smoothness(frame_rate=frame_rate)
    metric.update(torch.from_numpy(preds), torch.from_numpy(target))
    pooled = np.sqrt(sums[0].sum() / sums[1].sum())
    assert metric.compute()["smoothness_pooled"].item() == pytest.approx(pooled, rel=1e-6)


def test_smoothness_in_lab_in_logarithms_and_under_a_mask():
    generator = np.random.default_rng(1)
    target, preds = generator.random((2, 12, 3, 5, 6)).astype(np.float32)
    mask = generator.random((12, 1, 5, 6)) > 0.6

    def expected(values):
        sums = []
        for clip in (target, preds):
            clip = values(clip.astype(np.float64))
            squares = (clip - gaussian_filter1d(clip, 3.6, axis=0, mode="reflect", truncate=4)) ** 2
            sums.append((squares * mask).sum((0, 2, 3)))
        return np.sqrt(sums[0] / sums[1]).mean()

    found = functools.partial(
        smoothness, torch.from_numpy(preds), torch.from_numpy(target), frame_rate=24, mask=torch.from_numpy(mask)
    )
    lab = expected(lambda clip: np.moveaxis(rgb2lab(clip, channel_axis=1), 1, 1)[:, 1:])
    assert found(domain="lab").item() == pytest.approx(lab, rel=1e-3)
    assert found(domain="log").item() == pytest.approx(expected(lambda clip: np.log(clip + 1 / 255)), rel=1e-4)
    assert found(domain=lambda clip: clip**2).item() == pytest.approx(expected(lambda clip: clip**2), rel=1e-4)


def test_smoothness_of_stills():
    still, flickering = torch.full((8, 1, 2, 2), 0.3), torch.rand(8, 1, 2, 2)
    assert smoothness(still, still, frame_rate=24) == 1
    assert smoothness(still, flickering, frame_rate=24) == float("inf")
    assert smoothness(flickering, still, frame_rate=24) == 0


def test_corruption_robustness_and_stability_are_plain_sums(clips):
    preds, target = (clip.double().numpy() for clip in clips)
    robustness = -sum(np.linalg.norm(p - t) for p, t in zip(preds, target, strict=True))
    stability = -sum(np.linalg.norm(a - b) for a, b in itertools.pairwise(preds))
    assert corruption_robustness(*clips).item() == pytest.approx(robustness, rel=1e-5)
    assert corruption_stability(clips[0]).item() == pytest.approx(stability, rel=1e-5)

    def l1(a, b):
        return (a - b).abs().sum((1, 2, 3))

    assert corruption_robustness(*clips, distance=l1).item() == pytest.approx(-np.abs(preds - target).sum(), rel=1e-5)
    with pytest.raises(InputError, match=r"one number a frame, \(6,\).*got \(\)"):
        corruption_robustness(*clips, distance=lambda a, b: (a - b).sum())


def test_warping_error_is_the_published_mean_written_out(moving):
    preds = moving + 0.05 * torch.randn(moving.shape)
    each = []
    for t in range(6):
        a, b = moving[t : t + 1], moving[t + 1 : t + 2]
        forward, backward = flow(a, b), flow(b, a)
        mask = consistent(forward, backward)[0, 0].numpy()
        squares = (preds[t] - warp(preds[t + 1 : t + 2], forward)[0]).double().numpy() ** 2
        each.append((squares * mask).sum() / (3 * mask.sum()))
    assert warping_error(preds, moving).item() == pytest.approx(np.mean(each), rel=1e-5)


def test_what_moves_without_flicker_has_no_warping_error(moving):
    still = warping_error(moving, moving, flow="none").item()
    assert warping_error(moving, flow=known_flow).item() == pytest.approx(0, abs=1e-9)
    assert flicker(moving, flow=known_flow).item() == pytest.approx(0, abs=1e-5)
    assert warping_error(moving) < 0.01 * still
    assert flicker(moving) < 0.1 * flicker(moving, flow="none")
    light = 1 + 0.1 * torch.tensor([1.0, -1.0] * 4)[:7].view(7, 1, 1, 1)
    assert warping_error(moving * light, moving) > 20 * warping_error(moving)
    assert flicker(moving * light, moving) > 5 * flicker(moving)


def test_flicker_reads_noise_as_its_standard_deviation():
    noise = 0.2 * torch.randn(60, 3, 16, 16)
    assert flicker(noise, flow="none").item() == pytest.approx(0.2, rel=0.02)
    fade = torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(9, 3, 16, 16)
    assert flicker(fade, flow="none").item() == pytest.approx(0, abs=1e-6)
    wave = torch.sin(2 * torch.pi * 0.2 * torch.arange(400)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    expected = (1 - np.cos(2 * np.pi * 0.2)) / np.sqrt(1.5) * np.sqrt(0.5)
    assert flicker(wave, flow="none").item() == pytest.approx(expected, rel=1e-2)


def depth_clip():
    generator = np.random.default_rng(2)
    depth = generator.uniform(1, 8, (3, 1, 5, 6))
    disparity = 1 / depth * np.array([1, 3, 0.2]).reshape(3, 1, 1, 1) + np.array([0, 4, -1]).reshape(3, 1, 1, 1)
    noisy = disparity * generator.uniform(0.9, 1.1, depth.shape)
    depth[0, 0, 0, 0], depth[1, 0, 0, :3], depth[2, 0, 1, 1] = np.nan, 2e9, 0
    return torch.from_numpy(noisy), torch.from_numpy(depth), torch.from_numpy(disparity)


def test_depth_is_fitted_frame_by_frame_as_by_numpy():
    preds, target, _ = depth_clip()
    relative, close = [], []
    for p, t in zip(preds.numpy().reshape(3, -1), target.numpy().reshape(3, -1), strict=True):
        known = np.isfinite(t) & (t > 0) & (t < 1e9)
        scale, shift = np.polyfit(p[known], 1 / t[known], 1)
        fitted = scale * p[known] + shift
        depth = np.array([1 / d if d > 1 / 200 else 200 for d in fitted])
        relative.append(np.mean(np.abs(depth - t[known]) / t[known]))
        close.append(np.mean(np.maximum(depth / t[known], t[known] / depth) < 1.25))
    assert abs_rel(preds, target).item() == pytest.approx(np.mean(relative))
    assert delta(preds, target).item() == pytest.approx(np.mean(close))
    metric = DepthAccuracy()
    metric.update(preds[None], target[None])
    assert metric.compute()["abs_rel"].item() == pytest.approx(np.mean(relative), rel=1e-6)


def test_each_frame_of_a_batch_has_a_fit_of_its_own():
    """The published code fits one line to a whole batch."""
    _, target, disparity = depth_clip()
    assert abs_rel(disparity, target).item() == pytest.approx(0, abs=1e-9)
    assert delta(disparity, target) == 1
    alone = torch.cat([align_affine(disparity[i : i + 1], target[i : i + 1]) for i in range(3)])
    assert torch.equal(align_affine(disparity, target), alone)


def test_negative_disparity_is_far_not_behind():
    """The published code takes 1 / disparity unguarded: below 0 it is a negative depth."""
    target = torch.full((1, 1, 1, 2), 100.0)
    preds = torch.tensor([-0.01, 0.0]).view(1, 1, 1, 2)
    assert abs_rel(preds, target, align=False).item() == pytest.approx(1.0)
    assert abs_rel(preds, target, align=False, cap=150).item() == pytest.approx(0.5)
    constant = align_affine(torch.full((1, 1, 1, 2), 7.0), torch.tensor([1.0, 0.5]).view(1, 1, 1, 2))
    assert constant.flatten().tolist() == [1.5, 1.5]


def test_nan_in_known_depth_does_not_score():
    preds, target, _ = depth_clip()
    preds[1, 0, 3, 3] = torch.nan
    assert abs_rel(preds, target).isnan()
    assert delta(preds, target) <= 2 / 3
    preds[1, 0, 3, 3], preds[1, 0, 0, 0] = 1.0, torch.nan  # where the depth is not known it does not matter
    assert not abs_rel(preds, target).isnan()


def test_depth_instability_is_seen_before_the_fit_that_hides_it():
    target = depth_clip()[1]
    target = target[:1].expand(3, -1, -1, -1)
    scaled = 1 / target.nan_to_num(1.0) * torch.tensor([1.0, 2.0, 1.0]).view(3, 1, 1, 1)
    metric = DepthInstability()
    metric.update(scaled[:1], target[:1])
    metric.update(scaled[1:], target[1:], continues=True)
    found = metric.compute()
    known = ~target[0].isnan()
    rms = (1 / target[0][known]).square().mean().sqrt().item()
    assert found["depth_instability"].item() == pytest.approx(rms, rel=1e-6)
    assert found["depth_instability_aligned"].item() == pytest.approx(0, abs=1e-9)


def test_segmentation_is_that_of_loops_and_of_torchmetrics():
    logits = torch.randn(3, 5, 6, 7)
    target = torch.randint(0, 4, (3, 6, 7))  # class 4 occurs in preds alone
    classes = logits.numpy().argmax(1)
    truth = target.numpy()
    ratios = [
        np.logical_and(classes == c, truth == c).sum() / np.logical_or(classes == c, truth == c).sum() for c in range(5)
    ]
    assert mean_iou(logits, target, num_classes=5).item() == pytest.approx(np.mean(ratios))
    assert pixel_accuracy(logits, target, num_classes=5).item() == pytest.approx((classes == truth).mean())
    theirs = TorchMeanIoU(num_classes=5, input_format="index")
    theirs.update(torch.from_numpy(classes).reshape(1, -1, 7), target.reshape(1, -1, 7))
    assert mean_iou(logits, target, num_classes=5).item() == pytest.approx(theirs.compute().item())
    ours = MeanIoU(num_classes=5, ignore_index=0)
    for p, t in zip(logits.split(1), target.split(1), strict=True):
        ours.update(p, t)
    kept = truth != 0
    ratios = [
        (kept & (classes == c) & (truth == c)).sum() / (kept & ((classes == c) | (truth == c))).sum() for c in range(5)
    ]
    assert ours.compute().item() == pytest.approx(np.mean(ratios))
    logits[0, 0, 0, 0] = torch.nan
    wrong = (classes == truth).sum() - (classes == truth)[0, 0, 0]
    assert pixel_accuracy(logits, target, num_classes=5).item() == pytest.approx(wrong / truth.size)


# -------------------------------------------------------------------------------------------- classes

VIDEOS = {
    "Instability": (Instability, True),
    "Instability-normalized": (functools.partial(Instability, normalized=True, mask_nan=True), True),
    "TemporalDifferenceError": (TemporalDifferenceError, True),
    "TemporalDifferenceError-nan": (functools.partial(TemporalDifferenceError, mask_nan=True), True),
    "CategoricalInstability": (CategoricalInstability, False),
    "Smoothness": (functools.partial(Smoothness, frame_rate=6), True),
    "Smoothness-lab": (functools.partial(Smoothness, frame_rate=6, domain="lab"), True),
    "CorruptionRobustness": (CorruptionRobustness, True),
    "CorruptionStability": (CorruptionStability, False),
    "WarpingError": (WarpingError, True),
    "Flicker": (Flicker, True),
    "DepthInstability": (DepthInstability, True),
}


@pytest.fixture(params=VIDEOS.values(), ids=VIDEOS.keys())
def video_metric(request):
    make, with_target = request.param
    return make, with_target


@pytest.fixture
def videos(moving):
    """Two videos of 11 and 7 frames with their truth, the first NaN nowhere."""
    first = torch.cat([moving, moving.flip(0)[1:5]])
    return [(clip * (1 + 0.1 * torch.randn(len(clip), 3, 1, 1)), clip) for clip in (first, moving.flip(-1))]


def feed(metric, with_target, video, chunks=None):
    start = 0
    for length in chunks or [len(video[0])]:
        part = [clip[start : start + length] for clip in (video if with_target else video[:1])]
        metric.update(*part, continues=start > 0)
        start += length


def values(metric):
    found = metric.compute()
    return torch.stack(list(found.values())) if isinstance(found, dict) else found.reshape(1)


@pytest.mark.parametrize("chunks", [[1] * 11, [2, 1, 5, 3], [10, 1]], ids=str)
def test_a_video_and_its_chunks_give_the_same(video_metric, videos, chunks):
    make, with_target = video_metric
    whole, parts = make(), make()
    feed(whole, with_target, videos[0])
    feed(parts, with_target, videos[0], chunks)
    torch.testing.assert_close(values(parts), values(whole), rtol=2e-5, atol=1e-7)
    assert values(whole).isfinite().all() and values(whole).abs().min() > 0


def test_nothing_leaks_from_one_video_to_another(video_metric, videos):
    """The sums of two videos in one metric are those of two metrics, merged or synchronised between ranks."""
    make, with_target = video_metric
    both, first, second = make(), make(), make()
    feed(both, with_target, videos[0], [4, 7])
    feed(both, with_target, videos[1], [3, 4])
    feed(first, with_target, videos[0])
    feed(second, with_target, videos[1])
    alone = values(second)
    second._settle()
    there = getattr(second, second._name)

    assert not both.state_dict()
    first.dist_sync_fn, first.distributed_available_fn = (lambda mine, group: [mine, there]), (lambda: True)
    torch.testing.assert_close(values(first), values(both), rtol=2e-5, atol=1e-7)
    first.distributed_available_fn, first._computed = (lambda: False), None
    first.merge_state(second)
    torch.testing.assert_close(values(first), values(both), rtol=2e-5, atol=1e-7)
    first.reset()
    feed(first, with_target, videos[1])
    torch.testing.assert_close(values(first), alone)


def test_a_value_can_be_asked_for_in_the_middle(video_metric, videos):
    make, with_target = video_metric
    metric, start = make(), make()
    head, tail = zip(*[(clip[:6], clip[6:]) for clip in videos[0]], strict=True)
    feed(metric, with_target, head)
    feed(start, with_target, head)
    torch.testing.assert_close(values(metric), values(start))
    copied, unpickled = copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))
    whole = make()
    feed(whole, with_target, videos[0])
    for each in (metric, copied, unpickled):
        each.update(*(tail if with_target else tail[:1]), continues=True)
        torch.testing.assert_close(values(each), values(whole), rtol=2e-5, atol=1e-7)


def test_videos_side_by_side_are_videos(video_metric, videos):
    make, with_target = video_metric
    pair = [(videos[0][0][:7], videos[0][1][:7]), videos[1]]
    together, apart = make(), make()
    feed_batch = [torch.stack(clips) for clips in zip(*pair, strict=True)]
    for start, end in ((0, 3), (3, 7)):
        part = [clips[:, start:end] for clips in (feed_batch if with_target else feed_batch[:1])]
        together.update(*part, continues=start > 0)
    for video in pair:
        feed(apart, with_target, video)
    torch.testing.assert_close(values(together), values(apart), rtol=2e-5, atol=1e-7)


def test_calling_a_metric_returns_the_videos_own_value(video_metric, videos):
    make, with_target = video_metric
    called, updated = make(), make()
    for video in videos:
        alone = make()
        feed(alone, with_target, video)
        feed(updated, with_target, video)
        found = called(*(video if with_target else video[:1]))
        found = torch.stack(list(found.values())) if isinstance(found, dict) else found.reshape(1)
        torch.testing.assert_close(found, values(alone))
    torch.testing.assert_close(values(called), values(updated))
    with pytest.raises(InputError, match="A chunk has no value of its own"):
        called(*(videos[0] if with_target else videos[0][:1]), continues=True)


@pytest.mark.filterwarnings(NO_UPDATE)
def test_a_single_frame_has_no_value(video_metric, videos):
    """0 would be taken for a result."""
    make, with_target = video_metric
    metric = make()
    with pytest.raises(InputError, match=r"needs .*none was given"):
        metric.compute()
    feed(metric, with_target, [clip[:1] for clip in videos[0]])
    if isinstance(metric, CorruptionRobustness):
        assert metric.compute() < 0
    else:
        with pytest.raises(InputError, match=r"needs (two|three) consecutive frames.*none was given"):
            metric.compute()


def test_memory_does_not_grow(video_metric, videos):
    make, with_target = video_metric
    metric, sizes = make(), []
    frames = [clip[:1] for clip in videos[0]]
    for t in range(60):
        metric.update(*(frames if with_target else frames[:1]), continues=t > 0)
        sizes.append(len(pickle.dumps(metric)))
    assert max(sizes[30:]) <= max(sizes[:30]) * 1.02


def test_a_video_continues_alike_or_not_at_all(video_metric, videos):
    make, with_target = video_metric
    metric = make()
    clip = videos[0] if with_target else videos[0][:1]
    with pytest.raises(InputError, match="no video to continue"):
        metric.update(*clip, continues=True)
    metric.update(*clip)
    before = values(metric)
    with pytest.raises(InputError, match="begin a new video"):
        metric.update(*(frames[..., :30] for frames in clip), continues=True)
    with pytest.raises(InputError, match="1 running beside each other cannot continue as 2"):
        metric.update(*(torch.stack([frames, frames]) for frames in clip), continues=True)
    with pytest.raises(InputError, match=r"must be"):
        metric.update(*(frames[0, 0] for frames in clip))
    metric._computed = None
    assert torch.equal(values(metric), before)  # what is refused changes nothing


def test_metrics_of_a_collection_keep_to_themselves(videos):
    """torchmetrics shares the state of metrics whose sums agree after the first update."""
    metrics_ = {
        "raw": Instability(),
        "normalized": Instability(normalized=True),
        "tde": TemporalDifferenceError(),
        "s": Smoothness(frame_rate=30),
        "lab": Smoothness(frame_rate=30, domain="lab"),
        "psnr": PSNR(),
        "psnr2": PSNR(data_range=2),
    }
    alone = {name: copy.deepcopy(metric) for name, metric in metrics_.items()}
    collection = MetricCollection(metrics_)
    collection.update(videos[0][0][:1], videos[0][0][:1])  # all sums are zero
    for video in videos:
        collection.update(*video)
    found = collection.compute()
    for name, metric in alone.items():
        metric.update(videos[0][0][:1], videos[0][0][:1])
        for video in videos:
            metric.update(*video)
        expected = metric.compute()
        if not isinstance(expected, dict):
            assert torch.equal(found[name], expected)
    assert found["psnr2"] == found["psnr"] or found["psnr"].isinf()


def test_classes_and_functions_agree(clips):
    preds, target = clips
    for metric, expected in [
        (TemporalDifferenceError(), temporal_difference_error(preds, target)),
        (CorruptionRobustness(), corruption_robustness(preds, target)),
        (PSNR(), psnr(preds, target)),
    ]:
        metric.update(preds, target)
        torch.testing.assert_close(metric.compute(), expected)
    metric = Instability()
    metric.update(preds, target)
    torch.testing.assert_close(metric.compute()["instability"], instability(preds))
    torch.testing.assert_close(metric.compute()["instability_floor"], instability(target))


def test_frames_come_in_any_batch():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(6, 3, 12, 12, generator=generator)
    preds = torch.lerp(target, torch.rand(target.shape, generator=generator), torch.rand(6, 1, 1, 1))
    for make, function in ((PSNR, psnr), (SSIM, ssim)):
        metric = make()
        metric.update(preds[:1], target[:1])
        metric.update(preds[1:].unsqueeze(0), target[1:].unsqueeze(0))
        torch.testing.assert_close(metric.compute(), function(preds, target))
        assert not metric.state_dict()
        pickle.loads(pickle.dumps(metric)).update(preds, target)


# -------------------------------------------------------------------------------------------- faults of others


def test_instability_is_that_of_preds_not_of_target():
    """The published code, once told to mask NaN, measures the second argument: a static truth gave 0."""
    preds, still = torch.rand(4, 3, 5, 6), torch.full((4, 3, 5, 6), 0.5)
    for mask_nan in (False, True):
        metric = Instability(mask_nan=mask_nan)
        metric.update(preds, still)
        found = metric.compute()
        assert found["instability"].item() == pytest.approx(instability(preds).item())
        assert found["instability_floor"] == 0


@pytest.mark.parametrize("frame", [0, 2])
def test_what_is_nan_is_left_out_from_the_first_frame_on(clips, frame):
    """The published code reads its mask from uninitialised memory on the first frame."""
    preds, target = clips
    whole = target.clone()
    target = target.clone()
    target[frame, :, 2:5, 3:9] = torch.nan
    for metric in (Instability(normalized=True, mask_nan=True), TemporalDifferenceError(mask_nan=True)):
        for value in (0.0, 1e30, torch.inf, torch.nan):  # whatever lies under the mask
            changed = preds.clone()
            changed[frame, :, 2:5, 3:9] = value
            metric.update(changed, target)
        found = metric.compute()
    pairs = [
        np.nanmean((np.diff(p.numpy() - t.numpy(), axis=0)) ** 2 + 0 * np.diff(t.numpy(), axis=0))
        for p, t in [(preds, target)]
    ]
    assert found.item() == pytest.approx(np.sqrt(pairs[0]), rel=1e-5)
    metric = Instability(normalized=True, mask_nan=True)
    metric.update(preds, target)
    hidden = [np.sqrt(np.nanmean(np.diff((preds + 0 * target).numpy(), axis=0)[i] ** 2)) for i in range(5)]
    assert metric.compute()["instability"].item() == pytest.approx(np.mean(hidden), rel=1e-5)
    metric = Instability(normalized=True, mask_nan=True)
    metric.update(preds, whole)
    assert metric.compute()["instability"].item() == pytest.approx(instability(preds, normalized=True).item())


def test_nan_is_not_passed_over_in_silence(clips):
    preds, target = (clip.clone() for clip in clips)
    preds[2, 0, 0, 0] = torch.nan
    assert instability(preds).isnan() and temporal_difference_error(preds, target).isnan()
    assert psnr(preds, target).isnan()
    assert corruption_robustness(preds, target).isnan() and corruption_stability(preds).isnan()
    assert smoothness(preds, target, frame_rate=24).isnan()
    assert flicker(preds, flow="none").isnan() and warping_error(preds, flow="none").isnan()


# -------------------------------------------------------------------------------------------- words


def test_errors_name_the_shapes(clips):
    preds, target = clips
    with pytest.raises(InputError, match=r"two frames or more is needed, got \(1, 3, 10, 14\)"):
        instability(preds[:1])
    with pytest.raises(InputError, match=r"alike, got \(6, 3, 10, 14\) and \(5, 3, 10, 14\): frames 6 against 5, 1 ap"):
        temporal_difference_error(preds, target[:5])
    with pytest.raises(InputError, match=r"height 10 against 8, 2 apart; width 14 against 11, 3 apart"):
        psnr(preds, target[..., :8, :11])
    with pytest.raises(InputError, match=r"clips \(T, C, H, W\) alike, got \(3, 10, 14\)"):
        psnr(preds[0], target[0])
    with pytest.raises(InputError, match=r"clip of floats \(T, C, H, W\), got torch.uint8 \(6, 3, 10, 14\)"):
        instability((preds * 255).byte())
    with pytest.raises(InputError, match="data_range must be above 0 and finite, got 0"):
        psnr(preds, target, data_range=0)
    with pytest.raises(InputError, match=r"11 x 11 pixels or more, got \(6, 3, 10, 14\)"):
        ssim(preds, target)
    with pytest.raises(InputError, match="no domain 'lba'; did you mean 'lab'"):
        Smoothness(frame_rate=24, domain="lba")
    with pytest.raises(InputError, match="frame_rate, seconds and truncate must be above 0 and finite, got 0"):
        smoothness(preds, target, frame_rate=0)
    with pytest.raises(InputError, match=r"mask must be \(6, 1, 10, 14\), got \(6, 10, 14\)"):
        smoothness(preds, target, frame_rate=24, mask=torch.ones(6, 10, 14))
    with pytest.raises(InputError, match="two frames or more with unmasked pixels"):
        smoothness(preds, target, frame_rate=24, mask=torch.zeros(6, 1, 10, 14))
    with pytest.raises(InputError, match=r"6 frames of \(10, 14\); got 5 of \(10, 14\)"):
        warping_error(preds, target[:5])
    with pytest.raises(InputError, match=r"Two frames or more whose flow.*got \(1, 3, 10, 14\)"):
        warping_error(preds[:1], flow="none")
    with pytest.raises(InputError, match=r"Three frames or more whose flow.*got \(2, 3, 10, 14\)"):
        flicker(preds[:2], flow="none")
    with pytest.raises(InputError, match=r"logits \(T, C, H, W\) or integer classes.*got torch.float32 \(6, 3, 10\)"):
        categorical_instability(preds[..., 0])
    with pytest.raises(InputError, match=r"No depth is known in the target"):
        abs_rel(preds[:, :1], torch.full((6, 1, 10, 14), torch.nan))
    with pytest.raises(InputError, match=r"classes of target must be 0 to 1 or ignore_index, None; got 0 to 3"):
        mean_iou(torch.zeros(1, 2, 2, dtype=torch.long), torch.tensor([[[0, 1], [2, 3]]]), num_classes=2)
    with pytest.raises(InputError, match=r"must have 4 channels, one a class, got \(6, 3, 10, 14\)"):
        pixel_accuracy(preds, torch.zeros(6, 10, 14, dtype=torch.long), num_classes=4)
    metric = Instability()
    metric.update(preds, target)
    with pytest.raises(InputError, match="target for every chunk of a video, or for none"):
        metric.update(preds, continues=True)
    metric.update(preds)
    with pytest.raises(InputError, match="floor of instability needs a target for every video"):
        metric.compute()
    with pytest.raises(InputError, match="Only another Instability can be merged, got PSNR"):
        metric.merge_state(PSNR())


@pytest.mark.filterwarnings(NO_UPDATE)
@pytest.mark.parametrize(
    "make",
    [
        PSNR,
        SSIM,
        DepthAccuracy,
        functools.partial(MeanIoU, num_classes=2),
        functools.partial(PixelAccuracy, num_classes=2),
    ],
)
def test_no_frame_has_no_value(make):
    with pytest.raises(InputError, match=r"none was given|No pixel counts"):
        make().compute()


def test_functions_do_not_wait_for_torchmetrics():
    code = (
        "import sys; from unflicker.metrics import psnr, flicker; import unflicker.flow;"
        "assert not {'torchmetrics', 'cv2', 'kornia', 'scipy'} & set(sys.modules);"
        "from unflicker.metrics import PSNR; assert 'torchmetrics' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(metrics.__all__) <= set(dir(metrics))
    for name in metrics.__all__:
        assert getattr(metrics, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Flickr'"):
        metrics.Flickr  # noqa: B018
