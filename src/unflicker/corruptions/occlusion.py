"""Occlusion and loss: patches, rectangles and frames that are missing, frozen or shown twice."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unflicker.corruptions.base import Corruption, Draw, short_edge


class PatchDrop(Corruption):
    """Set each patch of a grid, anchored at the top left corner, to zero in all channels with probability p.

    Preset "ivm": 8 x 8 pixels, p = 0.1.

    >>> out = PatchDrop.preset("ivm")(torch.ones(1, 3, 16, 16))
    >>> sorted(set(out.reshape(3, 2, 8, 2, 8).mean((0, 2, 4)).flatten().tolist())) in ([1.0], [0.0, 1.0])
    True
    """

    name = "patch_drop"
    levels: ClassVar = {"size": (8,) * 5, "p": (0.02, 0.05, 0.1, 0.2, 0.4)}
    presets: ClassVar = {"ivm": {"size": 8, "p": 0.1}}

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        size: int | None = None,
        p: float | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.size = self._whole("size", size, 1)
        self.p: float = self._setting("p", p, 0, 1)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        height, width = frame.shape[-2:]
        grid = self._rng(stream, t).random((-(-height // self.size), -(-width // self.size))) < self.p
        gone = grid.repeat(self.size, 0).repeat(self.size, 1)[:height, :width]
        return frame.masked_fill(torch.from_numpy(gone).to(frame.device), 0)


class RemovedRectangles(Corruption):
    """Set up to `count[1]` rectangles to zero, with edges of `size` pixels and anywhere inside the frame.

    Their number and their edges are uniform between the two ends of `count` and `size`, ends included. In frames with
    a short edge below 360 pixels the edges shrink in proportion. Preset "ivm": 1 to 8 of 40 to 120 pixels (the
    PatchRemoval of Instant Video Models' code).

    >>> out = RemovedRectangles(count=(1, 1), size=(180, 180))(torch.ones(1, 1, 36, 36))
    >>> int((out == 0).sum())  # 18 x 18
    324
    """

    name = "removed_rectangles"
    levels: ClassVar = {"count": ((1, 2), (2, 3), (3, 5), (5, 8), (8, 12)), "size": ((40, 120),) * 5}
    presets: ClassVar = {"ivm": {"count": (1, 8), "size": (40, 120)}}

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        count: tuple[int, int] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.count = self._pair("count", count)
        self.size = self._pair("size", size, 1)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        rng = self._rng(stream, t)
        edges = np.array(frame.shape[-2:])
        scale = min(1.0, short_edge(frame))
        low, high = (max(1, round(s * scale)) for s in self.size)
        out = frame.clone()
        count = int(self.count[0] + rng.random() * (self.count[1] - self.count[0] + 1))
        for u in rng.random((count, 4)):  # more rectangles are the same ones and some more
            h, w = np.minimum(low + (u[:2] * (high - low + 1)).astype(int), edges)
            y, x = (u[2:] * (edges - (h, w) + 1)).astype(int)
            out[:, y : y + h, x : x + w] = 0
        return out


class FrameDrop(Corruption):
    """Set the whole frame to zero with probability p; the first may be dropped too.

    Drawn per clip, all frames of a row are dropped or none. Preset "ivm": p = 0.1.

    >>> out = FrameDrop(p=0.5, seed=1)(torch.ones(6, 1, 2, 2)).mean((1, 2, 3))
    >>> set(out.tolist()) == {0.0, 1.0}
    True
    """

    name = "frame_drop"
    levels: ClassVar = {"p": (0.02, 0.05, 0.1, 0.2, 0.4)}
    presets: ClassVar = {"ivm": {"p": 0.1}}

    def __init__(self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", p: float | None = None) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.p: float = self._setting("p", p, 0, 1)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        return torch.zeros_like(frame) if self._rng(stream, t).random() < self.p else frame


class _Repeats(Corruption):
    """What shows an earlier frame again: `_repeats` says when, and the last frame that was really shown is kept."""

    looks_back = True

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        if t > 0 and self._repeats(stream, t):
            return self._memory[stream]
        self._memory[stream] = frame.detach().clone()
        return frame

    def _repeats(self, stream: int, t: int) -> bool:
        raise NotImplementedError


class FrozenFrames(_Repeats):
    """The picture stops, and then jumps: bursts in which the last frame shown is held for several frames.

    At each frame but the first a burst begins with probability p and lasts 2 to `longest` frames; bursts that overlap
    are one. Time goes on behind it. Drawn per clip there is one burst after every round(1 / p) frames, of length
    `longest` and at most half of that period, from a phase that is drawn.

    >>> shown = FrozenFrames(p=0.3, longest=4, seed=1)(torch.linspace(0, 1, 11).reshape(11, 1, 1, 1)).flatten()
    >>> int((shown.diff() == 0).sum()) > 1, bool((shown.diff() >= 0).all())
    (True, True)
    """

    name = "frozen_frames"
    levels: ClassVar = {"p": (0.01, 0.02, 0.04, 0.06, 0.09), "longest": (4, 6, 8, 10, 12)}

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        p: float | None = None,
        longest: int | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.p: float = self._setting("p", p, 0, 1)
        self.longest = self._whole("longest", longest, 2)

    def _repeats(self, stream: int, t: int) -> bool:
        if self.draw == "per_clip":
            phase = _phase(self, stream, t)
            return phase is not None and phase[0] < min(self.longest, phase[1] // 2)
        for begin in range(max(1, t - self.longest + 1), t + 1):
            u, length = self._rng(stream, begin).random(2)
            if u < self.p and t - begin < 2 + int(length * (self.longest - 1)):
                return True
        return False


class DuplicatedFrames(_Repeats):
    """Judder: single frames are replaced by the one before, never two in a row, as of a drop in a converter.

    Frame t is a repeat if its uniform is below p and that of frame t - 1 is not. Unlike frozen_frames the picture is
    never more than one frame behind. Drawn per clip every round(1 / p)-th frame is one, from a phase that is drawn.

    >>> shown = DuplicatedFrames(p=0.5)(torch.linspace(0, 1, 11).reshape(11, 1, 1, 1)).flatten()
    >>> still = shown.diff() == 0
    >>> bool(still.any()), bool((still[1:] & still[:-1]).any())
    (True, False)
    """

    name = "duplicated_frames"
    levels: ClassVar = {"p": (0.05, 0.1, 0.2, 0.3, 0.5)}

    def __init__(self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", p: float | None = None) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.p: float = self._setting("p", p, 0, 0.5)

    def _repeats(self, stream: int, t: int) -> bool:
        if self.draw == "per_clip":
            phase = _phase(self, stream, t)
            return phase is not None and phase[0] == 0
        drawn = [t > 0 and self._rng(stream, t).random() < self.p for t in (t - 1, t)]
        return drawn[1] and not drawn[0]


def _phase(kind: Any, stream: int, t: int) -> tuple[int, int] | None:
    """Where frame t lies in a regular period of at least 2, and that period; None if p is 0."""
    if kind.p == 0:
        return None
    period = max(2, round(1 / kind.p))
    return (t + int(kind._rng(stream, None).random() * period)) % period, period
