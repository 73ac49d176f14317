"""Fetching along a flow: by tensors, or by OpenCV where that finds the flow anyway, in less than half the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unflicker.flow.base import SMALLEST, Flow, installed
from unflicker.functional import flow_to, resize, sample

if TYPE_CHECKING:
    import numpy as np


def fetch(image: Tensor, flow: Tensor, *, method: str | Flow = "auto") -> Tensor:
    """Fetch each pixel from where it came: `sample`, bicubic, along a flow of any size.

    Args:
        image: (B, C, H, W).
        flow: (B, 2, h, w), pixels of its own size along x and y.
        method: what found the flow, as in `unflicker.flow.flow`; where that is DIS, OpenCV fetches too.

    >>> ramp = torch.arange(48.0).expand(1, 1, 32, 48)
    >>> shift = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 16, 24)
    >>> fetch(ramp, shift)[0, 0, 0, :3].round().tolist()  # two pixels at full size
    [2.0, 3.0, 4.0]
    """
    size = (image.shape[-2], image.shape[-1])
    if not _by_opencv(image, method):
        return sample(image, flow_to(flow, size))
    out = torch.empty_like(image, memory_format=torch.contiguous_format)
    arrays = (each.detach().contiguous().numpy() for each in (image, flow, out))
    for planes, shifts, into in zip(*arrays, strict=True):
        _remap(planes, shifts, into)
    return out


def _remap(planes: np.ndarray, flow: np.ndarray, out: np.ndarray) -> None:
    """`fetch` for one stream: planes and out (C, H, W), flow (2, h, w)."""
    import cv2
    import numpy as np

    size = planes.shape[1:]
    x, y = (
        cv2.resize(shift, size[::-1]) * np.float32(n / m)
        for shift, n, m in zip(flow, size[::-1], flow.shape[:0:-1], strict=True)
    )
    x += np.arange(size[1], dtype=np.float32)
    y += np.arange(size[0], dtype=np.float32)[:, None]
    for c in range(0, len(planes), 3):  # three at a time share the work on a place: a fifth faster; two or four do not
        some, into = planes[c : c + 3], out[c : c + 3]
        if len(some) == 3:
            cv2.split(
                cv2.remap(cv2.merge(list(some)), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), list(into)
            )
            continue
        for plane, fetched in zip(some, into, strict=True):
            cv2.remap(plane, x, y, cv2.INTER_CUBIC, fetched, cv2.BORDER_REPLICATE)


def enlarge(maps: Tensor, size: tuple[int, int], *, method: str | Flow = "auto") -> Tensor:
    """Bring maps (B, C, h, w) to a larger size, bilinear: `resize`, by OpenCV where `fetch` is.

    >>> enlarge(torch.ones(1, 2, 16, 16), (32, 48)).shape
    torch.Size([1, 2, 32, 48])
    """
    if not _by_opencv(maps, method) or maps.shape[-2:] == size:
        return resize(maps, size)
    import cv2

    out = torch.empty(*maps.shape[:2], *size)
    for small, large in zip(maps.detach().flatten(0, 1).contiguous().numpy(), out.flatten(0, 1).numpy(), strict=True):
        cv2.resize(small, size[::-1], dst=large, interpolation=cv2.INTER_LINEAR)
    return out


def _by_opencv(image: Tensor, method: str | Flow) -> bool:
    """Whether OpenCV is in use anyway and can take the image: floats on the CPU, no graph, no gradient."""
    if method not in ("auto", "dis") or min(image.shape[-2:]) < SMALLEST:
        return False
    if image.dtype != torch.float32 or image.device.type != "cpu":
        return False
    tracked = torch.is_grad_enabled() and image.requires_grad
    return not torch.compiler.is_compiling() and not tracked and installed()
