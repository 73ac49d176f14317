"""The metrics as evaluations know them: what each is called, what it fits, and how a video goes through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.flow import flow as find_flow
from unflicker.kinds import Kind
from unflicker.measure import FLOW_WIDTH
from unflicker.metrics.base import check_continues, vector
from unflicker.metrics.depth import align_affine, depth_errors, disparity_of
from unflicker.metrics.motion import NOISE, FlickerStream, WarpingStream
from unflicker.metrics.quality import frame_psnr, frame_ssim
from unflicker.metrics.segmentation import confusion_matrix, iou_of
from unflicker.metrics.temporal import class_map

BEST_PSNR = 100.0  # dB; a frame without any error would make the mean infinite


class FrameStream(Protocol):
    """One video on its way through a metric."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take the next frame, as `unflicker.kinds` has outputs and targets; what is unknown of the target is left out.

        For what a metric says of the truth alone, preds is the target.
        """
        ...

    def totals(self) -> Tensor:
        """Return sums, a float64 vector; those of several videos add up."""
        ...


def mean(totals: Sequence[float]) -> float:
    """Return a sum divided by a count; NaN for nothing."""
    return totals[0] / totals[1] if totals[1] else math.nan


def root_mean(totals: Sequence[float]) -> float:
    """Return the square root of `mean`."""
    return math.sqrt(mean(totals))


def mean_iou(totals: Sequence[float]) -> float:
    """Return the mean intersection over union of a confusion matrix (K, K + 1), row by row; NaN if it is empty."""
    classes = math.isqrt(len(totals))
    matrix = torch.tensor(totals, dtype=torch.float64).view(classes, classes + 1)
    return iou_of(matrix).item() if matrix.sum() else math.nan


@dataclass(frozen=True)
class Metric:
    """A metric as evaluations know it: what it is called, which way is better, and how a video goes through it."""

    heading: str
    unit: str
    higher_is_better: bool
    streams: Mapping[Kind, Callable[[Motion], FrameStream]]
    """For each kind of output that it fits."""
    number: Callable[[Sequence[float]], float] = mean
    """From the sums of one video or of all of them."""
    of_truth: bool = False
    """It says something of the truth alone as well: the floor."""

    def value(self, totals: Sequence[float]) -> float | None:
        """Return the number that sums make; None where there is nothing, or what came is no number."""
        number = self.number(totals)
        return number if math.isfinite(number) else None


class Motion:
    """The optical flow of the truth, found once for each pair of frames, whoever asks: DIS, "fast"."""

    def __init__(self) -> None:
        self._pair: tuple[Tensor, Tensor] | None = None
        self._flows: tuple[Tensor, Tensor] | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if self._pair is not None and self._flows is not None:
            for one, other, found in ((*self._pair, self._flows[0]), (*reversed(self._pair), self._flows[1])):
                if torch.equal(a, one) and torch.equal(b, other):
                    return found
        find = partial(find_flow, preset="fast", scale=min(1.0, FLOW_WIDTH / a.shape[-1]))
        self._pair, self._flows = (a, b), (find(a, b), find(b, a))
        return self._flows[0]


class _Mean:
    """The mean over frames of what each frame has for itself."""

    def __init__(self, measure: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.measure = measure
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        found = self.measure(preds, target)
        self.sums += vector(found.sum(dtype=torch.float64), len(found))

    def totals(self) -> Tensor:
        return self.sums


class _Changes:
    """What changes from frame to frame, where it is known in both.

    Args:
        see: (preds, target) -> what is followed, and where it is known.
        measure: the differences that are known -> a sum and what it is divided by.
    """

    def __init__(
        self,
        see: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        measure: Callable[[Tensor], tuple[Tensor, float]],
    ) -> None:
        self.see, self.measure = see, measure
        self.last: tuple[Tensor, Tensor] | None = None
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        values, known = self.see(preds, target)
        if self.last is not None:
            check_continues(values, self.last[0][0])
            change, kept = values - self.last[0], known & self.last[1]
            if not kept.all():
                change = change[kept]
            if change.numel():
                self.sums += vector(*self.measure(change))
        self.last = values.clone(), known

    def totals(self) -> Tensor:
        return self.sums


class _Right:
    """The share of all labels that are right."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        known = target >= 0
        self.sums += vector(((class_map(preds) == target) & known).sum(), known.sum())

    def totals(self) -> Tensor:
        return self.sums


class _Confusion:
    """The pixels by true and by predicted class."""

    def __init__(self) -> None:
        self.matrix: Tensor | None = None

    def update(self, preds: Tensor, target: Tensor) -> None:
        found = confusion_matrix(preds, target.clamp_min(-1), num_classes=preds.shape[1], ignore_index=-1)
        self.matrix = found if self.matrix is None else self.matrix + found

    def totals(self) -> Tensor:
        assert self.matrix is not None
        return self.matrix.flatten().double().cpu()


