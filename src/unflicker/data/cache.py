"""Decoded copies of videos on disk, mapped into memory, that all workers share; used only where asked for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.data.base import Recording, Video

FORMAT = 1  # another number where the same file would give other frames
ENDING = ".frames.npy"
AT_ONCE = 16  # frames in memory while a copy is written
ABANDONED = 120  # seconds after which nobody is writing any more


class Cached(Video):
    """A video read from a decoded copy, which is made when a frame of it is first asked for.

    A copy belongs to the files' paths, sizes and times of change, and to the video's settings; it has its own name
    only when it is whole. When the folder would hold more than the limit, those used longest ago are removed. A video
    that alone is larger is read directly, as it is while another process writes its copy.

    Args:
        video: one that comes from files, or has settings.
        folder: where the copies lie; it is made. Several runs may share it.
        limit_gib: how much they may take, in GiB (2**30 bytes).

    Raises:
        InputError: nothing says what the video comes from, the folder cannot be made, or the limit is not positive.

    >>> import tempfile
    >>> from unflicker.data.base import FilesVideo
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "0.txt").write_text("7")
    >>> def read_number(path: Path) -> Tensor:
    ...     return torch.full((1, 2, 2), float(path.read_text()))
    >>> video = Cached(FilesVideo([folder / "0.txt"], read_number, "seven"), folder / "cache", limit_gib=1)
    >>> video.read([0]).sum(), len(list((folder / "cache").iterdir()))
    (tensor(28.), 1)
    """

    def __init__(self, video: Video, folder: str | os.PathLike[str], limit_gib: float) -> None:
        if not limit_gib > 0:
            raise InputError(f"limit_gib must be a number of GiB above 0, got {limit_gib!r}.")
        if not video.paths and video.settings is None:
            raise InputError(f"{video.name} does not say what its frames come from and cannot be cached.")
        self.video = video
        self.name, self.num_frames, self.frame_rate = video.name, video.num_frames, video.frame_rate
        self.height, self.width, self.paths = video.height, video.width, video.paths
        self._folder, self._limit = Path(folder), int(limit_gib * 2**30)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder {folder} for decoded frames cannot be made: {error.strerror}.") from error
        self._size: int | None = None  # in bytes
        self._copy = self._folder / f"{_key(video)}{ENDING}"

    def read(self, numbers: Sequence[int]) -> Tensor:
        wanted = self._checked(numbers)
        frames = self._mapped()
        if frames is None and self._make():
            frames = self._mapped()
        return self.video.read(wanted) if frames is None else torch.from_numpy(frames[wanted])

    def _mapped(self) -> np.ndarray | None:
        try:
            frames = np.load(self._copy, mmap_mode="r")
            os.utime(self._copy)  # it was used now; the time of access is not kept everywhere
        except OSError:
            return None
        return frames

    def _make(self) -> bool:
        """Write the copy; whether it is there then."""
        if self._size is None:
            first = self.video.read([0])
            self._size = first.numel() * first.element_size() * self.num_frames
        if self._size > self._limit:
            return False
        part = self._copy.with_suffix(".part")
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
        try:
            with open(part, "xb") as file:
                _make_room(self._folder, self._limit - self._size)
                self._write(file)
            os.replace(part, self._copy)
        except FileExistsError:  # another process is at it
            return False
        except InputError:  # it is damaged somewhere: what is asked for may be whole, or else is told of then
            part.unlink(missing_ok=True)
            self._limit = 0
            return False
        except BaseException as error:
            part.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            warnings.warn(
                f"{self.name} cannot be kept in {self._folder} ({error.strerror}), and is read directly.", stacklevel=3
            )
            self._limit = 0
            return False
        return True

    def _write(self, file: BinaryIO) -> None:
        for first in range(0, self.num_frames, AT_ONCE):
            frames = self.video.read(range(first, min(first + AT_ONCE, self.num_frames))).numpy()
            if first == 0:
                shape = (self.num_frames, *frames.shape[1:])
                about = {"descr": frames.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, about)
            file.write(frames.tobytes())


def cached(recordings: Sequence[Recording], folder: str | os.PathLike[str], limit_gib: float) -> list[Recording]:
    """Return recordings whose videos and targets are read from decoded copies in a folder; see `Cached`.

    What does not say what its frames come from stays as it is.
    """

    def keep(video: Video) -> Video:
        known = video.paths or video.settings is not None
        return Cached(video, folder, limit_gib=limit_gib) if known else video

    return [Recording(keep(each.frames), {key: keep(v) for key, v in each.targets.items()}) for each in recordings]


def _key(video: Video) -> str:
    """A name for what the video gives: from its kind, and the paths, sizes and times of its files."""
    reads = getattr(video, "read_one", None)  # one list of files may be read as depth, or as labels
    parts = [str(FORMAT), type(video).__qualname__, getattr(reads, "__qualname__", repr(reads))]
    parts += [repr(video.settings)]
    parts += [f"{video.num_frames} {video.height} {video.width}"]
    for path in video.paths:
        about = path.stat()
        parts.append(f"{path.resolve()} {about.st_size} {about.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _make_room(folder: Path, limit: int) -> None:
    """Remove the copies used longest ago until the others fit."""
    copies = []
    for path in folder.glob(f"*{ENDING}"):
        with contextlib.suppress(OSError):  # removed by another process
            about = path.stat()
            copies.append((about.st_mtime_ns, about.st_size, path))
    total = sum(size for _, size, _ in copies)
    for _, size, path in sorted(copies):
        if total <= limit:
            return
        path.unlink(missing_ok=True)  # who has it mapped keeps it
        total -= size
