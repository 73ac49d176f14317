"""The procedural HDR study: pairs that fit, motion that is smooth, the sanity values of the specification."""

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from unflicker.checks import InputError
from unflicker.data import ClipDataset
from unflicker.data.clips import read_frames
from unflicker.data.hdr import (
    TEST_SEEDS,
    TRAINING_SEEDS,
    HDRImages,
    HDRVideo,
    _Feature,
    _inside,
    hdr_image,
    hdr_sequences,
)
from unflicker.metrics.temporal import smoothness


@pytest.fixture(scope="module")
def pairs():
    inputs, targets = zip(*[hdr_image(seed) for seed in range(200)], strict=True)
    return torch.stack(inputs), torch.stack(targets)


def test_a_pair_is_what_a_camera_makes_of_luminance(pairs):
    x, y = pairs
    assert x.shape == y.shape == (200, 1, 128, 128) and x.dtype == y.dtype == torch.float32
    levels = 255 * x.double()
    assert (levels - levels.round()).abs().max() < 1e-4  # 8 bits
    assert (levels - 255 * y.double().clamp(max=1).sqrt()).abs().max() < 0.5001
    assert bool(((x == 1) >= (y >= 1)).all()) and y.min() > 0 and y.max() <= 100
    assert (x.square() - y).abs()[y < 1].max() < 2 / 255  # x squared linearises


def test_saturation_is_that_of_the_specification(pairs):
    fraction = (pairs[1] >= 1).float().mean((1, 2, 3))
    low, high = np.quantile(fraction.numpy(), (0.05, 0.95))
    assert 0.10 < fraction.mean() < 0.125 and 0.02 < low < 0.04 and 0.18 < high < 0.21
    assert fraction.min() >= 0.02 and fraction.max() <= 0.20
    peaks = pairs[1].amax((1, 2, 3)).median()
    assert 6 < peaks < 30


def test_a_seed_gives_one_picture_and_seeds_differ(pairs):
    x, y = hdr_image(3)
    assert torch.equal(x, pairs[0][3]) and torch.equal(y, pairs[1][3])
    assert len({picture.numpy().tobytes() for picture in pairs[1]}) == 200


def test_pictures_are_neither_empty_nor_alike(pairs):
    assert pairs[0].std((1, 2, 3)).min() > 0.02
    assert pairs[0].mean((1, 2, 3)).std() > 0.05


def test_one_scene_at_every_size():
    """What is drawn does not depend on the size: a larger frame, averaged, is the smaller one but for its edges."""
    alike = []
    for seed in range(10):
        small, large = hdr_image(seed, 64)[0], hdr_image(seed, 128)[0]
        averaged = torch.nn.functional.avg_pool2d(large[None], 2)[0]
        alike.append(((averaged - small).abs() < 0.05).float().mean().item())
    assert np.median(alike) > 0.85 and min(alike) > 0.6


def test_the_first_frame_is_the_still():
    video = HDRVideo(7)
    x, y = hdr_image(7)
    assert torch.equal(video.read([0])[0].float() / 255, x) and torch.equal(video.truth.read([0])[0], y)


def test_a_video_has_the_form_of_one():
    video = HDRVideo(10_000, 12, 32)
    assert (video.num_frames, video.height, video.width, video.frame_rate) == (12, 32, 32, 30.0)
    frames, truth = video.read([3, 0]), video.truth.read([3, 0])
    assert frames.dtype == torch.uint8 and frames.shape == truth.shape == (2, 1, 32, 32)
    assert truth.dtype == torch.float32 and video.truth.num_frames == 12 and video.truth.name == video.name
    with pytest.raises(InputError, match="has no frame 12: it has 12, counted from 0"):
        video.truth.read([12])


def test_frames_are_a_pure_function_of_seed_and_number():
    video = HDRVideo(10_001, 40, 48)
    whole = video.truth.read(range(40))
    fresh = pickle.loads(pickle.dumps(HDRVideo(10_001, 400, 48)))
    assert torch.equal(fresh.truth.read([39, 5]), whole[[39, 5]])
    assert torch.equal(fresh.read([17]), video.read([17]))
    handed_out = video.truth.read([5])
    handed_out.zero_()
    assert torch.equal(video.truth.read([5])[0], whole[5])


def test_fifty_sequences_that_no_training_picture_is_of():
    found = hdr_sequences()
    assert len(found) == 50 and len({recording.name for recording in found}) == 50
    assert all(r.frames.num_frames == r.targets["truth"].num_frames == 200 for r in found)
    assert not set(TEST_SEEDS) & set(TRAINING_SEEDS) and len(TRAINING_SEEDS) == 10_000
    assert [r.frames.seed for r in found] == list(TEST_SEEDS[:50])
    x, y = read_frames(found[0], [0, 150], target="truth")
    assert x.shape == y.shape == (2, 1, 128, 128) and y.max() > 1 >= x.max()
    clip = ClipDataset(found[:2], length=3, crop=64, target="truth", reverse=False, flip=False)[0]
    assert clip["target"].max() > 1 and (clip["input"].square() - clip["target"].clamp(max=1)).abs().max() < 2 / 255


