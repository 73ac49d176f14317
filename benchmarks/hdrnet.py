"""Time of HDRNet's slice against the plain form, and of the whole network. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/hdrnet.py

The plain form makes a map of twelve coefficients at full size with a 5-D `grid_sample`, then multiplies and adds.
Both forms run in one process by turns, under the same allocator, and are compared first. Times are this process's
CPU milliseconds (wall for --threads 2), the least of several runs.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.networks.hdrnet import Curves, HDRNet, slice_and_apply


def plain_slice(grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
    """A map of twelve coefficients at full size, then the product."""
    height, width = image.shape[-2:]
    x, y = ((2 * torch.arange(n, dtype=grid.dtype) + 1) / n - 1 for n in (width, height))
    at = torch.stack([x.expand_as(guide[:, 0]), y[:, None].expand_as(guide[:, 0]), 2 * guide[:, 0] - 1], -1)
    found = F.grid_sample(grid.flatten(1, 2), at[:, None], padding_mode="border", align_corners=False)
    found = found.view(*grid.shape[:3], height, width)
    return (found[:, :, :-1] * image[:, None]).sum(2) + found[:, :, -1]


def plain_curves(curves: Curves, x: Tensor) -> Tensor:
    """Every ramp at full size, then the sum."""
    slopes, shifts = (value.view(1, 3, 1, 1, -1) for value in (curves.slopes, curves.shifts))
    return (slopes * (x.unsqueeze(-1) - shifts).clamp_min(0)).sum(-1)


def least(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least time of each, taken by turns."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                times[name].append(clock() - start)
    return {name: round(1000 * min(taken), 1) for name, taken in times.items()}


def compared(plain: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int) -> dict[str, object]:
    times = least({"plain_ms": plain, "ours_ms": ours}, repeats)
    difference = (plain() - ours()).abs().max().item()
    return {**times, "speedup": round(times["plain_ms"] / times["ours_ms"], 1), "largest_difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="the network through torch.compile as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    report: dict[str, object] = {"threads": arguments.threads}
    net = HDRNet().eval()
    compiled = torch.compile(net)
    for width, height in ((640, 360), (1280, 720), (3840, 2160)):
        grid, guide = torch.randn(1, 3, 4, 8, 16, 16), torch.rand(1, 1, height, width)
        image = torch.rand(1, 3, height, width)
        last = image.contiguous(memory_format=torch.channels_last)
        found: dict[str, object] = {}
        with torch.no_grad():
            found["slice and apply"] = compared(
                lambda g=grid, p=guide, x=image: plain_slice(g, p, x),
                lambda g=grid, p=guide, x=image: slice_and_apply(g, p, x),
                arguments.repeats,
            )
            found["guide curves"] = compared(
                lambda x=image: plain_curves(net.guide.curves, x), lambda x=image: net.guide.curves(x), 2
            )
            found["network"] = least(
                {"planes_ms": lambda x=image: net(x), "channels_last_ms": lambda x=last: net(x)}
                | ({"compiled_ms": lambda x=image: compiled(x)} if arguments.compile else {}),
                arguments.repeats,
            )
        if height <= 720:
            leaves = [grid.requires_grad_(), guide.requires_grad_()]
            found["slice and apply, forward and backward"] = least(
                {
                    "plain_ms": lambda g=leaves, x=image: plain_slice(*g, x).square().mean().backward(),
                    "ours_ms": lambda g=leaves, x=image: slice_and_apply(*g, x).square().mean().backward(),
                },
                arguments.repeats,
            )
        report[f"{width}x{height}"] = found
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
