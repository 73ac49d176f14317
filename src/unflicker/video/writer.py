"""Write frames to a video file or a folder of images, with the sound and subtitles of the file they came from."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shutil
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from av.stream import Discard, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.video.base import BT601, MATRICES, UNSPECIFIED, Frame, VideoInfo, Writer, planes

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
LIMITED_RANGE, FULL_RANGE = 1, 2  # ffmpeg's numbers
SMALLEST_HEVC = 64  # x265 takes no less than 16, and below 64 its "cutree" writes outside its memory
WHITE = 65280 / 65535  # what swscale takes for 1 when it makes YUV from float
# Code points that x264 and x265 know; a file may carry reserved ones.
PRIMARIES, TRANSFERS = {1, *range(4, 13)}, {1, *range(4, 19)}
# Tags that would be wrong in a copy: they describe the old container, or count what the new one counts itself.
STALE_TAG = re.compile(
    "(major_brand|minor_version|compatible_brands|encoder|timecode|duration|rotate)$|bps|number_of_|_statistics"
)


def open_writer(
    path: str | os.PathLike[str],
    info: VideoInfo,
    *,
    copy_from: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    codec: str | None = None,
    crf: float | None = None,
    preset: str | None = None,
    threads: int | None = None,
) -> Writer:
    """Open a video file, or a folder of images if the name has no extension, for writing like `info` tells.

    8 bits become H.264, more become HEVC with 10 bits (H.264 with 10 bits below 64 pixels). An odd width or
    height is kept by not subsampling the colour (4:4:4). A folder gets PNG with 8 or 16 bits, or EXR with half floats
    when `info.bit_depth` is 32. Nothing appears under the name `path` before `close`.

    Args:
        path: ends in .mp4, .mov or .mkv; no extension, or a slash at the end, means a folder.
        info: size, times and colour, as a reader tells them. Times in .mkv are rounded to a millisecond.
        copy_from: the file whose sound, subtitles, chapters and tags are carried over, packet by packet; data and
            time-code streams are left out. A folder of images takes nothing from it.
        overwrite: replace what is at `path`, at the very end; a folder only if it holds nothing but numbered frames.
        codec: another encoder of ffmpeg, "ffv1" or "prores_ks" for instance, with its own defaults.
        crf: quality of H.264 and HEVC from 0 (best) to 51; 16 unless given, which the eye cannot tell from the source.
        preset: their speed, "ultrafast" to "veryslow"; "fast" unless given.
        threads: for the encoder; None leaves the number to ffmpeg.

    Raises:
        InputError: the name, the place or the settings cannot be used, or a stream does not fit into the container;
            all of this before the first frame.
    """
    check_destination(path, copy_from=copy_from, overwrite=overwrite)
    if names_folder(path):
        return FolderWriter(Path(path), info)
    source = None if copy_from is None else Path(copy_from)
    return VideoWriter(Path(path), info, copy_from=source, codec=codec, crf=crf, preset=preset, threads=threads)


def names_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a destination is a folder of images by its name: no extension, or a slash at the end.

    >>> names_folder("frames"), names_folder("frames.v2/"), names_folder("out.mp4")
    (True, True, False)
    """
    return str(path).endswith(("/", os.sep)) or not Path(path).suffix


