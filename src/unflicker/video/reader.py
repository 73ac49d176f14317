"""Read a video file or a folder of images as a stream of upright RGB frames with exact time stamps."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from unflicker.checks import InputError
from unflicker.video.base import BT601, BT709, MATRICES, UNSPECIFIED, Frame, Reader, VideoInfo, planes

# An image's extension and the decoder for it; EXR is read through OpenEXR, for ffmpeg clips it at 1.
IMAGES = {
    ".png": "png",
    ".jpg": "mjpeg",
    ".jpeg": "mjpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".webp": "webp",
    ".exr": "",
}
DEFAULT_FRAME_RATE = Fraction(24)
FULL_RANGE = 2  # ffmpeg's number for it


def open_reader(
    path: str | os.PathLike[str], *, frame_rate: float | Fraction | None = None, threads: int | None = None
) -> Reader:
    """Open a video file, or a folder whose images are the frames, for reading from front to back.

    Frames are (3, H, W) float32 RGB in [0, 1], upright, never rounded to 8 bits on the way; an alpha channel is
    dropped. HDR keeps its transfer function (PQ, HLG): only the colour matrix and the range are undone. A video whose
    matrix is not tagged is taken for BT.709 from 720 lines on, else for BT.601.

    Args:
        path: a file ffmpeg can read, or a folder of PNG, JPEG, TIFF, BMP, WebP or EXR images, in the order of the
            numbers in their names.
        frame_rate: images per second of a folder, 24 unless given; a file has its own time stamps.
        threads: for the decoder; None leaves the number to ffmpeg.

    Raises:
        InputError: there is nothing at `path`, or no frame in it can be read. A file that is cut off or damaged
            further on is no error: what can be decoded comes out, and `damage` then says what happened.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no file or folder {path}; check the name.")
    if path.is_dir():
        rate = DEFAULT_FRAME_RATE if frame_rate is None else frame_rate
        return FolderReader(path, frame_rate=rate, threads=threads)
    if frame_rate is not None:
        raise InputError(
            f"A frame rate is for folders of images, but {path} is a file with its own times; leave it out."
        )
    return VideoReader(path, threads=threads)


