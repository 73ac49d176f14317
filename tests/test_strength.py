"""The recommended strength: on videos whose truth is known, with and without being shown it."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.metrics.quality import psnr
from unflicker.metrics.temporal import instability
from unflicker.model import StabilizedModel, stabilize
from unflicker.stabilizers import EMA, Aligned, Stabilizer
from unflicker.strength import STRENGTHS, recommend_strength

SIZE = (48, 80)
EXAMPLE = torch.zeros(1, 3, *SIZE)


def video(clip: Tensor, name: str = "clip") -> SimpleNamespace:
    frames, _, height, width = clip.shape
    return SimpleNamespace(name=name, num_frames=frames, height=height, width=width, read=lambda numbers: clip[numbers])


def pan(frames: int, speed: int) -> Tensor:
    """A texture with detail at several scales that passes by, `speed` pixels a frame."""
    generator = torch.Generator().manual_seed(0)
    width = SIZE[1] + speed * frames
    texture = torch.zeros(1, 3, SIZE[0], width)
    for scale in (3, 6, 12):
        coarse = torch.rand(1, 3, SIZE[0] // scale + 1, width // scale + 1, generator=generator)
        texture += F.interpolate(coarse, size=(SIZE[0], width), mode="bicubic") / 3
    return torch.stack([texture[0, ..., t * speed : t * speed + SIZE[1]] for t in range(frames)]).clamp(0.1, 0.9)


def flickering(clip: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    return (clip + sigma * noise).clamp(0, 1)


def around(stabilizer: Stabilizer) -> StabilizedModel:
    return stabilize(nn.Identity(), {"": stabilizer}, example=EXAMPLE)


@pytest.fixture(scope="module")
def panning() -> Tensor:
    return pan(16, 2)


@pytest.fixture(scope="module")
def still() -> Tensor:
    return pan(1, 0).expand(20, -1, -1, -1)


def test_with_a_truth_it_is_the_largest_within_the_limit(panning):
    noisy = flickering(panning, 0.1)
    found = recommend_strength(around(EMA(0.2)), video(noisy), truth=video(panning), limit_db=0.3)
    model, expected = around(EMA(0.2)), {}
    for strength in STRENGTHS:
        y = model(noisy[None], strength=strength)[0][0].clamp(0, 1)
        expected[strength] = psnr(y, panning).item()
        trial = next(each for each in found.trials if each.strength == strength)
        assert trial.psnr == pytest.approx(expected[strength], abs=1e-4)
        assert trial.instability == pytest.approx(instability(y, normalized=True).item(), rel=1e-4)
    best = max(expected.values())
    assert found.strength == max(s for s, value in expected.items() if value >= best - 0.3)
    assert [trial.loss_db for trial in found.trials] == pytest.approx([best - v for v in expected.values()], abs=1e-4)
    assert found.followed == 1 and found.frames == 16
    assert found.true_instability == pytest.approx(instability(panning, normalized=True).item(), rel=0.05)


@pytest.mark.parametrize("stabilizer", [EMA(0.2), Aligned(preset="fast")], ids=["ema", "aligned"])
@pytest.mark.parametrize("which", ["panning", "still"])
def test_without_a_truth_it_is_nearly_the_same(request, stabilizer, which):
    clip = request.getfixturevalue(which)
    noisy = flickering(clip, 0.08)
    told = recommend_strength(around(stabilizer), video(noisy), truth=video(clip))
    alone = recommend_strength(around(stabilizer), video(noisy))
    steps = abs(STRENGTHS.index(told.strength) - STRENGTHS.index(alone.strength))
    assert steps <= 1, ([t.loss_db for t in told.trials], [t.loss_db for t in alone.trials])
    assert alone.true_instability == pytest.approx(instability(clip, normalized=True).item(), rel=0.2, abs=0.02)


def test_an_average_that_smears_a_pan_is_caught(panning):
    found = recommend_strength(around(EMA(0.5)), video(flickering(panning, 0.03)))
    assert found.strength <= 0.25
    worst = found.trials[-1]
    assert worst.loss_db > 10 and worst.collapsing
    assert "output collapses: it moves less than half as much as the scene does" in found.warning


def test_an_average_of_a_noisy_still_is_not(still):
    found = recommend_strength(around(EMA(0.2)), video(flickering(still, 0.08)))
    assert found.strength >= 4 and found.warning is None
    assert not any(trial.collapsing for trial in found.trials)
    assert found.followed > 0.8


def test_an_output_that_stays_at_its_first_frame_has_collapsed(still):
    """So slowly does the scene brighten that no step shows it; the way from the first frame does."""
    ramp = torch.linspace(0, 0.3, 20).view(-1, 1, 1, 1)
    noisy = flickering(0.7 * still + ramp, 0.03)
    found = recommend_strength(around(EMA(0.5)), video(noisy), strengths=(0, 1, 1e6))
    assert [trial.collapsing for trial in found.trials] == [False, False, True]
    assert found.strength < 1e6


def test_stabilizers_inside_the_network_are_tried_as_well(panning):
    network = nn.Sequential(nn.Identity(), nn.Identity())
    noisy = flickering(panning, 0.08)[:8]
    inside = stabilize(network, {"0": EMA(0.2)}, example=EXAMPLE)
    assert recommend_strength(inside, video(noisy)).trials == recommend_strength(around(EMA(0.2)), video(noisy)).trials


def test_the_base_runs_once_a_frame(still):
    class Counting(nn.Module):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return x

    counting = Counting()
    model = stabilize(counting, {"": EMA(0.2)}, example=EXAMPLE)
    counting.runs = 0
    told = []
    recommend_strength(model, video(still), frames=7, on_frame=lambda *numbers: told.append(numbers))
    assert counting.runs == 7 and told == [(i, 7) for i in range(1, 8)]
    assert model.base is counting


class Duller(nn.Module):
    """A network that errs: what is bright comes out darker."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.9 * x


