"""Merging frames before a network: on videos whose truth and motion are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unflicker.checkpoint import save_adapter
from unflicker.checks import InputError
from unflicker.explain import check_explains, explain_frame
from unflicker.functional import half
from unflicker.metrics.quality import frame_psnr, psnr
from unflicker.model import stabilize
from unflicker.stabilizers import EMA, Aligned, Chain, Merged

SIZE = (96, 128)
EXAMPLE = torch.zeros(1, 3, *SIZE)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """Texture of all sizes, (3, 160, 224) in [0.1, 0.9]."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(3, 160, 224)
    for n in (4, 8, 16, 32):
        noise = torch.rand(1, 3, n, n, generator=generator) - 0.5
        total += nn.functional.interpolate(noise, (160, 224), mode="bicubic")[0] * (0.9 / n**0.3)
    return (0.5 + 0.6 * total).clamp(0.1, 0.9)


def moving(picture: Tensor, frames: int, step: int) -> Tensor:
    """A window that goes `step` pixels to the right every frame, (1, T, 3, H, W)."""
    return torch.stack([picture[:, 8 : 8 + SIZE[0], t * step : t * step + SIZE[1]] for t in range(frames)])[None]


def noisy(clip: Tensor, sigma: float) -> Tensor:
    return clip + sigma * torch.randn(clip.shape, generator=torch.Generator().manual_seed(2))


def merged(clip: Tensor, **arguments: Tensor) -> Tensor:
    return stabilize(nn.Identity(), {"in:": Merged()}, example=EXAMPLE)(clip, **arguments)[0]


@pytest.mark.parametrize(("sigma", "least"), [(0.05, 5.5), (0.1, 5.5), (0.4, 5.5)])
def test_a_still_scene_is_averaged(picture, sigma, least):
    """Eight frames have a noise 9 dB lower; the test of likeness costs some of it."""
    truth = moving(picture, 9, 0)
    frames = noisy(truth, sigma)
    gain = psnr(merged(frames)[:, -1], truth[:, -1]) - psnr(frames[:, -1], truth[:, -1])
    assert gain > least


@pytest.mark.parametrize(("sigma", "least"), [(0.05, 3.5), (0.1, 4.0), (0.4, 4.0)])
def test_what_moves_is_averaged_along_its_motion(picture, sigma, least):
    truth = moving(picture, 10, 3)
    frames = noisy(truth, sigma)
    result = merged(frames)[:, -1]
    assert psnr(result, truth[:, -1]) - psnr(frames[:, -1], truth[:, -1]) > least
    if sigma < 0.2:  # of stronger noise even a blur takes out more than it puts in
        assert psnr(result, truth[:, -1]) > psnr(frames.mean(1), truth[:, -1]) + 3


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("fades", [False, True])
def test_a_clean_video_passes_as_it_is(picture, step, fades):
    frames = moving(picture, 10, step)
    if fades:
        frames = frames * torch.linspace(1, 0.2, 10).view(1, -1, 1, 1, 1)
    assert frame_psnr(merged(frames)[0], frames[0]).min() > 50


def test_a_cut_starts_afresh(picture):
    frames = noisy(torch.cat([moving(picture, 6, 0), 1 - moving(picture, 2, 1)], 1), 0.1)
    result = merged(frames)
    assert psnr(result[:, 6], frames[:, 6]) > psnr(result[:, 5], frames[:, 5]) + 10
    assert psnr(result[:, 6], frames[:, 6]) > 34  # of the past a 1/50 is left, on average


def test_a_cut_in_strong_noise_leaves_little_of_the_past(picture):
    before = moving(picture, 8, 0)
    left = []
    for after in (torch.full_like(before[:, :1], 0.2), torch.full_like(before[:, :1], 0.8)):
        frames = noisy(torch.cat([0 * before + 0.5, after], 1), 0.6)
        left.append(((merged(frames)[:, -1] - after[:, 0]).mean() / (0.5 - after.mean())).item())
    assert max(left) < 0.2


def test_a_thing_that_appears_is_not_averaged_away(picture):
    truth = moving(picture, 8, 0)
    truth[:, -1:, :, 30:50, 40:60] = 0.9
    frames = noisy(truth, 0.2)
    thing = (..., slice(32, 48), slice(42, 58))
    assert (merged(frames)[0, -1][thing] - frames[0, -1][thing]).square().mean().sqrt() < 0.25 * 0.2


def test_what_is_missing_comes_from_the_past(picture):
    truth = moving(picture, 8, 0)
    frames, mask = noisy(truth, 0.1), torch.ones(1, 8, 1, *SIZE)
    mask[:, -1, :, 20:60, 20:60] = 0
    frames[:, -1, :, 20:60, 20:60] = torch.nan
    result = merged(frames, mask=mask)
    assert psnr(result[:, -1, :, 20:60, 20:60], truth[:, -1, :, 20:60, 20:60]) > 25


def test_frames_of_any_range(picture):
    frames = noisy(moving(picture, 6, 2), 0.1)
    other = merged(255 * frames - 100)
    assert psnr((other[0] + 100) / 255, merged(frames)[0]) > 45


def test_what_the_network_sees_vouches_for_what_it_makes(picture):
    frames = noisy(moving(picture, 4, 0), 0.2)
    seen: list[Tensor] = []
    net = nn.Identity()
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    other = frames.flip(4)
    for output, given, expected in (
        (Aligned(), None, "average"),
        (Chain(Aligned(), EMA(0.1)), None, "average"),
        (Aligned(recover=True), None, "frame"),  # it looks for the noise that the average no longer has
        (Chain(Aligned(recover=True), EMA(0.1)), None, "frame"),
        (Aligned(), other, "given"),
    ):
        model = stabilize(net, {"in:": Merged(), "": output}, example=EXAMPLE)
        _, state = model(frames, guide=given)
        last = {"average": seen[-1][-1:], "frame": frames[:, -1], "given": other[:, -1]}[expected]
        assert torch.allclose(state["guide/past"], half(last), atol=1e-6), expected
        assert torch.allclose(state["frame/past"], half(frames[:, -1]))  # which says what arrived


