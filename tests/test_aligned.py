"""Aligned evidence on videos whose truth is known: noise, motion, jumps of tone, light, and input that is missing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unflicker import Aligned, InputError, load_adapter, save_adapter, stabilize
from unflicker.corruptions import FieldJitter, PatchDrop, ToneJitter, gaussian_noise
from unflicker.data.synthetic import demo_clip
from unflicker.evidence import coarseness
from unflicker.flow import flow
from unflicker.functional import box_mean, gaussian_blur, half, in_frame, sample
from unflicker.guide import Guide
from unflicker.metrics import psnr, temporal_difference_error

close = torch.testing.assert_close


def run(y: Tensor, stabilizer: Aligned | None = None, guide: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """Take a clip (T, C, H, W) through a network that returns it, with a stabilizer at its output."""
    model = stabilize(nn.Identity(), {"": stabilizer or Aligned()}, example=y[:1])
    state, results = None, []
    with torch.inference_mode():
        for t in range(len(y)):
            result, state = model(
                y[t : t + 1], state, guide=None if guide is None else guide[t : t + 1], strength=strength
            )
            results.append(result[0])
    return torch.stack(results)


def worst(y: Tensor, truth: Tensor) -> float:
    """The PSNR of the worst frame."""
    return min(float(psnr(a[None], b[None])) for a, b in zip(y, truth, strict=True))


def change(before: Tensor, after: Tensor, truth: Tensor) -> tuple[float, float]:
    """PSNR gained in dB, and the temporal-difference error as a share of what it was."""
    return (
        float(psnr(after, truth) - psnr(before, truth)),
        float(temporal_difference_error(after, truth) / temporal_difference_error(before, truth)),
    )


@pytest.fixture(scope="module")
def moving() -> Tensor:
    """A camera that pans, a picture that is carried past: 16 frames (T, 3, 192, 320)."""
    return demo_clip(40)[24:]


@pytest.fixture(scope="module")
def still(moving: Tensor) -> Tensor:
    return moving[:1].expand(16, -1, -1, -1)


def noisy(clip: Tensor, sigma: float = 0.03) -> tuple[Tensor, Tensor]:
    """What a network makes of a noisy video, and the video: the network leaves some noise of its own."""
    return (clip + sigma * torch.randn(clip.shape)).clamp(0, 1), gaussian_noise(clip, 0.15, seed=0)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_still_noise_is_averaged(still):
    y, x = noisy(still)
    gain, tde = change(y[8:], run(y, guide=x)[8:], still[8:])
    assert gain > 5 and tde < 0.35


@pytest.mark.parametrize("flow", ["dis", "torch"])
def test_motion_is_followed(moving, flow):
    y, x = noisy(moving)
    gain, tde = change(y, run(y, Aligned(flow=flow), x), moving)
    assert gain > 0.6 and tde < 0.85
    still_only = change(y, run(y, Aligned(flow="none"), x), moving)[0]
    assert gain > still_only + 0.2


def test_the_past_never_costs_much(moving):
    """Frames that have nothing to do with one another come out as they went in."""
    cuts = torch.rand(6, 3, 192, 320)
    assert psnr(run(cuts, guide=cuts.flip(0)), cuts) > 38
    shuffled = moving[torch.randperm(16)].clone()
    y, x = noisy(shuffled)
    assert psnr(run(y, guide=x), shuffled) > psnr(y, shuffled) - 0.3


def test_more_strength_is_steadier(still):
    y, x = noisy(still)
    errors = [float(temporal_difference_error(run(y, guide=x, strength=s), still)) for s in (0.0, 0.3, 1.0, 3.0)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[-1]


def test_the_two_flows_are_as_good(moving):
    y, x = noisy(moving)
    by_dis, by_tensors = (change(y, run(y, Aligned(flow=flow), x), moving) for flow in ("dis", "torch"))
    assert by_tensors[0] > 0.85 * by_dis[0] and 1 - by_tensors[1] > 0.85 * (1 - by_dis[1])


# --- tone -------------------------------------------------------------------------------------------------------------


def test_jumps_of_tone_are_taken_out(moving):
    for jitter in (ToneJitter(seed=1), FieldJitter(seed=1)):
        y = jitter(moving)
        gain, tde = change(y, run(y, guide=moving), moving)
        assert gain > 4 and tde < 0.4, type(jitter).__name__


def test_the_cheap_form_leaves_them(moving):
    y = ToneJitter(seed=1)(moving)
    assert abs(change(y, run(y, Aligned(evidence="output"), moving), moving)[0]) < 0.5


def test_true_light_passes(moving):
    ramp = 1 - 0.3 * torch.sin(torch.linspace(0, math.pi, 16)).view(-1, 1, 1, 1)
    fading = moving * ramp
    y = run(fading)
    assert psnr(y, fading) > 46
    jittering = ToneJitter(seed=1)(fading)
    gain, tde = change(jittering, run(jittering, guide=fading), fading)
    assert gain > 2.5 and tde < 0.5


def test_what_is_steady_stays_as_it_is(moving, still):
    for clip in (moving, still):
        assert psnr(run(clip), clip) > 50


def test_a_lamp_that_flickers_without_a_steady_guide():
    clip = demo_clip(1, 96, 160)[:1].expand(60, -1, -1, -1)
    y = ToneJitter(seed=2)(clip)
    assert change(y[20:], run(y)[20:], clip[20:])[1] < 0.5


def test_depth_in_any_unit(moving):
    """Disparity that jumps in scale from frame to frame is held where the guide is steady; units make no difference."""
    depth = box_mean(moving[:, :1], 9)
    jumping = depth * (1 + 0.05 * torch.randn(16, 1, 1, 1))
    model = stabilize(_Depth(), {"": Aligned(signal="depth")}, example=moving[:1])
    results = []
    for unit in (1.0, 250.0):
        state, frames = None, []
        for t in range(16):
            with torch.inference_mode():
                model.base.depth = unit * jumping[t : t + 1]
                result, state = model(moving[t : t + 1], state)
            frames.append(result[0] / unit)
        results.append(torch.stack(frames))
    close(results[0], results[1], rtol=1e-3, atol=1e-3)
    error, before = ((each - depth).diff(dim=0).square().mean() for each in (results[0], jumping))
    assert error < 0.35 * before


class _Depth(nn.Module):
    depth = torch.rand(1, 1, 192, 320)

    def forward(self, x: Tensor) -> Tensor:
        return self.depth.clone()


# --- other outputs ----------------------------------------------------------------------------------------------------


def test_logits_of_rare_errors():
    """A pixel's class that flips for a frame is held; one that changes for good goes over."""
    truth = torch.zeros(12, 5, 32, 48)
    truth[:, 0], truth[:, 1, :, 24:] = 4, 8
    truth[8:, 2, 16:] = 12.0
    logits = truth + 1.5 * torch.randn(truth.shape)
    result = run(logits, Aligned(signal="logits", flow="none"))
    wrong, wrong_before = ((each[3:].argmax(1) != truth[3:].argmax(1)).float().mean() for each in (result, logits))
    assert wrong < 0.6 * wrong_before
    assert (result[9:].argmax(1) == truth[9:].argmax(1)).float().mean() > 0.95


