"""How much of the slower of decoding and encoding `run` keeps, with a model that costs nothing, and how fast
`--task none` (no network, aligned) is. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/run_speed.py

A 720p H.264 clip with moving texture and sensor noise; decoder, model and encoder (x264 veryfast) have one thread each.
"explain" writes the second video as well.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn

from unflicker.cli import tune_process
from unflicker.model import StabilizedModel
from unflicker.run import run_video
from unflicker.tasks import load_task
from unflicker.video import Frame, VideoInfo, open_reader, open_writer

WIDTH, HEIGHT = 1280, 720


def make_clip(path: Path, frames: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, HEIGHT // 4 + 40, WIDTH // 4 + 40, generator=generator)
    texture = nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1)[0]
    with open_writer(
        path, VideoInfo(WIDTH, HEIGHT, Fraction(25), Fraction(1, 25)), crf=20, preset="veryfast"
    ) as writer:
        for t in range(frames):
            view = texture[:, t % 120 : t % 120 + HEIGHT, t % 150 : t % 150 + WIDTH]
            noisy = view + 0.01 * torch.randn(view.shape, generator=generator)
            writer.write(Frame(noisy, t, Fraction(1, 25)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, aligned = StabilizedModel(nn.Identity(), {}, (), (3, HEIGHT, WIDTH)), load_task("none")
    rates: dict[str, list[float]] = {"decode": [], "encode": [], "run": [], "task_none": [], "explain": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.mp4"
        make_clip(source, arguments.frames)
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            with open_reader(source, threads=1) as reader:
                count = sum(1 for _ in reader)
                info = reader.info
            rates["decode"].append(count / (time.perf_counter() - start))
            with open_reader(source, threads=1) as reader:
                some = [frame for frame, _ in zip(reader, range(30), strict=False)]
            start = time.perf_counter()
            made = Path(folder) / "encoded.mp4"
            with open_writer(made, replace(info), preset="veryfast", threads=1, overwrite=True) as writer:
                for t in range(count):
                    # Forth and back over the frames in memory, so that the encoder always sees small motion.
                    step = t % (2 * len(some) - 2)
                    writer.write(replace(some[min(step, 2 * len(some) - 2 - step)], pts=some[1].pts * t))
            rates["encode"].append(count / (time.perf_counter() - start))
            del some
            for name, each in (("run", model), ("task_none", aligned), ("explain", aligned)):
                result = run_video(
                    each,
                    source,
                    Path(folder) / "out.mp4",
                    explain=name == "explain",
                    threads=1,
                    preset="veryfast",
                    overwrite=True,
                )
                rates[name].append(result.frames / result.seconds)
    best = {name: round(max(values), 1) for name, values in rates.items()}
    kept = best["run"] / min(best["decode"], best["encode"])
    print(json.dumps({"frames_per_second": best, "run_over_slower": round(kept, 2)}, indent=1))


if __name__ == "__main__":
    tune_process()
    main()