class VideoReader(Reader):
    """The frames of the first video stream of a file; see `open_reader`."""

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.path = Path(path)
        self._container = open_container(self.path)
        try:
            self._stream = video_stream(self._container, self.path)
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.thread_count = threads or 0
            self._to_rgb = ToRGB(self.path, threads)
            # What the file promises. An mp4 lists its packets in front, also those that an edit list hides, which come
            # as well and decode to nothing. Matroska lists key frames only, but tells how long it is.
            index = self._stream.index_entries if "mp4" in self._container.format.name else ()
            self._listed, self._visible = len(index), sum(not entry.is_discard for entry in index)
            matroska = "matroska" in self._container.format.name
            self._duration = (self._container.duration or 0) / av.time_base if matroska else 0.0
            # An AVI has no display times, and what ffmpeg makes up for it runs back and forth where there are B frames:
            # the n-th picture is shown at the time of the n-th packet.
            self._times: deque[int] | None = deque() if self._container.format.name == "avi" else None
            # What came of it.
            self._packets = self._pictures = self._broken = 0
            self._end, self._reason = 0.0, ""
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                reason = self._reason or "no packets came"
                raise InputError(f"{self.path} has a video stream, but no frame of it can be decoded ({reason}).")
            self.info = self._describe(first)
            self._frames = self._convert(itertools.chain([first], self._decoded))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for generator in ("_frames", "_decoded"):  # ffmpeg must not be asked for packets of a closed file
            if hasattr(self, generator):
                getattr(self, generator).close()
        self._container.close()

    def _describe(self, first: av.VideoFrame) -> VideoInfo:
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        height, width = self._to_rgb(first).shape[1:]
        aspect = stream.sample_aspect_ratio or Fraction(1)
        sideways = _orientation(first)[0]
        return VideoInfo(
            width=width,
            height=height,
            frame_rate=rate,
            time_base=first.time_base or stream.time_base or 1 / rate,
            bit_depth=_bit_depth(first.format),
            matrix=_matrix(first) if _is_yuv(first.format) else BT709,
            primaries=first.color_primaries,
            transfer=first.color_trc,
            full_range=_is_yuv(first.format) and _is_full_range(first),
            pixel_aspect=1 / aspect if sideways else aspect,
            num_frames=(self._visible or stream.frames) if stream.frames else round((duration or 0) * rate) or None,
        )

    def _convert(self, pictures: Iterator[av.VideoFrame]) -> Iterator[Frame]:
        step = max(1, round(1 / (self.info.frame_rate * self.info.time_base)))
        pts = -step
        for picture in pictures:
            pts = picture.pts if picture.pts is not None else pts + step
            yield Frame(self._to_rgb(picture), pts, picture.time_base or self.info.time_base)

    def _decode(self) -> Iterator[av.VideoFrame]:
        last = None
        for packet in self._demux():
            try:
                pictures = self._stream.decode(packet)
            except (av.FFmpegError, OSError) as error:
                self._broken, self._reason = self._broken + 1, error.strerror or str(error)
                if self._times:
                    self._times.popleft()
                continue
            for picture in pictures:
                last = picture.pts
                yield self._counted(picture)
        if last is not None and self._times is None and self._pictures < self._packets:
            yield from map(self._counted, self._behind(last))
        self.damage = self._judge()

    def _counted(self, picture: av.VideoFrame) -> av.VideoFrame:
        self._pictures += 1
        if self._times:
            picture.pts = self._times.popleft()
        if picture.is_corrupt:
            self._broken, self._reason = self._broken + 1, self._reason or "pictures with missing parts"
        return picture

    def _behind(self, last: int) -> Iterator[av.VideoFrame]:
        """The pictures after the time `last`, decoded with one thread.

        A decoder with several threads still holds some when it meets an error at the end of a file, as in every one
        that is cut off, and PyAV has no way to get at them.
        """
        with contextlib.suppress(av.FFmpegError, OSError), open_container(self.path) as container:
            stream = container.streams.video[self._container.streams.video.index(self._stream)]
            stream.codec_context.thread_count = 1
            container.seek(last, stream=stream)
            for packet in container.demux(stream):
                try:
                    yield from (p for p in stream.decode(packet) if p.pts is not None and p.pts > last)
                except av.FFmpegError as error:
                    self._reason = self._reason or error.strerror or str(error)

    def _demux(self) -> Iterator[av.Packet | None]:
        """The packets of the video, and None at the end; those of the sound are read to know where the file ends."""
        try:
            for packet in self._container.demux():
                if packet.pts is not None and packet.time_base:
                    self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index != self._stream.index:
                    continue
                if packet.size:
                    self._packets += 1
                    if self._times is not None and packet.dts is not None:
                        self._times.append(packet.dts)
                    yield packet
                elif packet.dts is not None:  # a repeated picture; the decoder would take it for the end
                    self._packets += 1
        except (av.FFmpegError, OSError) as error:
            self._reason = error.strerror or str(error)
        yield None

    def _judge(self) -> str | None:
        told = f"{self._pictures} frames were decoded, but the file is"
        if self._packets < self._listed:
            return f"{told} cut off: {self._packets} of its {self._listed} video packets are there."
        slack = max(
            0.15, 3 / float(self._stream.average_rate or 25)
        )  # the end is told in milliseconds, and of the longest stream
        if self._end < self._duration - slack:
            return f"{told} cut off: it ends after {self._end:.1f} of {self._duration:.1f} seconds."
        if self._reason:
            return f"{told} damaged, broken packets: {max(self._broken, 1)} ({self._reason})."
        return None


