"""The demo: a clip with a known truth, made noisy, restored by a network with and without stabilizers; and flicker."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.corruptions.flicker import ToneJitter
from unflicker.corruptions.noise import gaussian_noise
from unflicker.data.synthetic import demo_clip
from unflicker.metrics.quality import psnr
from unflicker.metrics.temporal import instability, temporal_difference_error
from unflicker.report import Row, flicker_figure, side_by_side
from unflicker.state import State

FRAME_RATE = 24
SIGMA = 0.1
FLICKER = 3  # severity
WARM_UP = 3  # frames whose time does not count
FILES = ("side_by_side.mp4", "flicker.png", "report.json")
Progress = Callable[[str, int, int], None]


def demo_models() -> dict[str, nn.Module]:
    """Return the denoiser alone ("base"), with a fixed average of its output, and with three adapters."""
    from unflicker.tasks import load_network, load_task  # only what runs the bundled models needs their weights

    stabilized = {name: load_task("denoise", name) for name in ("aligned", "aligned-learned", "spatial")}
    return {"base": load_network("denoise"), "output EMA": load_task("denoise", "ema"), **stabilized}


def run_demo(
    folder: str | Path,
    *,
    models: Mapping[str, nn.Module] | None = None,
    progress: Progress | None = None,
    frames: int = 64,
    height: int = 192,
    width: int = 320,
    scene: str = "motorcycle",
) -> dict[str, Any]:
    """Run every model on the demo clip with noise of 0.1, frame by frame, and write what came out into a folder.

    side_by_side.mp4 shows the noisy clip, the base, the steadiest of the others and the truth; flicker.png draws the
    flicker over time; report.json holds all numbers, settings and versions. Earlier ones are replaced, all three at
    the end; what else is in the folder stays. At the end the clip itself is made to flicker (`ToneJitter`, no noise),
    and goes through the task "none".

    Args:
        folder: made if need be.
        models: "base" is an image network (B, 3, H, W) -> (B, 3, H, W); all others are stabilized models
            (frame, state) -> (frame, state). Those of `demo_models` unless given. They take turns at each frame, so
            that a busy machine slows all of them alike.
        progress: called with what is being done, how many steps are done, and how many there are.
        frames: of the clip, 2 or more, at 24 a second.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        scene: one of `unflicker.data.synthetic.SCENES`.

    Returns:
        What report.json holds; "rows" has a `Row` for the noisy input and for each model, "flicker" one for the
        flickering clip and one for what the task "none" makes of it. `unflicker.report.table` shows them.

    Raises:
        InputError: the folder cannot be written, "base" is missing, or the clip cannot be made.
    """
    models = demo_models() if models is None else models
    if "base" not in models:
        raise InputError(f"The models must hold 'base', the network alone; got {', '.join(models) or 'none'}.")
    if frames < 2:
        raise InputError(f"The demo needs two frames or more to show flicker, got {frames}.")
    tell = progress or (lambda doing, done, total: None)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".demo-", dir=folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}); choose another folder.") from error
    try:
        tell("filming", 0, frames + 1)
        truth = demo_clip(frames, height, width, scene=scene)
        noisy = gaussian_noise(truth, SIGMA, seed=0)
        outputs, milliseconds = _run(models, noisy, tell)
        tell("writing", frames, frames + 1)
        rows = _rows("noisy input", noisy, "base", outputs, truth, milliseconds)
        report = {
            "rows": rows,
            "flicker": _flicker_rows(truth),
            "truth": {"instability": _number(instability(truth, normalized=True))},
            "instability_norm": {name: _number(instability(clip)) for name, clip in outputs.items()},
            "settings": {
                "clip": {"scene": scene, "frames": frames, "height": height, "width": width, "seed": 0},
                "frame_rate": FRAME_RATE,
                "noise": {"kind": "gaussian", "sigma": SIGMA, "seed": 0},
                "flicker": {"kind": "tone_jitter", "severity": FLICKER, "seed": 0},
                "warm_up_frames": min(WARM_UP, frames - 1),
                "threads": torch.get_num_threads(),
            },
            "versions": {
                "unflicker": importlib.metadata.version("unflicker"),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}",
            },
        }
        best = _steadiest(rows)
        shown = {f"noisy input (sigma {SIGMA})": noisy, "base": outputs["base"], best: outputs[best], "truth": truth}
        side_by_side(shown, part / FILES[0], FRAME_RATE)
        flicker_figure(outputs, truth, part / FILES[1], frame_rate=FRAME_RATE)
        (part / FILES[2]).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        _move_in(part, folder)
        tell("done", frames + 1, frames + 1)
        return report
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _run(models: Mapping[str, nn.Module], noisy: Tensor, tell: Progress) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Stream the clip through each model: outputs (T, 3, H, W) in [0, 1] and the median milliseconds of a frame."""
    frames = len(noisy)
    outputs = {name: torch.empty_like(noisy) for name in models}
    times: dict[str, list[float]] = {name: [] for name in models}
    states: dict[str, State | None] = dict.fromkeys(models)
    with torch.inference_mode():
        for t in range(frames):
            tell("restoring", t, frames + 1)
            for name, model in models.items():
                start = time.perf_counter()
                if name == "base":
                    y = model(noisy[t : t + 1])
                else:
                    y, states[name] = model(noisy[t : t + 1], states[name])
                times[name].append(1000 * (time.perf_counter() - start))
                outputs[name][t] = y[0].clamp(0, 1)
    return outputs, {name: statistics.median(each[min(WARM_UP, frames - 1) :]) for name, each in times.items()}


