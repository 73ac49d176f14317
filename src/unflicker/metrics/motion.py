"""How much a clip flickers once its motion is taken out, by optical flow."""

from __future__ import annotations

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.flow import Flow, consistent, warp
from unflicker.flow import flow as find_flow
from unflicker.metrics.base import check_clip, check_continues, joined, vector

NOISE = 1.5  # energy of the residual of frames with independent noise of variance 1: 1 + (1 + 1) / 4


def warping_error(preds: Tensor, guide: Tensor | None = None, *, flow: str | Flow = "dis") -> Tensor:
    """Return how much a clip changes along the motion of its guide, averaged over the pairs; a scalar.

    E = mean_t sum(m (y_t - warp(y_t+1))^2) / sum(m) over pixels and channels, with the flow from t to t+1 of the guide
    and m the pixels where it can be trusted (`unflicker.flow.consistent`): the warping error of Lai et al. 2018. On
    the scale of the squared values, 0 at best. It does not see what is masked out (occlusions, the borders of motion),
    nor a lasting error; blur and the warp's own interpolation lower it; a flow that is wrong raises it, so compare
    with the error of the truth, by the same flow. Numbers of different flows or sizes do not compare. NaN propagates
    where it is not masked out; a pair without a trusted pixel is left out.

    Args:
        preds: a clip (T, C, H, W), T of 2 or more.
        guide: the original video (T, 3, H, W) in [0, 1], for the flow; `preds` unless given, whose flicker misleads it.
        flow: what `unflicker.flow.flow` takes as `method`; `functools.partial(flow, preset="fast", scale=0.5)` sets
            DIS otherwise than "medium" in full size.

    Raises:
        InputError: the sizes differ, there are fewer than two frames, or no pixel can be trusted.

    >>> flicker = torch.tensor([0.5, 0.75, 0.5]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    >>> warping_error(flicker, torch.zeros(3, 3, 16, 16)).item()
    0.0625
    """
    stream = WarpingStream(flow)
    stream.update(preds, guide)
    total = stream.totals()
    if not total[1]:
        raise InputError(
            f"Two frames or more whose flow can be trusted somewhere are needed, got {tuple(preds.shape)}."
        )
    return total[0].to(preds)


def flicker(preds: Tensor, guide: Tensor | None = None, *, flow: str | Flow = "dis") -> Tensor:
    """Return how much a lone clip flickers, without any truth; a scalar on the scale of its values, 0 at best.

    The root mean square of r_t = y_t - (warp(y_t-1) + warp(y_t+1)) / 2, divided by sqrt(3 / 2), over channels and all
    pixels p and frames t at which the flow to the frame before and that to the frame after can both be trusted
    (`unflicker.flow.consistent`). Noise that is independent from frame to frame reads as its standard deviation if
    nothing moves; y alternating by +-a reads 1.63 a. What changes at an even pace (a fade) reads 0.

    Limits. Slow flicker passes: a sine of f cycles a frame counts with (1 - cos(2 pi f)) / 1.22, 1.22 being sqrt(3/2).
    Motion that the flow misses or that bends, film grain and texture that shimmers count as flicker; interpolation at
    parts of a pixel blurs the neighbours, which reads noise lower (down to 0.82) and fine texture as flicker. Without
    a guide the flow comes from the clip itself and may follow or be broken by its flicker. Blurred, dark or frozen
    clips read low. So it compares versions of one video at one size, not videos. NaN propagates where not masked.

    Args:
        preds: a clip (T, C, H, W), T of 3 or more; C of 1 or 3 without a guide.
        guide: a video (T, 3, H, W) in [0, 1] with the same motion, for the flow; `preds` unless given.
        flow: what `unflicker.flow.flow` takes as `method`: "none" for speed, if nothing moves.

    Raises:
        InputError: the sizes differ, there are fewer than three frames, or no pixel can be trusted.

    >>> alternating = torch.tensor([0.5, 0.6] * 3).view(6, 1, 1, 1).expand(6, 3, 16, 16)
    >>> round(flicker(alternating, flow="none").item(), 4) == round(0.1 / 1.5**0.5, 4)
    True
    """
    stream = FlickerStream(flow)
    stream.update(preds, guide)
    total = stream.totals()
    if not total[1]:
        raise InputError(
            f"Three frames or more whose flow can be trusted somewhere are needed, got {tuple(preds.shape)}."
        )
    return total[0].to(preds)