@pytest.mark.parametrize("seed", range(10_000, 10_006))
def test_nothing_pops(seed):
    """Motion is continuous: no step between frames stands out from the steps before and after it.

    The luminance is compared after a blur wider than any step, where what moves changes little and what appears much.
    """
    frames = HDRVideo(seed, 200, 64).truth.read(range(200))[:, 0].clamp(max=4).numpy()
    soft = np.stack([gaussian_filter(frame, 4) for frame in frames])
    steps = np.abs(np.diff(soft, axis=0)).max((1, 2))
    around = np.maximum(np.roll(steps, 1), np.roll(steps, -1))[1:-1]
    assert (steps[1:-1] < 3 * around + 0.02).all()


def test_everything_moves_and_stays_in_view():
    for recording in hdr_sequences(4, size=64):
        truth = recording.targets["truth"].read([0, 60, 120, 199])
        assert (truth[1:] - truth[:-1]).abs().mean((1, 2, 3)).min() > 0.01
        assert (truth >= 1).float().mean() > 0.002


def test_the_smoothness_of_the_clipped_input_is_as_specified():
    """Specification 3.2: 1.35 on the mean over 12 sequences, 1.07 to 2.10."""
    values = []
    for recording in hdr_sequences(6, size=64):
        x = recording.frames.read(range(200)).float() / 255
        y = recording.targets["truth"].read(range(200))
        values.append(smoothness(x.square(), y, frame_rate=30, domain="log", mask=(y >= 1).float()).item())
    assert 1.1 < np.mean(values) < 1.7 and min(values) > 0.9


@pytest.mark.parametrize("kind", ["ellipse", "rectangle", "ring", "glow"])
def test_edges_do_not_flicker_with_the_place_in_the_pixel(kind):
    """The light of a shape is the same wherever it stands: what aliases at once shows as a ripple of the sum."""
    rng = np.random.default_rng(0)
    drawn = _Feature.drawn(rng)
    still = {"drift": np.zeros(2), "amplitude": np.zeros(2), "edge": 0.7, "profile": "flat", "luminance": 1.0}
    for turn in (0.0, 0.1, 0.6):
        sums = []
        for x, y in rng.uniform(60, 61, (40, 2)):
            feature = replace(drawn, kind=kind, semi=(12.0, 9.0), turn=turn, place=np.array([x, y]), **still)
            frame = np.zeros((128, 128), np.float32)
            feature.paint(frame, 0, 128)
            sums.append(frame.sum(dtype=np.float64))
        assert np.std(sums) < 0.004 * np.mean(sums) and np.mean(sums) > 50


@pytest.mark.parametrize("edge", [0.7, 2.5])
def test_rims_of_lamps_have_no_jumps(edge):
    """From one pixel to the next the logarithm of what is covered changes by 2 / edge at most, however far out."""
    cover = _inside(np.arange(-12, 12, dtype=np.float32), edge)
    steps = -np.diff(np.log(cover.astype(np.float64)))
    assert (steps >= 0).all() and (steps < 2.001 / edge).all() and abs(cover[12] - 0.5) < 1e-6


def test_a_data_set_for_training():
    data = HDRImages(5, size=32, first_seed=40)
    assert len(data) == 5 and len(list(data)) == 5
    for one, other in zip(data[2], hdr_image(42, 32), strict=True):
        assert torch.equal(one, other)
    x, y = data.tensors()
    assert x.shape == y.shape == (5, 1, 32, 32) and torch.equal(y[2], data[2][1])
    with pytest.raises(IndexError):
        data[5]
    assert torch.equal(data[-1][0], data[4][0])
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=5)))
    assert torch.equal(batch[0], x)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="seed must be an integer, 0 or more, got -1"):
        hdr_image(-1)
    with pytest.raises(InputError, match="size must be 16 pixels or more, got 8"):
        hdr_image(0, 8)
    with pytest.raises(InputError, match="num_frames must be 1 or more, got 0"):
        HDRVideo(0, 0)
    with pytest.raises(InputError, match=r"9990 to 10009 .* test sequences, .* 10000"):
        HDRImages(20, first_seed=9990)
    with pytest.raises(InputError, match="count must be 1 to 10000, got 0"):
        hdr_sequences(0)
    with pytest.raises(InputError, match="count must be 1 or more, got 0"):
        HDRImages(0)


def test_it_never_starves_training():
    """At least 100 frames a second on one core; here half of it, on a machine that does other things as well."""
    best = float("inf")
    for start in range(1000, 1040, 10):
        begin = time.process_time()
        for seed in range(start, start + 10):
            hdr_image(seed)
        best = min(best, time.process_time() - begin)
    assert best / 10 < 0.020
