"""What a denoiser took for noise and gets back: how strong the noise is, the bands, and what becomes of the picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unflicker import Aligned, InputError, stabilize
from unflicker.corruptions import FrameDrop, PatchDrop, gaussian_noise
from unflicker.data.synthetic import demo_clip
from unflicker.functional import gaussian_blur, half
from unflicker.metrics import psnr
from unflicker.recovery import BANDS, LEVELS, _bands, _joined, clipped, clipped_variance, fresh_recovery, recover
from unflicker.tasks import add_adapter, load_task

close = torch.testing.assert_close


class Blur(nn.Module):
    """A poor denoiser: its noise is gone, and with it all that is fine."""

    def __init__(self, sigma: float = 2.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return gaussian_blur(x, self.sigma)


def run(net: nn.Module, x: Tensor, stabilizer: Aligned, strength: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Take a clip (T, 3, H, W) through a network frame by frame; the results and the last state."""
    model, state, results = stabilize(net, {"": stabilizer}, example=x[:1]), None, []
    with torch.inference_mode():
        for frame in x:
            y, state = model(frame[None], state, strength=strength)
            results.append(y[0])
    assert state is not None
    return torch.stack(results), state


@pytest.fixture(scope="module")
def moving() -> Tensor:
    return demo_clip(40)[26:]


@pytest.fixture(scope="module")
def still(moving: Tensor) -> Tensor:
    return moving[:1].expand(14, -1, -1, -1)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.6])
def test_clipping_as_counted(sigma):
    clean = torch.linspace(0, 1, 11)
    drawn = (clean + sigma * torch.randn(400_000, 1)).clamp(0, 1)
    noise = torch.tensor(sigma**2)
    (mean, slope), variance = clipped(clean, noise), clipped_variance(clean, noise)
    close(mean, drawn.mean(0), atol=2e-3, rtol=0)
    close(variance, drawn.var(0), atol=2e-3, rtol=0)
    shifted = clipped(clean + 1e-3, noise)[0]
    close(slope, (shifted - mean) / 1e-3, atol=2e-2, rtol=0)


@pytest.mark.parametrize("size", [(48, 80), (37, 53), (3, 5), (1, 1)])
def test_bands_add_up_to_the_whole(size):
    maps = torch.rand(2, 2, *size)
    bands = _bands(maps, LEVELS)
    assert len(bands) == LEVELS
    close(_joined([torch.ones(())] * LEVELS, [band for band, _ in bands]), maps[:, :1])
    power = sum(each for _, each in _bands(maps, LEVELS))
    if min(size) % 8 == 0:  # no edge is counted twice
        close(power, maps[:, 1:].square().mean((1, 2, 3), keepdim=True))


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.6])
def test_the_noise_of_the_input_is_found_though_it_was_clipped(still, sigma):
    x = gaussian_noise(still, sigma, seed=0)
    _, state = run(Blur(0.5) if sigma < 0.1 else Blur(), x, Aligned(recover=True))  # what is lost counts as noise
    assert state["output/detail/variance"].sqrt().item() == pytest.approx(sigma, rel=0.15)
    assert state["output/detail/power"].shape == (1, BANDS, 1, 1)


@pytest.mark.parametrize(("scene", "more"), [("still", 4.0), ("moving", 0.6)])
def test_detail_comes_back(request, scene, more):
    clip = request.getfixturevalue(scene)
    x = gaussian_noise(clip, 0.05, seed=0)
    without, with_it = (run(Blur(), x, Aligned(recover=each))[0] for each in (False, True))
    assert psnr(with_it[8:], clip[8:]) > psnr(without[8:], clip[8:]) + more


def test_noise_does_not(moving):
    """Where nothing was lost little is added, however strong the noise."""

    class Oracle(nn.Module):
        frames = iter(moving)

        def forward(self, x: Tensor) -> Tensor:
            return next(self.frames)[None]

    oracle = Oracle()
    model, state = stabilize(nn.Identity(), {"": Aligned(recover=True)}, example=moving[:1]), None
    for truth, x in zip(moving, gaussian_noise(moving, 0.1, seed=0), strict=True):
        y, state = model(oracle(x), state, guide=x[None])
        assert psnr(y, truth[None]) > 34  # of the noise, at 20 dB, not a twentieth


