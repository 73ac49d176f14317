"""What the forms of Aligned, and Merged, add to the time of the bundled denoiser. Prints a table, then JSON.

    python benchmarks/cost.py [--sizes 424x240 1280x720] [--frames 16] [--threads 1]

A noisy demo clip (0.1, seed 0). "warm" is the stabilizer by itself, frame after frame, on the network's outputs or, if
it is `Merged`, on its inputs; "behind" is the same right after the network has run and emptied the caches. Each is the
least over the frames, beside the least of the network alone in the same run. Flow is "fast" DIS but for what says
otherwise. Beside it at each size: one bicubic fetch of the frame and one flow at half size, which is what the rule is
made of.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unflicker import Aligned, Merged, stabilize
from unflicker.cli import tune_process
from unflicker.corruptions.noise import gaussian_noise
from unflicker.data.synthetic import demo_clip
from unflicker.flow import fetch, flow
from unflicker.functional import half, luma
from unflicker.stabilizers import Stabilizer
from unflicker.tasks import load_network

FORMS: dict[str, Callable[[], Stabilizer]] = {
    "one source": lambda: Aligned(preset="fast", evidence="output"),
    "both sources": lambda: Aligned(preset="fast"),
    "both, medium flow (the default)": Aligned,
    "both, torch flow": lambda: Aligned(flow="torch"),
    "recover": lambda: Aligned(preset="fast", recover=True),
    "trained tier": lambda: Aligned(preset="fast", recover=True, learned=True),
    "merged": lambda: Merged(preset="fast"),
}
WARM_UP = 4  # frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["424x240", "1280x720"], metavar="WxH")
    parser.add_argument("--frames", type=int, default=16, help=f"of which {WARM_UP} warm up")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.frames <= WARM_UP:
        parser.error(f"--frames must be more than the {WARM_UP} that warm up")
    torch.set_num_threads(arguments.threads)
    found = {}
    for size in arguments.sizes:
        width, height = (int(side) for side in size.split("x"))
        with torch.inference_mode():
            found[size] = measure(height, width, arguments.frames)
        base = found[size]["network alone"]["warm"]
        print(f"{size}: network alone {base:.1f} ms", flush=True)
        for name, row in found[size].items():
            shares = "".join(f", {where} {ms:.1f} ms ({100 * ms / base:.1f} %)" for where, ms in row.items())
            print(f"  {name}{shares}", flush=True)
    print(json.dumps({"threads": arguments.threads, "frames": arguments.frames, "milliseconds": found}, indent=1))


def measure(height: int, width: int, frames: int) -> dict[str, dict[str, float]]:
    """Milliseconds of everything at one size."""
    clip = demo_clip(frames, height, width)
    noisy, network = gaussian_noise(clip, 0.1, seed=0), load_network("denoise")
    outputs = torch.cat([network(frame[None]) for frame in noisy])
    rows = {"network alone": {"warm": least(lambda t: network(noisy[t : t + 1]), frames)}}
    for name, make in FORMS.items():
        rows[name] = {"warm": least(Stream(make(), outputs, noisy), frames)}
    streams = {name: Stream(make(), outputs, noisy) for name, make in FORMS.items()}
    behind: dict[str, list[float]] = {name: [] for name in streams}
    for t in range(frames):
        for name, stream in streams.items():
            network(noisy[t : t + 1])
            behind[name].append(timed(stream, t))
    for name, times in behind.items():
        rows[name]["behind"] = min(times[WARM_UP:])
    small = [half(luma(frame[None])) for frame in clip[:2]]
    moved = flow(small[0], small[1], preset="fast")
    rows["one bicubic fetch"] = {"warm": least(lambda t: fetch(outputs[t : t + 1], moved), frames)}
    rows["one flow, fast"] = {"warm": least(lambda t: flow(small[0], small[1], preset="fast"), frames)}
    return rows


class Stream:
    """A stabilizer on kept outputs of the network, or on its inputs if it is for those, a frame at a time."""

    def __init__(self, stabilizer: Stabilizer, outputs: Tensor, guide: Tensor) -> None:
        before = isinstance(stabilizer, Merged)
        self.frames, self.guide, self.state = guide if before else outputs, guide, None
        self.model = stabilize(nn.Identity(), {"in:" if before else "": stabilizer}, example=outputs[:1])

    def __call__(self, t: int) -> None:
        now = slice(t, t + 1)
        _, self.state = self.model(self.frames[now], self.state, guide=self.guide[now])


def timed(step: Callable[[int], Any], t: int) -> float:
    start = time.perf_counter()
    step(t)
    return 1000 * (time.perf_counter() - start)


def least(step: Callable[[int], Any], frames: int) -> float:
    return min([timed(step, t) for t in range(frames)][WARM_UP:])


if __name__ == "__main__":
    tune_process()
    main()