def _rows(
    source: str,
    clip: Tensor,
    reference: str,
    outputs: dict[str, Tensor],
    truth: Tensor,
    milliseconds: dict[str, float],
) -> list[Row]:
    """Measure the source clip and the outputs, and each output's change against the row called `reference`."""
    rows = [_row(name, each, truth, milliseconds.get(name)) for name, each in {source: clip, **outputs}.items()]
    base = next(row for row in rows if row["name"] == reference)
    for row in rows:
        if row["name"] in outputs and row is not base:
            row["change"] = {
                "psnr": _minus(row["psnr"], base["psnr"]),
                "instability": _percent(row["instability"], base["instability"]),
                "temporal_difference_error": _percent(
                    row["temporal_difference_error"], base["temporal_difference_error"]
                ),
                "milliseconds": _percent(row["milliseconds"], base["milliseconds"]),
            }
    return rows


def _flicker_rows(truth: Tensor) -> list[Row]:
    """Measure what the task "none" takes out of a clip whose tone flickers."""
    from unflicker.tasks import load_task

    flickering = ToneJitter(severity=FLICKER, seed=0)(truth)
    outputs, milliseconds = _run({"deflickered": load_task("none")}, flickering, lambda doing, done, total: None)
    return _rows("flickering", flickering, "flickering", outputs, truth, milliseconds)


def _row(name: str, clip: Tensor, truth: Tensor, milliseconds: float | None) -> Row:
    return {
        "name": name,
        "psnr": _number(psnr(clip, truth)),
        "instability": _number(instability(clip, normalized=True)),
        "temporal_difference_error": _number(temporal_difference_error(clip, truth)),
        "milliseconds": milliseconds,
        "change": None,
    }


def _steadiest(rows: list[Row]) -> str:
    """The name of the stabilized model with the least temporal-difference error, or the base if there is none."""
    errors = [(row["temporal_difference_error"], row["name"]) for row in rows if row["change"] is not None]
    return min(((math.inf if error is None else error, name) for error, name in errors), default=(0.0, "base"))[1]


def _move_in(part: Path, folder: Path) -> None:
    for name in FILES:
        try:
            os.replace(part / name, folder / name)
        except OSError as error:
            raise InputError(f"{folder / name} cannot be replaced ({error.strerror}).") from error


def _number(value: Tensor) -> float | None:
    """A number for JSON, which knows no infinity."""
    return value.item() if torch.isfinite(value) else None


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _percent(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else 100 * (value / base - 1)
