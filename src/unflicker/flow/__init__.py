"""Optical flow behind one call: where each pixel of a frame went, and where that can be trusted."""

from __future__ import annotations

from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.flow.base import Flow, consistent, warp
from unflicker.flow.dis import PRESETS, dis_flow, suits
from unflicker.flow.fetch import enlarge, fetch
from unflicker.flow.search import torch_flow

__all__ = ["METHODS", "PRESETS", "Flow", "consistent", "dis_flow", "enlarge", "fetch", "flow", "torch_flow", "warp"]

METHODS = ("dis", "torch", "auto", "none")


def flow(a: Tensor, b: Tensor, *, method: str | Flow = "dis", preset: str = "medium", scale: float = 1.0) -> Tensor:
    """Return by how many pixels each pixel of `a` has moved in `b`: a(x) is about b(x + flow(x)).

    Both methods need no weights and follow brightness: a flicker of the light, noise and large flat areas mislead
    them, so give them the video that does not flicker. Neither is differentiable.

    Args:
        a: frames (B, 3, H, W) or (B, 1, H, W) in [0, 1]; beyond that they are clipped, NaN counts as 0.
        b: the frames they are sought in, as `a`.
        method: "dis", OpenCV's dense inverse search on the CPU and on 8-bit luma (Kroeger et al. 2016); "torch", a
            search made of tensor operations (`torch_flow`), which runs on any device, in a batch and in a
            compiled or exported graph; "auto", DIS where OpenCV is installed and the frames are on the CPU and large
            enough for it, else "torch"; "none" for a camera and scene that stand still, which costs nothing; or a
            callable that takes `a` and `b` and returns what this function returns.
        preset: "ultrafast", "fast" or "medium", of DIS.
        scale: size at which both compute, in (0, 1]; the result has the size of `a` and its pixels as unit.

    Returns:
        (B, 2, H, W), the shifts along x and along y, in the dtype and on the device of `a`.

    Raises:
        InputError: the frames are not alike or too small for DIS, OpenCV is missing, a name is unknown, or the
            callable's result is misshapen.

    >>> import torch
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
    if method == "dis" or (method == "auto" and suits(a, scale)):
        return dis_flow(a, b, preset=preset, scale=scale)
    return torch_flow(a, b, scale=scale)
