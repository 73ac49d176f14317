"""Videos that can be read from any frame on, and recordings: a video with what is known about it."""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.video.reader import FolderReader, ToRGB, VideoReader, open_container, read_exr, video_stream

# Codecs of which a packet is a picture. Others hide pictures in packets of their own, pack two into one, or skip some.
ONE_EACH = {"h264", "hevc", "av1", "vp9", "mjpeg", "prores", "dnxhd", "ffv1"}
LOOKED_AT = 8  # pictures at the beginning of a file that must come out as its packets promise
MOST_OPEN = 8  # files in one process; what is opened again must only be sought in again


class Video(ABC):
    """Frames that can be asked for in any order: of a file, of a folder, or made.

    Attributes:
        name: short, unique within its set.
        num_frames: how many there are.
        height, width: of a frame, in pixels.
        frame_rate: frames per second; 0 where nobody says.
        paths: the files they come from; empty where there are none.
        settings: what the frames are made from besides files; None where nothing says.
    """

    name: str
    num_frames: int
    height: int
    width: int
    frame_rate: float
    paths: tuple[Path, ...] = ()
    settings: Any = None

    @abstractmethod
    def read(self, numbers: Sequence[int]) -> Tensor:
        """Return the frames with these numbers, counted from 0, in this order: (len(numbers), C, H, W).

        uint8 (0 to 255) for pictures of 8 bits, float32 otherwise: RGB in [0, 1], depth in metres, disparity and
        motion in pixels; class labels are int64 (len(numbers), H, W).

        Raises:
            InputError: a frame cannot be read, or there is no such number.
        """

    def _checked(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers as a list; refuse none at all, and those that there are not."""
        checked = [int(n) for n in numbers]
        if not checked:
            raise InputError(f"read takes one number or more of frames of {self.name}, got none.")
        for n in checked:
            if not 0 <= n < self.num_frames:
                raise InputError(
                    f"{self.name} has no frame {n}: it has {self.num_frames}, counted from 0; ask for one of these."
                )
        return checked


@dataclass(frozen=True)
class Published:
    """A data set on disk, as its authors laid it out, and how to say that something of it is missing."""

    title: str
    page: str
    holds: str
    root: Path

    def missing(self, path: Path, what: str = "file") -> InputError:
        """Make the error for a file or folder that should be there."""
        return InputError(
            f"{self.title} expects the {what} {path}, which is missing; give the folder that holds {self.holds}, and "
            f"for what is not downloaded yet see {self.page}."
        )


def extent(video: Video) -> str:
    """Say how long and large a video is."""
    return f"{video.num_frames} frames of {video.height}x{video.width}"


@dataclass(frozen=True)
class Recording:
    """A video and what is known about it, frame by frame: "truth", "depth", "disparity", "labels" or "flow"."""

    frames: Video
    targets: Mapping[str, Video] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.frames.name


class FileVideo(Video):
    """The frames of a video file, from any one on: those of `unflicker.video.open_reader`, 8 bits rounded to bytes.

    The file's packets are listed once, without decoding. Reading begins at the key frame before the wanted frame, or
    goes on from where the last reading ended. Where such a list does not tell the pictures (AVI, VP8, MPEG-4 Visual
    and the like) the file is decoded once to count them, and from its start again whenever a reading goes back; that
    is slow in long files. A file that is cut off ends with its last whole packet.

    It can be pickled, and each process opens the file for itself; within one, one thread at a time may read.

    Args:
        path: a file ffmpeg can read.

    Raises:
        InputError: there is no such file, or no frame in it can be decoded.

    Example::

        FileVideo("in.mp4").read([100, 101, 102])  # (3, 3, H, W) uint8
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._decoder: _Decoder | None = None
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"There is no file {path}; check the name (for a folder of images use FolderVideo).")
        self.paths = (self.path,)
        self.name = self.path.stem
        with VideoReader(self.path, threads=1) as reader:
            info = reader.info
        self.height, self.width, self.frame_rate = info.height, info.width, float(info.frame_rate)
        self._is_bytes = info.bit_depth == 8
        self._index = _list_packets(self.path)
        try:
            if self._index is not None and not self._begins_as_listed(len(self._index.times)):
                self.close()
                self._index = None
            self.num_frames = self._count() if self._index is None else len(self._index.times)
        finally:
            self.close()

    def read(self, numbers: Sequence[int]) -> Tensor:
        wanted = self._checked(numbers)
        frames = {n: self._frame(n) for n in sorted(set(wanted))}  # forward, whatever the order asked for
        return torch.stack([frames[n] for n in wanted])

    def close(self) -> None:
        """Let go of the file; the next reading opens it again."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoder": None}

    def _frame(self, n: int) -> Tensor:
        picture = self._picture(n)
        frame = self._opened().to_rgb(picture)
        if frame.shape[-2:] != (self.height, self.width):
            raise InputError(
                f"Frame {n} of {self.path} has {frame.shape[-2]}x{frame.shape[-1]} pixels, but the first has "
                f"{self.height}x{self.width}; scale them to one size."
            )
        return frame.mul_(255).round_().byte() if self._is_bytes else frame

    def _picture(self, n: int) -> av.VideoFrame:
        reason = "it does not come out of the decoder"
        for key in self._ways_to(n):
            try:
                if key is not None:
                    self._opened().seek(key)
                for number, picture in self._opened().pictures:
                    if number == n and not picture.is_corrupt:
                        return picture
                    if number >= n:
                        break
            except (av.FFmpegError, OSError) as error:
                reason = error.strerror or str(error)
            self.close()  # what a decoder gives after an error depends on what it was given before
        raise InputError(f"Frame {n} of {self.path} cannot be decoded ({reason}); copy the file anew or leave it out.")

    def _ways_to(self, n: int) -> Iterator[int | None]:
        """The key frames to decode from, one after the other until it works; None is to go on, or to begin."""
        at = self._opened().at
        if self._index is None:
            if at > n:
                self.close()
            yield None
            return
        key = self._index.key_before(n)
        if self._index.number_of_key(key) <= at <= n:
            yield None
        yield key
        if key > 0:  # some encoders mark as key frames such as need a little of what was before
            yield key - 1

    def _opened(self) -> _Decoder:
        if self._decoder is None or self._decoder.process != os.getpid():  # a fork shares the place in the file
            try:
                self._decoder = _Decoder(self.path, self._index)
            except OSError as error:
                raise InputError(f"{self.path} cannot be opened any more: {error.strerror or error}.") from error
            _opened_now(self)
        return self._decoder

    def _begins_as_listed(self, count: int) -> bool:
        expected = list(range(min(LOOKED_AT, count)))
        try:
            return [number for number, _ in itertools.islice(self._opened().pictures, LOOKED_AT)] == expected
        except (av.FFmpegError, OSError):
            return False

    def _count(self) -> int:
        """Decode the whole file; what lies behind an error does not count."""
        count = 0
        try:
            for number, _ in self._opened().pictures:
                count = number + 1
        except (av.FFmpegError, OSError):
            pass
        if not count:
            raise InputError(f"No frame of {self.path} can be decoded; copy the file anew or leave it out.")
        return count


_OPEN: list[weakref.ref[FileVideo]] = []  # those of this process, and what a fork left it, the latest last


def _opened_now(video: FileVideo) -> None:
    """Close the file that was opened longest ago, if there are too many."""
    _OPEN[:] = [ref for ref in _OPEN if ref() is not None and ref() is not video]
    for ref in _OPEN[: max(0, len(_OPEN) + 1 - MOST_OPEN)]:
        other = ref()
        if other is not None:
            other.close()
    _OPEN[:] = [*_OPEN[-MOST_OPEN + 1 :], weakref.ref(video)]


@dataclass(frozen=True)
class _Index:
    """What the packets of a file promise. Times are in units of its stream.

    Attributes:
        packets: the times of all packets, sorted; `places` are their places in the file.
        times: those of the pictures that are shown, sorted: the n-th is that of frame n.
        keys: those of the key frames, sorted.
    """

    packets: np.ndarray
    places: np.ndarray
    times: np.ndarray
    keys: np.ndarray

    def place(self, time: int | None) -> int | None:
        """The place of the packet with this time."""
        i = _find(self.packets, time)
        return None if i is None else int(self.places[i])

    def number(self, time: int | None) -> int:
        """The frame shown at this time; -1 if there is none."""
        i = _find(self.times, time)
        return -1 if i is None else i

    def key_before(self, n: int) -> int:
        """The last key frame that is not shown after frame n, counted from 0.

        In the order of display: what comes between a key frame and the one before it may need both, and stands behind
        both in the file.
        """
        return max(0, int(np.searchsorted(self.keys, self.times[n], "right")) - 1)

    def number_of_key(self, key: int) -> int:
        return int(np.searchsorted(self.times, self.keys[key]))


def _find(times: np.ndarray, time: int | None) -> int | None:
    if time is None:
        return None
    i = int(np.searchsorted(times, time))
    return i if i < len(times) and times[i] == time else None


def _list_packets(path: Path) -> _Index | None:
    """Read what the packets say; None if that does not tell the pictures."""
    times: list[int] = []
    keys: list[int] = []
    shown: list[int] = []
    with contextlib.suppress(av.FFmpegError, OSError), open_container(path) as container:
        stream = video_stream(container, path)
        if container.format.name == "avi" or stream.codec_context.codec.canonical_name not in ONE_EACH:
            return None  # the display times of an AVI are made up
        for packet in container.demux(stream):
            if packet.is_corrupt:
                break
            if not packet.size:
                continue
            if packet.pts is None:
                return None
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard:  # by an edit list; the decoder needs it all the same
                shown.append(packet.pts)
    if not shown or not keys or len(set(times)) < len(times):
        return None
    order = np.argsort(times)
    return _Index(np.array(times)[order], order, np.sort(shown), np.sort(keys))


class _Decoder:
    """An open file and where in it the decoder stands: `pictures` are the next ones with their numbers.

    Without an index they are counted from the start.
    """

    def __init__(self, path: Path, index: _Index | None) -> None:
        self.process = os.getpid()
        self.at = 0  # the number that is expected next
        self._path, self._index = path, index
        self._begin()
        self.to_rgb = ToRGB(path, 1)
        self.pictures = self._decode(self._packets())

    def close(self) -> None:
        self.pictures.close()  # ffmpeg must not be asked for packets of a closed file
        self._container.close()

    def seek(self, key: int) -> None:
        """Stand at a key frame, counted from 0."""
        assert self._index is not None
        self.pictures.close()
        wanted = self._index.place(int(self._index.keys[key]))
        assert wanted is not None
        for back in (0, 1, 8, None):  # files find by display time or by decoding time, and not always exactly
            if back is None:
                self._container.close()
                self._begin()
            else:
                self._container.seek(int(self._index.keys[max(0, key - back)]), stream=self._stream)
            packets = self._packets()
            for packet in packets:
                place = self._index.place(packet.pts)
                if place == wanted:
                    self.at = self._index.number_of_key(key)
                    self.pictures = self._decode(itertools.chain([packet], packets))
                    return
                if place is None or place > wanted:
                    break
        raise OSError("the key frame before it is not found")

    def _begin(self) -> None:
        self._container = open_container(self._path)
        self._stream = video_stream(self._container, self._path)
        # The workers are the threads; and with several, a decoder keeps pictures back when it meets an error.
        self._stream.codec_context.thread_count = 1

    def _packets(self) -> Iterator[av.Packet]:
        for packet in self._container.demux(self._stream):
            if packet.size:  # an empty one repeats a picture, or is PyAV's sign of the end
                if self._index is not None and self._index.place(packet.pts) is None:
                    return  # the file is cut off here
                yield packet

    def _decode(self, packets: Iterator[av.Packet]) -> Generator[tuple[int, av.VideoFrame], None, None]:
        count = 0
        for packet in itertools.chain(packets, [None]):
            for picture in self._stream.decode(packet):
                number = count if self._index is None else self._index.number(picture.pts)
                count += 1
                self.at = number + 1
                yield number, picture


class FilesVideo(Video):
    """A list of files, one a frame, each read by a function.

    Args:
        paths: the files, in the order of the frames.
        read_one: file -> (C, H, W) uint8 or float32, or labels (H, W) int64; all of one shape and type. Workers need
            it to be picklable.
        name: of the video.
        frame_rate: frames per second; 0 where nobody says.

    Raises:
        InputError: there are no files, or the first cannot be read.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for t in range(3):
    ...     _ = (folder / f"{t}.txt").write_text(str(t))
    >>> numbers = FilesVideo(
    ...     sorted(folder.iterdir()), lambda path: torch.full((1, 2, 2), float(path.read_text())), "numbers", 24
    ... )
    >>> numbers.read([2, 0])[:, 0, 0, 0]
    tensor([2., 0.])
    """

    def __init__(
        self, paths: Sequence[Path], read_one: Callable[[Path], Tensor], name: str, frame_rate: float = 0
    ) -> None:
        if not paths:
            raise InputError(f"The video {name} needs one file or more, got none.")
        self.paths = tuple(paths)
        self.read_one = read_one
        self.name, self.frame_rate, self.num_frames = name, frame_rate, len(self.paths)
        first = self._one(0)
        self._like = (first.shape, first.dtype)
        self.height, self.width = first.shape[-2:]

    def read(self, numbers: Sequence[int]) -> Tensor:
        frames = []
        for n in self._checked(numbers):
            frame = self._one(n)
            if (frame.shape, frame.dtype) != self._like:
                shape, dtype = self._like
                raise InputError(
                    f"{self.paths[n]} holds {tuple(frame.shape)} {frame.dtype}, but the first frame of {self.name} "
                    f"{tuple(shape)} {dtype}; make them alike."
                )
            frames.append(frame)
        return torch.stack(frames)

    def _one(self, n: int) -> Tensor:
        try:
            return self.read_one(self.paths[n])
        except InputError:
            raise
        except (av.FFmpegError, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise InputError(
                f"{self.paths[n]} cannot be read ({error}); is it damaged? Copy it anew or leave {self.name} out."
            ) from error


class FolderVideo(FilesVideo):
    """The images of a folder, in the order of the numbers in their names; all must be readable and of one size.

    PNG, JPEG, TIFF, BMP, WebP and EXR, read as `unflicker.video.open_reader` does; 8 bits are rounded to bytes.

    Raises:
        InputError: the folder has no images, or none that can be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}; check the name (for a video file use FileVideo).")
        with FolderReader(folder, threads=1) as reader:
            super().__init__(reader.files, _ReadImage(folder, reader.info.bit_depth == 8), folder.resolve().name)


@dataclass(eq=False)
class _ReadImage:
    """An image file -> (3, H, W), by the reader of its folder, which every process makes for itself."""

    folder: Path
    is_bytes: bool
    _reader: FolderReader | None = field(default=None, repr=False)

    def __call__(self, path: Path) -> Tensor:
        if self._reader is None:
            self._reader = FolderReader(self.folder, threads=1)
        frame, _ = read_exr(path) if path.suffix.lower() == ".exr" else self._reader.read_image(path)
        return frame.mul_(255).round_().byte() if self.is_bytes else frame

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}
