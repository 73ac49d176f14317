"""The guide: the model's input, which vouches for its output. What the aligned stabilizers of a frame share of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.flow import Flow, flow
from unflicker.functional import finite_pixels, half, is_finite, luma
from unflicker.state import State

DARK = 0.02  # of a range of 1: what was as dark as that may have become black
GONE = 0.5  # share of a frame that has to be missing for none of it to be trusted
LARGE = 8  # half-size pixels: a square as large as that, all black, was not lost
LARGEST = 1e6  # beyond that squares would overflow
PATIENCE = 3  # frames; black that lasts is no fault


class Guide:
    """One frame of the guide beside the last.

    Args:
        frame: (B, C, H, W), in [0, 1] or any other range.
        state: what `following` was for the last frame, or `fresh`.
        mask: (B, 1, H, W), 0 where the frame is not valid, or None.

    Attributes:
        frame: (B, C, H, W), 0 where it is not finite or masked.
        colour, colour_past: (B, C, H/2, W/2), now and in the last frame, on a range of [0, 1]; where the frame is
            missing, the last one stands in.
        luma, past: their luma, (B, 1, H/2, W/2).
        seen: (B, 1, 1, 1), 1 where there is a last frame.
        valid: (B, 1, H, W) bool: what is finite, not masked, and did not suddenly become exactly black in blocks.
        whole: whether all of it is known to be valid; False in a graph.
        following: the state for the next frame.
    """

    def __init__(self, frame: Tensor, state: State, mask: Tensor | None = None) -> None:
        frame = frame.detach()
        frame = frame.to(torch.promote_types(frame.dtype, torch.float32))
        self.colour_past, self.seen = state["past"], state["seen"]
        self._flows: dict[tuple[str | Flow, str], Tensor] = {}
        lazy = not torch.compiler.is_compiling()  # a graph works out everything, a program only what it needs
        whole = mask is None and is_finite(frame)
        finite = torch.ones_like(frame[:, :1], dtype=torch.bool)
        if not whole:
            finite = finite_pixels(frame) if mask is None else finite_pixels(frame) & (mask > 0.5)
            whole = lazy and bool(finite.all())
        if not whole:
            frame = torch.where(finite, frame, 0)
        self.frame, small = frame, half(frame)
        if not lazy or not bool(small.abs().amax() <= LARGEST):
            small = half(frame.clamp(-LARGEST, LARGEST))
        self._range = self._fitting(small, state)
        self._as_is = lazy and bool((self._range[:, :1] == 0).all() & (self._range[:, 1:] == 1).all())
        if not lazy or self._range is not state["range"]:
            known_as = torch.where(self.seen > 0, state["range"], self._range)
            self.colour_past = self._unit(self.colour_past * known_as[:, 1:] + known_as[:, :1])
        self.past = luma(self.colour_past)
        black, patience = torch.zeros_like(finite), torch.zeros_like(self.past)
        if not lazy or not bool(luma(small).abs().amin() > 0):
            black, patience = self._missing((frame == 0).all(1, keepdim=True), state)
            whole = whole and not bool(black.any())
        self.valid, self.colour = finite & ~black, self._unit(small)
        if not whole:
            gone = (~self.valid).to(frame.dtype).mean((2, 3), keepdim=True) > GONE
            self.valid = self.valid & ~(gone & (self.seen > 0))
        self.whole = whole
        known = None if whole else half(self.valid.to(frame.dtype)) == 1
        if known is not None:
            self.colour = torch.where(known | (self.seen == 0), self.colour, self.colour_past)
        self.luma = luma(self.colour)
        change = (self.luma - self.past).mean((2, 3), keepdim=True).abs() * self.seen
        if known is not None:
            change = torch.where(known.any(3, True).any(2, True), change, state["change"])
        self.following = {
            "past": self.colour,
            "seen": torch.ones_like(self.seen),
            "range": self._range,
            "change": change,
            "patience": patience,
        }

    @staticmethod
    def fresh(frame: Tensor) -> State:
        """Return the state before the first frame, all zero, for frames like `frame` (B, C, H, W)."""
        past = half(torch.zeros_like(frame, dtype=torch.promote_types(frame.dtype, torch.float32)))
        one = torch.zeros_like(past[:, :1, :1, :1])
        return {"past": past, "seen": one, "range": one.repeat(1, 2, 1, 1), "change": one, "patience": past[:, :1]}

    def flow(self, method: str | Flow, preset: str) -> Tensor:
        """Return the flow from this frame to the last in half-size pixels, (B, 2, H/2, W/2), worked out once."""
        key = (method, preset)
        if key not in self._flows:
            self._flows[key] = flow(self.luma, self.past, method=method, preset=preset) * self.seen
        return self._flows[key]

    @property
    def plane(self) -> Tensor:
        """The luma at full size, (B, 1, H, W) in [0, 1]."""
        return self._unit(luma(self.frame).clamp(-LARGEST, LARGEST))

    @property
    def bounded(self) -> Tensor:
        """The frame, (B, C, H, W), no further out of its range than half of it: a pixel alone is no other range."""
        low, length = self._range[:, :1], self._range[:, 1:]
        return self.frame.clamp(-0.5, 1.5) if self._as_is else self.frame.clamp(low - length / 2, low + 1.5 * length)

    @property
    def usual(self) -> Tensor:
        """Whether the range is [0, 1], above 0 if so, (B, 1, 1, 1)."""
        return ((self._range[:, :1] == 0) & (self._range[:, 1:] == 1)).to(self.frame)

    def to_unit(self, steady: Tensor, average: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bring three pictures from the guide's range to [0, 1]."""
        return self._unit(steady), self._unit(average), self._unit(frame)

    def from_unit(self, difference: Tensor) -> Tensor:
        """Bring a difference of pictures back to the guide's range."""
        return difference if self._as_is else difference * self._range[:, 1:]

    def _unit(self, plane: Tensor) -> Tensor:
        return plane if self._as_is else (plane - self._range[:, :1]) / self._range[:, 1:].clamp_min(1e-12)

    def _fitting(self, small: Tensor, state: State) -> Tensor:
        """The range of values, (B, 2, 1, 1): offset and length. [0, 1] if they fit, else wide enough for all so far."""
        low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
        had, end = state["range"][:, :1], state["range"].sum(1, keepdim=True)
        margin = (end - had) / 2
        beyond = (low < had - margin) | (high > end + margin)
        if not torch.compiler.is_compiling() and bool(self.seen.all()) and not bool(beyond.any()):
            return state["range"]
        usual = (low >= -0.5) & (high <= 1.5)
        low, high = torch.where(usual, 0, low), torch.where(usual, 1, high)
        # A few pixels that are far out are no other range.
        outside = ((small < had - margin) | (small > end + margin)).to(small.dtype).mean((1, 2, 3), keepdim=True)
        wider = beyond & (outside > 0.01)
        low = torch.where(self.seen > 0, torch.where(wider, torch.minimum(low, had), had), low)
        high = torch.where(self.seen > 0, torch.where(wider, torch.maximum(high, end), end), high)
        return torch.cat([low, torch.where(high > low, high - low, 1)], 1)

    def _missing(self, black: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Where black came suddenly, in blocks, (B, 1, H, W) bool; and for how many frames, at half size."""
        gone = half(black.to(self.past.dtype)) == 1
        # A fade goes dark step by step, and its last step is no larger than the one before.
        sudden = self.past > DARK + 3 * state["change"]
        # An opening: what survives losing 2 x 2 at its edges, grown again. Single zeros can be chance.
        core = -F.max_pool2d(F.pad(-(gone & sudden).to(self.past.dtype), (0, 1, 0, 1), value=-1.0), 2, 1)
        holes = F.max_pool2d(F.pad(core, (1, 0, 1, 0), value=-1.0), 2, 1) > 0
        # What is larger than the blocks that get lost is a black thing, unless it is all of the frame.
        large = (F.avg_pool2d(gone.to(core.dtype), LARGE, ceil_mode=True) == 1).to(core.dtype)
        large = F.interpolate(F.max_pool2d(large, 3, 1, 1), scale_factor=float(LARGE), mode="nearest") > 0
        small = ~large[..., : gone.shape[-2], : gone.shape[-1]]
        holes = holes & (small | black.all(3, True).all(2, True)) & (self.seen > 0)
        patience = torch.where(holes, state["patience"] + 1, 0).clamp_max(PATIENCE + 1)
        kept = (holes & (patience <= PATIENCE)).to(core.dtype)
        block = F.interpolate(kept, scale_factor=2.0, mode="nearest")[..., : black.shape[-2], : black.shape[-1]] > 0
        return black & block, patience