def test_dark_frames_stay_dark(still):
    """Noise brightens what is black, for a camera counts from zero; the average of it must not."""
    dark = 0.03 * still
    x = gaussian_noise(dark, 0.1, seed=0)
    black = torch.zeros_like(dark)
    model, state, results = stabilize(nn.Identity(), {"": Aligned(recover=True)}, example=dark[:1]), None, []
    for frame in x:
        y, state = model(black[:1], state, guide=frame[None])
        results.append(y)
    assert x.mean() > 0.035 and abs(float(torch.cat(results[6:]).mean() - dark.mean())) < 0.01


@pytest.mark.parametrize("drop", [PatchDrop(p=0.1, seed=1), FrameDrop(p=0.1, seed=3)])
def test_what_did_not_arrive_is_not_recovered(still, drop):
    noisy = gaussian_noise(still, 0.05, seed=0)
    x = drop(noisy)
    assert bool((x[1:] == 0).flatten(1).float().mean(1).max() > 0.05)
    without, with_it = (run(Blur(), x, Aligned(recover=each))[0] for each in (False, True))
    assert psnr(with_it[6:], still[6:]) > psnr(without[6:], still[6:]) + 1


def test_another_range_makes_no_difference(still):
    x = gaussian_noise(still, 0.05, seed=0)
    one, large = (run(Blur(), each, Aligned(recover=True))[0] for each in (x, 255 * x))
    assert psnr(large / 255, one) > 45  # the range is the one found in the frames


def test_strength_is_its_dial(still):
    x = gaussian_noise(still, 0.05, seed=0)
    alone = Blur()(x)
    assert torch.equal(run(Blur(), x, Aligned(recover=True), strength=0.0)[0], alone)
    gains = [float(psnr(run(Blur(), x, Aligned(recover=True), s)[0], still)) for s in (0.0, 0.3, 1.0)]
    assert gains == sorted(gains) and gains[-1] > gains[0] + 1


def test_an_untrained_judge_changes_nothing(moving):
    x = gaussian_noise(moving, 0.1, seed=0)
    rule, learned = (run(Blur(), x, Aligned(recover=True, learned=each))[0] for each in (False, True))
    close(rule, learned, atol=1e-6, rtol=0)


def test_training_reaches_the_judge(moving):
    model = stabilize(Blur(), {"": Aligned(recover=True, learned=True)}, example=moving[:1])
    y, _ = model.train()(gaussian_noise(moving[None, :4], 0.1, seed=0))
    (y - moving[None, :4]).square().mean().backward()
    gradients = [p.grad for p in model.stabilizers["output"].judge.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients) and gradients[-1].abs().max() > 0


def test_an_enlarged_picture_gets_none():
    net = nn.Upsample(scale_factor=2.0)
    x = torch.rand(3, 3, 32, 48)
    rule, recovering = (run(net, x, Aligned(recover=each))[0] for each in (False, True))
    assert torch.equal(rule, recovering)


def test_only_images():
    frame = torch.rand(1, 3, 16, 16)
    with pytest.raises(InputError, match=r"recover=True\) is for images of 3 channels; this layer returns 8"):
        stabilize(nn.Conv2d(3, 8, 1), {"": Aligned(recover=True)}, example=frame)
    with pytest.raises(InputError, match=r'recover=True\) is for images of 3 channels; this layer is "depth"'):
        stabilize(nn.Identity(), {"": Aligned(recover=True, signal="depth")}, example=frame)


def test_the_adapter_by_name():
    model = add_adapter(nn.Identity(), "aligned-recover")
    assert model.stabilizers["output"].recover


def test_tiny_frames():
    """Down to one pixel; half-size maps of frames that small have no neighbours."""
    for size in ((1, 1), (1, 9), (5, 2)):
        planes = [torch.rand(2, 3, *size) for _ in range(3)]
        evidence = torch.ones_like(half(planes[0][:, :1]))
        detail, state = recover(*planes, evidence, fresh_recovery(torch.zeros(2, 1, 1, 1)))
        assert detail.shape == planes[0].shape and torch.isfinite(detail).all()
        assert all(torch.isfinite(each).all() for each in state.values())


