"""What a network costs with all of its stabilizers switched off (`model.disabled()`): at most 1.03 times itself.

    python benchmarks/disabled.py [--rounds 40]

For every bundled task, with its default adapter and with the papers' layers: the network alone and the model that does
nothing take turns on the same frames, after one second of warming up; the ratio of the medians is shown.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from unflicker.cli import tune_process
from unflicker.model import StabilizedModel
from unflicker.tasks import TASKS, load_task

SIZE = (192, 320)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    frame = torch.rand(1, 3, *SIZE)
    print(f"{SIZE[1]}x{SIZE[0]}, one thread: milliseconds of the network, and the ratio with everything disabled")
    for name, task in TASKS.items():
        if not task.weights:
            continue
        for what, model in ((task.default, load_task(name)), ("paper", load_task(name, preset="paper"))):
            base, ratio = ratio_of(model, frame, rounds)
            print(f"{name:14} {what:16} {base:7.1f} ms  {ratio:.3f}", flush=True)


def ratio_of(model: StabilizedModel, frame: torch.Tensor, rounds: int) -> tuple[float, float]:
    times: dict[str, list[float]] = {"base": [], "disabled": []}
    with torch.inference_mode(), model.disabled():
        start = time.perf_counter()
        while time.perf_counter() - start < 1:
            model.base(frame)
        for _ in range(rounds):
            for name, run in (("base", model.base), ("disabled", model)):
                start = time.perf_counter()
                run(frame)
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times["base"])
    return 1000 * base, statistics.median(times["disabled"]) / base


if __name__ == "__main__":
    tune_process()
    main()
