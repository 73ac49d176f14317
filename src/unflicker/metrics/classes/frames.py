"""Metrics of single frames, as torchmetrics classes over `quality`, `depth` and `segmentation`; and steady depth."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from unflicker.checks import InputError
from unflicker.metrics.classes.base import VideoMetric, enough
from unflicker.metrics.depth import CAP, DepthStream, depth_errors
from unflicker.metrics.quality import frame_psnr, frame_ssim
from unflicker.metrics.segmentation import accuracy_of, confusion_matrix, iou_of


class FrameMetric(Metric):
    """The mean of numbers that every frame has for itself, over all frames of all videos."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, size: int, key: str) -> None:
        """Make a metric of `size` numbers; only metrics with the same `key` may share their sums in a collection."""
        super().__init__()
        self._name = f"totals_{key}"
        self.add_state(self._name, torch.zeros(size + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Take the numbers of some frames, (frames, size)."""
        totals = getattr(self, self._name)
        totals[:-1] += values.sum(0, dtype=torch.float64).to(totals)
        totals[-1] += len(values)

    def mean(self, what: str) -> Tensor:
        """Return the means, (size,)."""
        totals = getattr(self, self._name)
        enough(totals[-1], what)
        return (totals[:-1] / totals[-1]).float()


class PSNR(FrameMetric):
    """The peak signal-to-noise ratio in dB, of each frame, averaged over all frames.

    mean_t 10 log10(data_range^2 / mean (y_t - x_t)^2), infinite where a frame has no error; see
    `unflicker.metrics.quality.psnr`. It sees no flicker. Nothing is clipped; NaN propagates.

    Args:
        data_range: the largest value, such as 1, 255, or the peak of an HDR clip.

    >>> metric = PSNR()
    >>> metric.update(torch.full((2, 3, 4, 4), 0.6), torch.full((2, 3, 4, 4), 0.5))
    >>> metric.compute()
    tensor(20.0000)
    """

    higher_is_better = True

    def __init__(self, *, data_range: float = 1.0) -> None:
        super().__init__(1, f"psnr_{data_range}")
        self.data_range = data_range

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take frames (T, C, H, W), or (B, T, C, H, W)."""
        self.add(frame_psnr(_flat(preds), _flat(target), data_range=self.data_range).unsqueeze(1))

    def compute(self) -> Tensor:
        """Return the mean over the frames."""
        return self.mean("PSNR needs a frame")[0]


class SSIM(FrameMetric):
    """The structural similarity of each frame, averaged over all frames; in [-1, 1], 1 at best.

    Wang et al. 2004 as torchmetrics computes it by default; see `unflicker.metrics.quality.ssim`. It sees no flicker.

    Args:
        data_range: the largest value.

    >>> metric = SSIM()
    >>> clip = torch.rand(2, 3, 16, 16)
    >>> metric.update(clip, clip)
    >>> metric.compute()
    tensor(1.)
    """

    higher_is_better = True

    def __init__(self, *, data_range: float = 1.0) -> None:
        super().__init__(1, f"ssim_{data_range}")
        self.data_range = data_range

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take frames (T, C, H, W), or (B, T, C, H, W)."""
        self.add(frame_ssim(_flat(preds), _flat(target), data_range=self.data_range).unsqueeze(1))

    def compute(self) -> Tensor:
        """Return the mean over the frames."""
        return self.mean("SSIM needs a frame")[0]


class DepthAccuracy(FrameMetric):
    """The relative error of depth, and the share that is right within a factor of 1.25.

    mean |d - x| / x in [0, inf), and mean [max(d / x, x / d) < 1.25] in [0, 1], over the pixels of a frame whose true
    depth x is known, then over all frames; d = min(1 / disparity, cap), and a disparity of 0 or below reads as the cap;
    see `unflicker.metrics.depth`. It sees no flicker; with `align` not even one that scales a whole frame.

    Args:
        align: fit a scale and a shift of its own to every frame's disparity, by least squares, before.
        cap: the largest depth.

    `compute` returns "abs_rel" and "delta".

    >>> metric = DepthAccuracy()
    >>> depth = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3)
    >>> metric.update(3 / depth + 5, depth)
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'abs_rel': 0.0, 'delta': 1.0}
    """

    def __init__(self, *, align: bool = True, cap: float = CAP) -> None:
        super().__init__(2, f"depth_{align}_{cap}")
        self.align, self.cap = align, cap

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take disparity and true depth, (T, 1, H, W) or (B, T, 1, H, W)."""
        self.add(depth_errors(_flat(preds), _flat(target), align=self.align, cap=self.cap))

    def compute(self) -> dict[str, Tensor]:
        """Return both means over the frames."""
        return dict(zip(("abs_rel", "delta"), self.mean("Depth accuracy needs a frame with known depth"), strict=True))