class FolderReader(Reader):
    """The images of a folder, shown one after the other at a constant rate; see `open_reader`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        frame_rate: float | Fraction = DEFAULT_FRAME_RATE,
        threads: int | None = None,
    ) -> None:
        self.path = Path(path)
        rate = Fraction(frame_rate).limit_denominator(100_000) if math.isfinite(frame_rate) else Fraction(0)
        if not 0.01 <= rate <= 1000:
            raise InputError(f"The frame rate must lie between 0.01 and 1000 images per second, got {frame_rate}.")
        names = os.listdir(self.path)
        files = [self.path / n for n in names if Path(n).suffix.lower() in IMAGES and not n.startswith(".")]
        if not files:
            found = f"only {sorted(names)[0]} and the like" if names else "it is empty"
            raise InputError(f"The folder {path} has no images ({found}); expected files like {', '.join(IMAGES)}.")
        self.files = sorted(files, key=lambda file: _natural_order(file.name))
        self._to_rgb = ToRGB(self.path, threads)
        self._unreadable: list[str] = []
        images = self._read()
        first = next(images, None)
        if first is None:
            raise InputError(f"None of the {len(files)} images in {path} can be read; are they damaged?")
        index, data, depth = first
        height, width = data.shape[1:]
        self.info = VideoInfo(width, height, rate, 1 / rate, bit_depth=depth, num_frames=len(files), is_folder=True)
        self._frames = (Frame(d, i, 1 / rate) for i, d, _ in itertools.chain([(index, data, depth)], images))

    def close(self) -> None:
        self._frames = iter(())

    def _read(self) -> Iterator[tuple[int, Tensor, int]]:
        for index, file in enumerate(self.files):
            try:
                data, depth = read_exr(file) if file.suffix.lower() == ".exr" else self.read_image(file)
            except InputError:
                raise
            except (av.FFmpegError, OSError, RuntimeError, ValueError):
                self._unreadable.append(file.name)
                continue
            yield index, data, depth
        if self._unreadable:
            came = len(self.files) - len(self._unreadable)
            shown = ", ".join(self._unreadable[:3]) + (", ..." if len(self._unreadable) > 3 else "")
            self.damage = f"{came} frames were read, images that cannot be: {len(self._unreadable)} ({shown})."

    def read_image(self, file: Path) -> tuple[Tensor, int]:
        # The decoder alone: ffmpeg's containers would decode each image twice and read "%d" in a name as a pattern.
        decoder = cast(VideoCodecContext, av.CodecContext.create(IMAGES[file.suffix.lower()], "r"))
        decoder.thread_count = 1
        pictures = decoder.decode(av.Packet(file.read_bytes())) + decoder.decode(None)
        if not pictures:
            raise ValueError(f"{file} holds no picture")
        return self._to_rgb(pictures[0]), _bit_depth(pictures[0].format)


class ToRGB:
    """ffmpeg's picture to (3, H, W) float32: one conversion by swscale, then one pass to scale and one to clip.

    swscale's fast path is up to 3 levels off and 1 too dark; with POINT and ACCURATE_RND it is right to 0.02 levels
    when it writes float. Chroma is repeated rather than interpolated, so that averaging it again, as the writer does,
    gives back what was read.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        self.path = path
        self._swscale = VideoReformatter()
        self._threads = threads or 0

    def __call__(self, picture: av.VideoFrame) -> Tensor:
        source, depth = picture, _bit_depth(picture.format)
        if _is_yuv(picture.format):
            picture.colorspace = _matrix(picture)
            if picture.colorspace not in MATRICES:
                raise InputError(
                    f"{self.path} has colour matrix {picture.colorspace} (H.273), which cannot be turned into RGB; "
                    "convert it to BT.709 or BT.2020 first."
                )
            # swscale extends 2^depth levels to 2^16 by a shift, which leaves white short of 1; so does limited range.
            spare = 2 ** (16 - depth) if _is_full_range(picture) else 256
            source = _without_siting(picture)
            target, dtype, white = "gbrpf32le", "f4", (65536 - spare) / 65535
        elif depth == 32:
            target, dtype, white = "gbrpf32le", "f4", 1.0
        elif depth == 8:
            target, dtype, white = "gbrp", "u1", 255.0
        else:
            target, dtype, white = f"gbrp{depth}le", "u2", float(2**depth - 1)
        flags = Interpolation.POINT | Interpolation.ACCURATE_RND
        rgb = self._swscale.reformat(source, format=target, interpolation=flags, threads=self._threads)
        data = np.empty((3, rgb.height, rgb.width), np.float32)
        for pixels, channel in zip(planes(rgb, dtype), data, strict=True):
            np.divide(pixels, white, out=channel, dtype=np.float32)
        upright = torch.from_numpy(data).clamp_(0, 1)
        sideways, flips = _orientation(picture)
        if sideways:
            upright = upright.transpose(1, 2)
        return upright.flip(flips).contiguous() if flips or sideways else upright