def test_vectors_are_averaged_until_they_change():
    vectors = torch.cat([torch.zeros(10, 32), 5 + torch.zeros(4, 32)]) + 0.1 * torch.randn(14, 32)
    result = _run_vectors(vectors)
    assert result[8].std() < 0.6 * vectors[8].std()
    assert (result[10] - vectors[10]).abs().max() < 0.2


def _run_vectors(vectors: Tensor) -> Tensor:
    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) @ torch.ones(3, 32) / 3 if x.shape[1] == 3 else x[:, :, 0, 0]

    model = stabilize(Look(), {"": Aligned()}, example=vectors[:1, :, None, None])
    state, results = None, []
    for vector in vectors:
        result, state = model(vector[None, :, None, None], state)
        results.append(result[0])
    return torch.stack(results)


def test_an_output_of_another_size(moving):
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(x, 2)

    smaller = Halved()(moving)
    model = stabilize(Halved(), {"": Aligned()}, example=moving[:1])
    y, x = moving + 0.06 * torch.randn(moving.shape), moving
    with torch.inference_mode():
        result, _ = model(y[None], guide=x[None])
    assert result.shape == (1, 16, 3, 96, 160)
    assert change(Halved()(y), result[0], smaller)[0] > 1


def test_features_inside_a_network(moving):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).requires_grad_(False)
    calls = []

    def still_flow(a: Tensor, b: Tensor) -> Tensor:
        calls.append(a.shape)
        return a.new_zeros(a.shape[0], 2, *a.shape[-2:])

    plan = {"0": Aligned(flow=still_flow), "": Aligned(flow=still_flow, flow_on="guide")}
    model = stabilize(net, plan, example=moving[:1])
    with torch.inference_mode():
        model(moving[None, :5])
    assert len(calls) == 5  # once a frame, for both layers


