"""What recurrence costs in training: a step on clips, against the same frames as one batch of frames without it.

    OMP_NUM_THREADS=1 python benchmarks/training.py

Both do the same work on the same frames, forward and back, through the bundled denoiser and its adapter; in the second
every frame has a past of its own that is given, so that nothing waits for the frame before. The two take turns, and the
least time of each counts. The bar is 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from unflicker import StabilizedModel
from unflicker.cli import tune_process
from unflicker.experiments import build_model
from unflicker.losses import unified_loss
from unflicker.recipes import load_recipe
from unflicker.state import detach

RECIPES = ("learned", "aligned", "aligned-recover", "controlled-small", "spatial-small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clips = torch.rand(arguments.clips, 8, 3, arguments.crop, arguments.crop)
    target = torch.rand_like(clips)
    print(f"{arguments.clips} x 8 frames of {arguments.crop}x{arguments.crop}, one thread; ms: least (median)")
    for name in arguments.recipes:
        model = build_model(load_recipe(name)).train()
        steps = {"clip": recurrent(model, clips, target), "frames": flat(model, clips, target)}
        seconds: dict[str, list[float]] = {each: [] for each in steps}
        for _ in range(arguments.repeats + 1):
            for each, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[each].append(time.perf_counter() - start)
        least = {each: min(found[1:]) for each, found in seconds.items()}
        told = ", ".join(
            f"{each} {1000 * least[each]:.0f} ({1000 * statistics.median(found[1:]):.0f})"
            for each, found in seconds.items()
        )
        print(f"{name}: {told}; ratio {least['clip'] / least['frames']:.2f} (bar 1.5)", flush=True)


def recurrent(model: StabilizedModel, clips: Tensor, target: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        unified_loss(model(clips)[0], target)["total"].backward()

    return step


def flat(model: StabilizedModel, clips: Tensor, target: Tensor) -> Callable[[], None]:
    """The frames of all clips as streams of one frame, each with a state that was made before."""
    frames = clips.flatten(0, 1)
    with torch.no_grad():
        state = detach(model(frames.roll(1, 0))[1])

    def step() -> None:
        model.zero_grad()
        y, _ = model(frames, state)
        unified_loss(y.unflatten(0, clips.shape[:2]), target)["total"].backward()

    return step


if __name__ == "__main__":
    tune_process()
    main()
