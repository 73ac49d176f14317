"""Kinds of output that can be measured: which one a target asks for, and what of output and target is compared."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.metrics.depth import disparity_of
from unflicker.metrics.temporal import class_map
from unflicker.outputs import main_tensor

# "pictures": (B, C, H, W), clipped to [0, 1]. "depth": disparity (B, 1, H, W), 1 / depth up to scale and shift, held to
# a true depth. "own depth": the same held to what the base makes of the clean frame, in one unit with it. "labels":
# logits (B, K, H, W), held to class indices. "classes": logits (B, K), one class for a frame.
Kind = Literal["pictures", "depth", "own depth", "labels", "classes"]


def target_kinds(target: Tensor, key: str) -> tuple[Kind, ...]:
    """Return what a target asks of a network; nothing where no metric compares with it.

    Args:
        target: of some frames, as `unflicker.data.read_frames` gives it.
        key: what a recording calls it: "depth", in metres or so, and "disparity" are known by their names, all else by
            what it is: integers (T, H, W) are labels, integers (T,) classes of frames, the rest are pictures.

    >>> target_kinds(torch.zeros(1, 4, 6, dtype=torch.int64), "labels")
    ('labels',)
    """
    if key in ("depth", "disparity"):
        return ("depth",)
    if not target.is_floating_point():
        return ("labels",) if target.ndim == 3 else ("classes",)
    return () if key == "flow" else ("pictures",)


def output_kinds(output: Tensor) -> tuple[Kind, ...]:
    """Return what the main tensor of a network's output may be, the likeliest first.

    >>> output_kinds(torch.zeros(1, 3, 4, 6)), output_kinds(torch.zeros(1, 10))
    (('pictures', 'labels'), ('classes',))
    """
    if output.ndim == 2:
        return ("classes",)
    if output.ndim == 3:
        return ("own depth",)
    kinds: dict[int, tuple[Kind, ...]] = {1: ("own depth", "pictures"), 3: ("pictures", "labels")}
    return kinds.get(output.shape[1], ("labels",))


def as_output(value: Any, frames: Tensor, kind: Kind) -> Tensor:
    """Return what metrics look at of what a network returned for frames (B, C, H, W), float32.

    Pictures are clipped to [0, 1], disparity (B, H, W) gets its channel, and logits (B, K) become (B, K, 1, 1).

    Raises:
        InputError: there is no tensor of floats in it with a row for every frame.

    >>> as_output({"logits": torch.zeros(1, 10)}, torch.zeros(1, 3, 8, 8), "classes").shape
    torch.Size([1, 10, 1, 1])
    """
    output = main_tensor(value, frames).float()
    if kind == "pictures":
        return output.clamp(0, 1)
    if kind == "classes":
        return output[..., None, None]
    return output.unsqueeze(1) if output.ndim == 3 else output


def as_target(target: Tensor, key: str, kind: Kind) -> Tensor:
    """Return what metrics hold an output to.

    For depth it is disparity (B, 1, H, W), NaN where unknown; for labels and classes it is their indices (B, H, W),
    negative where unknown, and (B, 1, 1) for classes of frames. Logits, of a base, become the largest one's index.

    Args:
        target: as `unflicker.data.read_frames` gives it, or for "base" what `as_output` returned.
        key: what it is called: "depth", "disparity", "base" and so on.
        kind: of the output that is held to it.

    >>> as_target(torch.tensor([0.0, 4.0]).view(1, 1, 1, 2), "depth", "depth").flatten().tolist()
    [nan, 0.25]
    """
    if kind == "depth":
        depth = disparity_of(target)
        return depth if key == "depth" else target.masked_fill(depth.isnan(), torch.nan)
    if kind in ("labels", "classes"):
        if target.is_floating_point():
            return class_map(target)
        return target if target.ndim == 3 else target.view(-1, 1, 1)
    return target


def check_fits(output: Tensor, target: Tensor, kind: Kind) -> None:
    """Raise unless an output, from `as_output`, can be held to a target, from `as_target`.

    >>> check_fits(torch.zeros(1, 5, 4, 6), torch.zeros(1, 8, 12, dtype=torch.int64), "labels")
    Traceback (most recent call last):
    unflicker.checks.InputError: The network must return logits (1, K, 8, 12), as many as the target has labels, got \
(1, 5, 4, 6): scale its output to the size of its frames.
    """
    if kind in ("labels", "classes"):
        batch, *size = target.shape
        if (output.shape[0], *output.shape[2:]) != target.shape:
            wanted = f"({batch}, K, {', '.join(map(str, size))})"
            raise InputError(
                f"The network must return logits {wanted}, as many as the target has labels, got "
                f"{tuple(output.shape)}: scale its output to the size of its frames."
            )
        if int(target.max()) >= output.shape[1]:
            raise InputError(
                f"The network has logits for {output.shape[1]} classes, 0 to {output.shape[1] - 1}, but the target has "
                f"the class {int(target.max())}: they do not belong together."
            )
    elif output.shape != target.shape:
        raise InputError(
            f"The network must return what the truth is like, {tuple(target.shape)}, got shape {tuple(output.shape)}."
        )
