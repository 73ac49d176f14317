"""Evaluations side by side: a table in Markdown, and the figure of quality against instability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unflicker.checks import InputError, nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from unflicker.results import Evaluation

BASE, TRUTH = "base", "truth"
# Okabe and Ito's colours, which the colour-blind tell apart, from dark to light; marks and dashes do the same in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C510A", "#56B4E9", "#E69F00", "#555555")
# What goes up in the figure unless told: the first of these that was measured; those of one kind of output together.
QUALITIES = ("psnr", "ssim", "abs_rel", "delta1", "miou", "pixel_accuracy", "accuracy")
SHORT = {"temporal_difference_error": "TDE"}  # where there is little room
MARKS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = ("-", "--", "-.", ":")
ALONE, FLOOR = "network alone", "truth's own instability"
FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Point:
    """One setting of a method in the figure."""

    method: str
    """Points of one method are joined, in the order in which they come."""
    setting: str
    """What is written beside it: "0.2"; nothing for a method without settings."""
    instability: float
    quality: float


@dataclass(frozen=True)
class Frontier:
    """What the figure shows: points, and what they are compared with."""

    points: tuple[Point, ...]
    base: tuple[float, float] | None
    """Instability and quality of the network alone."""
    truth: float | None
    """The truth's own instability: what is steadier than that lags behind it."""
    quality: str
    """What the quality is, with its unit."""
    higher_is_better: bool = True


def frontier(evaluation: Evaluation, quality: str | None = None) -> Frontier:
    """Read the points of the figure out of an evaluation.

    A method's name is taken apart at its last blank: "EMA 0.2" is the setting "0.2" of the method "EMA". A name
    without a blank is a method without settings. Rows that lack a number are left out.

    Args:
        evaluation: with "instability" among its metrics.
        quality: the metric that goes up; the first of PSNR, SSIM, AbsRel, delta < 1.25, mIoU and the accuracies that
            was measured, unless given.

    Raises:
        InputError: the evaluation lacks one of the two.
    """
    quality = quality or next((name for name in QUALITIES if name in evaluation.metrics), None)
    if quality is None:
        raise InputError(f"The evaluation has no quality to draw: measure one of {', '.join(QUALITIES)} as well.")
    for name in ("instability", quality):
        if name not in evaluation.metrics:
            raise InputError(f"The evaluation has no {name!r}; {nearest(name, evaluation.metrics)}")
    places = {
        name: (x, y)
        for name, row in evaluation.overall.items()
        if (x := row.get("instability")) is not None and (y := row.get(quality)) is not None
    }
    points = []
    for name, (x, y) in places.items():
        if name != BASE:
            method, _, setting = name.rpartition(" ")
            points.append(Point(method or setting, setting if method else "", x, y))
    about = evaluation.metrics[quality]
    return Frontier(
        tuple(points),
        places.get(BASE),
        evaluation.overall.get(TRUTH, {}).get("instability"),
        _heading(about.heading, about.unit),
        about.higher_is_better,
    )


def markdown_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Make a table in Markdown of each evaluation, under its name: every method's numbers and costs.

    A number is followed by its change against the base: in the unit where there is one, else in percent. What a
    method adds to the base's weights and multiply-adds, and its state, stand beside its time.

    Raises:
        InputError: there is no evaluation.
    """
    if not evaluations:
        raise InputError("There is no evaluation to make a table of; give one or more.")
    return "\n\n".join(_table(title, evaluation) for title, evaluation in evaluations.items()) + "\n"


def table(evaluation: Evaluation) -> Table:
    """Make a table for a terminal: every method's numbers, their changes against the base, and its time.

    TDE is the temporal-difference error; `markdown_table` has all costs.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    result = Table(caption=_about(evaluation), box=box.SIMPLE_HEAD)
    result.add_column("method")
    for metric, about in evaluation.metrics.items():
        result.add_column(_heading(SHORT.get(metric, about.heading), about.unit), justify="right")
    result.add_column("ms", justify="right")
    base = evaluation.overall.get(BASE)
    for name, row in evaluation.overall.items():
        cost = evaluation.costs.get(name)
        time = "" if cost is None or cost.milliseconds is None else f"{cost.milliseconds:.0f}"
        cells = [_cell(metric, name, row, base, evaluation, digits=0) for metric in evaluation.metrics]
        result.add_row(escape(name), *cells, time)
    return result