def check_destination(
    path: str | os.PathLike[str], *, copy_from: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> None:
    """See that `open_writer` may write to a name, before there is anything to write.

    Raises:
        InputError: it may not.
    """
    is_folder = names_folder(path)
    source = None if copy_from is None else Path(copy_from)
    path = Path(path)
    if not is_folder and path.suffix.lower() not in CONTAINERS:
        raise InputError(
            f"{path} cannot be written: expected a name in {', '.join(CONTAINERS)}, or one without extension for a "
            f"folder of images, got {path.suffix!r}."
        )
    if source is not None and not source.exists():
        raise InputError(f"There is no file {source} to copy the sound from; check the name.")
    if source is not None and path.exists() and path.samefile(source):
        raise InputError(f"Input and output are both {path}; give the output another name.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; pass --overwrite (overwrite=True) to replace it, or choose another name.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; make it first.")


class VideoWriter(Writer):
    """A video file in the making; see `open_writer`, which also checks the name."""

    def __init__(
        self,
        path: Path,
        info: VideoInfo,
        *,
        copy_from: Path | None = None,
        codec: str | None = None,
        crf: float | None = None,
        preset: str | None = None,
        threads: int | None = None,
    ) -> None:
        if path.is_dir():
            raise InputError(f"{path} is a folder, but its name is one for a video file; choose another name.")
        super().__init__(path, info)
        self._container: OutputContainer | None = None
        self._copied: _CopiedStreams | None = None
        self._last_pts: int | None = None
        self._step = max(1, round(1 / (info.frame_rate * info.time_base)))
        self._rgb = av.VideoFrame(info.width, info.height, "gbrpf32le")  # every frame passes through its memory
        self._channels = [torch.from_numpy(plane) for plane in planes(self._rgb)]
        self._to_yuv = VideoReformatter()
        self._threads = threads or 0
        with self._discarded_on_error():
            self._file = _File(io.FileIO(self._part, "w"))
            self._container = av.open(
                self._file,
                "w",
                format=CONTAINERS[path.suffix.lower()],
                container_options=_container_options(path, info),
            )
            self._stream = _add_video_stream(self._container, path, info, codec, crf, preset, threads)
            self._shifts = _chroma_shifts(info, self._stream.format) if info.full_range else (0.0, 0.0, 0.0)
            if copy_from is not None and copy_from.is_file():
                self._copied = _CopiedStreams(copy_from, self._container, path)
            self._container.start_encoding()  # now, so that a refusal comes before any work
            self._file.check()

    def _append(self, frame: Frame) -> None:
        assert self._container is not None
        picture = self._to_picture(frame.data)
        picture.pts = self._next_pts(frame)
        picture.time_base = self.info.time_base
        picture.duration = self._step
        self._container.mux(self._stream.encode(picture))
        if self._copied:
            self._copied.copy_until(picture.pts * self.info.time_base)
        self._file.check()

    def _finish(self) -> None:
        assert self._container is not None
        packets = self._stream.encode(None)
        if self.count <= 2:  # too few for x265 to have set the delay of its dts, which are then whatever lay in memory
            for packet in packets:
                packet.dts = packet.pts
        self._container.mux(packets)
        if self._copied:
            self._copied.copy_until(None)
            self._copied.close()
        self._container.close()
        self._file.check()
        self._file.close()
        os.replace(self._part, self.path)

    def _remove(self) -> None:
        if self._copied:
            self._copied.close()
        if hasattr(self, "_file"):
            with contextlib.suppress(OSError):
                self._file.close()  # before the container, which then does not try to write an end
            self._part.unlink(missing_ok=True)
        if self._container is not None:
            self._container.close()

    def _next_pts(self, frame: Frame) -> int:
        """The frame's time in the video's own units, moved behind the last one if it is not later than that."""
        pts = frame.pts
        if frame.time_base != self.info.time_base:
            pts = round(frame.pts * frame.time_base / self.info.time_base)
        if self._last_pts is not None:
            pts = max(pts, self._last_pts + 1)
        self._last_pts = pts
        return pts

    def _to_picture(self, data: Tensor) -> av.VideoFrame:
        channels = data.detach().expand(3, -1, -1)
        for channel, memory, shift in zip(channels, self._channels, self._shifts, strict=True):
            torch.nan_to_num(channel.to("cpu", torch.float32), nan=0.0, out=memory).clamp_(0, 1).mul_(WHITE)
            if shift:
                memory += shift
        picture = self._to_yuv.reformat(
            self._rgb,
            format=self._stream.pix_fmt,
            dst_colorspace=5 if self.info.matrix == BT601 else self.info.matrix,  # swscale has one number for BT.601
            dst_color_range=FULL_RANGE if self.info.full_range else LIMITED_RANGE,
            interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND,  # the mean of the pixels that share chroma
            threads=self._threads,
        )
        picture.colorspace = self.info.matrix
        return picture


class FolderWriter(Writer):
    """A folder of numbered images in the making; see `open_writer`, which also checks the name."""

    def __init__(self, path: Path, info: VideoInfo) -> None:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, but a name without extension is for a folder; choose another name.")
        foreign = [p.name for p in path.iterdir() if not _is_frame(p)] if path.is_dir() else []
        if foreign:
            raise InputError(
                f"{path} holds more than numbered frames ({min(foreign)}), and replacing the folder would delete it; "
                "choose another name."
            )
        super().__init__(path, info)
        with self._discarded_on_error():
            self._part.mkdir()

    def _append(self, frame: Frame) -> None:
        name = self._part / f"frame_{self.count + 1:06d}"
        if self.info.bit_depth == 32:
            _write_exr(name.with_suffix(".exr"), frame.data)
        else:
            name.with_suffix(".png").write_bytes(_encode_png(frame.data, 8 if self.info.bit_depth == 8 else 16))

    def _finish(self) -> None:
        if self.path.exists():
            os.replace(self.path, self._old)
        os.replace(self._part, self.path)
        shutil.rmtree(self._old, ignore_errors=True)

    def _remove(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)


class _File(io.BufferedWriter):
    """A file that keeps its first error until it is asked.

    ffmpeg's own files forget an error that comes when they close, and PyAV prints a stack trace if a second one passes
    through it.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            self.error = self.error or error
            return offset

    def check(self) -> None:
        if self.error:
            raise self.error


class _CopiedStreams:
    """Sound and subtitles of another file, handed over packet by packet as the video's time goes on."""

    def __init__(self, source: Path, output: OutputContainer, path: Path) -> None:
        try:
            self._input: InputContainer = av.open(f"file:{source}", metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"The sound of {source} cannot be read ({error.strerror}).") from error
        self._output = output
        self._streams: dict[int, Stream] = {}
        self._last_dts: dict[int, int | None] = {}
        for stream in self._input.streams:
            if stream.type in ("audio", "subtitle"):
                copy = self._streams[stream.index] = _add_copy(output, stream, source, path)
                copy.metadata.update(_fresh(stream.metadata))
                copy.disposition = stream.disposition
            else:
                stream.discard = Discard.all
        output.metadata.update(_fresh(self._input.metadata))
        output.set_chapters(self._input.chapters())
        self._packets = self._read()
        self._next = next(self._packets, None)

    def _read(self) -> Generator[tuple[Fraction, av.Packet], None, None]:
        # Where the source is damaged its sound ends; that it is damaged the reader of the video tells.
        with contextlib.suppress(av.FFmpegError):
            for packet in self._input.demux([self._input.streams[i] for i in self._streams]) if self._streams else ():
                stamp = packet.dts if packet.dts is not None else packet.pts
                if stamp is not None and packet.time_base:
                    yield stamp * packet.time_base, packet

    def copy_until(self, seconds: Fraction | None) -> None:
        """Copy what lies before `seconds`, or all that is left."""
        while self._next is not None and (seconds is None or self._next[0] <= seconds):
            packet = self._next[1]
            last = self._last_dts.get(packet.stream_index)
            if last is not None and packet.dts is not None and packet.dts <= last:  # no muxer takes time running back
                packet.dts = last + 1
                packet.pts = max(packet.dts, packet.pts or packet.dts)
            self._last_dts[packet.stream_index] = packet.dts
            packet.stream = self._streams[packet.stream_index]
            self._output.mux_one(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        self._next = None
        self._packets.close()
        self._input.close()


def _container_options(path: Path, info: VideoInfo) -> dict[str, str]:
    """Ask for times as they are: the sound may begin before zero, the video after it."""
    options = {"avoid_negative_ts": "disabled"}
    if path.suffix.lower() != ".mkv":  # mp4 keeps the first moment in units of its own, milliseconds unless told
        ticks = info.time_base.denominator
        options["movie_timescale"] = str(ticks * math.ceil(1000 / ticks))
    return options


def _add_video_stream(
    container: OutputContainer,
    path: Path,
    info: VideoInfo,
    codec: str | None,
    crf: float | None,
    preset: str | None,
    threads: int | None,
) -> av.VideoStream:
    if info.matrix not in MATRICES:
        raise InputError(
            f"Colour matrix {info.matrix} cannot be written; expected one of {', '.join(map(str, MATRICES))}."
        )
    if crf is not None and not 0 <= crf <= 51:
        raise InputError(f"crf must lie between 0 (best) and 51, got {crf}.")
    if preset is not None and preset not in PRESETS:
        raise InputError(f"There is no preset {preset!r}; {nearest(preset, PRESETS)}")
    if codec is None:
        codec = "libx265" if info.bit_depth > 8 and min(info.width, info.height) >= SMALLEST_HEVC else "libx264"
        crf, preset = 16 if crf is None else crf, preset or "fast"
    try:
        encoder = av.Codec(codec, "w")
    except ValueError as error:
        raise InputError(f"ffmpeg has no encoder {codec!r}; {nearest(codec, sorted(av.codecs_available))}") from error
    if encoder.type != "video":
        raise InputError(f"{codec} encodes {encoder.type}; expected a video encoder, as libx264, libx265 or ffv1.")
    try:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=info.frame_rate))
    except ValueError as error:
        raise InputError(f"{path.suffix} cannot hold {codec}; {_containers_for(codec)}") from error
    stream.width, stream.height, stream.pix_fmt = info.width, info.height, _pixel_format(encoder, info)
    stream.time_base = info.time_base
    context = stream.codec_context
    context.time_base = info.time_base
    context.sample_aspect_ratio = info.pixel_aspect
    context.colorspace = info.matrix
    context.color_primaries = info.primaries if info.primaries in PRIMARIES else UNSPECIFIED
    context.color_trc = info.transfer if info.transfer in TRANSFERS else UNSPECIFIED
    context.color_range = FULL_RANGE if info.full_range else LIMITED_RANGE
    context.thread_count = threads or 0
    options = {"crf": crf, "preset": preset}
    if codec == "libx265":
        settings = ["log-level=none"] + [f"pools={threads}"] * bool(threads)
        settings += ["cutree=0"] * (info.width < SMALLEST_HEVC)
        options["x265-params"] = ":".join(settings)
        if path.suffix.lower() != ".mkv":
            context.codec_tag = "hvc1"  # Apple's players take no other
    stream.options = {key: str(value) for key, value in options.items() if value is not None}
    try:
        context.open()
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{codec} refuses {info.width}x{info.height} at {info.bit_depth} bits with {stream.options} "
            f"({error.strerror}); choose another codec or size."
        ) from error
    return stream


