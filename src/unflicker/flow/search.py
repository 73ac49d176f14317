"""Optical flow made of tensor operations alone: one graph on any device, a batch at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.flow.base import luma, small_size

COARSEST = 5  # pixels that the shorter side of the coarsest grid has at least
MATCHED = 2  # on so many of the coarsest levels, block matching looks for larger motion
REACH = 3  # how far that looks to each side, in pixels of the grid
STEPS = 3  # gradient steps on each level; one less on the finest, which takes most of the time
STILL, MATCH = 0.9, 1.5  # factors on the errors of no motion and of a block match when they are compared
NOISE = 2e-3  # squared gradient below which a window rather follows its neighbours
PULL = 0.1  # how much every window follows its neighbours, as share of its squared gradient
LONGEST = 1.0  # of a gradient step along an axis, in pixels of the level


def torch_flow(a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return the flow from `a` to `b` by gradient steps from coarse to fine; see `unflicker.flow.flow`.

    On each level of a pyramid of halved frames the flow lives on a grid of half the level's size. It starts as the
    better of the coarser level's flow and no motion (and, on the coarsest grids, of a block match) in windows of
    7 x 7. Then come inverse-compositional steps (Baker & Matthews 2004; the patch search of DIS, Kroeger et al. 2016,
    with a window around every point): the gradients and the 2 x 2 matrix are those of `a` and computed once, only `b`
    is warped again. The matrix is damped towards the neighbours' mean flow, so that noise and flat areas do not drift.

    Motion up to a tenth of the shorter side is found even in fine texture, and more where large structures move along.
    All is computed in float32, without gradients.

    Args:
        a: frames (B, 3, H, W) or (B, 1, H, W) in [0, 1], of any size.
        b: the frames they are sought in.
        scale: size at which the flow is computed, in (0, 1].

    Raises:
        InputError: the scale is out of range.

    >>> x = torch.linspace(0, 12, 64).sin().expand(1, 1, 48, 64) / 2 + 0.5
    >>> found = torch_flow(x[..., 2:], x[..., :-2])
    >>> round(found[0, 0].median().item(), 1), found[0, 1].abs().max().item() < 1e-3
    (2.0, True)
    """
    height, width = a.shape[-2:]
    small = small_size((height, width), scale)
    found = _coarse_to_fine(_resize(luma(a), small), _resize(luma(b), small))
    if small != (height, width):
        found = F.interpolate(found, size=(height, width), mode="bilinear", align_corners=False)
        found = found * found.new_tensor([width / small[1], height / small[0]]).view(2, 1, 1)
    return found.to(a.dtype)


def _coarse_to_fine(a: Tensor, b: Tensor) -> Tensor:
    height, width = a.shape[-2:]
    levels = 1
    while min(height, width) >> (levels + 1) >= COARSEST:
        levels += 1
    pyramid = [F.pad(torch.cat([a, b]), (0, -width % 2**levels, 0, -height % 2**levels), mode="replicate")]
    for _ in range(levels):
        pyramid.append(_halve(pyramid[-1]))
    flow = torch.zeros_like(pyramid[-1].chunk(2)[0]).repeat(1, 2, 1, 1)
    for level in reversed(range(levels)):
        one, other = pyramid[level].chunk(2)
        if level < levels - 1:
            flow = 2 * _double(flow)
        candidates = [(1.0, flow), (STILL, torch.zeros_like(flow))]
        if level >= levels - MATCHED:
            candidates.append((MATCH, 2 * _match(*pyramid[level + 1].chunk(2))))
        flow = _refine(one, other, candidates, STEPS - (level == 0))
    return _double(flow)[..., :height, :width]