def figure(front: Frontier | Mapping[str, Frontier], path: str | Path, *, worst: float | None = None) -> None:
    """Draw quality against instability: a curve for each method, the base as a star, the truth as a dotted line.

    Better is up and to the left, as far as the dotted line, so an error grows downwards. Several frontiers are drawn
    side by side; a method looks alike in all of them.

    Args:
        front: what `frontier` returns, or several by title.
        path: ends in .png, .svg or .pdf; a file there is replaced.
        worst: the quality at which the picture ends; what is worse would crowd the rest, and only the curve that leads
            there is seen.

    Raises:
        InputError: there are no points, or the file cannot be written.

    >>> import tempfile
    >>> points = (Point("EMA", "0.1", 0.030, 34.1), Point("EMA", "0.2", 0.028, 33.7))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     figure(Frontier(points, (0.032, 34.2), 0.026, "PSNR (dB)"), f"{folder}/front.png")
    ...     Path(f"{folder}/front.png").stat().st_size > 0
    True
    """
    panels = {"": front} if isinstance(front, Frontier) else dict(front)
    if not any(_shown(panel, worst) for panel in panels.values()):
        raise InputError("There are no points to draw; evaluate one method or more, or leave out worst.")
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"{path} must end in {', '.join(FORMATS)}.")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point.method for panel in panels.values() for point in panel.points))
    drawing = Figure(figsize=(5.4 * len(panels) + 0.6, 5.2), layout="constrained")
    FigureCanvasAgg(drawing)
    shown: dict[str, Any] = {}
    places = drawing.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, panel) in zip(places, panels.items(), strict=True):
        shown |= _panel(axes, title, panel, names, worst)
    order = {name: shown[name] for name in [*names, ALONE, FLOOR] if name in shown}
    columns = min(3 * len(panels), len(order))
    drawing.legend(order.values(), order.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    drawing.draw_without_rendering()  # now everything is in its place
    for axes, panel in zip(places, panels.values(), strict=True):
        _write_settings(axes, panel, names, worst)
    try:
        with rc_context({"svg.hashsalt": "unflicker"}):  # the same picture is the same file
            drawing.savefig(path, dpi=150, metadata={"Date": None} if Path(path).suffix.lower() == ".svg" else None)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}).") from error


def _shown(panel: Frontier, worst: float | None) -> list[Point]:
    """The points that the picture has room for."""
    sign = 1 if panel.higher_is_better else -1
    return [point for point in panel.points if worst is None or sign * (point.quality - worst) >= 0]


