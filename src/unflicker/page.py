"""A measurement as a table, as JSON, and as one page that needs nothing but a browser."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.measure import Measurement, Version

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

# name: heading, whether less is better, definition
NUMBERS = {
    "psnr": ("PSNR (dB)", False, "Peak signal-to-noise ratio to the truth, 10 log10(1 / MSE), mean over frames."),
    "temporal_difference_error": (
        "temporal-difference error",
        True,
        "Root mean square of (y_t - y_t-1) - (truth_t - truth_t-1): what changes and should not, and the reverse.",
    ),
    "flicker": (
        "flicker",
        True,
        "Root mean square of y_t - (warp(y_t-1) + warp(y_t+1)) / 2 over pixels whose optical flow can be trusted, "
        "divided by sqrt(3/2): independent noise reads as its standard deviation. Slow drifts pass; motion that the "
        "flow misses counts. It compares versions of one video, not videos.",
    ),
    "warping_error": (
        "warping error",
        True,
        "Mean square of y_t - warp(y_t+1) over pixels whose flow can be trusted (Lai et al. 2018).",
    ),
    "instability": (
        "instability",
        True,
        "Root mean square of y_t - y_t-1 per value, mean over pairs. True motion counts too: compare with the truth's.",
    ),
}
COLOURS = ("#1f77b4", "#d62728", "#000000")


def table(measurement: Measurement) -> Table:
    """Make a table with one row for each version."""
    from rich.table import Table

    shown = _shown(measurement)
    result = Table()
    result.add_column("")
    for name in shown:
        result.add_column(NUMBERS[name][0], justify="right")
    for version in measurement.versions:
        result.add_row(version.name, *(_number(version, name) for name in shown))
    return result


def write_json(measurement: Measurement, path: str | Path) -> None:
    """Write all numbers and curves; a value that does not exist is null."""
    data = {
        "unflicker": importlib.metadata.version("unflicker"),
        "frames": measurement.frames,
        "width": measurement.width,
        "height": measurement.height,
        "with_flow": measurement.with_flow,
        "damage": measurement.damage,
        "notes": measurement.notes,
        "seconds": measurement.seconds,
        "versions": {
            version.name: {"numbers": version.numbers, "curves": version.curves} for version in measurement.versions
        },
    }
    _write(Path(path), json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_page(measurement: Measurement, folder: str | Path) -> Path:
    """Write `index.html` into a folder, made if need be: one page with all pictures in it.

    Raises:
        InputError: the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from error
    path = folder / "index.html"
    _write(path, _page(measurement))
    return path


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}).") from error


def _page(measurement: Measurement) -> str:
    first, shown = measurement.versions[0], _shown(measurement)
    title = html.escape(f"How steady is {Path(first.name).name}?")
    head = "".join(f"<th>{NUMBERS[name][0]}</th>" for name in shown)
    rows = "".join(
        f"<tr><th>{html.escape(Path(version.name).name)}</th>"
        + "".join(f"<td>{_number(version, name)}</td>" for name in shown)
        + "</tr>"
        for version in measurement.versions
    )
    damage = "".join(f"<p class=warning>{html.escape(line)}</p>" for line in [*measurement.damage, *measurement.notes])
    definitions = "".join(
        f"<dt>{NUMBERS[name][0]} ({'less' if NUMBERS[name][1] else 'more'} is better)</dt><dd>{NUMBERS[name][2]}</dd>"
        for name in shown
    )
    what = "flicker" if measurement.with_flow else "change from frame to frame"
    hottest = max(version.heat.max().item() for version in measurement.versions if version.heat is not None)
    places = "".join(_places(version, what, hottest) for version in measurement.versions)
    worst = "".join(_worst(version, measurement) for version in measurement.versions[:1])
    version = importlib.metadata.version("unflicker")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child {{ text-align: left }} img {{ max-width: 100% }} figure {{ margin: 1rem 0 }}