class _Warping(WarpingStream):
    """Sums over pairs instead of videos."""

    def update(self, preds: Tensor, guide: Tensor | None = None) -> None:
        _check_whole(guide)
        super().update(preds, guide)

    def totals(self) -> Tensor:
        return vector(self.sum, self.pairs)


class _Flicker(FlickerStream):
    """Sums over values instead of videos."""

    def update(self, preds: Tensor, guide: Tensor | None = None) -> None:
        _check_whole(guide)
        super().update(preds, guide)

    def totals(self) -> Tensor:
        return vector(self.energy / NOISE, self.counted)


def _known(target: Tensor) -> Tensor:
    """Where a truth is no NaN: a mask, or a single True for everywhere, which a sum tells at a tenth of the time."""
    return ~target.isnan() if target.sum().isnan() else torch.ones((), dtype=torch.bool, device=target.device)


def _check_whole(target: Tensor | None) -> None:
    if target is not None and not _known(target).all():
        raise InputError(
            "The truth is unknown in places, which SSIM and what follows motion have no use for: take psnr, "
            "instability or temporal_difference_error."
        )


def _psnr(preds: Tensor, target: Tensor) -> Tensor:
    known = _known(target)
    if known.all():
        return frame_psnr(preds, target).clamp(max=BEST_PSNR)
    error = (preds - target)[known]
    return (-10 * error.square().mean().log10()).clamp(max=BEST_PSNR).expand(min(1, len(error)))


def _ssim(preds: Tensor, target: Tensor) -> Tensor:
    _check_whole(target)
    return frame_ssim(preds, target)


def _abs_rel(preds: Tensor, target: Tensor) -> Tensor:
    return depth_errors(preds, disparity_of(target))[:, 0]


def _delta1(preds: Tensor, target: Tensor) -> Tensor:
    return depth_errors(preds, disparity_of(target))[:, 1]


def _as_it_is(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return preds, _known(target)


def _aligned(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    known = _known(target)
    return align_affine(torch.where(known, preds, 0), disparity_of(target)), known


def _error(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return preds - target, _known(target)


def _classes(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return class_map(preds), target >= 0


def _root_mean_square(change: Tensor) -> tuple[Tensor, float]:
    return change.square().mean().double().sqrt(), 1


def _squares(change: Tensor) -> tuple[Tensor, float]:
    return change.square().sum(), change.numel()


def _share(change: Tensor) -> tuple[Tensor, float]:
    return (change != 0).double().mean(), 1


def _instability(see: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Motion], FrameStream]:
    return lambda motion: _Changes(see, _root_mean_square)


def _categorical(motion: Motion) -> FrameStream:
    return _Changes(_classes, _share)


def _depth(measure: Callable[[Tensor, Tensor], Tensor]) -> Mapping[Kind, Callable[[Motion], FrameStream]]:
    return {"depth": lambda motion: _Mean(measure), "own depth": lambda motion: _Mean(measure)}


# A new metric is an entry here.
METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "dB", True, {"pictures": lambda motion: _Mean(_psnr)}),
    "ssim": Metric("SSIM", "", True, {"pictures": lambda motion: _Mean(_ssim)}),
    "abs_rel": Metric("AbsRel", "", False, _depth(_abs_rel)),
    "delta1": Metric("delta < 1.25", "", True, _depth(_delta1)),
    "miou": Metric("mIoU", "", True, {"labels": lambda motion: _Confusion()}, mean_iou),
    "pixel_accuracy": Metric("pixel accuracy", "", True, {"labels": lambda motion: _Right()}),
    "accuracy": Metric("accuracy", "", True, {"classes": lambda motion: _Right()}),
    "instability": Metric(
        "instability",
        "",
        False,
        {
            "pictures": _instability(_as_it_is),
            "depth": _instability(_aligned),
            "own depth": _instability(_as_it_is),
            "labels": _categorical,
            "classes": _categorical,
        },
        of_truth=True,
    ),
    "temporal_difference_error": Metric(
        "temporal-difference error", "", False, {"pictures": lambda motion: _Changes(_error, _squares)}, root_mean
    ),
    "warping_error": Metric("warping error", "", False, {"pictures": _Warping}, of_truth=True),
    "flicker": Metric("flicker", "", False, {"pictures": _Flicker}, root_mean, of_truth=True),
}


def fitting(kind: Kind) -> tuple[str, ...]:
    """Return the names of the metrics that fit a kind of output.

    >>> fitting("labels")
    ('miou', 'pixel_accuracy', 'instability')
    """
    return tuple(name for name, metric in METRICS.items() if kind in metric.streams)