def test_a_guide_on_some_frames_is_no_other_model(picture):
    frames = noisy(moving(picture, 3, 0), 0.2)
    model = stabilize(nn.Identity(), {"in:": Merged(), "": Aligned()}, example=EXAMPLE)
    _, state = model(frames[:, 0], guide=frames[:, 0])
    _, state = model(frames[:, 1], state)
    model(frames[:, 2], state, guide=frames[:, 2])


def test_what_was_filled_is_no_evidence(picture):
    frames = noisy(moving(picture, 9, 0), 0.1)
    frames[:, 6:, :, 24:40, 24:40] = 0
    model = stabilize(nn.Identity(), {"in:": Merged(), "": Aligned()}, example=EXAMPLE)
    counted = []
    state = None
    for t in range(9):
        _, state = model(frames[:, t], state)
        counted.append([state[f"{place}/evidence"][..., 14:18, 14:18].mean().item() for place in ("input", "output")])
    for place in range(2):
        assert counted[8][place] <= counted[5][place] + 1e-4


def test_a_lost_frame_costs_no_evidence(picture):
    truth = moving(picture, 8, 0)
    frames = noisy(truth, 0.1)
    frames[:, 6] = 0
    result, state = stabilize(nn.Identity(), {"in:": Merged()}, example=EXAMPLE)(frames)
    assert psnr(result[:, 6], truth[:, 6]) > psnr(frames[:, 5], truth[:, 5]) + 4
    assert psnr(result[:, 7], truth[:, 7]) > psnr(frames[:, 7], truth[:, 7]) + 4
    assert abs(state["input/noise"].sqrt().item() / 0.1 - 1) < 0.15


def test_the_strength_of_the_noise_is_found(picture):
    for sigma in (0.02, 0.1, 0.4):
        frames = noisy(moving(picture, 10, 2), sigma)
        _, state = stabilize(nn.Identity(), {"in:": Merged()}, example=EXAMPLE)(frames)
        assert abs(state["input/noise"].sqrt().item() / sigma - 1) < 0.15  # interpolation takes some of it


def test_why_can_be_shown(picture):
    model = stabilize(nn.Identity(), {"in:": Merged()}, example=EXAMPLE)
    check_explains(model)
    still = moving(picture, 4, 0)
    _, state = model(noisy(still, 0.1))
    drawn = explain_frame(still[:, -1], still[:, -1], state)
    assert drawn.shape[0] == 3 and (state["input/evidence"] > 2).float().mean() > 0.9


def test_words_of_errors(tmp_path):
    with pytest.raises(InputError, match="Merged has no flow 'diss'; did you mean 'dis'"):
        Merged(flow="diss")
    with pytest.raises(InputError, match="Merged has no preset 'slow'"):
        Merged(preset="slow")
    with pytest.raises(InputError, match='Merged is for frames, which are maps, and not for tokens; put it at "in:"'):
        stabilize(nn.Flatten(2), {"": Merged()}, example=torch.zeros(1, 3, 8, 8))
    model = stabilize(nn.Identity(), {"in:": Merged(flow=lambda a, b: torch.cat([a, a], 1) * 0)}, example=EXAMPLE)
    with pytest.raises(InputError, match="Merged with a flow of one's own cannot be saved; name one: "):
        save_adapter(model, tmp_path / "adapter")


@pytest.mark.parametrize("before", ["black", "clean", "frozen", "fainter"])
def test_noise_that_begins_is_averaged_soon(picture, before):
    truth = moving(picture, 40, 0)
    frames = noisy(truth, 0.2)
    quiet = {
        "black": 0 * truth,
        "clean": truth,
        "frozen": frames[:, :1].expand_as(frames),
        "fainter": noisy(truth, 0.02),
    }
    frames = torch.cat([quiet[before][:, :20], frames[:, 20:]], 1)
    result = merged(frames)
    assert psnr(result[:, 28], truth[:, 28]) > psnr(frames[:, 28], truth[:, 28]) + 5


def test_noise_that_ends_does_not_linger(picture):
    truth = moving(picture, 20, 0)
    frames = torch.cat([noisy(truth, 0.3)[:, :10], noisy(truth, 0.02)[:, 10:]], 1)
    result = merged(frames)
    for t in range(10, 20):
        assert psnr(result[:, t], truth[:, t]) > psnr(frames[:, t], truth[:, t]) - 1


@pytest.mark.parametrize("bars", ["letterbox", "pillarbox"])
def test_bars_are_not_the_noise(picture, bars):
    truth = moving(picture, 20, 0)
    frames = noisy(truth, 0.2)
    black = (..., slice(0, 52), slice(None)) if bars == "letterbox" else (..., slice(0, 80))
    truth[black] = frames[black] = 0
    assert psnr(merged(frames)[:, -1], truth[:, -1]) > psnr(frames[:, -1], truth[:, -1]) + 5


def test_a_small_thing_that_moves_in_a_still_picture_leaves_no_trace(picture):
    frames = moving(picture, 12, 0).mul(255).round().div(255)
    for t in range(12):
        frames[:, t, :, 40:48, 8 * t : 8 * t + 8] = torch.rand(3, 8, 8)
    assert frame_psnr(merged(frames)[0], frames[0]).min() > 50