def _without_siting(picture: av.VideoFrame) -> av.VideoFrame:
    """A copy without what PyAV cannot change: where chroma lies. With it, POINT would repeat the wrong samples."""
    copy = av.VideoFrame(picture.width, picture.height, picture.format.name)
    copy.colorspace, copy.color_range = picture.colorspace, picture.color_range
    for old, new in zip(picture.planes, copy.planes, strict=True):
        rows: list[Any] = [np.frombuffer(cast(Any, p), np.uint8).reshape(p.height, -1) for p in (old, new)]
        width = min(p.line_size for p in (old, new))
        rows[1][:, :width] = rows[0][:, :width]
    return copy


def open_container(path: Path) -> InputContainer:
    try:
        # "file:" keeps ffmpeg from reading a colon in the name as a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        with open(path, "rb") as file:
            head = file.read(12)
        if not head:
            raise InputError(f"{path} is empty; expected a video file.") from error
        if head[4:8] in (b"ftyp", b"mdat", b"moov", b"wide") or head[:4] == b"\x1a\x45\xdf\xa3":
            raise InputError(
                f"{path} is cut off or unreadable: its index is missing ({error.strerror}); "
                "was the recording or the copy finished?"
            ) from error
        raise InputError(f"{path} is no video that ffmpeg can read ({error.strerror}).") from error
    if container.format.name == "tty":  # ffmpeg draws any .txt as a video of a terminal
        container.close()
        raise InputError(f"{path} is a text file; expected a video file or a folder of images.")
    return container


def video_stream(container: InputContainer, path: Path) -> av.VideoStream:
    # The cover picture of a song is no video.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise InputError(f"{path} has no video stream (it holds {kinds}); expected a video file.")
    if streams[0].codec_context is None:
        raise InputError(f"{path} has a video stream that ffmpeg has no decoder for; convert it first.")
    return streams[0]


def _is_yuv(fmt: av.VideoFormat) -> bool:
    return not fmt.is_rgb and sum(not c.is_alpha for c in fmt.components) == 3


def _is_full_range(picture: av.VideoFrame) -> bool:
    return picture.color_range == FULL_RANGE or picture.format.name.startswith("yuvj")


def _bit_depth(fmt: av.VideoFormat) -> int:
    depth = max(c.bits for c in fmt.components)
    return min(d for d in (8, 10, 12, 16, 32) if d >= depth)


def _matrix(picture: av.VideoFrame) -> int:
    tag = int(picture.colorspace)
    if tag not in (0, UNSPECIFIED, 3):  # 0 stands for RGB and 3 is reserved: neither can be said of YUV
        return tag
    return BT709 if picture.height >= 720 else BT601


def _orientation(picture: av.VideoFrame) -> tuple[bool, list[int]]:
    """How a picture has to be turned: whether rows become columns, and which dimensions are flipped after that."""
    try:
        side_data: Any = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV fails beside a kind that it does not know, as EXIF; it still tells the angle
        return [(False, []), (True, [1]), (False, [1, 2]), (True, [2])][round(picture.rotation / 90) % 4]
    if side_data is None:
        return False, []
    a, b, _, c, d = np.frombuffer(side_data, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    sideways = abs(b) > abs(a)
    across, down = (c, b) if sideways else (a, d)
    return sideways, [dim for dim, sign in ((2, across), (1, down)) if sign < 0]


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts img10 behind img9.

    >>> sorted(["b2.png", "b10.png", "a.png", "7.png"], key=_natural_order)
    ['7.png', 'a.png', 'b2.png', 'b10.png']
    """
    return [(int(t), "") if t.isdigit() else (-1, t.lower()) for t in re.split(r"(\d+)", name)]


def read_exr(path: Path) -> tuple[Tensor, int]:
    """Read R, G and B of an EXR file as float32 (3, H, W), unclipped; a single channel Y becomes grey."""
    import OpenEXR

    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: channel.pixels for name, channel in file.channels().items()}
    # Plain names first, then the first layer that has all three, as Blender writes them.
    layers = dict.fromkeys(n.rpartition(".")[0] + ("." if "." in n else "") for n in sorted(channels, key=len))
    for layer in layers:
        for names in (("R", "G", "B"), ("Y", "Y", "Y")):
            if all(layer + n in channels for n in names):
                planes = [np.asarray(channels[layer + n], np.float32) for n in names]
                return torch.from_numpy(np.stack(planes)), 32
    raise InputError(f"{path} has no channels R, G, B or Y, only {', '.join(sorted(channels))}; name them so.")
