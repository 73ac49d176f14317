"""What readers and writers share: a frame with its time stamp, and what has to be known to make a like video."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from torch import Tensor

from unflicker.checks import InputError

# Colour is described with the code points of ITU-T H.273, as ffmpeg and every container do.
UNSPECIFIED = 2
BT709 = 1
BT601 = 6
# Matrices that can be turned into RGB and back, with the weights of red and blue in the luma.
MATRICES = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.470BG, the 625-line BT.601
    BT601: (0.299, 0.114),
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, not constant luminance
}


@dataclass(frozen=True)
class Frame:
    """One picture of a video and the moment it is shown.

    `data` is (3, H, W), float32, RGB in [0, 1] with the transfer function left as coded (gamma, PQ or HLG); pictures
    read from EXR are scene-linear and not clipped. `pts` counts in units of `time_base` seconds.

    >>> import torch
    >>> Frame(torch.zeros(3, 2, 2), pts=3, time_base=Fraction(1, 24)).pts_seconds
    0.125
    """

    data: Tensor
    pts: int
    time_base: Fraction

    @property
    def pts_seconds(self) -> float:
        return float(self.pts * self.time_base)


@dataclass(frozen=True)
class VideoInfo:
    """What a writer needs to know to make a video like the one that was read.

    `width` and `height` are those of the upright picture. `frame_rate` is the mean rate; the exact times are the
    frames' own. `bit_depth` is 8, 10, 12 or 16, or 32 for floating point. `matrix`, `primaries` and `transfer` are
    H.273 code points (2: unspecified); `matrix` is never unspecified: it is the one the frames were decoded with.
    `pixel_aspect` is the width of a pixel over its height. `num_frames` is an estimate.
    """

    width: int
    height: int
    frame_rate: Fraction
    time_base: Fraction
    bit_depth: int = 8
    matrix: int = BT709
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    full_range: bool = False
    pixel_aspect: Fraction = Fraction(1)
    num_frames: int | None = None
    is_folder: bool = False


def planes(picture: av.VideoFrame, dtype: Any = np.float32) -> list[np.ndarray]:
    """R, G and B of a picture in one of ffmpeg's planar RGB formats: (H, W) each, in the picture's own memory."""
    memory: list[Any] = [picture.planes[i] for i in (2, 0, 1)]  # ffmpeg's order is G, B, R
    return [np.frombuffer(m, dtype).reshape(picture.height, -1)[:, : picture.width] for m in memory]


class Reader(ABC):
    """A stream of frames, read once from front to back: `for frame in reader`. Close it, or use it in a `with`.

    `damage` is None, or after the last frame one sentence that says what was missing or broken.
    """

    info: VideoInfo
    damage: str | None = None
    _frames: Iterator[Frame]

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        return next(self._frames)

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; there are no more frames afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class Writer(ABC):
    """A video in the making under a temporary name: `close` finishes it, `discard` leaves nothing behind.

    As a context manager it closes at the end of the block and discards after any exception, an interrupt included.
    """

    def __init__(self, path: Path, info: VideoInfo) -> None:
        self.path = path
        self.info = info
        self.count = 0
        # With the process's number: nobody else's file of such a name is touched, nor another run's.
        self._part, self._old = (path.with_name(f"{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
        self._open = True

    def write(self, frame: Frame) -> None:
        """Append a frame; values are rounded and, except in EXR, clipped to [0, 1]; NaN becomes 0.

        A frame of one channel, (1, H, W), is grey: one channel in images too, neutral colour in video files.

        Raises:
            InputError: the frame has not the size of `info`, or it cannot be written; the video is then discarded.
        """
        if not self._open:
            raise ValueError(f"The writer of {self.path} is closed.")
        shape, expected = tuple(frame.data.shape), (3, self.info.height, self.info.width)
        if shape not in (expected, (1, *expected[1:])):
            raise InputError(
                f"Frame {self.count + 1} for {self.path} has shape {shape}, but the video was begun with {expected}; "
                "resize the frame first."
            )
        with self._discarded_on_error():
            self._append(frame)
        self.count += 1

    def close(self) -> None:
        """Finish the video and move it to its own name."""
        if self._open:
            with self._discarded_on_error():
                if not self.count:
                    raise InputError(f"No frame came, so {self.path} was not written.")
                self._finish()
            self._open = False

    def discard(self) -> None:
        """Remove what was written so far; after `close` it does nothing."""
        if self._open:
            self._open = False
            self._remove()

    @abstractmethod
    def _append(self, frame: Frame) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    def _remove(self) -> None: ...

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.discard()
            if isinstance(error, (OSError, av.FFmpegError)):
                raise InputError(
                    f"{self.path} cannot be written: {error.strerror or error}. What was begun is removed."
                ) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