# --- missing input ----------------------------------------------------------------------------------------------------


def test_dropped_blocks_are_found_and_filled(moving):
    dropped = PatchDrop(size=8, p=0.1, seed=3)(moving.clamp_min(0.05))
    dropped[0] = moving[0].clamp_min(0.05)
    result = run(dropped)[1:]
    assert psnr(result, moving[1:].clamp_min(0.05)) > psnr(dropped[1:], moving[1:].clamp_min(0.05)) + 8


def test_dropped_frames_are_held(moving):
    clip = moving.clone()
    clip[[5, 9, 10]] = 0
    result = run(clip)
    assert worst(result[[5, 9, 10]], moving[[5, 9, 10]]) > 15
    close(result[6:9], moving[6:9], atol=0.1, rtol=0)


def test_a_mask_says_what_is_missing(moving):
    mask = torch.ones(1, 16, 1, 192, 320)
    mask[:, 6:, :, 20:60, 40:90] = 0
    garbage = torch.where(mask > 0, moving, torch.rand(moving.shape))
    model = stabilize(nn.Identity(), {"": Aligned()}, example=moving[:1])
    with torch.inference_mode():
        y, state = model(garbage, mask=mask)
    hole = (0, 8, slice(None), slice(20, 60), slice(40, 90))
    assert psnr(y[hole][None], moving[None][hole][None]) > 15
    assert all(torch.isfinite(value).all() for value in state.values())


def fade_to_black(clip: Tensor) -> Tensor:
    return clip * torch.cat([torch.linspace(1, 0, 12), torch.zeros(4)]).view(-1, 1, 1, 1)


def letterbox(clip: Tensor) -> Tensor:
    boxed = clip.clone()
    boxed[..., :12, :], boxed[..., -12:, :] = 0, 0
    return boxed


def on_twos(clip: Tensor) -> Tensor:
    return clip[::2].repeat_interleave(2, 0)


@pytest.mark.parametrize("made", [fade_to_black, letterbox, on_twos, torch.zeros_like])
def test_what_is_no_fault_passes(moving, made):
    clip = made(moving)
    result = run(clip)
    assert psnr(result, clip) > 50 and worst(result, clip) > 42


def test_black_that_lasts_is_believed(moving):
    clip = moving.clone()
    clip[8:] = 0
    assert run(clip)[12:].abs().max() < 1e-3


def subtitle(frame: Tensor, t: int) -> None:
    frame[:, 150:180, 60:260] = 0


def wipe(frame: Tensor, t: int) -> None:
    frame[:, :, : 20 * (t - 5)] = 0


def title(frame: Tensor, t: int) -> None:
    frame[:] = 0
    frame[:, 80:110:4, 100:220] = 0.9


@pytest.mark.parametrize("black", [subtitle, wipe, title])
def test_black_that_appears_is_believed_soon(moving, black):
    clip = moving.clone()
    for t in range(6, 16):
        black(clip[t], t)
    result = run(clip)
    assert psnr(result[10:], clip[10:]) > 30 and psnr(result[:6], clip[:6]) > 50


