"""How much of the speed of `run` without writing an evaluation keeps, and what the slower metrics cost. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py CLIP [--frames 40] [--size 192 320]

Both take the clip through the bundled denoiser with one adapter, from the file, in the same process; `run` looks for
scene cuts, the evaluation measures PSNR, instability and temporal-difference error. The least of several turns counts.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.data.base import FileVideo, Recording
from unflicker.evaluation import evaluate
from unflicker.model import StabilizedModel
from unflicker.rendering import Renderer
from unflicker.run import Moment, _infer, _with_cuts
from unflicker.scores import fitting
from unflicker.tasks import load_task
from unflicker.video.ahead import read_ahead
from unflicker.video.base import Frame
from unflicker.video.reader import open_reader


def run(model: StabilizedModel, path: Path, frames: int, size: tuple[int, int] | None) -> None:
    def resized(reader: Iterator[Frame]) -> Iterator[Frame]:
        for frame in islice(reader, frames):
            data = frame.data if size is None else F.interpolate(frame.data[None], size=size, mode="area")[0]
            yield replace(frame, data=data)

    with open_reader(path) as reader:
        shots = _with_cuts(resized(iter(reader)))
        with closing(read_ahead(Moment(frame, None, cut) for frame, cut in shots)) as ahead:
            for _ in _infer(model, Renderer(), ahead, strength=1.0, compare=False, explain=False):
                pass


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, help="height and width; the clip's own unless given")
    arguments = parser.parse_args()
    size = tuple(arguments.size) if arguments.size else None
    recordings = [Recording(FileVideo(arguments.clip))]
    measure = partial(evaluate, size=size, frames=arguments.frames)
    result: dict[str, object] = {}
    costs: dict[str, float] = {}
    for adapter in ("ema", "aligned-learned"):
        model = load_task("denoise", adapter)
        best = {"run": float("inf"), "evaluate": float("inf"), "with base": float("inf")}
        for _ in range(arguments.repeats):
            taken = {
                "run": seconds(lambda m=model: run(m, arguments.clip, arguments.frames, size)),
                "evaluate": seconds(lambda m=model: measure(m.base, recordings, {"it": m}, with_base=False)),
                "with base": seconds(lambda m=model: measure(m.base, recordings, {"it": m})),
            }
            best = {name: min(best[name], value) for name, value in taken.items()}
        result[adapter] = {
            "ms a frame": {name: round(1000 * value / arguments.frames, 1) for name, value in best.items()},
            "evaluate over run": round(best["run"] / best["evaluate"], 3),
            "with the base's numbers too, over run": round(best["run"] / best["with base"], 3),
        }
        found = measure(model.base, recordings, {"it": model}, metrics=fitting("pictures"))
        costs = found.metric_milliseconds
    result["ms a frame of each metric, all asked for, two methods"] = {k: round(v, 2) for k, v in costs.items()}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    tune_process()
    torch.set_num_threads(1)
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