def _panel(axes: Axes, title: str, panel: Frontier, names: list[str], worst: float | None) -> dict[str, Any]:
    """Draw one frontier, and return what its legend shows."""
    shown: dict[str, Any] = {}
    for method in dict.fromkeys(point.method for point in panel.points):
        points = [point for point in panel.points if point.method == method]
        i = names.index(method)
        (shown[method],) = axes.plot(
            [point.instability for point in points],
            [point.quality for point in points],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKS[i % len(MARKS)],
            linestyle=DASHES[(i // 2) % len(DASHES)],
            linewidth=1.4,
            markersize=6.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=3,
        )
    if panel.base is not None:
        shown[ALONE] = axes.scatter(
            *panel.base, s=190, marker="*", color="black", edgecolors="white", linewidths=0.8, zorder=4
        )
    if panel.truth is not None:
        shown[FLOOR] = axes.axvline(panel.truth, color="0.35", linestyle=":", linewidth=1.3)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("instability")
    axes.set_ylabel(panel.quality)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.margins(0.09)
    inside = _shown(panel, worst)
    if worst is not None and inside:
        places = [(point.instability, point.quality) for point in inside] + ([panel.base] if panel.base else [])
        xs, ys = [x for x, _ in places] + ([panel.truth] if panel.truth is not None else []), [y for _, y in places]
        low, high = min(xs), max(xs)
        axes.set_xlim(low - 0.09 * (high - low), high + 0.09 * (high - low))
        axes.set_ylim(*sorted((worst, worst + 1.09 * ((max(ys) if panel.higher_is_better else min(ys)) - worst))))
    if not panel.higher_is_better:
        axes.invert_yaxis()
    return shown


def _write_settings(axes: Axes, panel: Frontier, names: list[str], worst: float | None) -> None:
    """Write each setting beside its point, on the side where the least is in its way."""
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    def place(x: float, y: float) -> tuple[float, float]:
        found = axes.transData.transform((x, y))
        return float(found[0]), float(found[1])

    taken = [place(*panel.base)] if panel.base else []
    for method in dict.fromkeys(point.method for point in panel.points):
        spots = [place(point.instability, point.quality) for point in panel.points if point.method == method]
        taken += spots
        for (x, y), (u, v) in pairwise(spots):  # the curve is in the way as well
            steps = max(1, int(math.hypot(u - x, v - y) / 6))
            taken += [(x + (u - x) * i / steps, y + (v - y) * i / steps) for i in range(1, steps)]
    scale = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    sides = [(r * 1.25 * math.cos(a), r * math.sin(a)) for r in (9.5, 15) for a in (i * math.pi / 6 for i in range(12))]
    for point in _shown(panel, worst):
        if not point.setting:
            continue
        spot = place(point.instability, point.quality)

        def room(side: tuple[float, float], spot: tuple[float, float] = spot) -> float:
            at = spot[0] + scale * side[0], spot[1] + scale * side[1]
            # Letters are wide: what is above or below is nearer than what is beside. What is far is in nobody's way.
            nearest = min(math.hypot((x - at[0]) / 1.5, y - at[1]) for x, y in taken)
            return min(nearest, 9 * scale) - 0.1 * math.hypot(*side)

        best = max(sides, key=room)
        axes.annotate(
            point.setting,
            (point.instability, point.quality),
            xytext=best,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color=[0.75 * c for c in to_rgb(COLOURS[names.index(point.method) % len(COLOURS)])],
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=5,
        )
        taken.append((spot[0] + scale * best[0], spot[1] + scale * best[1]))


def _table(title: str, evaluation: Evaluation) -> str:
    about = evaluation.metrics
    base = evaluation.overall.get(BASE)
    headings = ["method", *(_heading(each.heading, each.unit) for each in about.values())]
    headings += ["ms a frame", "state MiB", "weights", "MMAC"]
    lines = [f"### {title}", "", _about(evaluation), "", _row(headings), "|---" + "|--:" * (len(headings) - 1) + "|"]
    for name, row in evaluation.overall.items():
        cells = [_cell(metric, name, row, base, evaluation) for metric in about]
        cost = evaluation.costs.get(name)
        if cost is None:
            cells += [""] * 4
        else:
            sign = "" if name == BASE else "+"
            cells += [
                "" if cost.milliseconds is None else f"{cost.milliseconds:.1f}",
                "" if name == BASE else f"{cost.state_mib:.1f}",
                f"{sign}{cost.weights:,}",
                f"{sign}{cost.multiply_adds / 1e6:,.0f}",
            ]
        strength = evaluation.strengths.get(name, 1.0)
        told = strength == 1 or name.endswith(f" {strength:g}")
        shown = name if told else f"{name} (strength {strength:g})"
        lines.append(_row([shown.replace("|", "\\|"), *cells]))
    return "\n".join(lines)


def _about(evaluation: Evaluation) -> str:
    videos, settings = evaluation.videos, evaluation.settings
    count = f"{len(videos)} {'video' if len(videos) == 1 else 'videos'}, {evaluation.frames:,} frames"
    sizes = sorted({(each.width, each.height) for each in videos})
    shown = ", ".join(f"{width}x{height}" for width, height in sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    spoiled = f"; {', '.join(settings['corruptions'])}, seed {settings['seed']}" if settings["corruptions"] else ""
    skipped = f" Not read: {', '.join(each.name for each in evaluation.skipped)}." if evaluation.skipped else ""
    target = settings.get("target")  # results of before there was a choice do not say
    told = "what the network makes of the clean frame" if target == "base" else target
    held = f"; held to {told}" if target not in (None, "truth", "clean") else ""
    return f"{count} of {shown}{spoiled}{held}. Means over all frames; changes are against the base.{skipped}"


def _cell(
    metric: str, name: str, row: Mapping[str, float | None], base: Any, evaluation: Evaluation, digits: int = 1
) -> str:
    value = row.get(metric)
    if value is None:
        return "" if name == TRUTH else "-"
    unit = evaluation.metrics[metric].unit
    text = f"{value:.2f}" if unit else f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.2e}"
    reference = base.get(metric) if base else None
    if name in (BASE, TRUTH) or reference is None:
        return text
    if unit:
        return f"{text} ({value - reference:+.2f})"
    return f"{text} ({100 * (value / reference - 1):+.{digits}f} %)" if reference else text


def _heading(heading: str, unit: str) -> str:
    return f"{heading} ({unit})" if unit else heading


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