def test_a_flash_is_not_remembered():
    clip = demo_clip(1, 96, 160).expand(30, -1, -1, -1).clone()
    clip[6] = (3 * clip[6]).clamp_max(1)
    clip[20:] *= 0.6
    result = run(clip)
    assert worst(result[8:], clip[8:]) > 40


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 64), (64, 1), (1, 1), (3, 5), (31, 47)])
def test_any_size(size):
    clip = torch.rand(4, 3, *size)
    for kind in (Aligned(), Aligned(learned=True), Aligned(signal="map"), Aligned(flow="torch")):
        result = run(clip, kind)
        assert result.shape == clip.shape and torch.isfinite(result).all()


def test_constant_frames_stay():
    clip = torch.full((5, 3, 32, 48), 0.4)
    close(run(clip), clip)


def test_a_batch_of_unlike_streams(moving):
    """One guide is clean, the other noisy: each stream gets the flow that suits it."""
    y, x = noisy(moving[:8])
    model = stabilize(nn.Identity(), {"": Aligned(flow="torch")}, example=y[:1])
    with torch.inference_mode():
        both, _ = model(torch.stack([y, moving[:8]]), guide=torch.stack([x, moving[:8]]))
        alone = [model(a[None], guide=b[None])[0][0] for a, b in ((y, x), (moving[:8], moving[:8]))]
    for together, each in zip(both, alone, strict=True):
        assert ((together - each).abs() > 1e-4).float().mean() < 1e-3


@pytest.mark.parametrize("scale,offset", [(255.0, 0.0), (4.0, -2.0)])
def test_other_ranges(moving, scale, offset):
    y, x = noisy(moving)
    expected = run(y, guide=x)
    result = (run(scale * y + offset, guide=scale * x + offset) - offset) / scale
    gain, other = change(y, expected, moving)[0], change(y, result, moving)[0]
    assert other > 0.8 * gain


@pytest.mark.parametrize("scale,offset", [(1.0, 0.0), (255.0, 0.0), (2.0, -1.0)])
def test_a_first_frame_that_is_flat_says_nothing_of_the_range(moving, scale, offset):
    for level in (0.0, 0.5):
        clip = moving.clone()
        clip[0] = level
        clip = scale * clip + offset
        assert (run(clip) - clip).abs().max() < 0.5 * scale


def test_a_cut_right_after_the_start(moving):
    clip = torch.cat([moving[:1].flip(3), moving])
    for kind in (Aligned(), Aligned(evidence="output"), Aligned(signal="map")):
        assert worst(run(clip, kind)[1:3], clip[1:3]) > 34


def test_frames_at_strength_zero_are_no_evidence(still):
    y, x = noisy(still)
    model = stabilize(nn.Identity(), {"": Aligned()}, example=y[:1])
    strength = torch.tensor([[0.0] * 8 + [1.0] * 8])
    with torch.inference_mode():
        late, _ = model(y[None], guide=x[None], strength=strength)
        fresh, _ = model(y[None, 7:], guide=x[None, 7:])
    assert psnr(late[0, 10:], still[10:]) > psnr(fresh[0, 3:], still[10:]) - 0.7


def test_one_logit_against_its_absence():
    """Binary segmentation: when the scene changes, so does the result."""
    shape = torch.where(torch.arange(64).view(1, 1, 1, 64) > 20, 4.0, -4.0).expand(8, 1, 48, 64).clone()
    shape[4:] *= -1
    assert ((run(shape, Aligned(signal="logits", flow="none")) > 0) != (shape > 0)).float().mean() < 0.01


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"signal": "image2"}, "no signal 'image2'"),
        ({"evidence": "input"}, "no evidence 'input'"),
        ({"flow": "diss"}, "no flow 'diss'"),
        ({"flow_on": "y"}, "no flow_on 'y'"),
        ({"preset": "quick"}, "no preset 'quick'"),
    ],
)
def test_words_of_wrong_settings(settings, words):
    with pytest.raises(InputError, match=words):
        Aligned(**settings)


