"""What the ways to optical flow cost, and how well they foretell a frame from the last. Prints a table, then JSON.

    python benchmarks/flow.py --clips FOLDER --videos NAME [NAME ...] [--sigma 0.1] [--threads 1]

Clips at 320x192 (area down-scale) get Gaussian noise (seed 1; 0 for none) and pass the bundled denoiser. The flow from
each of its outputs to the last one, at half size, warps the last clean frame (bicubic); the error is the mean of
min(|warped - clean|, 0.1), times 1000. Milliseconds are the least over runs on two frames of one plane, in turns.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.corruptions.noise import gaussian_noise
from unflicker.data.folder import choose, find_videos, read_clip
from unflicker.flow import flow
from unflicker.tasks import load_task

METHODS: dict[str, Callable[..., Tensor]] = {
    "none": partial(flow, method="none"),
    "dis ultrafast": partial(flow, preset="ultrafast"),
    "dis fast": partial(flow, preset="fast"),
    "dis medium": partial(flow, preset="medium"),
    "torch": partial(flow, method="torch"),
}
SIZES = ((96, 160), (120, 212), (360, 640))


def milliseconds(runs: int) -> dict[str, dict[str, float]]:
    """Time every method on smooth textures that move by two pixels."""
    best: dict[str, dict[str, float]] = {name: {} for name in METHODS}
    for height, width in SIZES:
        noise = torch.rand(1, 1, height + 4, width + 4, generator=torch.Generator().manual_seed(0))
        plane = F.avg_pool2d(noise, 5, 1)
        a, b = plane[..., 1:], plane[..., :-1]
        size = f"{width}x{height}"
        for _ in range(runs):
            for name, method in METHODS.items():
                start = time.perf_counter()
                method(a, b)
                taken = 1000 * (time.perf_counter() - start)
                best[name][size] = min(taken, best[name].get(size, taken))
    return best


def warp_bicubic(image: Tensor, flow: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    x = (2 * (torch.arange(width) + flow[:, 0]) + 1) / width - 1
    y = (2 * (torch.arange(height)[:, None] + flow[:, 1]) + 1) / height - 1
    return F.grid_sample(image, torch.stack([x, y], -1), "bicubic", "border", align_corners=False)


def errors(clean: Tensor, outputs: Tensor) -> dict[str, float]:
    """Mean clipped error, times 1000, of each method over the pairs of a clip (T, 3, H, W)."""
    totals = dict.fromkeys(METHODS, 0.0)
    for t in range(1, len(clean)):
        for name, method in METHODS.items():
            found = method(outputs[t, None], outputs[t - 1, None], scale=0.5)
            off = (warp_bicubic(clean[t - 1, None], found) - clean[t]).abs().clamp_max(0.1)
            totals[name] += 1000 * float(off.mean()) / (len(clean) - 1)
    return totals


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--videos", nargs="*", help="names without extension; all of the folder unless given")
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=30, help="of each clip")
    parser.add_argument("--runs", type=int, default=20, help="of each timing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    videos = find_videos(arguments.clips)
    chosen = choose(videos, arguments.videos) if arguments.videos else videos
    denoiser = load_task("denoise", "none")
    clips = {}
    for video in chosen:
        clean = read_clip(video, size=(192, 320), frames=arguments.frames).float() / 255
        noisy = gaussian_noise(clean, arguments.sigma, seed=1)
        outputs = torch.cat([denoiser(frame[None])[0] for frame in noisy]) if arguments.sigma else clean
        clips[video.stem] = errors(clean, outputs)
    times = milliseconds(arguments.runs)
    means = {name: sum(clip[name] for clip in clips.values()) / len(clips) for name in METHODS}
    print("| method | " + " | ".join(f"ms {size}" for size in times["none"]) + " | error | " + " | ".join(clips) + " |")
    print("|---" * (len(SIZES) + 2 + len(clips)) + "|")
    for name in METHODS:
        cells = [*(f"{value:.2f}" for value in times[name].values()), f"{means[name]:.2f}"]
        print("| " + " | ".join([name, *cells, *(f"{clip[name]:.2f}" for clip in clips.values())]) + " |")
    print(json.dumps({"settings": vars(arguments), "ms": times, "error": means, "clips": clips}, indent=1, default=str))


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
