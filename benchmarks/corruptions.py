"""Frames per second of every corruption at 640 x 360, fed frame by frame as a stream. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/corruptions.py [KIND ...]

Speed is wall time, the best of several passes over 24 frames of the demo clip; `floor` is what the project asks for
on two cores.
"""

import argparse
import json
import time

import torch
from torch import Tensor

from unflicker.corruptions import CORRUPTIONS
from unflicker.data.synthetic import demo_clip

FLOOR = {name: 30 for name in ("jpeg", "h264", "rain", "snow", "fog")}
FRAMES = 24


def frames_per_second(name: str, severity: int, clip: Tensor, repeats: int) -> float:
    corruption = CORRUPTIONS[name](severity=severity)
    corruption(clip[:1])  # the imports
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for t in range(len(clip)):
            corruption(clip[t : t + 1], start=t)
        times.append(time.perf_counter() - start)
    return round(len(clip) / min(times), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clip = demo_clip(FRAMES, 360, 640)
    report: dict[str, object] = {"threads": arguments.threads, "size": "640x360"}
    for name in arguments.kinds or CORRUPTIONS:
        speeds = {f"severity {s}": frames_per_second(name, s, clip, arguments.repeats) for s in (1, 3, 5)}
        report[name] = {**speeds, **({"floor": FLOOR[name]} if name in FLOOR else {})}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
