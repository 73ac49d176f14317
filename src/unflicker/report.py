"""Show what a stabilizer did: clips side by side, flicker over time, a table of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.video.base import Frame, VideoInfo
from unflicker.video.writer import open_writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

BAR, GAP = 24, 4  # height of a caption and distance between the clips, in pixels
WINDOW = 30  # frames for which a single pixel is shown
COLOURS = ("#d62728", "#ff9f1c", "#1f77b4", "#2ca02c", "#9467bd", "#17becf", "#8c564b", "#e377c2")


class Row(TypedDict):
    """What was measured for one method; None where it does not apply."""

    name: str
    psnr: float | None
    """dB, over [0, 1]."""
    instability: float | None
    """Root mean square change per value from frame to frame, on the scale of [0, 1]."""
    temporal_difference_error: float | None
    """On the same scale."""
    milliseconds: float | None
    """Median time of a frame."""
    change: dict[str, float | None] | None
    """Against the base: `psnr` in dB, the others in percent."""


def side_by_side(clips: Mapping[str, Tensor], path: str | Path, frame_rate: float | Fraction) -> None:
    """Write a video that shows clips beside each other, each with its name above; a file at `path` is replaced.

    Args:
        clips: captions and clips (T, 3, H, W) in [0, 1], all of one shape; from left to right.
        path: ends in .mp4, .mov or .mkv.
        frame_rate: frames a second.

    Raises:
        InputError: the clips are not alike, or the file cannot be written.

    >>> import tempfile
    >>> clip = torch.rand(2, 3, 32, 48)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     side_by_side({"before": clip, "after": clip}, f"{folder}/both.mp4", 24)
    ...     Path(f"{folder}/both.mp4").stat().st_size > 0
    True
    """
    frames, height, width = _common_shape(clips)
    count = len(clips)
    rate = Fraction(frame_rate).limit_denominator(1001)
    if rate <= 0:
        raise InputError(f"The frame rate must be above 0, got {frame_rate}.")
    total = (BAR + height, count * (width + GAP) - GAP)
    picture = torch.ones(3, *(n + n % 2 for n in total))  # even sizes play everywhere
    lefts = [i * (width + GAP) for i in range(count)]
    for left, caption in zip(lefts, clips, strict=True):
        picture[:, :BAR, left : left + width] = _caption(caption, width)
    info = VideoInfo(picture.shape[2], picture.shape[1], frame_rate=rate, time_base=1 / rate)
    with open_writer(path, info, overwrite=True) as writer:
        for t in range(frames):
            for left, clip in zip(lefts, clips.values(), strict=True):
                picture[:, BAR : BAR + height, left : left + width] = clip[t]
            writer.write(Frame(picture, t, 1 / rate))


def flicker_figure(clips: Mapping[str, Tensor], target: Tensor, path: str | Path, *, frame_rate: float = 24) -> None:
    """Draw how much each method flickers over time, and what that does to three quiet pixels.

    Above, the temporal-difference error of each pair of frames. Below, the green value of pixels in a time in which
    the truth (black) hardly changes there: what a method adds to it is flicker, where it lags behind is a ghost.

    Args:
        clips: names and outputs (T, 3, H, W) in [0, 1], all of one shape; the first is the base.
        target: the truth, shaped as they.
        path: of the picture; .png, .svg or .pdf.
        frame_rate: frames a second, for the axis of time.

    Raises:
        InputError: the clips are not alike or have less than two frames, or the file cannot be written.

    >>> import tempfile
    >>> truth = torch.rand(4, 3, 24, 32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flicker_figure({"base": truth, "steady": truth / 2}, truth, f"{folder}/flicker.png")
    ...     Path(f"{folder}/flicker.png").stat().st_size > 0
    True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frames, *_ = _common_shape({**clips, "the truth": target})
    if frames < 2:
        raise InputError("A clip of two frames or more is needed to show flicker.")
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    spots = quiet_spots(target, window=min(frames, WINDOW))
    axes = figure.subplot_mosaic([["all"] * len(spots), list(range(len(spots)))], height_ratios=[1, 1])
    seconds = torch.arange(frames) / frame_rate
    top = axes["all"]
    for i, (name, clip) in enumerate(clips.items()):
        error = (clip - target).diff(dim=0).square().mean((1, 2, 3)).sqrt()
        overall = error.square().mean().sqrt()
        top.plot(seconds[1:], error, label=f"{name} ({overall:.4f})", **_style(i))
    top.set_ylim(bottom=0)
    top.set_xlim(0, float(seconds[-1]))
    _label(top, "Temporal-difference error: how wrongly the whole frame changes (in brackets: over the clip)", "RMS")
    for spot, (row, column, start) in enumerate(spots):
        panel, part = axes[spot], slice(start, start + min(frames, WINDOW))
        panel.plot(seconds[part], target[part, 1, row, column], color="black", linewidth=2.2, label="truth")
        for i, clip in enumerate(clips.values()):
            panel.plot(seconds[part], clip[part, 1, row, column], **_style(i))
        _label(panel, f"One pixel, x = {column}, y = {row}", "green value" if spot == 0 else "")
    _share_span([axes[spot] for spot in range(len(spots))])
    handles, names = top.get_legend_handles_labels()
    truth, label = axes[0].get_legend_handles_labels()
    figure.legend(handles + truth, names + label, loc="outside upper center", ncols=5, frameon=False, fontsize=11)
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written ({error}).") from error


def quiet_spots(target: Tensor, *, window: int, count: int = 3) -> list[tuple[int, int, int]]:
    """Choose pixels and times at which a clip changes least: (row, column, first frame), far from each other.

    Their surroundings of 5 x 5 must be quiet too, and they are neither nearly black nor nearly white.

    Args:
        target: a clip (T, 3, H, W).
        window: for how many frames they should be quiet, 2 to T.
        count: of pixels.

    >>> clip = torch.rand(8, 3, 40, 60)
    >>> clip[2:7, :, 10:20, 30:40] = 0.5
    >>> (row, column, start), *_ = quiet_spots(clip, window=5)
    >>> 10 <= row < 20, 30 <= column < 40, start
    (True, True, 2)
    """
    frames, height, width = len(target), *target.shape[-2:]
    motion = target.diff(dim=0).square().mean(1)[:, None]
    motion = F.avg_pool2d(F.pad(motion, (2,) * 4, mode="replicate"), 5, 1)[:, 0].cumsum(0, dtype=torch.float64)
    motion = F.pad(motion, (0, 0, 0, 0, 1, 0))
    motion = motion[window - 1 :] - motion[: frames - window + 1]  # of the window that starts at each frame
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    margin = min(height, width) // 16
    inside = (rows >= margin) & (rows < height - margin) & (columns >= margin) & (columns < width - margin)
    level = target[: len(motion), 1]
    cost = motion + 1e3 * ~((level > 0.2) & (level < 0.8)) + 1e6 * ~inside
    chosen: list[tuple[int, int, int]] = []
    for _ in range(count):
        start, place = divmod(int(cost.argmin()), height * width)
        row, column = divmod(place, width)
        chosen.append((row, column, start))
        cost = cost + 1e9 * ((rows - row).square() + (columns - column).square() < (width / 5) ** 2)
    return chosen


def table(rows: Sequence[Row], *more: Sequence[Row]) -> Table:
    """Make a table of what was measured, with each number's change against the group's base beside it.

    Args:
        rows: the first group.
        more: further groups, each below a line.
    """
    from rich.table import Table

    result = Table(
        caption="TDE: temporal-difference error. RMS per value, of 1; in brackets the change against base, "
        "or against the clip that flickers."
    )
    result.add_column("")
    for heading in ("PSNR (dB)", "instability", "TDE", "ms per frame"):
        result.add_column(heading, justify="right")
    for group in (rows, *more):
        for row in group:
            change = row["change"] or {}
            error = row["temporal_difference_error"]
            result.add_row(
                row["name"],
                _cell(row["psnr"], "{:.2f}", change.get("psnr"), "{:+.2f}"),
                _cell(row["instability"], "{:.4f}", change.get("instability"), "{:+.0f} %"),
                _cell(error, "{:.4f}", change.get("temporal_difference_error"), "{:+.0f} %"),
                _cell(row["milliseconds"], "{:.1f}", change.get("milliseconds"), "{:+.0f} %"),
            )
        result.add_section()
    return result


def _cell(value: float | None, form: str, change: float | None, change_form: str) -> str:
    shown = "-" if value is None else form.format(value)
    return shown if change is None else f"{shown} ({change_form.format(change)})"


def _common_shape(clips: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return frames, height and width of clips that are alike."""
    shapes = {name: tuple(clip.shape) for name, clip in clips.items()}
    first = next(iter(shapes.values()), ())
    if len(first) != 4 or first[1] != 3 or 0 in first or len(set(shapes.values())) > 1:
        shown = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items()) or "none"
        raise InputError(f"Clips (T, 3, H, W) of one shape are needed, got {shown}.")
    return first[0], first[2], first[3]


def _caption(text: str, width: int) -> Tensor:
    """Draw dark text on white, centred: (3, BAR, width)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, BAR / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    size = min(0.55 * BAR, 1.6 * width / max(len(text), 1))  # narrow clips get small letters
    figure.text(0.5, 0.47, text, ha="center", va="center", fontsize=0.72 * size, color="0.1", parse_math=False)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba()).copy())[..., :3].permute(2, 0, 1).float() / 255


def _style(i: int) -> dict[str, Any]:
    """The line of the i-th method: the base (0) thinner than the others."""
    return {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.1 if i == 0 else 1.6}


def _label(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel="seconds", ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def _share_span(panels: Sequence[Axes]) -> None:
    """Give all panels the same scale around their own middle, so that their flicker can be compared."""
    limits = [panel.get_ylim() for panel in panels]
    half = max(high - low for low, high in limits) / 2
    for panel, (low, high) in zip(panels, limits, strict=True):
        panel.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
