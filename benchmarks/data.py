"""Whether data keeps up with training: the share of step time that is compute, with workers that decode and cut clips.

    OMP_NUM_THREADS=1 python benchmarks/data.py --clips FOLDER [--without NAME ...] [--workers 2] [--steps 12]

A step trains an adapter at the output of the bundled denoiser on noisy clips of 8 frames of 256x256 pixels, cut from
videos of 480 lines or so, whole or scaled to 0.6, with one thread. The ways to load take turns, each time for some
steps, after one that is not counted. "waiting" is the share of step time in which the step waits for its clips;
"compute" is the rest. "of alone" is what a step takes on clips that are in memory, with nothing else running, against
all of the step: where there are fewer cores than workers and steps, decoding slows the computing down, and that shows
here alone. "clip" is what it takes to make one, without workers. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from unflicker import Aligned, LearnedEMA, StabilizedModel, stabilize
from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.data.base import Recording
from unflicker.data.cache import cached
from unflicker.data.clips import ClipDataset, load
from unflicker.data.folder import open_folder
from unflicker.losses import unified_loss
from unflicker.tasks import load_network

LENGTH, CROP, SCALES, NOISE = 8, 256, (1.0, 0.6), "gaussian_noise:ivm-moderate"
ADAPTERS = {"aligned": lambda: Aligned(learned=True), "learned-ema": LearnedEMA}
ROUNDS = 3
Step = Callable[[dict[str, Tensor]], None]


def make_step(adapter: str) -> Step:
    """One step of training, as `fit` does it."""
    example = torch.zeros(1, 3, CROP, CROP)
    model: StabilizedModel = stabilize(load_network("denoise"), {"": ADAPTERS[adapter]()}, example=example).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(clips: dict[str, Tensor]) -> None:
        preds, _ = model(clips["input"])
        optimizer.zero_grad()
        unified_loss(preds, clips["target"], stability=0.2)["total"].backward()
        optimizer.step()

    return step


def timed(step: Step, batches: Iterator[dict[str, Tensor]]) -> list[tuple[float, float]]:
    """Seconds of waiting and of computing of each step but the first."""
    times = []
    while True:
        start = time.perf_counter()
        clips = next(batches, None)
        if clips is None:
            return times[1:]
        came = time.perf_counter()
        step(clips)
        times.append((came - start, time.perf_counter() - came))


def dataset(recordings: list[Recording]) -> ClipDataset:
    return ClipDataset(recordings, length=LENGTH, crop=CROP, scales=SCALES, corruptions=[NOISE])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of videos of 480 lines or so")
    parser.add_argument("--without", nargs="*", default=[], help="names to leave out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="counted steps of each round")
    parser.add_argument("--adapters", nargs="+", default=list(ADAPTERS), choices=list(ADAPTERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recordings, damaged = open_folder(arguments.clips, without=arguments.without)
    large = [each for each in recordings if min(each.frames.height, each.frames.width) * min(SCALES) >= CROP]
    with tempfile.TemporaryDirectory() as folder:
        ways = {"no cache": dataset(large), "cache": dataset(cached(large, folder, limit_gib=16))}
        clip_seconds = {}
        for name, each in ways.items():
            for recording in each.recordings:
                recording.frames.read([0])  # what is kept is written before the clock runs
            start = time.perf_counter()
            for i in range(20):
                each[10**6 + i]
            clip_seconds[name] = (time.perf_counter() - start) / 20
        results = {adapter: measure(make_step(adapter), ways, arguments) for adapter in arguments.adapters}
    print("| adapter | clips from | s a step | s alone | waiting | compute | of alone | s a clip |")
    print("|---|---|---|---|---|---|---|---|")
    for adapter, rows in results.items():
        for name, row in rows.items():
            clip = f"{clip_seconds[name]:.2f}" if name in clip_seconds else ""
            print(
                f"| {adapter} | {name} | {row['step']:.2f} | {row['alone']:.2f} | {row['waiting']:.1%} | "
                f"{1 - row['waiting']:.1%} | {row['alone'] / row['step']:.1%} | {clip} |"
            )
    settings = {**vars(arguments), "videos": len(large), "damaged": len(damaged), "cores": os.cpu_count()}
    print(json.dumps({"settings": settings, "clip_seconds": clip_seconds, "results": results}, indent=1, default=str))


def measure(step: Step, ways: dict[str, ClipDataset], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Mean seconds of a step for each way to load, and the share of waiting in them."""
    kept = next(load(ways["cache"], batch=arguments.batch, steps=1))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*ways, "cache, no workers")}
    alone: list[float] = []
    for _ in range(ROUNDS):
        alone += [compute for _, compute in timed(step, iter([kept] * 6))]
        for name in times:
            plain = name.removesuffix(", no workers")
            batches = load(
                ways[plain],
                batch=arguments.batch,
                steps=arguments.steps + 1,
                workers=arguments.workers if plain == name else 0,
            )
            times[name] += timed(step, batches)
    return {
        name: {
            "step": statistics.mean(wait + compute for wait, compute in found),
            "alone": statistics.mean(alone),
            "waiting": sum(wait for wait, _ in found) / sum(wait + compute for wait, compute in found),
        }
        for name, found in times.items()
    }


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