class WarpingStream:
    """Sums for `warping_error` over a video: [E, 1], or zeros before there is a pair."""

    def __init__(self, flow: str | Flow) -> None:
        self.flow = flow
        self.last: Tensor | None = None
        self.last_guide: Tensor | None = None
        self.sum = torch.zeros((), dtype=torch.float64)
        self.pairs = 0

    def update(self, preds: Tensor, guide: Tensor | None = None) -> None:
        guide = _check(preds, guide, self.last, self.last_guide)
        clip, original = joined(self.last, preds), joined(self.last_guide, guide)
        if len(clip) > 1:
            forward = find_flow(original[:-1], original[1:], method=self.flow)
            backward = find_flow(original[1:], original[:-1], method=self.flow)
            mask = consistent(forward, backward).expand_as(clip[:-1])
            error = torch.where(mask, clip[:-1] - warp(clip[1:], forward), 0).square()
            counts = mask.flatten(1).sum(1)
            each = error.flatten(1).sum(1, dtype=torch.float64)[counts > 0] / counts[counts > 0]
            self.sum += each.sum().cpu()
            self.pairs += len(each)
        self.last, self.last_guide = preds[-1].detach().clone(), guide[-1].detach().clone()

    def totals(self) -> Tensor:
        return vector(self.sum / self.pairs, 1) if self.pairs else torch.zeros(2, dtype=torch.float64)


class FlickerStream:
    """Sums for `flicker` over a video: [root mean square, 1], or zeros before there are three frames."""

    def __init__(self, flow: str | Flow) -> None:
        self.flow = flow
        self.frames: Tensor | None = None  # the last two
        self.guide: Tensor | None = None  # the last
        self.flows: tuple[Tensor, Tensor] | None = None  # between the last two, forward and backward
        self.energy = torch.zeros((), dtype=torch.float64)
        self.counted = 0

    def update(self, preds: Tensor, guide: Tensor | None = None) -> None:
        guide = _check(preds, guide, None if self.frames is None else self.frames[-1], self.guide)
        clip = preds if self.frames is None else torch.cat([self.frames.to(preds), preds])
        original = joined(self.guide, guide)
        if len(original) > 1:
            forward = find_flow(original[:-1], original[1:], method=self.flow)
            backward = find_flow(original[1:], original[:-1], method=self.flow)
            if self.flows is not None:
                forward = torch.cat([self.flows[0].to(forward), forward])
                backward = torch.cat([self.flows[1].to(backward), backward])
            if len(clip) > 2:
                mask = consistent(backward[:-1], forward[:-1]) & consistent(forward[1:], backward[1:])
                mask = mask.expand_as(clip[1:-1])
                around = (warp(clip[:-2], backward[:-1]) + warp(clip[2:], forward[1:])) / 2
                residual = torch.where(mask, clip[1:-1] - around, 0)
                self.energy += residual.square().sum(dtype=torch.float64).cpu()
                self.counted += int(mask.sum())
            self.flows = forward[-1:].detach().clone(), backward[-1:].detach().clone()
        self.frames, self.guide = clip[-2:].detach().clone(), guide[-1].detach().clone()

    def totals(self) -> Tensor:
        if not self.counted:
            return torch.zeros(2, dtype=torch.float64)
        return vector((self.energy / self.counted / NOISE).sqrt(), 1)


def _check(preds: Tensor, guide: Tensor | None, last: Tensor | None, last_guide: Tensor | None) -> Tensor:
    check_clip(preds)
    check_continues(preds, last)
    if guide is None:
        guide = preds
    check_clip(guide, "guide")
    if (len(guide), *guide.shape[2:]) != (len(preds), *preds.shape[2:]):
        raise InputError(
            f"guide must have the frames and the size of preds, {len(preds)} frames of {tuple(preds.shape[2:])}; got "
            f"{len(guide)} of {tuple(guide.shape[2:])}."
        )
    check_continues(guide, last_guide, "guide")
    return guide
