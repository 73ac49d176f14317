"""Metrics of flicker without optical flow, as torchmetrics classes over `unflicker.metrics.temporal`."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from unflicker.metrics.base import euclidean
from unflicker.metrics.classes.base import VideoMetric, enough
from unflicker.metrics.temporal import (
    CategoricalStream,
    Distance,
    Domain,
    InstabilityStream,
    RobustnessStream,
    SmoothnessStream,
    StabilityStream,
    TemporalDifferenceStream,
)


class Instability(VideoMetric):
    """How far consecutive frames are apart, and how far those of the truth are: the floor of a right answer.

    mean ||y_t - y_t-1||_2 over all pairs of all videos, in [0, inf), on the scale of the values times sqrt(C H W), or
    on that of the values if normalized; see `unflicker.metrics.temporal.instability`. True motion counts, so less than
    the floor means frozen or blurred. It sees no slow drift and no lasting error.

    Args:
        normalized: the root mean square per value, which can be compared between sizes.
        mask_nan: leave out values that are NaN in `preds` or `target`; else NaN propagates.

    `compute` returns "instability" and, where `target` was given, "instability_floor", that of the target. It raises
    InputError before two consecutive frames.

    >>> import torch
    >>> metric = Instability(normalized=True)
    >>> metric.update(torch.tensor([0.0, 0.5]).view(2, 1, 1, 1))
    >>> metric.update(torch.tensor([0.0]).view(1, 1, 1, 1), continues=True)
    >>> metric.compute()
    {'instability': tensor(0.5000)}
    """

    higher_is_better = False

    def __init__(self, *, normalized: bool = False, mask_nan: bool = False) -> None:
        super().__init__(partial(InstabilityStream, normalized, mask_nan), 4)

    def update(self, preds: Tensor, target: Tensor | None = None, *, continues: bool = False) -> None:
        """Take a video (T, C, H, W), several (B, T, C, H, W), or the next frames of those that run."""
        self.follow(continues, preds, target)

    def compute(self) -> dict[str, Tensor]:
        """Return the instability, and its floor."""
        return _with_floor(self.total(), "instability")


class TemporalDifferenceError(VideoMetric):
    """The root mean square by which videos change otherwise than the truth changes.

    sqrt(mean ((y_t - y_t-1) - (x_t - x_t-1))^2) over all pairs, channels and pixels of all videos, in [0, inf) on the
    scale of the values; see `unflicker.metrics.temporal.temporal_difference_error`. It sees no lasting error, and does
    not tell flicker from ghosts.

    Args:
        mask_nan: leave out values of which one is NaN; else NaN propagates.

    `compute` raises InputError before two consecutive frames.

    >>> import torch
    >>> metric = TemporalDifferenceError()
    >>> metric.update(torch.tensor([0.0, 0.5]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better = False

    def __init__(self, *, mask_nan: bool = False) -> None:
        super().__init__(partial(TemporalDifferenceStream, mask_nan), 2)

    def update(self, preds: Tensor, target: Tensor, *, continues: bool = False) -> None:
        """Take a video (T, C, H, W), several (B, T, C, H, W), or the next frames of those that run."""
        self.follow(continues, preds, target)

    def compute(self) -> Tensor:
        """Return the temporal-difference error."""
        squares, count = self.total()
        enough(count, "The temporal-difference error needs two consecutive frames")
        return (squares / count).sqrt().float()


class CategoricalInstability(VideoMetric):
    """The share of pixels whose class changes from frame to frame, and that of the labels: the floor.

    mean |{p : c_t(p) != c_t-1(p)}| / (H W) over all pairs of all videos, in [0, 1], c the class of the largest logit;
    see `unflicker.metrics.temporal.categorical_instability`. Classes that move with their objects count; how sure the
    network was is not seen.

    `compute` returns "categorical_instability" and, where `target` was given, "categorical_instability_floor". It
    raises InputError before two consecutive frames.

    >>> import torch
    >>> metric = CategoricalInstability()
    >>> metric.update(torch.tensor([[[0, 1]], [[0, 2]]]))
    >>> metric.compute()
    {'categorical_instability': tensor(0.5000)}
    """

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(CategoricalStream, 4)

    def update(self, preds: Tensor, target: Tensor | None = None, *, continues: bool = False) -> None:
        """Take logits (T, C, H, W) or integer classes (T, H, W), of a batch (B, ...) too; `target` as classes."""
        self.follow(continues, preds, target, axes=4 if preds.is_floating_point() else 3)

    def compute(self) -> dict[str, Tensor]:
        """Return the categorical instability, and its floor."""
        return _with_floor(self.total(), "categorical_instability")


class Smoothness(VideoMetric):
    """How smooth videos are in time against the truth: below 1 less smooth, above 1 smoother.

    S = sqrt(sum |x - G *_t x|^2 / sum |y - G *_t y|^2) in [0, inf], G a Gaussian of 0.15 s (Single-frame
    Regularization, equations 9 and 10); see `unflicker.metrics.temporal.smoothness`, also for the arguments. It
    rewards what lags, blurs or freezes, and sees no lasting error and nothing slower than about 1.5 Hz.

    Args:
        frame_rate: frames a second.
        domain: "identity", "lab" (a and b), "log", or a callable from frames to frames.
        seconds: sigma.
        truncate: sigmas at which the Gaussian ends.
        epsilon: of "log".

    `compute` returns "smoothness", S of each video and channel, averaged over channels, then videos, and
    "smoothness_pooled", of the sums over all of them. It raises InputError before two consecutive frames. Up to three
    radii (truncate * sigma) of frames are kept.

    >>> import torch
    >>> flicker = torch.tensor([0.0, 1.0] * 8).view(16, 1, 1, 1)
    >>> metric = Smoothness(frame_rate=24)
    >>> metric.update(flicker, 0.5 * flicker)
    >>> metric.compute()
    {'smoothness': tensor(0.5000), 'smoothness_pooled': tensor(0.5000)}
    """

    higher_is_better = True

    def __init__(
        self,
        *,
        frame_rate: float,
        domain: str | Domain = "identity",
        seconds: float = 0.15,
        truncate: float = 4.0,
        epsilon: float = 1 / 255,
    ) -> None:
        stream = partial(SmoothnessStream, frame_rate, domain, seconds, truncate, epsilon)
        stream()  # what is wrong with the settings is said now
        super().__init__(stream, 4)

    def update(self, preds: Tensor, target: Tensor, mask: Tensor | None = None, *, continues: bool = False) -> None:
        """Take a video (T, C, H, W) with its mask (T, 1, H, W), a batch of them, or the next frames."""
        self.follow(continues, preds, target, mask)

    def compute(self) -> dict[str, Tensor]:
        """Return the smoothness, as the mean of the videos and pooled."""
        each, videos, truth, ours = self.total()
        enough(videos, "Smoothness needs two consecutive frames with unmasked pixels")
        pooled = (truth / ours).sqrt() if truth or ours else each.new_ones(())
        return {"smoothness": (each / videos).float(), "smoothness_pooled": pooled.float()}


class CorruptionRobustness(VideoMetric):
    """R_c of Instant Video Models, section 3: how near the outputs for corrupted frames are to the truth.

    -sum_t d(y_t, x_t), averaged over the videos, in (-inf, 0] on the scale of the distance. A plain sum over time, so
    compare videos of one length; it does not see in which order frames are wrong.

    Args:
        distance: from two clips (T, C, H, W) to (T,); the L2 norm of a frame unless given.

    >>> import torch
    >>> metric = CorruptionRobustness()
    >>> metric.update(torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2))
    >>> metric.compute()
    tensor(-6.)
    """

    higher_is_better = True

    def __init__(self, *, distance: Distance = euclidean) -> None:
        super().__init__(partial(RobustnessStream, distance), 2)

    def update(self, preds: Tensor, target: Tensor, *, continues: bool = False) -> None:
        """Take a video (T, C, H, W), several (B, T, C, H, W), or the next frames of those that run."""
        self.follow(continues, preds, target)

    def compute(self) -> Tensor:
        """Return R_c."""
        total, videos = self.total()
        enough(videos, "Corruption robustness needs a frame")
        return (total / videos).float()


class CorruptionStability(VideoMetric):
    """S_c of Instant Video Models, section 3: how little the outputs for corrupted frames change.

    -sum_t d(y_t, y_t+1), averaged over the videos, in (-inf, 0] on the scale of the distance. A plain sum over time,
    so compare videos of one length; true motion counts, and an output that never changes is the best of all. Of the
    outputs for clean frames it is the stability S.

    Args:
        distance: from two clips (T, C, H, W) to (T,); the L2 norm of a frame unless given.

    >>> import torch
    >>> metric = CorruptionStability()
    >>> metric.update(torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1))
    >>> metric.compute()
    tensor(-2.)
    """

    higher_is_better = True

    def __init__(self, *, distance: Distance = euclidean) -> None:
        super().__init__(partial(StabilityStream, distance), 2)

    def update(self, preds: Tensor, *, continues: bool = False) -> None:
        """Take a video (T, C, H, W), several (B, T, C, H, W), or the next frames of those that run."""
        self.follow(continues, preds)

    def compute(self) -> Tensor:
        """Return S_c."""
        total, videos = self.total()
        enough(videos, "Corruption stability needs two consecutive frames")
        return (total / videos).float()


def _with_floor(total: Tensor, name: str) -> dict[str, Tensor]:
    value, pairs, floor, floor_pairs = total
    enough(pairs, f"{name.replace('_', ' ').capitalize()} needs two consecutive frames")
    found = {name: (value / pairs).float()}
    if floor_pairs:
        enough(floor_pairs == pairs, f"The floor of {name.replace('_', ' ')} needs a target for every video")
        found[f"{name}_floor"] = (floor / floor_pairs).float()
    return found