def test_against_the_input_the_base_errs_as_it_does(panning):
    """An average of the outputs alone cannot tell that all of them are wrong alike."""
    model = stabilize(Duller(), {"": EMA(0.2)}, example=EXAMPLE)
    noisy = flickering(panning, 0.05)
    told = recommend_strength(model, video(noisy), truth=video(panning)).trials
    by_input = recommend_strength(model, video(noisy), reference="input").trials
    by_output = recommend_strength(model, video(noisy)).trials
    assert by_input[0].psnr == pytest.approx(told[0].psnr, abs=1) and by_output[0].psnr > told[0].psnr + 3
    for i in range(5):
        assert by_input[i].loss_db == pytest.approx(told[i].loss_db, abs=0.5)


def test_size_and_bytes(still):
    pixels = (flickering(still, 0.05)[:5] * 255).round().byte()
    small = F.interpolate(pixels.float() / 255, size=(24, 40), mode="area")
    model = around(EMA(0.2))
    assert recommend_strength(model, video(pixels), size=(24, 40)) == recommend_strength(model, video(small))


def test_a_motion_that_cannot_be_followed_is_said():
    coarse = torch.rand(6, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    noise = F.interpolate(coarse, size=(96, 160), mode="bicubic").clamp(0, 1)  # no frame resembles another
    with pytest.raises(InputError, match=r"can be followed on \d % of the pixels, too few .* give a truth"):
        recommend_strength(around(EMA(0.2)), video(noise))
    assert recommend_strength(around(EMA(0.2)), video(noise), truth=video(noise)).strength == 0


def test_what_cannot_be_tried(still):
    model, clip = around(EMA(0.2)), video(still)
    for arguments, words in (
        ({"strengths": (1,)}, "two or more different numbers from 0 to 1e\\+06, got 1"),
        ({"strengths": (0, 0)}, "different numbers"),
        ({"strengths": (-1, 0)}, "got -1, 0"),
        ({"limit_db": -1}, "limit_db must be 0 or more, in dB, got -1"),
        ({"reference": "inptu"}, "no reference 'inptu'; did you mean 'input'"),
        ({"frames": 2}, "frames must be 3 or more, got 2"),
        ({"size": (0, 4)}, r"size must be \(height, width\) in pixels"),
        ({"truth": video(still[:5], "short")}, "truth short has 5 frames, but clip has 20: cut the video"),
        (
            {"truth": video(torch.zeros(20, 3, 8, 8))},
            r"truth must have the size of the output, \(48, 80\), to compare them, got \(8, 8",
        ),
    ):
        with pytest.raises(InputError, match=words):
            recommend_strength(model, clip, **arguments)
    with pytest.raises(InputError, match="clip has 2 frames; three or more"):
        recommend_strength(model, video(still[:2]))
    with pytest.raises(InputError, match=r"must be what stabilize\(\) returns, got Identity"):
        recommend_strength(nn.Identity(), clip)
    with pytest.raises(InputError, match="no stabilizers, so every strength is alike"):
        recommend_strength(StabilizedModel(nn.Identity(), {}, (), (3, *SIZE)), clip)
    grey = stabilize(nn.Conv2d(3, 1, 1), {"": EMA(0.2)}, example=EXAMPLE)
    with pytest.raises(InputError, match=r"must return frames \(1, 3, H, W\) to choose a strength, got shape \(1, 1"):
        recommend_strength(grey, clip)