def _pixel_format(encoder: av.Codec, info: VideoInfo) -> str:
    """The encoder's format for this size and depth, colour subsampled if the size is even."""
    known = [f.name for f in encoder.video_formats or ()]
    deep, odd = info.bit_depth > 8, info.width % 2 or info.height % 2
    for depth in ("10le", "12le", "") if deep else ("", "10le"):
        for sampling in ("yuv444p",) if odd else ("yuv420p", "yuv422p", "yuv444p"):
            if sampling + depth in known:
                return sampling + depth
    raise InputError(
        f"{encoder.name} has no format for {info.width}x{info.height} (it takes {', '.join(known)}); "
        "choose another codec or an even size."
    )


def _add_copy(output: OutputContainer, stream: Stream, source: Path, path: Path) -> Stream:
    fitting = [suffix for suffix in CONTAINERS if _fits(stream, CONTAINERS[suffix])]
    if path.suffix.lower() not in fitting:
        codec = stream.codec_context.codec.canonical_name if stream.codec_context else "an unknown codec"
        raise InputError(
            f"Stream {stream.index} of {source} ({stream.type}, {codec}) does not fit into {path.suffix}; "
            f"{_say(fitting)}"
        )
    return output.add_stream_from_template(stream)


def _fits(stream: Stream, container_format: str) -> bool:
    """Whether a container takes a stream; some promise to and then refuse, so that only a trial tells."""
    try:
        with av.open(io.BytesIO(), "w", format=container_format) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def _containers_for(codec: str) -> str:
    formats = CONTAINERS.items()
    return _say([s for s, f in formats if codec in av.open(io.BytesIO(), "w", format=f).supported_codecs])