figcaption, dd {{ color: #555 }}
.row {{ display: flex; flex-wrap: wrap; gap: 1rem }} .row figure {{ flex: 1 1 20rem }} .warning {{ color: #a00 }}
</style>
<h1>{title}</h1>
<p>{measurement.frames} frames of {measurement.width} x {measurement.height} pixels,
{measurement.seconds[-1] - measurement.seconds[0]:.1f} seconds.</p>{damage}
<table><tr><th></th>{head}</tr>{rows}</table>
<h2>Over time</h2>{_image(_curves(measurement, shown))}
<h2>Where</h2>{places}
<h2>The worst moments of {html.escape(Path(first.name).name)}</h2>{worst}
<h2>What the numbers mean</h2><dl>{definitions}</dl>
<p>Values are RGB in [0, 1]. Measured with unflicker {version}.</p>
</html>
"""


def _curves(measurement: Measurement, shown: list[str]) -> Figure:
    figure, axes = _figure(11, 2.2 * len(shown), len(shown))
    for name, panel in zip(shown, axes, strict=True):
        for version, colour in zip(measurement.versions, COLOURS, strict=False):
            values = version.curves.get(name)
            if values:
                y = [float("nan") if value is None else value for value in values]
                panel.plot(measurement.seconds, y, color=colour, linewidth=1.2, label=Path(version.name).name)
        panel.set_title(NUMBERS[name][0], loc="left", fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9")
        if name != "psnr":
            panel.set_ylim(bottom=0)
    handles, names = axes[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False)
    axes[-1].set_xlabel("seconds")
    return figure


def _places(version: Version, what: str, hottest: float) -> str:
    assert version.heat is not None and version.rows is not None and version.columns is not None
    name = html.escape(Path(version.name).name)
    pictures = [
        (
            _pixels(coloured(version.heat, 0.0, hottest)),
            f"{name}: {what}, root mean square over time, from 0 (black) to {hottest:.4f} (yellow)",
        ),
        (_pixels(_stretched(version.rows)), "the middle row of pixels; time runs down"),
        (_pixels(_stretched(version.columns).swapaxes(0, 1)), "the middle column of pixels; time runs to the right"),
    ]
    figures = "".join(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>" for picture, caption in pictures)
    return f"<div class=row>{figures}</div>"


def coloured(values: Tensor, low: float, high: float) -> np.ndarray:
    """Show values (h, w) as colours (h, w, 3) bytes: black at `low` and below, over red to yellow at `high` and above.

    >>> dark, bright = coloured(torch.tensor([[0.25, 0.75]]), 0.25, 0.75)[0]
    >>> int(dark.sum()) < 20, int(bright.sum()) > 600
    (True, True)
    """
    from matplotlib import colormaps

    share = (values - low) / ((high - low) or 1.0)
    return (colormaps["inferno"](share.clamp(0, 1).numpy())[..., :3] * 255).astype(np.uint8)


def _stretched(moments: Tensor) -> np.ndarray:
    """Repeat the moments of a short video, so that its picture (moments, n, 3) is not a thin stripe."""
    return moments.repeat_interleave(max(1, 240 // len(moments)), 0).numpy()


def _worst(version: Version, measurement: Measurement) -> str:
    top = max((energy.max().item() for _, _, energy in version.worst), default=0.0) or 1.0
    figures = ""
    for number, frame, energy in version.worst:
        both = torch.cat([frame.clamp(0, 1), (energy / top).clamp(0, 1).expand(3, -1, -1)], 1)
        picture = _pixels(both.mul(255).byte().permute(1, 2, 0).numpy())
        figures += (
            f"<figure>{picture}<figcaption>frame {number}, {measurement.seconds[number]:.2f} s</figcaption></figure>"
        )
    return f"<div class=row>{figures}</div><p>Below each frame: what changed in it, on one scale.</p>"


def _figure(width: float, height: float, rows: int) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]


def _image(figure: Figure) -> str:
    return _embedded(lambda file: figure.savefig(file, format="png", dpi=110))


def _pixels(picture: np.ndarray) -> str:
    from matplotlib.image import imsave

    return _embedded(lambda file: imsave(file, np.ascontiguousarray(picture), format="png"))


def _embedded(save: Callable[[io.BytesIO], object]) -> str:
    file = io.BytesIO()
    save(file)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _shown(measurement: Measurement) -> list[str]:
    return [name for name in NUMBERS if any(name in version.numbers for version in measurement.versions)]


def _number(version: Version, name: str) -> str:
    value = version.numbers.get(name)
    return "-" if value is None else f"{value:.2f}" if name == "psnr" else f"{value:.5f}"
