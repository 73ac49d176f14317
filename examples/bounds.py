"""Draw where the unified loss has its minimum, for three weights of the stability term: the paper's Figure 2.

    python examples/bounds.py FOLDER

writes bounds-1d.png and bounds-2d.png. Below the oracle bound, 1/2, the truth is the minimum; above the collapse
bound, T - 1 = 2 for these three frames, it is the first frame repeated (Instant Video Models, section 3).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unflicker.losses import Distance, collapse_bound, l1, oracle_bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEIGHTS = (0.0, 0.4, 4.0)
TRUTH_COLOUR, FROZEN_COLOUR, MINIMUM_COLOUR = "#ffffff", "#ff9f1c", "#e71d36"


class Landscape(NamedTuple):
    """The loss over a plane: `loss` (rows, columns) at `y` (rows) and `x` (columns)."""

    x: Tensor
    y: Tensor
    loss: Tensor

    def minimum(self) -> tuple[float, float]:
        row, column = divmod(int(self.loss.argmin()), len(self.x))
        return self.x[column].item(), self.y[row].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the two pictures go")
    parser.add_argument("--dpi", type=int, default=160)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("bounds-1d", figure_1d()), ("bounds-2d", figure_2d())):
        path = arguments.folder / f"{name}.png"
        figure.savefig(path, dpi=arguments.dpi)
        print(path)


def euclidean(preds: Tensor, target: Tensor) -> Tensor:
    """The L2 norm of the difference of each frame."""
    return (preds - target).square().sum((-3, -2, -1)).sqrt()


def loss_of_each(preds: Tensor, target: Tensor, weight: float, distance: Distance) -> Tensor:
    """Return the unified loss of every clip of a batch (N, T, C, 1, 1), summed over time, not averaged over clips."""
    change = distance(preds[:, 1:], preds[:, :-1]).sum(1)
    return distance(preds, target).sum(1) + weight * change


def landscape_1d(weight: float, step: float = 0.05) -> Landscape:
    """Three frames of one value, the first fixed at 0, truths 1 and 2: the loss over the second and third frame."""
    x, y = torch.arange(-1.5, 2.5, step), torch.arange(-1.0, 3.0, step)
    third, second = torch.meshgrid(y, x, indexing="ij")
    preds = torch.stack([torch.zeros_like(second), second, third], -1).view(-1, 3, 1, 1, 1)
    target = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1, 1).expand_as(preds)
    return Landscape(x, y, loss_of_each(preds, target, weight, l1).view_as(second))


def landscape_2d(weight: float, step: float = 0.025) -> Landscape:
    """Three frames of two values, the outer two fixed: the loss over the second frame, in the plane."""
    x, y = torch.arange(0.0, 4.5, step), torch.arange(0.0, 4.0, step)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    second = torch.stack([columns, rows], -1).view(-1, 2)
    preds = torch.stack([torch.tensor(FIRST).expand_as(second), second, torch.tensor(THIRD).expand_as(second)], 1)
    target = torch.tensor([FIRST, SECOND_TRUTH, THIRD]).expand_as(preds)  # the outer truths only add a constant
    loss = loss_of_each(preds[..., None, None], target[..., None, None], weight, euclidean)
    return Landscape(x, y, loss.view_as(rows))


FIRST, SECOND_TRUTH, THIRD = (2.0, 1.0), (1.0, 2.0), (3.5, 3.0)


def figure_1d(weights: Sequence[float] = WEIGHTS, step: float = 0.05) -> Figure:
    """One frame has one value: what weight moves the minimum where."""
    figure, panels = _panels(weights, "Three frames of one value, L1: the first is fixed at 0")
    for panel, weight in zip(panels, weights, strict=True):
        landscape = landscape_1d(weight, step)
        _contours(panel, landscape)
        panel.axline((0, 0), slope=1, color="white", linewidth=1, linestyle=":", label="no change after the second")
        _mark(panel, (1, 2), "truth", TRUTH_COLOUR, "o")
        _mark(panel, (0, 0), "first frame repeated", FROZEN_COLOUR, "s")
        _mark(panel, landscape.minimum(), "lowest loss", MINIMUM_COLOUR, "x")
        panel.set(xlabel=r"second prediction $\hat y_2$", title=title_1d(weight))
    panels[0].set_ylabel(r"third prediction $\hat y_3$")
    _legend(figure, panels[0])
    return figure


def title_1d(weight: float) -> str:
    if weight < oracle_bound():
        regime = "no stability term" if weight == 0 else "below the oracle bound"
    else:
        regime = "above the collapse bound" if weight > collapse_bound(3) else "between the bounds"
    return rf"$\lambda$ = {weight:g}: {regime}"


def title_2d(weight: float) -> str:
    """The collapse bound says nothing where the last frame is fixed as well."""
    return title_1d(weight) if weight < oracle_bound() else rf"$\lambda$ = {weight:g}: above the oracle bound"


def figure_2d(weights: Sequence[float] = WEIGHTS, step: float = 0.025) -> Figure:
    """One frame has two values: the second is pulled to its truth and to both of its neighbours."""
    figure, panels = _panels(weights, "Three frames of two values, L2: the second is free, its neighbours are fixed")
    for panel, weight in zip(panels, weights, strict=True):
        landscape = landscape_2d(weight, step)
        _contours(panel, landscape)
        panel.plot(*zip(FIRST, THIRD, strict=True), color="white", linewidth=1, linestyle=":", label="a straight path")
        _mark(panel, SECOND_TRUTH, "truth of the second frame", TRUTH_COLOUR, "o")
        _mark(panel, FIRST, "first frame", FROZEN_COLOUR, "s")
        _mark(panel, THIRD, "third frame", FROZEN_COLOUR, "^")
        _mark(panel, landscape.minimum(), "lowest loss", MINIMUM_COLOUR, "x")
        panel.set(xlabel="first value", title=title_2d(weight))
    panels[0].set_ylabel("second value")
    _legend(figure, panels[0])
    return figure


def _panels(weights: Sequence[float], title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(weights), 5), layout="compressed")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, len(weights), sharex=True, sharey=True, squeeze=False)[0])


def _contours(panel: Axes, landscape: Landscape) -> None:
    x, y, loss = (values.numpy() for values in landscape)
    panel.contourf(x, y, loss, levels=16, cmap="viridis")
    panel.contour(x, y, loss, levels=16, colors="black", linewidths=0.3)
    panel.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")


def _mark(panel: Axes, point: tuple[float, float], label: str, colour: str, marker: str) -> None:
    if marker == "x":  # a line marker: drawn twice, so that it has a rim
        panel.plot(*point, marker, color="white", markersize=9, markeredgewidth=4, zorder=3)
        panel.plot(*point, marker, color=colour, markersize=8, markeredgewidth=2, zorder=4, label=label)
    else:
        panel.plot(*point, marker, color=colour, markeredgecolor="black", markersize=12, zorder=2, label=label)


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=True, facecolor="#999999")


if __name__ == "__main__":
    main()
