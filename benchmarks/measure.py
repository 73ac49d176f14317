"""Memory of `measure` on long videos, and its speed against decoding. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/measure.py

Memory is the peak of a process that measures 300 and 3,000 frames of 640x360; speed is that of `measure` without flow
over that of reading the same 720p clip.
"""

import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import torch

from unflicker.cli import tune_process
from unflicker.measure import measure_video
from unflicker.video import Frame, VideoInfo, open_reader, open_writer


def make_clip(path: Path, frames: int, width: int, height: int) -> Path:
    texture = torch.rand(3, height + 64, width + 64, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.avg_pool2d(texture[None], 5, 1, 2)[0]
    with open_writer(path, VideoInfo(width, height, Fraction(25), Fraction(1, 25)), preset="ultrafast") as writer:
        for t in range(frames):
            writer.write(Frame(texture[:, t % 64 : t % 64 + height, t % 48 : t % 48 + width], t, Fraction(1, 25)))
    return path


def peak_mib(path: Path) -> int:
    script = (
        "import sys, resource, torch\n"
        "from unflicker.measure import measure_video\n"
        "torch.set_num_threads(1)\n"
        "measure_video(sys.argv[1], with_flow=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    # Started through a shell: a child's peak begins with its parent's.
    arguments = ["sh", "-c", 'exec "$0" "$@"', sys.executable, "-c", script, str(path)]
    return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clips = {frames: make_clip(Path(folder) / f"{frames}.mp4", frames, 640, 360) for frames in (300, 3000)}
        peaks = {frames: peak_mib(path) for frames, path in clips.items()}
        large = make_clip(Path(folder) / "720p.mp4", 150, 1280, 720)
        rates: dict[str, float] = {"decode": 0.0, "measure": 0.0}
        for _ in range(3):
            start = time.perf_counter()
            with open_reader(large) as reader:
                count = sum(1 for _ in reader)
            rates["decode"] = max(rates["decode"], count / (time.perf_counter() - start))
            start = time.perf_counter()
            measure_video(large, with_flow=False)
            rates["measure"] = max(rates["measure"], count / (time.perf_counter() - start))
    print(
        json.dumps(
            {
                "peak_mib": peaks,
                "peak_ratio": round(peaks[3000] / peaks[300], 2),
                "frames_per_second": {name: round(rate, 1) for name, rate in rates.items()},
                "measure_over_decode": round(rates["measure"] / rates["decode"], 2),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    tune_process()
    main()