class DepthInstability(VideoMetric):
    """How far consecutive frames of disparity are apart, before and after the fit to the truth.

    mean over the pairs of the root mean square of y_t - y_t-1 per pixel whose depth is known in both frames, in
    [0, inf), in the network's unit before and in that of 1 / depth after. The fit of every frame takes out flicker of
    scale and shift, so the published number, which is measured after it, does not see that.

    `compute` returns "depth_instability" and "depth_instability_aligned". It raises InputError before two consecutive
    frames. NaN in known pixels propagates.

    >>> metric = DepthInstability()
    >>> depth = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2).expand(2, 1, 1, 2)
    >>> metric.update(1 / depth + torch.tensor([0.0, 0.5]).view(2, 1, 1, 1), depth)
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'depth_instability': 0.5, 'depth_instability_aligned': 0.0}
    """

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(DepthStream, 4)

    def update(self, preds: Tensor, target: Tensor, *, continues: bool = False) -> None:
        """Take disparity and true depth, (T, 1, H, W), of a batch too, or the next frames of those that run."""
        self.follow(continues, preds, target)

    def compute(self) -> dict[str, Tensor]:
        """Return the instability before and after the fit."""
        raw, pairs, aligned, _ = self.total()
        enough(pairs, "Depth instability needs two consecutive frames with known depth")
        return {
            "depth_instability": (raw / pairs).float(),
            "depth_instability_aligned": (aligned / pairs).float(),
        }


class ClassMetric(Metric):
    """A figure of the confusion matrix over all frames."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, *, num_classes: int, ignore_index: int | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes must be 1 or more, got {num_classes}.")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self._name = f"matrix_{num_classes}_{ignore_index}"  # a collection keeps one for all that have these settings
        self.add_state(self._name, torch.zeros(num_classes, num_classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def matrix(self) -> Tensor:
        """The counts by true and predicted class, (num_classes, num_classes + 1), as `confusion_matrix`."""
        return getattr(self, self._name)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take logits (T, C, H, W) or classes (T, H, W), and the true classes (T, H, W); of a batch too."""
        axes = 4 if preds.is_floating_point() else 3
        preds, target = _flat(preds, axes), _flat(target, 3)
        counts = confusion_matrix(preds, target, num_classes=self.num_classes, ignore_index=self.ignore_index)
        setattr(self, self._name, self.matrix + counts.to(self.matrix))


class MeanIoU(ClassMetric):
    """Intersection over union of all frames together, averaged over the classes that occur; in [0, 1].

    mean_c TP_c / (TP_c + FP_c + FN_c); see `unflicker.metrics.segmentation.mean_iou`. It sees no flicker, nor where
    a border lies wrong. (torchmetrics' MeanIoU averages the frames instead.)

    Args:
        num_classes: classes are 0 to num_classes - 1.
        ignore_index: pixels of this class in the target do not count.

    >>> metric = MeanIoU(num_classes=2)
    >>> metric.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    >>> metric.compute()
    tensor(0.5833)
    """

    def compute(self) -> Tensor:
        """Return the mean over the classes."""
        return iou_of(self.matrix)


class PixelAccuracy(ClassMetric):
    """The share of pixels whose class is right, over all frames together; in [0, 1].

    sum_c TP_c / pixels; see `unflicker.metrics.segmentation.pixel_accuracy`. Large classes drown small ones, and
    flicker is not seen.

    Args:
        num_classes: classes are 0 to num_classes - 1.
        ignore_index: pixels of this class in the target do not count.

    >>> metric = PixelAccuracy(num_classes=2)
    >>> metric.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    >>> metric.compute()
    tensor(0.7500)
    """

    def compute(self) -> Tensor:
        """Return the share."""
        return accuracy_of(self.matrix)


def _flat(frames: Tensor, axes: int = 4) -> Tensor:
    return frames.flatten(0, 1) if frames.ndim == axes + 1 else frames
