"""Optical flow behind one call: where each pixel of a frame went, and where that can be trusted."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError, nearest

Flow = Callable[[Tensor, Tensor], Tensor]
PRESETS = ("ultrafast", "fast", "medium")  # in the order of OpenCV's numbers
METHODS = ("dis", "none")
SMALLEST = 12  # pixels; DIS compares patches of 8


def flow(a: Tensor, b: Tensor, *, method: str | Flow = "dis", preset: str = "medium", scale: float = 1.0) -> Tensor:
    """Return by how many pixels each pixel of `a` has moved in `b`: a(x) is about b(x + flow(x)).

    DIS (Kroeger et al. 2016) needs no weights and runs on the CPU, on 8-bit luma. It follows brightness: a flicker of
    the light, noise and large flat areas mislead it, so give it the video that does not flicker. Not differentiable.

    Args:
        a: frames (B, 3, H, W) or (B, 1, H, W) in [0, 1]; beyond that they are clipped, NaN counts as 0.
        b: the frames they are sought in, as `a`.
        method: "dis"; "none" for a camera and scene that stand still, which costs nothing; or a callable that takes
            `a` and `b` and returns what this function returns.
        preset: "ultrafast", "fast" or "medium", of DIS.
        scale: size at which DIS computes, in (0, 1]; the result has the size of `a` and its pixels as unit.

    Returns:
        (B, 2, H, W), the shifts along x and along y, in the dtype and on the device of `a`.

    Raises:
        InputError: the frames are not alike or too small, a name is unknown, or the callable's result is misshapen.

    >>> a = torch.zeros(1, 3, 32, 48)
    >>> flow(a, a).shape
    torch.Size([1, 2, 32, 48])
    """
    if a.shape != b.shape or a.ndim != 4 or a.shape[1] not in (1, 3):
        raise InputError(f"Flow needs two frames alike, (B, 3, H, W); got {tuple(a.shape)} and {tuple(b.shape)}.")
    if callable(method):
        found = method(a, b)
        expected = (a.shape[0], 2, *a.shape[-2:])
        if not isinstance(found, Tensor) or found.shape != expected:
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"The flow's callable must return a tensor {expected}, got {came}.")
        return found.to(a)
    if method not in METHODS:
        raise InputError(f"There is no flow {method!r}; {nearest(method, METHODS)}")
    if method == "none":
        return a.new_zeros(a.shape[0], 2, *a.shape[-2:])
    return _dis(a, b, preset, scale)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Fetch each pixel from where it has moved: out(x) = image(x + flow(x)), bilinear; outside, the border repeats.

    With `flow(a, b)`, `warp(b, flow)` lies on `a`.

    Args:
        image: (B, C, H, W).
        flow: (B, 2, H, W), pixels along x and along y.

    Raises:
        InputError: the two do not belong together.

    >>> ramp = torch.arange(4.0).view(1, 1, 1, 4)
    >>> shift = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    >>> [round(value, 4) for value in warp(ramp, shift).flatten().tolist()]
    [1.0, 2.0, 3.0, 3.0]
    """
    height, width = image.shape[-2:]
    if image.ndim != 4 or flow.shape != (image.shape[0], 2, height, width):
        raise InputError(
            f"warp needs an image (B, C, H, W) and its flow (B, 2, H, W), got {tuple(image.shape)} and "
            f"{tuple(flow.shape)}."
        )
    x, y = _targets(flow.to(image))
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def consistent(
    forward: Tensor,
    backward: Tensor,
    *,
    occlusion: tuple[float, float] = (0.01, 0.5),
    boundary: tuple[float, float] | None = (0.01, 0.002),
) -> Tensor:
    """Return the pixels of the first frame at which the flow can be trusted, (B, 1, H, W) bool.

    With w the forward flow, w' the backward flow fetched along it, and the published constants (Ruder et al. 2016,
    Lai et al. 2018), a pixel is left out where

    - it went out of the frame,
    - it is hidden in the second frame: |w + w'|^2 > 0.01 (|w|^2 + |w'|^2) + 0.5,
    - a motion boundary passes: |grad u|^2 + |grad v|^2 > 0.01 |w|^2 + 0.002.

    Args:
        forward: flow from the first frame to the second, (B, 2, H, W) in pixels.
        backward: flow from the second to the first.
        occlusion: factor and constant of the second test.
        boundary: those of the third; None leaves it out.

    Raises:
        InputError: the flows are not alike.

    >>> right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 4)
    >>> consistent(right, -right)[0, 0].int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 0]]
    """
    if forward.shape != backward.shape or forward.ndim != 4 or forward.shape[1] != 2:
        raise InputError(f"Flows must be alike, (B, 2, H, W); got {tuple(forward.shape)} and {tuple(backward.shape)}.")
    height, width = forward.shape[-2:]
    x, y = _targets(forward)
    kept = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    back = warp(backward, forward)
    length = forward.square().sum(1)
    kept &= (forward + back).square().sum(1) <= occlusion[0] * (length + back.square().sum(1)) + occlusion[1]
    if boundary is not None:
        across = F.pad(forward.diff(dim=-1), (0, 1)).square().sum(1)
        down = F.pad(forward.diff(dim=-2), (0, 0, 0, 1)).square().sum(1)
        kept &= across + down <= boundary[0] * length + boundary[1]
    return kept.unsqueeze(1)


def _targets(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel goes: x and y, (B, H, W) each."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, dtype=flow.dtype, device=flow.device)
    y = torch.arange(height, dtype=flow.dtype, device=flow.device)
    return x + flow[:, 0], y.unsqueeze(1) + flow[:, 1]


def _dis(a: Tensor, b: Tensor, preset: str, scale: float) -> Tensor:
    import cv2
    import numpy as np

    if preset not in PRESETS:
        raise InputError(f"DIS has no preset {preset!r}; {nearest(preset, PRESETS)}")
    if not 0 < scale <= 1:
        raise InputError(f"The scale of the flow must be above 0 and at most 1, got {scale}.")
    height, width = a.shape[-2:]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    if min(small) < SMALLEST:
        raise InputError(
            f"DIS needs {SMALLEST} pixels a side, got {small[1]} x {small[0]} (height x width) at scale {scale:g}."
        )

    def luma(frames: Tensor) -> list[np.ndarray]:
        frames = frames.detach().float().nan_to_num(0).clamp(0, 1)
        if frames.shape[1] == 3:
            frames = (frames * frames.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        planes = (frames[:, 0] * 255).round().to(torch.uint8).cpu().numpy()
        return [p if scale == 1 else cv2.resize(p, small, interpolation=cv2.INTER_AREA) for p in planes]

    found = []
    for one, other in zip(luma(a), luma(b), strict=True):
        engine = cv2.DISOpticalFlow.create(PRESETS.index(preset))  # a used one remembers, and finds another flow
        empty = np.zeros((*one.shape, 2), np.float32)
        each = engine.calc(np.ascontiguousarray(one), np.ascontiguousarray(other), empty)
        if small != (width, height):
            factors = np.array([width / small[0], height / small[1]], np.float32)
            each = cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) * factors
        found.append(torch.from_numpy(each))
    return torch.stack(found).permute(0, 3, 1, 2).to(a)
