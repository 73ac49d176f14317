"""Train the networks and adapters that come with unflicker, from a folder of clean clips.

    python examples/train_bundled.py --clips FOLDER --out weights/ [--stage base heavy spatial learned-ema ...]

Stages build on one another: `base` is a small NAFNet for Gaussian noise of any strength up to 0.2, `heavy` the same
network fine-tuned for 0.6, on single frames, then on averages of up to 16; `spatial`, `learned-ema` and `aligned` are
adapters for the frozen base. On one core of a laptop they take about an hour, 40 minutes, half an hour, ten and twenty
minutes. Copy the result over src/unflicker/weights to ship it. Meanwhile the
decoded clips take up to CACHE_GIB of the disk.

The clips named in TEST are never touched, those in VALIDATION only measured on. In a folder that has none of these
names the last fifth of the clips is for validation.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from unflicker import Aligned, Controller, LearnedEMA, Merged, Spatial, StabilizedModel, save_adapter, stabilize
from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.corruptions.noise import gaussian_noise
from unflicker.data.base import FileVideo, Recording
from unflicker.data.cache import cached
from unflicker.data.clips import ClipDataset, load
from unflicker.data.folder import find_videos, read_clip
from unflicker.metrics.quality import psnr
from unflicker.metrics.temporal import temporal_difference_error
from unflicker.tasks import SMALL_NAFNET
from unflicker.training import fit

TEST = (
    "sam2_blocks sam2_coffee mdn_stream ax_london_pan_a ax_london_pan_b intel_cars_topdown tos_organ_rope bbb_bunny"
).split()
VALIDATION = "sam2_cups ax_rooftop_360p tos_tower intel_asl_sister udacity_highway_a udacity_highway_b".split()
LIGHT, HEAVY = 0.2, 0.6
SEED = 0
CACHE_GIB = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of clean videos")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--stage", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--steps", type=int, help="instead of each stage's own number, to try things out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small crops: a second thread costs more than it gives
    videos = [video for video in find_videos(arguments.clips) if video.stem not in TEST]
    if len(videos) < 2:
        raise SystemExit(f"{arguments.clips} needs two videos or more: one to train on, one to measure on.")
    held_out = [video for video in videos if video.stem in VALIDATION] or videos[-max(1, len(videos) // 5) :]
    training = [video for video in videos if video not in held_out]
    validation = [read_clip(v, size=(192, 320), frames=40).float() / 255 for v in held_out]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as decoded:  # twenty thousand small crops are quicker read than decoded
        recordings = cached([Recording(FileVideo(v)) for v in training], decoded, limit_gib=CACHE_GIB)
        for stage in arguments.stage:
            torch.manual_seed(SEED)
            train, steps = STAGES[stage]
            train(arguments.out, recordings, validation, steps if arguments.steps is None else arguments.steps)


def add_noise(clean: Tensor, sigmas: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Add noise of one strength per clip, drawn between `sigmas`, and clip to [0, 1] as a camera does."""
    low, high = sigmas
    sigma = low + (high - low) * torch.rand(len(clean), *(1,) * (clean.ndim - 1), generator=generator)
    return (clean + sigma * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def average_noise(clean: Tensor, sigmas: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Average 1 to 16 noisy frames of a still picture, fewer of them in some places than in others, as `Merged` does.

    How much clipping shifts what is dark or bright depends on the noise of one frame, and stays.
    """
    low, high = sigmas
    averages = []
    for picture in clean:
        sigma, count, part, across = torch.rand(4, generator=generator).tolist()
        count = int(17**count)
        few = max(1, int(count * part))
        sigma = low + (high - low) * sigma
        frames = (picture + sigma * torch.randn((count, *picture.shape), generator=generator)).clamp(0, 1)
        places = torch.rand(1, 1, 3 + int(6 * across), 4, generator=generator)
        places = F.interpolate(places, picture.shape[-2:], mode="bicubic")[0].mul(8).sub(3.5).clamp(0, 1)
        averages.append(torch.lerp(frames.mean(0), frames[:few].mean(0), places))
    return torch.stack(averages)


def train_network(
    network: torch.nn.Module,
    training: list[Recording],
    sigmas: tuple[float, float],
    steps: int,
    rate: float,
    noise: Callable[[Tensor, tuple[float, float], torch.Generator], Tensor] = add_noise,
) -> None:
    """Train a frame-wise denoiser: mean log MSE, so that weak and strong noise count alike."""
    dataset = ClipDataset(training, length=1, crop=96, scales=(1.0, 0.6, 0.4), seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.9), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 200) * (0.001 + 0.999 * (1 + math.cos(math.pi * i / steps)) / 2)
    )
    total, start = 0.0, time.time()
    for step, clips in enumerate(load(dataset, batch=4, steps=steps), start=1):
        clean = clips["target"].squeeze(1)
        noisy = noise(clean, sigmas, generator).contiguous(memory_format=torch.channels_last)
        loss = 10 * (network(noisy) - clean).square().mean((1, 2, 3)).add(1e-5).log10().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 500 == 0:
            print(f"{step}: mean loss {total / 500:.2f} dB, {(time.time() - start) / step:.3f} s a step", flush=True)
            total = 0.0
    network.eval().requires_grad_(False)


def train_base(out: Path, training: list[Recording], validation: list[Tensor], steps: int) -> None:
    network = SMALL_NAFNET().to(memory_format=torch.channels_last)
    train_network(network, training, (0.0, LIGHT), steps, rate=1e-3)
    save_file(_plain(network), str(out / "denoise.safetensors"))
    report("base", network, None, validation, 0.1)


def train_heavy(out: Path, training: list[Recording], validation: list[Tensor], steps: int) -> None:
    network = _base(out).to(memory_format=torch.channels_last)
    for noise in (add_noise, average_noise):
        train_network(network, training, (HEAVY, HEAVY), steps, rate=5e-4, noise=noise)
    save_file(_plain(network), str(out / "denoise-heavy.safetensors"))
    model = stabilize(copy.deepcopy(network), {"in:": Merged()}, example=torch.zeros(1, 3, 192, 320))
    report("merged", network, model, validation, HEAVY)


def train_spatial(out: Path, training: list[Recording], validation: list[Tensor], steps: int) -> None:
    plan = {"": Spatial(3, groups=1, hidden=16)}
    model = stabilize(_base(out), plan, controller=Controller(16), example=torch.zeros(1, 3, 192, 320))
    train_adapter(model, out / "denoise" / "spatial", training, validation, steps, rate=2e-3)


def train_learned_ema(out: Path, training: list[Recording], validation: list[Tensor], steps: int) -> None:
    plan = {"": LearnedEMA()}
    model = stabilize(_base(out), plan, example=torch.zeros(1, 3, 192, 320))
    train_adapter(model, out / "denoise" / "learned-ema", training, validation, steps, rate=1e-2)


def train_aligned(out: Path, training: list[Recording], validation: list[Tensor], steps: int) -> None:
    plan = {"": Aligned(learned=True, recover=True)}
    model = stabilize(_base(out), plan, example=torch.zeros(1, 3, 192, 320))
    train_adapter(model, out / "denoise" / "aligned-learned", training, validation, steps, rate=8e-3, crop=96)


def train_adapter(
    model: StabilizedModel,
    folder: Path,
    training: list[Recording],
    validation: list[Tensor],
    steps: int,
    rate: float,
    crop: int = 64,
) -> None:
    """Train on clips of 8 frames with the unified loss, stability weight 0.2; noise is drawn up to LIGHT."""
    dataset = ClipDataset(training, length=8, crop=crop, scales=(0.6, 0.4), seed=SEED)
    generator = torch.Generator().manual_seed(SEED)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for clips in load(dataset, batch=2, steps=steps):
            clean = clips["target"]
            yield add_noise(clean, (0.0, LIGHT), generator), clean

    def say(step: int, terms: dict[str, float]) -> None:
        if step % 100 == 0:
            print(f"{step}: " + ", ".join(f"{name} {value:.4f}" for name, value in terms.items()), flush=True)

    fit(model, batches(), steps=steps, learning_rate=rate, stability=0.2, on_step=say)
    model.eval()
    gains = report(folder.name, copy.deepcopy(model.base), model, validation, 0.1)
    notes = (
        f"Trained with examples/train_bundled.py: {steps} clips of 8 frames twice, {crop}x{crop} pixels, Gaussian "
        f"noise of 0 to {LIGHT:g}, unified loss with stability weight 0.2, seed {SEED}.\n"
        f"On the validation clips at noise 0.1: {gains}.\n"
    )
    save_adapter(model, folder, notes=notes)


def report(
    name: str, base: torch.nn.Module, model: StabilizedModel | None, validation: list[Tensor], sigma: float
) -> str:
    """Print and return what the model does on whole validation clips, against the base alone."""
    rows = []
    for clean in validation:
        noisy = gaussian_noise(clean, sigma, seed=1)
        with torch.inference_mode():
            alone = torch.cat([base(frame[None]) for frame in noisy]).clamp(0, 1)
            steady, state = [], None
            for frame in noisy if model is not None else ():
                y, state = model(frame[None], state)
                steady.append(y)
        rows.append([psnr(alone, clean), temporal_difference_error(alone, clean)])
        if model is not None:
            stable = torch.cat(steady).clamp(0, 1)
            rows[-1] += [psnr(stable, clean), temporal_difference_error(stable, clean)]
    mean = torch.tensor([[float(value) for value in row] for row in rows]).mean(0)
    text = f"base {mean[0]:.2f} dB, temporal-difference error {mean[1]:.4f}"
    if model is not None:
        text += f"; with {name} {mean[2] - mean[0]:+.2f} dB, {100 * (mean[3] / mean[1] - 1):+.1f} %"
    print(f"{name}: {text}", flush=True)
    return text


def _base(out: Path) -> torch.nn.Module:
    file = out / "denoise.safetensors"
    if not file.exists():
        raise InputError(f"{out} has no {file.name}; run --stage base first.")
    network = SMALL_NAFNET()
    network.load_state_dict(load_file(str(file)))
    return network


def _plain(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in network.state_dict().items()}


STAGES = {
    "base": (train_base, 20000),
    "heavy": (train_heavy, 4000),
    "spatial": (train_spatial, 5000),
    "learned-ema": (train_learned_ema, 1000),
    "aligned": (train_aligned, 1500),
}

if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
