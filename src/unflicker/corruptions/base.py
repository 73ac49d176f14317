"""What every corruption shares: severities, presets, seeds, and frames that do not care how a clip was cut up."""

from __future__ import annotations

import math
import operator
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError, nearest

Draw = Literal["per_frame", "per_clip"]
SLACK = 1e-3  # values this far outside [0, 1] come from rounding and are clipped without a word


class Corruption(ABC):
    """A clip in, a corrupted clip out: the same every time, and the same whole, in chunks or frame by frame.

    What happens to frame t of row b of the batch is drawn from (seed, kind, b, t) alone. Kinds that look back
    (frozen_frames, duplicated_frames, h264) keep what they need between calls: each call goes on where the last one
    ended, and `start=0` begins anew; a copy or a pickle of one begins anew too.

    A new kind is a class with `name`, `levels`, a constructor that passes its own settings through `_setting`, and
    `_corrupt`, which makes one frame.

    Args:
        severity: 1 (slight) to 5 (severe); picks the settings that are not given, from `levels`.
        seed: an integer, 0 or more.
        draw: "per_frame" draws afresh for every frame; "per_clip" draws once per row of the batch, as if every frame
            were its frame 0. What moves by nature (weather, camera_shake) has one motion per row either way.

    Raises:
        InputError: a severity outside 1 to 5, a seed that is no integer, a setting outside its range.
    """

    name: ClassVar[str]
    levels: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Setting -> its values at severities 1 to 5."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Name -> settings, those of a paper."""
    looks_back: ClassVar[bool] = False

    def __init__(self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame") -> None:
        level = _index(severity)
        if level is None or not 1 <= level <= 5:
            raise InputError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}.")
        if draw not in get_args(Draw):
            raise InputError(
                f"draw must be 'per_frame' or 'per_clip', got {draw!r}; {nearest(str(draw), get_args(Draw))}"
            )
        self.severity = level
        self.seed = check_seed(seed)
        self.draw: Draw = draw
        self._settings: dict[str, Any] = {}
        self._memory: dict[int, Any] = {}
        self._next = 0
        self._shape: tuple[int, ...] | None = None

    @classmethod
    def preset(cls, name: str, *, seed: int = 0, draw: Draw = "per_frame") -> Self:
        """Make the corruption with the exact settings of a paper, by name; see `presets`."""
        if name not in cls.presets:
            raise InputError(f"{cls.name} has no preset {name!r}; {nearest(name, cls.presets)}")
        return cls(seed=seed, draw=draw, **cls.presets[name])

    def __call__(self, clip: Tensor, *, start: int = 0) -> Tensor:
        """Corrupt a clip (B, T, C, H, W) or (T, C, H, W) in [0, 1]; shape, dtype and device stay.

        Args:
            clip: floats; it is not changed in place.
            start: the number of its first frame in the video.

        Raises:
            InputError: `clip` is no such clip, or a kind that looks back is not called in order.
        """
        start = check_clip(clip, start)
        self._check_frames(clip)
        streams = clip[None] if clip.ndim == 4 else clip
        if self.looks_back:
            self._go_on(streams, start)
        # Half floats are too coarse to compute with.
        work = streams if clip.dtype in (torch.float32, torch.float64) else streams.float()
        rows = []
        for b, frames in enumerate(work):
            made = [self._corrupt(frame, b, t) for t, frame in enumerate(frames, start)]
            rows.append(torch.stack(made) if made else frames)
        out = torch.stack(rows) if rows else work
        if self.looks_back:
            self._next, self._shape = start + streams.shape[1], (len(streams), *streams.shape[2:])
        return out.clamp(0, 1).to(clip.dtype).reshape(clip.shape)

    @abstractmethod
    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        """Return frame t (C, H, W) of a row of the batch, corrupted; `frame` may not be changed, nor leave [0, 1]."""

    def _check_frames(self, clip: Tensor) -> None:  # noqa: B027
        """Raise an InputError for clips the kind cannot take."""

    def _rng(self, stream: int, t: int | None) -> np.random.Generator:
        """The generator of a frame, or with t None that of the whole row; all come from NumPy, whatever the device."""
        t = 0 if t is None or self.draw == "per_clip" else t
        return np.random.default_rng((self.seed, zlib.crc32(self.name.encode()), stream, t))

    def _setting(self, name: str, value: Any, low: float = 0.0, high: float = math.inf) -> Any:
        """Return a number given, checked, or what the severity says."""
        value = self.levels[name][self.severity - 1] if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise InputError(f"{self.name}: {name} must be a number {_range(low, high)}, got {value!r}.")
        self._settings[name] = value
        return value

    def _whole(self, name: str, value: int | None, low: int, high: float = math.inf) -> int:
        """The same for a whole number."""
        value = self._setting(name, value, low, high)
        if value != int(value):
            raise InputError(f"{self.name}: {name} must be a whole number, got {value!r}.")
        return int(value)

    def _pair(self, name: str, value: tuple[float, float] | None, low: float = 0.0) -> tuple[float, float]:
        """The same for a range (least, most)."""
        value = self.levels[name][self.severity - 1] if value is None else value
        if (
            not isinstance(value, (tuple, list))
            or len(value) != 2
            or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
            or not low <= value[0] <= value[1]
        ):
            raise InputError(f"{self.name}: {name} must be a pair (least, most) from {low:g} on, got {value!r}.")
        self._settings[name] = value
        return value[0], value[1]

    def _go_on(self, streams: Tensor, start: int) -> None:
        if start == 0:
            self._memory, self._next, self._shape = {}, 0, None
        elif start != self._next:
            raise InputError(
                f"{self.name} looks back, so the next call must have start={self._next} (or 0 for a new video), got "
                f"start={start}."
            )
        elif self._shape is not None and self._shape != (len(streams), *streams.shape[2:]):
            raise InputError(
                f"{self.name} looks back, so frames must stay (B, C, H, W) = {self._shape}, got "
                f"{(len(streams), *streams.shape[2:])}; begin anew with start=0."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": {}, "_next": 0, "_shape": None}

    def __repr__(self) -> str:
        settings = "".join(f"{name}={value!r}, " for name, value in self._settings.items())
        return f"{type(self).__name__}({settings}seed={self.seed}, draw={self.draw!r})"


def check_seed(seed: int) -> int:
    """Return a seed as an int; a float, a bool or a text is refused."""
    number = _index(seed)
    if number is None or number < 0:
        raise InputError(f"seed must be an integer, 0 or more, got {seed!r}.")
    return number


def check_clip(clip: Tensor, start: int) -> int:
    """Return `start` as an int; refuse what is no clip of floats in [0, 1]."""
    if not isinstance(clip, Tensor) or clip.ndim not in (4, 5) or not clip.is_floating_point():
        what = f"{clip.dtype} {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
        raise InputError(f"clip must be floats (B, T, C, H, W) or (T, C, H, W) in [0, 1], got {what}.")
    if clip.shape[-1] == 0 or clip.shape[-2] == 0 or clip.shape[-3] == 0:
        raise InputError(f"clip must have channels and pixels, got {tuple(clip.shape)}.")
    number = _index(start)
    if number is None or number < 0:
        raise InputError(f"start, the number of the clip's first frame, must be an integer, 0 or more, got {start!r}.")
    if clip.numel():
        low, high = (v.item() for v in clip.detach().aminmax())
        if not (low >= -SLACK and high <= 1 + SLACK):  # so that NaN is caught too
            raise InputError(
                f"clip must have values in [0, 1], got {low:.3g} to {high:.3g}; scale it, or "
                "replace what is not a number."
            )
    return number


def _index(value: Any) -> int | None:
    """An integer of any make as an int; None for everything else, a bool too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def field(values: np.ndarray, frame: Tensor) -> Tensor:
    """Bring drawn numbers to the frame's dtype and device."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(frame)


def short_edge(frame: Tensor) -> float:
    """The frame's short edge in units of 360 pixels, in which things on the screen are measured."""
    return min(frame.shape[-2:]) / 360


def filtered(frame: Tensor, kernel: Tensor) -> Tensor:
    """Correlate each channel of (C, H, W) with (k, l), k and l odd; the frame is reflected at its borders."""
    height, width = frame.shape[-2:]
    padded = reflected(frame, kernel.shape[0] // 2, kernel.shape[1] // 2)
    out = torch.zeros_like(frame)
    for y, row in enumerate(kernel.tolist()):  # with so few channels, faster than a convolution
        for x, weight in enumerate(row):
            if weight:
                out.add_(padded[:, y : y + height, x : x + width], alpha=weight)
    return out


def reflected(frame: Tensor, rows: int, columns: int) -> Tensor:
    """Add a border by reflection, which unlike torch's may be wider than the frame."""
    for dim, border in ((-2, rows), (-1, columns)):
        if border:
            index = np.pad(np.arange(frame.shape[dim]), border, mode="reflect")
            frame = frame.index_select(dim, torch.from_numpy(index).to(frame.device))
    return frame


def gaussian_kernel(sigma: float, size: int, like: Tensor) -> Tensor:
    """A normalised Gaussian (size,); a sigma of 0 is a single peak."""
    x = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    return torch.softmax(-x.square() / (2 * max(sigma, 1e-3) ** 2), 0)


def _range(low: float, high: float) -> str:
    return f"from {low:g} to {high:g}" if high < math.inf else f"from {low:g} on"
