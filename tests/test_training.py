"""The loss, fit, and the networks that come with the package."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unflicker.checks import InputError
from unflicker.losses import rmse, unified_loss
from unflicker.model import stabilize
from unflicker.networks.nafnet import NAFNet
from unflicker.stabilizers import EMA, LearnedEMA, Spatial
from unflicker.tasks import TASKS, WEIGHTS, load_network, load_task
from unflicker.training import fit


def test_the_loss_is_the_sum_over_time_written_as_a_loop():
    preds, target = torch.rand(2, 2, 5, 3, 6, 7)
    expected = 0.0
    for b in range(2):
        for t in range(5):
            expected += ((preds[b, t] - target[b, t]) ** 2).mean().add(1e-6).sqrt() / (2 * 5)
            if t:
                expected += 0.3 * ((preds[b, t] - preds[b, t - 1]) ** 2).mean().add(1e-6).sqrt() / (2 * 5)
    assert torch.isclose(unified_loss(preds, target, stability=0.3)["total"], expected)
    assert rmse(preds, target).shape == (2, 5)


def test_the_loss_refuses_frames():
    with pytest.raises(InputError, match=r"preds.shape = torch.Size\(\[3, 4, 4\]\)"):
        unified_loss(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))


def test_fit_learns_to_trust_a_still_past():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 1, 3, 12, 12, generator=generator).expand(2, 8, 3, 12, 12)

    def batches():
        while True:
            yield clean + 0.1 * torch.randn(clean.shape, generator=generator), clean

    model = stabilize(nn.Identity(), {"": LearnedEMA()}, example=clean[:, 0])
    history = fit(model, batches(), steps=60, learning_rate=0.2)
    assert history[-1]["total"] < 0.75 * history[0]["total"]
    assert torch.sigmoid(model.stabilizers["output"].logit).min() > 0.5


def test_fit_leaves_the_base_alone():
    base = nn.Conv2d(3, 3, 1)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    clip = torch.rand(1, 4, 3, 16, 16)
    model = stabilize(base, {"": Spatial(3, hidden=4)}, example=clip[:, 0])
    fit(model, [(clip, clip)] * 3, steps=3, learning_rate=0.1)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert all(p.grad is None for p in base.parameters())


def test_what_fit_refuses():
    clip = torch.rand(1, 2, 3, 8, 8)
    with pytest.raises(InputError, match="nothing to train"):
        fit(stabilize(nn.Identity(), {"": EMA()}, example=clip[:, 0]), [(clip, clip)], steps=1)
    model = stabilize(nn.Identity(), {"": LearnedEMA()}, example=clip[:, 0])
    with pytest.raises(InputError, match="ended after 1 of 2 steps"):
        fit(model, [(clip, clip)], steps=2)
    with pytest.raises(FloatingPointError, match="at step 1"):
        fit(model, [(clip, clip * float("nan"))], steps=1)


def test_fit_gives_the_mode_back_after_an_error():
    clip = torch.rand(1, 2, 3, 8, 8)
    model = stabilize(nn.Identity(), {"": LearnedEMA()}, example=clip[:, 0]).eval()
    with pytest.raises(FloatingPointError):
        fit(model, [(clip, clip * float("nan"))], steps=1)
    assert not model.training


def test_an_adapter_for_other_weights_of_the_same_shape_is_told_of():
    with pytest.warns(UserWarning, match="trained for a NAFNet of this shape with other weights"):
        load_task("denoise-heavy", WEIGHTS / "denoise" / "spatial")


def test_nafnet_is_the_published_one():
    assert round(sum(p.numel() for p in NAFNet().parameters()) / 1e6, 2) == 29.16  # million


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (24, 32)])
def test_nafnet_takes_any_size(size):
    net = NAFNet(8, (1, 1), 1, (1, 1))
    assert net(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.weights or name == "none"])
def test_every_task_loads_with_every_adapter(name):
    frame = torch.rand(1, 3, 24, 32)
    base = load_network(name)
    for adapter in ("default", *TASKS[name].adapters):
        model = load_task(name, adapter)
        with torch.no_grad():
            y, state = model(frame)
            assert torch.equal(y, base(frame))
            model(frame, state)
    assert not any(p.requires_grad for p in base.parameters())


def test_the_bundled_weights_are_small_and_told_of():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12 * 2**20
    for name in TASKS:
        assert sum(path.stat().st_size for path in files if name in (path.stem, path.parent.parent.name)) < 3 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    for name, task in TASKS.items():
        if not task.weights:
            continue
        parameters = sum(value.numel() for value in load_file(WEIGHTS / f"{name}.safetensors").values())
        assert 0.3e6 < parameters < 0.6e6
        for adapter in task.trained:
            assert json.loads((WEIGHTS / name / adapter / "adapter.json").read_text())["format"] == 1


def test_the_denoiser_denoises():
    from unflicker.corruptions.noise import gaussian_noise
    from unflicker.data.synthetic import demo_clip
    from unflicker.metrics.quality import psnr

    clean = demo_clip(3, 96, 160)
    for name, sigma, gain in (("denoise", 0.1, 6), ("denoise-heavy", 0.6, 9)):
        noisy = gaussian_noise(clean, sigma, seed=0)
        with torch.no_grad():
            y = load_network(name)(noisy).clamp(0, 1)
        assert psnr(y, clean) > psnr(noisy, clean) + gain
