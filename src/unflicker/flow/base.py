"""What every way to optical flow shares: its form, warping by it, and where it can be trusted."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.functional import luma as brightness

Flow = Callable[[Tensor, Tensor], Tensor]
SMALLEST = 12  # pixels a side that DIS takes; it compares patches of 8


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


def luma(frames: Tensor) -> Tensor:
    """Return the brightness of frames (B, 1 or 3, H, W) as (B, 1, H, W), float32 in [0, 1]; NaN counts as 0.

    >>> round(luma(torch.tensor([2.0, 0.5, torch.nan]).view(1, 3, 1, 1)).item(), 4)
    0.5925
    """
    return brightness(frames.detach().float().nan_to_num(0).clamp(0, 1))


def installed() -> bool:
    """Whether there is OpenCV; it is not loaded for the answer."""
    return importlib.util.find_spec("cv2") is not None


def small_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return height and width at which a flow is computed.

    Raises:
        InputError: the scale is not in (0, 1].

    >>> small_size((192, 320), 0.5)
    (96, 160)
    """
    if not 0 < scale <= 1:
        raise InputError(f"The scale of the flow must be above 0 and at most 1, got {scale}.")
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
