"""Corruptions: one contract for every kind, definitions against plain formulas, weather that moves, words of errors."""

from __future__ import annotations

import colorsys
import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unflicker.checks import InputError
from unflicker.corruptions import (
    CORRUPTIONS,
    H264,
    IFGSM,
    JPEG,
    CameraShake,
    ClaheFlicker,
    ColorJitter,
    Compose,
    Corruption,
    DefocusBlur,
    Detouch,
    DuplicatedFrames,
    Elastic,
    ExposureFlicker,
    FieldJitter,
    Fog,
    FrameDrop,
    FrozenFrames,
    GammaFlicker,
    GaussianBlur,
    GaussianNoise,
    ImpulseNoise,
    MotionBlur,
    PatchDrop,
    Pixelate,
    Rain,
    RandomSnow,
    RemovedRectangles,
    ShotNoise,
    Snow,
    SpeckleNoise,
    ToneJitter,
    gaussian_noise,
    parse,
)
from unflicker.data.synthetic import demo_clip

NAMES = list(CORRUPTIONS)
LOOK_BACK = {"h264", "frozen_frames", "duplicated_frames"}
NOTHING_DRAWN = {"jpeg", "h264", "pixelate", "defocus_blur", "detouch"}
MOVES = {"rain", "snow", "fog", "camera_shake"}
QUANTIZED = {"jpeg", "h264", "shot_noise", "clahe_flicker"}

every_kind = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def film() -> torch.Tensor:
    """A real moving picture, (T, 3, H, W)."""
    return demo_clip(24, 48, 64)


@pytest.fixture
def batch(film: torch.Tensor) -> torch.Tensor:
    return torch.stack([film[:6], film[6:12].flip(-1)])


def make(name: str, severity: int = 4, seed: int = 3, draw: str = "per_frame") -> Corruption:
    return CORRUPTIONS[name](severity=severity, seed=seed, draw=draw)


# --- the contract -----------------------------------------------------------------------------------------------------


@every_kind
def test_shape_dtype_range_and_the_clip_is_left_alone(name, batch):
    before = batch.clone()
    for clip in (batch, batch[0]):
        out = make(name)(clip)
        assert out.shape == clip.shape and out.dtype == clip.dtype and out.device == clip.device
        assert out.min() >= 0 and out.max() <= 1 and not out.isnan().any()
        assert out.data_ptr() != clip.data_ptr()
    assert torch.equal(batch, before)


@every_kind
def test_something_happens_and_happens_again(name, batch):
    lively = batch if name not in {"frozen_frames", "frame_drop"} else batch.repeat(1, 6, 1, 1, 1)
    out = make(name, 5)(lively)
    assert (out - lively).abs().mean() > 1e-3
    assert torch.equal(out, make(name, 5)(lively))
    assert torch.equal(out[0], make(name, 5)(lively[0]))
    again = make(name, 5)
    again(lively)
    assert torch.equal(out, again(lively))  # start=0 begins anew


@every_kind
def test_the_seed_matters_where_something_is_drawn(name, film):
    one, other = (make(name, 5, seed)(film) for seed in (1, 2))
    assert torch.equal(one, other) == (name in NOTHING_DRAWN)


@every_kind
@pytest.mark.parametrize("draw", ["per_frame", "per_clip"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (4, 2), (1, 5)])
def test_chunks_do_not_matter(name, draw, sizes, batch):
    whole, chunked = make(name, draw=draw)(batch), make(name, draw=draw)
    parts, start = [], 0
    for part in batch.split(sizes, 1):
        parts.append(chunked(part, start=start))
        start += part.shape[1]
    assert torch.equal(whole, torch.cat(parts, 1))


@pytest.mark.parametrize("name", sorted(set(NAMES) - LOOK_BACK))
def test_any_frame_can_be_made_alone(name, batch):
    assert torch.equal(make(name)(batch)[:, 4:5], make(name)(batch[:, 4:5], start=4))


@every_kind
def test_rows_of_a_batch_do_not_see_each_other(name, batch):
    changed = batch.clone()
    changed[0] = 1 - changed[0]
    assert torch.equal(make(name)(batch)[1], make(name)(changed)[1])


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOTHING_DRAWN))
def test_rows_of_a_batch_are_drawn_apart(name, film):
    rows = film[None].expand(2, -1, -1, -1, -1)
    assert not torch.equal(*make(name, 5, seed=1)(rows))