def _match(a: Tensor, b: Tensor) -> Tensor:
    """Return the whole shift of at most REACH pixels with the least squared difference in a window."""
    height, width = a.shape[-2:]
    shifts = [(x, y) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
    shifts.sort(key=lambda shift: shift[0] ** 2 + shift[1] ** 2)  # of equals the first is taken
    wide = F.pad(b, (REACH,) * 4, mode="replicate")
    moved = [wide[..., REACH + y : REACH + y + height, REACH + x : REACH + x + width] for x, y in shifts]
    best = _window((torch.cat(moved, 1) - a).square()).argmin(1)
    return a.new_tensor(shifts)[best].permute(0, 3, 1, 2)


def _refine(a: Tensor, b: Tensor, candidates: list[tuple[float, Tensor]], steps: int) -> Tensor:
    """Take the best of the flows (B, 2, H / 2, W / 2), in pixels of `a` and `b` (B, 1, H, W), and improve it."""
    height, width = a.shape[-2:]
    rows = torch.linspace(1 / height - 1, 1 - 1 / height, height, dtype=a.dtype, device=a.device)
    columns = torch.linspace(1 / width - 1, 1 - 1 / width, width, dtype=a.dtype, device=a.device)
    here = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)])
    unit = a.new_tensor([2 / width, 2 / height]).view(2, 1, 1)

    def difference(flow: Tensor) -> Tensor:
        there = (here + _double(flow * unit)).permute(0, 2, 3, 1)
        return F.grid_sample(b, there, padding_mode="border", align_corners=False) - a

    squares = torch.cat([factor * difference(each).square() for factor, each in candidates], 1)
    least, *others = _window(_halve(squares)).split(1, 1)
    flow = candidates[0][1]
    for error, (_, other) in zip(others, candidates[1:], strict=True):
        flow = torch.where(error < least, other, flow)
        least = torch.minimum(error, least)

    wide = F.pad(a, (1,) * 4, mode="replicate")
    x = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    y = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    gradient = torch.cat([x, y], 1)
    xx, xy, yy = _window(_halve(torch.cat([x * x, x * y, y * y], 1))).chunk(3, 1)
    pull = PULL * (xx + yy) + NOISE
    xx, yy = xx + pull, yy + pull
    determinant = xx * yy - xy * xy
    straight, crossed = torch.cat([yy, xx], 1) / determinant, xy / determinant
    for _ in range(steps):
        force = pull * (_window(flow) - flow) - _window(_halve(gradient * difference(flow)))
        flow = flow + (straight * force - crossed * force.flip(1)).clamp(-LONGEST, LONGEST)
    return flow


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="area")


def _halve(x: Tensor) -> Tensor:
    """Return means of 2 x 2 pixels."""
    if torch.compiler.is_compiling():  # a compiler would repeat what comes before in each of the four
        quarters = x.new_full((1, 1, 2, 2), 0.25)
        return F.conv2d(x.flatten(0, 1).unsqueeze(1), quarters, stride=2).view(*x.shape[:2], x.shape[-2] // 2, -1)
    x = x[..., ::2, :] + x[..., 1::2, :]  # a quarter of the pooling layer's time on a CPU
    return (x[..., ::2] + x[..., 1::2]) / 4


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _window(x: Tensor) -> Tensor:
    """Return weighted means of 7 x 7 pixels, (1, 1, 1, 2, 1, 1, 1) / 8 along each axis."""
    wide = F.pad(x, (3,) * 4, mode="replicate")
    if torch.compiler.is_compiling():  # few nodes: compilers take minutes over the slices
        weights = x.new_tensor([1, 1, 1, 2, 1, 1, 1]).view(1, 1, 1, 7) / 8
        rows = F.conv2d(wide.flatten(0, 1).unsqueeze(1), weights)
        return F.conv2d(rows, weights.mT).view_as(x)
    for axis in (-1, -2):  # a quarter of the convolution's time on a CPU
        for step in (1, 2, 3):
            length = wide.shape[axis] - step
            wide = wide.narrow(axis, 0, length) + wide.narrow(axis, step, length)
    return wide / 64