def test_alignment_without_a_frame_is_refused():
    vectors = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for settings in ({"flow": "dis"}, {"flow_on": "output"}):
        with pytest.raises(InputError, match="no place in the frame"):
            stabilize(vectors, {"": Aligned(**settings)}, example=torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="looks for motion on images"):
        stabilize(nn.Conv2d(3, 5, 1), {"": Aligned(flow_on="output")}, example=torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="for maps"):
        stabilize(vectors, {"": Aligned(learned=True)}, example=torch.zeros(1, 3, 16, 16))


def test_a_flow_of_ones_own_cannot_be_saved(tmp_path):
    model = stabilize(nn.Identity(), {"": Aligned(flow=lambda a, b: a)}, example=torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="cannot be saved; name one: "):
        save_adapter(model, tmp_path / "mine")
    assert not list(tmp_path.iterdir())


# --- the learned tier, and the parts ----------------------------------------------------------------------------------


def test_the_learned_tier_starts_at_the_rule(moving):
    y, x = noisy(moving[:6])
    close(run(y, Aligned(learned=True), x), run(y, Aligned(), x), rtol=0, atol=0)


def test_the_learned_tier_trains_and_is_kept(moving, tmp_path):
    y, x = noisy(moving[:6])
    model = stabilize(nn.Identity(), {"": Aligned(learned=True)}, example=y[:1])
    result, _ = model(y[None], guide=x[None])
    (result - moving[None, :6]).square().mean().backward()
    last = model.stabilizers["output"].head[-1]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in last.parameters())
    with torch.no_grad():
        last.bias += 0.3
    save_adapter(model, tmp_path / "mine")
    expected, _ = model(y[None], guide=x[None])
    again = load_adapter(model.remove(), tmp_path / "mine")
    close(again(y[None], guide=x[None])[0], expected, rtol=0, atol=0)


def test_parts_against_plain_loops():
    x = torch.rand(1, 1, 7, 9)
    wide = nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    for i, j in ((0, 0), (3, 4), (6, 8)):
        close(box_mean(x, 5)[0, 0, i, j], wide[0, 0, i : i + 5, j : j + 5].mean())
    for size in range(3, 17, 2):
        close(box_mean(x, size), nn.functional.avg_pool2d(nn.functional.pad(x, (size // 2,) * 4, "replicate"), size, 1))
    weights = torch.exp(-((torch.arange(9.0) - 4) ** 2) / (2 * 1.5**2))
    row = torch.zeros(1, 1, 1, 9)
    row[..., 4] = 1
    close(gaussian_blur(row, 1.5)[0, 0, 0, 4], weights[4] / weights.sum())
    close(half(torch.arange(12.0).view(1, 1, 3, 4)), torch.tensor([[[[2.5, 4.5], [8.5, 10.5]]]]))
    flow = torch.zeros(1, 2, 7, 9)
    close(sample(x, flow), x, rtol=0, atol=1e-6)
    flow[:, 0] = 2
    close(sample(x, flow)[..., :7], x[..., 2:], rtol=0, atol=1e-5)
    assert in_frame(flow)[0, 0, 0].tolist() == [1.0] * 7 + [0.0] * 2
    assert coarseness(1080, 1920) == 64


def test_fetching_by_tensors_is_as_good(moving):
    """DIS once by name, with OpenCV fetching, and once as a callable, with tensors fetching."""
    y, x = noisy(moving[:6])

    def by_dis(a: Tensor, b: Tensor) -> Tensor:
        return flow(a, b, method="dis", preset="medium")

    by_opencv, by_tensors = (run(y, Aligned(flow=each), x) for each in ("dis", by_dis))
    assert (by_opencv - by_tensors).abs().mean() < 1e-4
    assert abs(psnr(by_opencv, moving[:6]) - psnr(by_tensors, moving[:6])) < 0.01


def test_the_guide_of_a_stream_is_the_last_frame(moving):
    state = Guide.fresh(moving[:1])
    first = Guide(moving[:1], state)
    second = Guide(moving[1:2], first.following)
    assert not first.seen.any() and second.seen.all() and second.whole
    close(second.past, first.luma)