@pytest.mark.parametrize("name", sorted(set(NAMES) - MOVES - LOOK_BACK))
def test_per_clip_draws_once(name, film):
    still = film[:1].expand(5, -1, -1, -1)
    out = make(name, draw="per_clip")(still)
    assert torch.equal(out, out[:1].expand_as(out))
    if name not in NOTHING_DRAWN | {"frame_drop"}:
        apart = make(name)(still)
        assert not torch.equal(apart[0], apart[1])


@every_kind
def test_a_higher_severity_is_farther_from_the_clean_clip(name, film):
    clip = film.repeat(3, 1, 1, 1) if name.startswith(("f", "d")) else film
    distances = [(make(name, severity, seed=1)(clip) - clip).abs().mean().item() for severity in range(1, 6)]
    assert distances == sorted(distances), distances
    assert distances[4] > 1.3 * distances[0]


@every_kind
def test_double_half_and_single_precision(name, batch):
    clip = batch.half().float()
    single, double, half = (make(name)(clip.to(kind)) for kind in (torch.float32, torch.float64, torch.float16))
    assert double.dtype == torch.float64 and half.dtype == torch.float16
    off = (single.double() - double).abs()
    assert (off.mean() < 1e-3) if name in QUANTIZED else (off.max() < 2e-4)
    assert (single - half.float()).abs().max() < 1e-3


@every_kind
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 5, 7), (1, 2, 3, 17, 1), (0, 3, 4, 4), (0, 2, 3, 4, 4)])
def test_odd_and_tiny_sizes(name, shape):
    clip = torch.rand(shape)
    out = make(name)(clip)
    assert out.shape == clip.shape and torch.isfinite(out).all()


@every_kind
def test_grey_clips(name):
    assert make(name)(torch.rand(2, 1, 12, 12)).shape == (2, 1, 12, 12)


@every_kind
def test_layout_in_memory_does_not_matter(name, batch):
    strided = batch.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.allclose(make(name)(strided), make(name)(batch), atol=1e-6)


@every_kind
def test_copies_and_pickles(name, batch):
    one = make(name)
    out = one(batch)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(other(batch), out)
    assert repr(one).startswith(type(one).__name__ + "(") and "seed=3" in repr(one)


@every_kind
def test_repr_makes_it_again(name, batch):
    kind = CORRUPTIONS[name]
    again = eval(repr(make(name)), {kind.__name__: kind})
    assert torch.equal(again(batch), make(name)(batch))


