"""What the bundled adapters gain and cost on clean clips with Gaussian noise added. Prints a table, then JSON.

    python benchmarks/denoise.py --clips FOLDER --videos NAME [NAME ...] [--sigma 0.1] [--threads 1]

Whole clips at 320x192 (area down-scale), noise seed 1, each clip one stream. PSNR in dB; TDE is the temporal-difference
error, the RMS of (y_t - y_t-1) - (truth_t - truth_t-1); both as change against the base on the same frames.
Milliseconds are the least of each model's frames, the models taking turns.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.corruptions.noise import gaussian_noise
from unflicker.data.folder import choose, find_videos, read_clip
from unflicker.metrics.quality import psnr
from unflicker.metrics.temporal import instability, temporal_difference_error
from unflicker.model import StabilizedModel
from unflicker.tasks import TASKS, load_task


def run(models: dict[str, StabilizedModel], noisy: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Take a clip (T, 3, H, W) through every model as one stream: outputs, and the least milliseconds a frame."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in models}
    states: dict[str, object] = dict.fromkeys(models)
    times = dict.fromkeys(models, float("inf"))
    for frame in noisy:
        for name, model in models.items():
            start = time.perf_counter()
            with torch.inference_mode():
                y, states[name] = model(frame[None], states[name])
            times[name] = min(times[name], 1000 * (time.perf_counter() - start))
            outputs[name].append(y[0].clamp(0, 1))
    return {name: torch.stack(frames) for name, frames in outputs.items()}, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--videos", nargs="*", help="names without extension; all of the folder unless given")
    parser.add_argument("--task", default="denoise", choices=list(TASKS))
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, help="of each clip; all unless given")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = ["none", *(name for name in TASKS[arguments.task].adapters if name != "none")]
    models = {name: load_task(arguments.task, name) for name in names}
    videos = find_videos(arguments.clips)
    results = {}
    print("| clip | base dB | base TDE |" + "".join(f" {name} |" for name in names[1:]))
    print("|---" * (len(names) + 2) + "|")
    for video in choose(videos, arguments.videos) if arguments.videos else videos:
        clean = read_clip(video, size=(192, 320), frames=arguments.frames).float() / 255
        outputs, times = run(models, gaussian_noise(clean, arguments.sigma, seed=1))
        results[video.stem] = {
            name: {
                "psnr": float(psnr(output, clean)),
                "tde": float(temporal_difference_error(output, clean)),
                "instability": float(instability(output, normalized=True)),
                "ms": times[name],
            }
            for name, output in outputs.items()
        }
        base = results[video.stem]["none"]
        cells = [_change(results[video.stem][name], base) for name in names[1:]]
        print(f"| {video.stem} | {base['psnr']:.2f} | {base['tde']:.4f} | " + " | ".join(cells) + " |", flush=True)
    mean = {
        name: {key: sum(r[name][key] for r in results.values()) / len(results) for key in ("psnr", "tde", "ms")}
        for name in names
    }
    gains = {
        name: {
            "psnr_gain": mean[name]["psnr"] - mean["none"]["psnr"],
            "tde_change_percent": sum(100 * (r[name]["tde"] / r["none"]["tde"] - 1) for r in results.values())
            / len(results),
            "time_ratio": mean[name]["ms"] / mean["none"]["ms"],
        }
        for name in names[1:]
    }
    cells = [f"{g['psnr_gain']:+.2f} dB, {g['tde_change_percent']:+.1f} %" for g in gains.values()]
    print(f"| mean | {mean['none']['psnr']:.2f} | {mean['none']['tde']:.4f} | " + " | ".join(cells) + " |")
    print(json.dumps({"settings": vars(arguments), "gains": gains, "clips": results}, indent=1, default=str))


def _change(row: dict[str, float], base: dict[str, float]) -> str:
    return f"{row['psnr'] - base['psnr']:+.2f} dB, {100 * (row['tde'] / base['tde'] - 1):+.1f} %"


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
