"""DIS, dense inverse search (Kroeger et al. 2016), as OpenCV has it."""

from __future__ import annotations

import torch
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.flow.base import SMALLEST, luma, small_size
from unflicker.flow.base import installed as _installed

PRESETS = ("ultrafast", "fast", "medium")  # in the order of OpenCV's numbers


def suits(frames: Tensor, scale: float = 1.0) -> bool:
    """Whether DIS can take these frames: OpenCV is installed, they are on the CPU and large enough, no graph is made.

    >>> suits(torch.zeros(1, 3, 8, 8))
    False
    """
    height, width = frames.shape[-2:]
    large = min(small_size((height, width), scale)) >= SMALLEST
    return large and frames.device.type == "cpu" and not torch.compiler.is_compiling() and _installed()


def dis_flow(a: Tensor, b: Tensor, *, preset: str = "medium", scale: float = 1.0) -> Tensor:
    """Return the flow from `a` to `b` on 8-bit luma; see `unflicker.flow.flow`.

    Raises:
        InputError: OpenCV is missing, the preset is unknown, or the frames are too small.

    >>> frame = torch.rand(1, 3, 16, 16)
    >>> dis_flow(frame, frame).abs().max().item() < 0.1
    True
    """
    if preset not in PRESETS:
        raise InputError(f"DIS has no preset {preset!r}; {nearest(preset, PRESETS)}")
    height, width = a.shape[-2:]
    small = small_size((height, width), scale)
    if min(small) < SMALLEST:
        raise InputError(
            f"DIS needs {SMALLEST} pixels a side, got {small[0]} x {small[1]} (height x width) at scale {scale:g}; "
            'method="torch" takes any size.'
        )
    if torch.compiler.is_compiling():
        raise InputError('DIS is computed by OpenCV and cannot be exported; method="torch" can.')
    if not _installed():
        raise InputError(
            'Flow by method="dis" needs OpenCV: pip install opencv-python-headless; method="torch" needs nothing.'
        )
    import cv2
    import numpy as np

    planes = [cv2.convertScaleAbs(plane, alpha=255) for plane in luma(torch.cat([a, b]))[:, 0].cpu().numpy()]
    if scale != 1:
        planes = [cv2.resize(plane, small[::-1], interpolation=cv2.INTER_AREA) for plane in planes]
    found = []
    for one, other in zip(planes[: len(a)], planes[len(a) :], strict=True):
        engine = cv2.DISOpticalFlow.create(PRESETS.index(preset))  # a used one remembers, and finds another flow
        empty = np.zeros((*one.shape, 2), np.float32)
        each = engine.calc(one, other, empty)
        if small != (height, width):
            factors = np.array([width / small[1], height / small[0]], np.float32)
            each = cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) * factors
        found.append(cv2.split(each))
    return torch.from_numpy(np.array(found)).to(a)