def _say(suffixes: list[str]) -> str:
    return f"write to {' or '.join(suffixes)} instead." if suffixes else f"nor into any of {', '.join(CONTAINERS)}."


def _fresh(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not STALE_TAG.match(key.lower())}


def _chroma_shifts(info: VideoInfo, fmt: av.VideoFormat) -> tuple[float, float, float]:
    """What to add to R, G and B in full range, where swscale centres chroma half a level low: grey is to stay grey."""
    red, blue = MATRICES[info.matrix]
    half = 0.5 / (2 ** fmt.components[0].bits - 1)
    up_red, up_blue = 2 * (1 - red) * half, 2 * (1 - blue) * half
    return up_red, -(red * up_red + blue * up_blue) / (1 - red - blue), up_blue


def _finite(data: Tensor) -> Tensor:
    """A float32 copy on the CPU in which NaN is 0 and infinities are large numbers."""
    return torch.nan_to_num(data.detach().to("cpu", torch.float32), nan=0.0)


def _is_frame(path: Path) -> bool:
    return re.fullmatch(r"frame_\d{6,}\.(png|exr)", path.name) is not None


def _encode_png(data: Tensor, bits: int) -> bytes:
    peak, grey = 2**bits - 1, len(data) == 1
    source, target = {
        (8, False): ("rgb24", "rgb24"),
        (16, False): ("rgb48le", "rgb48be"),
        (8, True): ("gray", "gray"),
        (16, True): ("gray16le", "gray16be"),
    }[bits, grey]
    levels: Any = _finite(data).clamp_(0, 1).mul_(peak).add_(0.5).permute(1, 2, 0).contiguous().numpy()
    levels = levels.astype(f"u{bits // 8}")
    levels = levels[..., 0] if grey else levels
    picture = av.VideoFrame.from_ndarray(levels, format=source).reformat(format=target)
    picture.pts = 0
    encoder = cast(VideoCodecContext, av.CodecContext.create("png", "w"))
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, target
    encoder.time_base = Fraction(1, 1)
    encoder.thread_count = 1
    return b"".join(bytes(packet) for packet in encoder.encode(picture) + encoder.encode(None))


def _write_exr(path: Path, data: Tensor) -> None:
    import OpenEXR

    half = _finite(data).clamp_(-65504, 65504).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    try:
        OpenEXR.File(header, {"RGB": half.astype(np.float16)}).write(str(path))
    except RuntimeError as error:
        raise OSError(str(error)) from error