# Inputs that are otherwise than a camera's ----------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["above", "below"])
def test_an_input_that_was_not_clipped_is_not_taken_for_clipped(still, clip):
    """Beyond [0, 1] the response of a clipped input is flat, and what is divided by it would be anything."""
    truth = still * 1.3 if clip == "above" else still * 0.1
    x = truth + 0.05 * torch.randn(truth.shape)
    rule, recovering = (run(Blur(), x, Aligned(recover=each))[0] for each in (False, True))
    assert psnr(recovering[6:], truth[6:]) > psnr(rule[6:], truth[6:]) + 1
    constant = torch.full((6, 3, 24, 32), 1.3)
    close(run(nn.Identity(), constant, Aligned(recover=True))[0], constant, atol=1e-3, rtol=0)


def test_a_range_that_the_first_frame_did_not_fill(still):
    x = 255 * torch.cat([0.3 * still[:4], still]) + 5 * torch.randn(18, *still.shape[1:])
    rule, recovering = (run(Blur(), x, Aligned(recover=each))[0] for each in (False, True))
    assert psnr(recovering[10:] / 255, still[6:]) > psnr(rule[10:] / 255, still[6:]) + 1


@pytest.mark.parametrize("value", [30.0, 1e30])
def test_one_value_far_out_does_not_stay(still, value):
    """The network clamps what it is given; the average of the input must bound it by itself."""

    class Clamping(Blur):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.clamp(0, 1))

    x = gaussian_noise(still, 0.05, seed=0)
    spoiled = x.clone()
    spoiled[5, :, 90, 100] = value
    clean, with_it = (run(Clamping(), each, Aligned(recover=True))[0] for each in (x, spoiled))
    assert psnr(with_it[5:6], clean[5:6]) > 25
    assert psnr(with_it[6:], clean[6:]) > 40


def test_a_mask_that_stays_darkens_nothing_beside_it(still):
    dark = 0.1 * still
    x = gaussian_noise(dark, 0.1, seed=0)
    mask = torch.ones(len(x), 1, *x.shape[-2:])
    mask[..., :128] = 0
    results = []
    for each in (False, True):
        model, state, made = stabilize(Blur(), {"": Aligned(recover=each)}, example=x[:1]), None, []
        with torch.inference_mode():
            for t, frame in enumerate(x):
                y, state = model(frame[None], state, mask=mask[t : t + 1])
                made.append(y[0, ..., 128:144])
        results.append(float(psnr(torch.stack(made[6:]), dark[6:, ..., 128:144])))
    assert results[1] > results[0] + 0.5


def test_rows_that_never_arrive_leave_the_noise_known(still):
    x = gaussian_noise(still, 0.1, seed=0)
    mask = torch.ones(len(x), 1, *x.shape[-2:])
    mask[..., ::8, :] = 0
    model, state = stabilize(Blur(), {"": Aligned(recover=True)}, example=x[:1]), None
    with torch.inference_mode():
        for t, frame in enumerate(x):
            _, state = model(frame[None], state, mask=mask[t : t + 1])
    assert state["output/detail/variance"].sqrt().item() == pytest.approx(0.1, rel=0.25)


def test_the_past_has_no_detail(moving):
    x = gaussian_noise(moving, 0.1, seed=0)
    pasts = [run(Blur(), x, Aligned(recover=each))[1]["output/past"] for each in (False, True)]
    assert torch.equal(*pasts)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_frames_without_noise_train(value):
    model = stabilize(Blur(), {"": Aligned(recover=True, learned=True)}, example=torch.zeros(1, 3, 24, 32)).train()
    y, _ = model(torch.full((1, 4, 3, 24, 32), value))
    y.square().mean().backward()
    for parameter in model.stabilizers.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_another_precision_than_the_inputs(still):
    class Double(Blur):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).double()

    x = gaussian_noise(still[:4], 0.05, seed=0)
    close(
        run(Double(), x, Aligned(recover=True))[0].float(), run(Blur(), x, Aligned(recover=True))[0], atol=1e-4, rtol=0
    )


def test_a_task_that_does_not_denoise_has_no_such_adapter():
    with pytest.raises(InputError, match="The task 'enhance' has no adapter 'aligned-recover'"):
        load_task("enhance", "aligned-recover")