@every_kind
def test_levels_and_presets_are_settings(name):
    kind = CORRUPTIONS[name]
    parameters = inspect.signature(kind.__init__).parameters
    assert kind.name == name and kind.__doc__ and ">>>" in kind.__doc__
    for setting, values in kind.levels.items():
        assert setting in parameters and len(values) == 5
    for preset in kind.presets:
        assert repr(parse(f"{name}:{preset}", seed=5)) == repr(kind.preset(preset, seed=5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_kind
def test_a_gpu_gives_the_same(name, batch):
    out = make(name)(batch.cuda())
    off = (out.cpu() - make(name)(batch)).abs()
    assert out.is_cuda and ((off.mean() < 2e-3) if name in QUANTIZED else (off.max() < 1e-3))


def test_the_papers_settings():
    sigmas = {name: GaussianNoise.preset(f"ivm-{name}").sigma for name in ("moderate", "strong", "extreme", "davis")}
    assert sigmas == {"moderate": 0.1, "strong": 0.2, "extreme": 0.6, "davis": 40 / 255}
    patches = PatchDrop.preset("ivm")
    assert (patches.size, patches.p) == (8, 0.1)
    elastic = Elastic.preset("ivm")
    assert (elastic.alpha, elastic.sigma) == (50, 5)
    assert FrameDrop.preset("ivm").p == 0.1 and JPEG.preset("ivm").quality == 10
    impulse = ImpulseNoise.preset("ivm")
    assert (impulse.pepper, impulse.salt) == (0.05, 0.05)
    assert ShotNoise.preset("ivm").scale == 64 and Pixelate.preset("ivm").factor == 0.25
    rectangles, blur = RemovedRectangles.preset("ivm"), GaussianBlur.preset("ivm")
    assert (rectangles.count, rectangles.size) == ((1, 8), (40, 120))
    assert (blur.sigma, blur.kernel_size) == ((0.1, 2), 11)
    jitter = ColorJitter.preset("ivm")
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.1, 0.1, 0.2, 0.1)
    assert Detouch.preset("ivm").factor == 0.7 and RandomSnow.preset("ivm").density == (5e-5, 1e-4)
    assert IFGSM.presets == {"ivm": (0.1, 20), "ivm-code": (0.5, 5)}


# --- definitions ------------------------------------------------------------------------------------------------------


def test_gaussian_noise_is_the_function(batch):
    assert torch.equal(GaussianNoise(sigma=0.2, seed=4)(batch), gaussian_noise(batch, 0.2, seed=4))
    noise = np.random.default_rng((4, 1, 2)).standard_normal(batch.shape[2:], np.float32)
    expected = np.clip(batch[1, 2].numpy() + 0.2 * noise, 0, 1)
    assert np.allclose(GaussianNoise(sigma=0.2, seed=4)(batch)[1, 2], expected, atol=1e-6)


def test_noises_have_the_moments_of_their_formulas():
    clip = torch.full((1, 3, 200, 200), 0.4)
    assert SpeckleNoise(sigma=0.1)(clip).std().item() == pytest.approx(0.04, rel=0.02)
    photons = ShotNoise(scale=100)(clip)
    assert photons.mean().item() == pytest.approx(0.4, rel=0.01)
    assert photons.var().item() == pytest.approx(0.4 / 100, rel=0.03)
    assert torch.allclose(photons * 100, (photons * 100).round(), atol=1e-3)  # whole photons
    struck = ImpulseNoise(pepper=0.1, salt=0.2)(clip)
    assert (struck == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (struck == 1).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert set(struck.unique().tolist()) == {0, 1, clip[0, 0, 0, 0].item()}
    assert ((struck == 0).any(1) & ~(struck == 0).all(1)).any()  # values, not pixels


@pytest.mark.parametrize("quality", [10, 50, 95])
def test_jpeg_is_pillows(film, quality):
    image = pytest.importorskip("PIL.Image")
    import io

    picture = (film[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    file = io.BytesIO()
    image.fromarray(picture).save(file, "JPEG", quality=quality)
    expected = np.asarray(image.open(file)).astype(int)
    ours = (JPEG(quality=quality)(film[:1])[0].permute(1, 2, 0).numpy() * 255).round().astype(int)
    assert np.abs(ours - expected).max() <= 2


def test_patches_hang_on_the_top_left_corner():
    out = PatchDrop.preset("ivm", seed=1)(torch.ones(20, 3, 21, 30))
    padded = F.pad(out, (0, 2, 0, 3), mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3)
    assert (blocks == blocks[..., :1]).all()
    assert blocks[..., 0].mean().item() == pytest.approx(0.9, abs=0.05)


def test_dropped_frames_are_exact_zeros():
    out = FrameDrop(p=0.3)(torch.rand(300, 1, 2, 2) + 1e-4).flatten(1)
    gone = (out == 0).all(1)
    assert gone.float().mean().item() == pytest.approx(0.3, abs=0.08) and (out[~gone] > 0).all()


def test_rectangles_are_rectangles():
    for seed in range(5):
        gone = RemovedRectangles(count=(1, 1), size=(40, 120), seed=seed)(torch.ones(1, 3, 360, 640))[0] == 0
        assert (gone == gone[:1]).all()
        height, width = gone[0].any(1).sum(), gone[0].any(0).sum()
        assert 40 <= height <= 120 and 40 <= width <= 120 and gone[0].sum() == height * width


COUNT = torch.arange(400.0).reshape(-1, 1, 1, 1) / 400


def held(corruption: Corruption) -> list[int]:
    """Which frame is shown at each moment."""
    return (corruption(COUNT).flatten() * 400).round().int().tolist()


def test_frozen_and_duplicated_frames_differ_as_they_say():
    shown = held(FrozenFrames(p=0.03, longest=8))
    behind = [t - s for t, s in enumerate(shown)]
    assert min(behind) == 0 and max(behind) > 3
    assert all(s == t or s == shown[t - 1] for t, s in enumerate(shown))
    shown = held(DuplicatedFrames(p=0.4))
    behind = [t - s for t, s in enumerate(shown)]
    assert set(behind) == {0, 1}
    assert sum(behind) / 400 == pytest.approx(0.24, abs=0.06)  # p (1 - p)
    regular = held(FrozenFrames(p=0.05, longest=6, draw="per_clip"))
    assert sum(s != t for t, s in enumerate(regular)) == pytest.approx(120, abs=6)
    regular = held(DuplicatedFrames(p=0.25, draw="per_clip"))
    repeats = [t for t, s in enumerate(regular) if s != t]
    assert set(np.diff(repeats)) == {4}


def test_elastic_is_torchvisions_formula():
    from kornia.filters import gaussian_blur2d

    clip = torch.rand(1, 3, 44, 60)
    corruption = Elastic(alpha=80.0, sigma=4.0, seed=2)
    noise = torch.from_numpy(corruption._rng(0, 0).random((2, 44, 60), np.float32) * 2 - 1)
    blurred = gaussian_blur2d(noise[:, None], (33, 33), (4.0, 4.0), border_type="reflect")[:, 0]
    shift = torch.stack([blurred[0] * 80 / 44, blurred[1] * 80 / 60], -1)
    x, y = ((torch.arange(n) * 2 + 1) / n - 1 for n in (60, 44))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1) + shift
    assert torch.allclose(corruption(clip), F.grid_sample(clip, grid[None], align_corners=False), atol=1e-5)


def test_elastic_moves_as_far_as_the_paper():
    """About 0.8 pixels in standard deviation: measured on a ramp, away from the border."""
    ramp = torch.linspace(0, 1, 128).expand(1, 1, 128, 128)
    moved = (Elastic.preset("ivm")(ramp) - ramp)[..., 8:-8, 8:-8] * 127
    assert moved.std().item() == pytest.approx(0.8, abs=0.15)


def test_camera_shake_shifts_by_its_path():
    x = torch.arange(360) / 360
    clip = x.expand(1, 1, 360, 360)
    shake = CameraShake(amplitude=6.0, seed=5)
    dx, dy, roll = shake.path(0, 7)
    out = shake(clip, start=7)
    middle = out[0, 0, 180, 180].item()
    assert 360 * (middle - x[180].item()) == pytest.approx(-dx, abs=0.1)
    down = shake(clip.transpose(-1, -2), start=7)[0, 0, 180, 180].item()
    assert 360 * (down - x[180].item()) == pytest.approx(-dy, abs=0.1)
    slope = (out[0, 0, 230, 180] - out[0, 0, 130, 180]).item() * 360 / 100
    assert slope == pytest.approx(-math.sin(roll), abs=1e-3)
    steps = np.diff([shake.path(0, t)[0] for t in range(200)])
    assert np.abs(steps).max() < 3.5  # a path, not a jump


def test_blurs_keep_the_mean_and_spread_a_point():
    clip = torch.zeros(1, 1, 41, 41)
    clip[..., 20, 20] = 1
    for blur in (DefocusBlur(radius=5.0), MotionBlur(length=9.0), GaussianBlur(sigma=(2.0, 2.0))):
        out = blur(clip)
        assert out.sum().item() == pytest.approx(1, abs=1e-4)
        assert torch.allclose(out, out.flip(-1, -2), atol=1e-6)
    disk = DefocusBlur(radius=5.0)(clip)
    assert (disk > 0).sum().item() == pytest.approx(math.pi * 5.5**2, rel=0.1)
    line = MotionBlur(length=9.0, seed=1)(clip)[0, 0].nonzero() - 20
    assert 3.5 <= line.abs().max() <= 6 and np.linalg.matrix_rank(line.float().numpy(), tol=6) == 1
    variance = (GaussianBlur(sigma=(2.0, 2.0))(clip)[0, 0].sum(0) * (torch.arange(41) - 20.0) ** 2).sum()
    assert variance.item() == pytest.approx(4, rel=0.05)


def test_pixelate_is_a_mean_and_a_repeat():
    clip = torch.rand(2, 3, 16, 24)
    small = clip.reshape(2, 3, 4, 4, 6, 4).mean((3, 5))
    expected = small.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert torch.allclose(Pixelate.preset("ivm")(clip), expected, atol=1e-6)


def test_colour_formulas():
    clip = torch.rand(1, 3, 6, 6)
    grey = (clip * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    expected = clip * 0.7
    expected = 0.7 * expected + 0.3 * (grey * 0.7).mean()
    grey = (expected * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert torch.allclose(Detouch.preset("ivm")(clip), 0.7 * expected + 0.3 * grey, atol=1e-5)
    hue = ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.3, seed=1)
    turn = (2 * hue._rng(0, 0).random(4)[3] - 1) * 0.3
    h, s, v = colorsys.rgb_to_hsv(*clip[0, :, 2, 3].tolist())
    assert np.allclose(hue(clip)[0, :, 2, 3], colorsys.hsv_to_rgb((h + turn) % 1, s, v), atol=1e-4)
    z = ExposureFlicker(seed=1)._rng(0, 0).standard_normal()
    assert torch.allclose(ExposureFlicker(stops=0.3, seed=1)(clip), (clip * 2 ** (0.3 * z)).clamp(0, 1), atol=1e-6)
    z = GammaFlicker(seed=1)._rng(0, 0).standard_normal()
    assert torch.allclose(GammaFlicker(spread=0.3, seed=1)(clip), clip ** math.exp(0.3 * z), atol=1e-6)


def test_tone_jitter_is_its_formula():
    clip = torch.rand(1, 3, 6, 6)
    jitter = ToneJitter(gain=0.2, gamma=0.3, balance=0.1, seed=4)
    z = jitter._rng(0, 0).standard_normal(5)
    expected = clip.double() ** math.exp(0.3 * z[1])
    expected *= torch.from_numpy(np.exp(0.2 * z[0] + 0.1 * z[2:]))[:, None, None]
    assert torch.allclose(jitter(clip).double(), expected.clamp(0, 1), atol=1e-6)


def test_tones_spread_as_they_say():
    grey = torch.full((800, 3, 1, 1), 0.25)
    gains = (ToneJitter(gain=0.08, gamma=0.0, balance=0.0)(grey) / 0.25).log().flatten(1)
    assert gains.std(0).tolist() == pytest.approx([0.08] * 3, rel=0.1)
    assert torch.allclose(gains[:, 0], gains[:, 2], atol=1e-6)
    gammas = (ToneJitter(gain=0.0, gamma=0.08, balance=0.0)(grey).log() / math.log(0.25)).log()
    assert gammas.std().item() == pytest.approx(0.08, rel=0.1)
    balance = (ToneJitter(gain=0.0, gamma=0.0, balance=0.04)(grey) / 0.25).log().flatten(1)
    assert balance.std().item() == pytest.approx(0.04, rel=0.1)
    assert np.corrcoef(balance.T)[0, 1] == pytest.approx(0, abs=0.1)


def test_the_field_is_smooth_and_has_its_nodes():
    grey = torch.full((300, 3, 49, 81), 0.25)
    logs = (FieldJitter(amplitude=0.08, colour=0.0)(grey) / 0.25).log()
    nodes = logs[..., ::24, ::20]  # 3 x 5 of them, with the corners
    assert nodes.std().item() == pytest.approx(0.08, rel=0.05)
    assert logs.diff(dim=-1).abs().max() < 0.03 and logs.diff(dim=-2).abs().max() < 0.03
    assert np.corrcoef(nodes[:, 0].flatten(1).T)[0, 1] == pytest.approx(0, abs=0.15)
    own = (FieldJitter(amplitude=0.0, colour=0.04)(grey) / 0.25).log()[..., 0, 0]
    assert own.std().item() == pytest.approx(0.04, rel=0.1)
    assert np.corrcoef(own.T)[0, 1] == pytest.approx(0, abs=0.15)


def test_clahe_is_opencvs(film):
    cv2 = pytest.importorskip("cv2")
    grey = F.interpolate(film[:1, :1], (128, 150)).mul(255).round().div(255)
    out = ClaheFlicker(limit=(2.0, 2.0), tiles=(4, 4))(grey)
    expected = cv2.createCLAHE(2.0, (4, 4)).apply(grey[0, 0].mul(255).round().byte().numpy())
    assert np.array_equal(out[0, 0].mul(255).round().numpy(), expected)
    colour = ClaheFlicker(severity=5, seed=2)(film)
    inside = ((colour > 0) & (colour < 1)).all(1)
    change = colour - film
    assert torch.allclose(change[:, 0][inside], change[:, 1][inside], atol=1e-6)  # luma alone
    steady = ClaheFlicker(limit=(2, 2), tiles=(1, 1))  # nothing is left to be drawn
    assert torch.equal(steady(film[:1]), ClaheFlicker(limit=(2, 2), tiles=(1, 1), seed=9)(film[:1], start=5))


def test_h264_remembers(film):
    """A frame of a stream is predicted from the last; the same frame alone is a key frame."""
    clip = film[:6]
    assert not torch.equal(H264(crf=40)(clip)[5], H264(crf=40)(clip[5:])[0])
    fine = (H264(crf=0)(clip) - clip).abs().mean()
    assert fine < 0.03 < 3 * (H264(crf=51)(clip) - clip).abs().mean()


# --- weather ----------------------------------------------------------------------------------------------------------


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


@pytest.mark.parametrize("kind", [Rain, Snow])
def test_particles_keep_their_velocity(kind):
    weather = kind(seed=1)
    places = [weather.particles(0, t, 360, 640) for t in range(3)]
    for layer, before, now, after in zip(kind.layers, *places, strict=True):
        first, second = now - before, after - now
        steady = np.abs(first - second).max(1) < 0.3 + 0.02 * layer.sway
        assert steady.mean() > 0.75  # the others came round at an edge
        down = np.median(first[:, 1])
        assert down == pytest.approx(layer.speed, rel=0.1)


@pytest.mark.parametrize(("kind", "number"), [(Snow, 1), (Snow, 2), (Rain, 1)])
def test_a_layer_moves_as_one(kind, number):
    class OneLayer(kind):
        layers = (kind.layers[number],)

    weather = OneLayer(severity=5, seed=2)
    (before,), (after,) = (weather.particles(0, t, 360, 360) for t in (5, 6))
    dx, dy = np.median(after - before, 0).round().astype(int)
    first, second, far = (weather.cover(0, t, 360, 360) for t in (5, 6, 80))
    shifted = np.roll(first, (dy, dx), (0, 1))
    assert correlation(shifted[60:, 60:-60], second[60:, 60:-60]) > 0.5
    assert correlation(shifted, second) > correlation(first, second) + 0.1
    assert abs(correlation(first, far)) < 0.2


def test_near_layers_are_faster_and_larger():
    for kind in (Rain, Snow):
        speeds, numbers = ([getattr(layer, what) for layer in kind.layers] for what in ("speed", "number"))
        assert speeds == sorted(speeds) and numbers == sorted(numbers, reverse=True)


def test_particles_do_not_run_out_or_bunch():
    """After hours of video the weather is what it was in the first second."""
    for kind in (Rain, Snow):
        late = [kind(severity=3, seed=1).cover(0, t, 180, 320).mean() for t in (0, 1_000, 1_000_000)]
        assert max(late) < 1.5 * min(late)


def test_fog_drifts():
    fog = Fog(seed=1)
    near, next_, far = (fog.density_at(0, t, 90, 160) for t in (0, 1, 200))
    assert correlation(near, next_) > 0.98 and correlation(near, far) < 0.8
    assert near.min() >= 0 and near.mean() == pytest.approx(1, abs=0.5)
    # A shift along the wind explains more of the change than standing still.
    later = fog.density_at(0, 8, 90, 160)
    still = correlation(near[:, 20:-20], later[:, 20:-20])
    moved = max(correlation(np.roll(near, s, 1)[:, 20:-20], later[:, 20:-20]) for s in range(-8, 9))
    assert moved > still


def test_fog_is_thicker_above():
    out = Fog(severity=5, seed=1)(torch.zeros(1, 1, 60, 60))[0, 0]
    assert out[:20].mean() > out[40:].mean()


# --- the attack -------------------------------------------------------------------------------------------------------


def test_ifgsm_on_a_linear_model_is_closed_form():
    model = nn.Conv2d(3, 1, 1).eval()
    clip = torch.rand(2, 4, 3, 5, 5)
    attack = IFGSM.preset("ivm", model, seed=1)
    out = attack(clip)
    for b in range(2):
        for t in range(4):
            step = attack._side(b, t) * model.weight.detach().sign().reshape(3, 1, 1)
            expected = clip[b, t]
            for _ in range(20):
                expected = (expected + 0.1 / 20 * step).clamp(0, 1)
            assert torch.allclose(out[b, t], expected, atol=1e-6)
    assert {attack._side(0, t) for t in range(20)} == {-1, 1}
    assert model.weight.grad is None
    assert torch.equal(out[:, 2:], attack(clip[:, 2:], start=2))
    together = IFGSM(model, draw="per_clip")
    assert len({together._side(0, t) for t in range(20)}) == 1


def test_ifgsm_moves_the_objective_and_works_without_gradients_around():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2)).eval()
    clip = torch.rand(3, 3, 5, 5) * 0.8 + 0.1
    attack = IFGSM(model, epsilon=0.1, iters=5, objective=lambda logits: logits[0, 1] - logits[0, 0])
    with torch.no_grad():
        out = attack(clip)
        margins = [model(each)[:, 1] - model(each)[:, 0] for each in (clip, out)]
    sides = torch.tensor([attack._side(0, t) for t in range(3)])
    assert ((margins[1] - margins[0]) * sides > 0).all()
    assert (out - clip).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda m: IFGSM(m, epsilon=2), "epsilon must be in"),
        (lambda m: IFGSM(m, iters=0), "iters a whole number"),
        (lambda m: IFGSM(m, draw="x"), "per_clip"),
        (lambda m: IFGSM(m, seed=1.5), "seed must be an integer"),
        (lambda m: IFGSM.preset("ivn", m), "did you mean 'ivm'"),
        (lambda m: IFGSM(nn.Dropout())(torch.rand(1, 1, 2, 2)), r"model.eval\(\)"),
        (lambda m: IFGSM(lambda x: {"depth": x})(torch.rand(1, 1, 2, 2)), "returns dict; give an objective"),
        (lambda m: IFGSM(m, objective=lambda y: y)(torch.rand(1, 1, 2, 2)), "one scalar tensor"),
        (lambda m: IFGSM(lambda x: m.weight.sum())(torch.rand(1, 1, 2, 2)), "does not depend on the frame"),
    ],
)
def test_ifgsm_says_what_is_wrong(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it(nn.Conv2d(1, 1, 1).eval())


# --- by name, together, and wrongly -----------------------------------------------------------------------------------


def test_parse():
    assert parse("snow").severity == 3 and isinstance(parse(" snow:5 "), Snow)
    assert parse("gaussian_noise:ivm-davis", seed=9, draw="per_clip").draw == "per_clip"
    assert parse("jpeg:2", seed=np.int64(4)).seed == 4


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("snwo", {}, "no corruption 'snwo'; did you mean 'snow'"),
        ("", {}, "no corruption ''; there is"),
        ("gaussian_noise:ivm-moderat", {}, "has no preset 'ivm-moderat'; did you mean 'ivm-moderate'"),
        ("snow:heavy", {}, "snow has no preset 'heavy'; it has no presets. A severity is a number from 1 to 5"),
        ("snow:", {}, "no preset ''"),
        ("snow:0", {}, "severity of snow must be 1, 2, 3, 4 or 5, got 0"),
        ("snow:6", {}, "severity"),
        ("snow:2.5", {}, "got 2.5"),
        ("snow:nan", {}, "got nan"),
        ("snow:3", {"seed": "x"}, "seed must be an integer, 0 or more, got 'x'"),
        ("snow:3", {"seed": 1.0}, "got 1.0"),
        ("snow:3", {"seed": True}, "got True"),
        ("snow:3", {"seed": -1}, "got -1"),
        ("snow:3", {"draw": "per_video"}, "'per_frame' or 'per_clip', got 'per_video'"),
    ],
)
def test_parse_says_what_is_wrong(text, options, words):
    with pytest.raises(InputError, match=words):
        parse(text, **options)


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: Snow(severity=6), "severity must be 1, 2, 3, 4 or 5, got 6"),
        (lambda: Snow(severity=2.0), "got 2.0"),
        (lambda: Snow.preset("ivm"), "snow has no preset 'ivm'; there are none"),
        (lambda: JPEG(quality=0), "quality must be a number from 1 to 100, got 0"),
        (lambda: JPEG(quality=9.5), "quality must be a whole number"),
        (lambda: GaussianNoise(sigma=-1.0), "gaussian_noise: sigma must be a number from 0 on, got -1.0"),
        (lambda: GaussianNoise(sigma=math.nan), "got nan"),
        (lambda: GaussianNoise(sigma="0.1"), "got '0.1'"),
        (lambda: ImpulseNoise(pepper=0.6, salt=0.6), "sum to 1 at most, got 1.2"),
        (lambda: DuplicatedFrames(p=0.6), "from 0 to 0.5"),
        (lambda: GaussianBlur(sigma=(2.0, 1.0)), r"sigma must be a pair \(least, most\)"),
        (lambda: RemovedRectangles(count=3), "count must be a pair"),
        (lambda: FieldJitter(cells=0), "cells must be a number from 1 to 64"),
        (lambda: ClaheFlicker(limit=(0.5, 2.0)), "limit must be a pair .* from 1 on"),
        (lambda: ClaheFlicker(tiles=(2, 100)), "tiles must be whole numbers from 1 to 64"),
        (lambda: Compose([Snow]), "corruptions that are made"),
    ],
)
def test_settings_say_what_is_wrong(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()


@every_kind
@pytest.mark.parametrize(
    ("clip", "start", "words"),
    [
        (torch.zeros(3, 4, 4), 0, r"must be floats \(B, T, C, H, W\) or \(T, C, H, W\).*got torch.float32 \(3, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 0, "torch.uint8"),
        (np.zeros((1, 3, 4, 4)), 0, "got ndarray"),
        (torch.zeros(1, 3, 0, 4), 0, "channels and pixels"),
        (torch.full((1, 3, 4, 4), 4.0), 0, r"values in \[0, 1\], got 4 to 4; scale it"),
        (torch.full((1, 3, 4, 4), math.nan), 0, "got nan to nan"),
        (torch.zeros(1, 3, 4, 4), -1, "start"),
        (torch.zeros(1, 3, 4, 4), 0.5, "start"),
    ],
)
def test_clips_that_cannot_be_used(name, clip, start, words):
    with pytest.raises(InputError, match=words):
        make(name)(clip, start=start)


@pytest.mark.parametrize("name", ["jpeg", "h264", "color_jitter", "detouch", "clahe_flicker"])
def test_colour_needs_colour(name):
    with pytest.raises(InputError, match=rf"{name} .*3 .*\(1, 4, 8, 8\)"):
        make(name)(torch.rand(1, 4, 8, 8))


@pytest.mark.parametrize("name", sorted(LOOK_BACK))
def test_what_looks_back_must_be_called_in_order(name, film):
    corruption = make(name)
    with pytest.raises(InputError, match=r"must have start=0 .*got start=3"):
        corruption(film[3:5], start=3)
    corruption(film[:3])
    with pytest.raises(InputError, match=r"looks back.*must have start=3 \(or 0 for a new video\), got start=5"):
        corruption(film[5:6], start=5)
    with pytest.raises(InputError, match="frames must stay"):
        corruption(film[3:4, :, :32], start=3)
    corruption(film[3:4], start=3)  # a refusal changes nothing
    corruption(film[:1, :, :32])  # and start=0 takes any size


def test_compose_is_one_after_the_other(batch):
    both = Compose([GaussianNoise(sigma=0.1), H264(crf=35), FrameDrop(p=0.5, seed=1)])
    one_by_one = FrameDrop(p=0.5, seed=1)(H264(crf=35)(GaussianNoise(sigma=0.1)(batch)))
    assert torch.equal(both(batch), one_by_one)
    assert torch.equal(torch.cat([both(batch[:, :2]), both(batch[:, 2:], start=2)], 1), one_by_one)
    assert repr(both).startswith("Compose([GaussianNoise(sigma=0.1")


def test_gradients_pass_where_there_are_any(film):
    clip = film[:2].clone().requires_grad_()
    Compose([Fog(), Elastic(), GaussianNoise()])(clip).sum().backward()
    assert clip.grad is not None and clip.grad.abs().sum() > 0


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(set(NAMES) - {"h264"})),
    seed=st.integers(0, 2**40),
    cut=st.integers(0, 4),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_any_cut_any_seed_any_size(name, seed, cut, size):
    clip = torch.rand(4, 3, *size)
    whole, parts = make(name, seed=seed)(clip), make(name, seed=seed)
    assert torch.equal(whole, torch.cat([parts(clip[:cut]), parts(clip[cut:], start=cut)]))


def test_one_of_several_is_drawn_by_the_seed():
    names = ["frame_drop:ivm", "jpeg:ivm", "elastic:ivm"]
    drawn = [parse(" | ".join(names), seed=seed) for seed in range(30)]
    assert {each.name for each in drawn} == {"frame_drop", "jpeg", "elastic"}
    clip = torch.rand(4, 3, 16, 16)
    for seed, each in enumerate(drawn[:5]):
        same = parse(next(name for name in names if name.startswith(each.name)), seed=seed)
        assert torch.equal(each(clip), same(clip))
    with pytest.raises(InputError, match="There is no corruption 'jpg'"):  # whichever is drawn
        parse("jpeg|jpg", seed=0)
