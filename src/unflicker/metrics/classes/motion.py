"""Metrics of flicker along the motion, as torchmetrics classes over `unflicker.metrics.motion`."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from unflicker.flow import Flow
from unflicker.metrics.classes.base import VideoMetric, enough
from unflicker.metrics.motion import FlickerStream, WarpingStream


class WarpingError(VideoMetric):
    """How much videos change along the motion of their guides: the warping error of Lai et al. 2018.

    E = sum(m (y_t - warp(y_t+1))^2) / sum(m), averaged over the pairs, then over the videos, in [0, inf) on the scale
    of the squared values; see `unflicker.metrics.motion.warping_error`. It sees neither occlusions nor a lasting
    error, rewards blur, and a flow that is wrong raises it: compare with the truth's, by the same flow and size.

    Args:
        flow: what `unflicker.flow.flow` takes as `method`: "dis", "none" or a callable.

    `compute` raises InputError before two consecutive frames whose flow can be trusted somewhere.

    >>> import torch
    >>> metric = WarpingError()
    >>> flicker = torch.tensor([0.5, 0.75, 0.5]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    >>> metric.update(flicker, torch.zeros(3, 3, 16, 16))
    >>> metric.compute()
    tensor(0.0625)
    """

    higher_is_better = False

    def __init__(self, *, flow: str | Flow = "dis") -> None:
        super().__init__(partial(WarpingStream, flow), 2)

    def update(self, preds: Tensor, guide: Tensor | None = None, *, continues: bool = False) -> None:
        """Take a video and its original, (T, C, H, W) and (T, 3, H, W), a batch of them, or the next frames."""
        self.follow(continues, preds, guide)

    def compute(self) -> Tensor:
        """Return the warping error."""
        total, videos = self.total()
        enough(videos, "The warping error needs two consecutive frames whose flow can be trusted somewhere")
        return (total / videos).float()


class Flicker(VideoMetric):
    """How much lone videos flicker, without any truth.

    The root mean square of y_t - (warp(y_t-1) + warp(y_t+1)) / 2 where the flow can be trusted, divided by sqrt(3 / 2)
    so that noise reads as its standard deviation, and averaged over the videos; in [0, inf) on the scale of the values.
    Definition and limits: `unflicker.metrics.motion.flicker`. It does not see slow flicker, and takes for flicker what
    the flow misses; compare versions of one video at one size.

    Args:
        flow: what `unflicker.flow.flow` takes as `method`: "dis", "none" or a callable.

    `compute` raises InputError before three consecutive frames whose flow can be trusted somewhere.

    >>> import torch
    >>> metric = Flicker(flow="none")
    >>> metric.update(torch.tensor([0.0, 0.3, 0.0]).view(3, 1, 1, 1).expand(3, 3, 16, 16))
    >>> metric.compute()
    tensor(0.2449)
    """

    higher_is_better = False

    def __init__(self, *, flow: str | Flow = "dis") -> None:
        super().__init__(partial(FlickerStream, flow), 2)

    def update(self, preds: Tensor, guide: Tensor | None = None, *, continues: bool = False) -> None:
        """Take a video and what has its motion, (T, C, H, W) and (T, 3, H, W), a batch of them, or the next frames."""
        self.follow(continues, preds, guide)

    def compute(self) -> Tensor:
        """Return the flicker figure."""
        total, videos = self.total()
        enough(videos, "Flicker needs three consecutive frames whose flow can be trusted somewhere")
        return (total / videos).float()
