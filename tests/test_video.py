"""Video files and image folders in and out: the tests make every file, and judge errors by their words."""

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from unflicker.checks import InputError
from unflicker.video import Frame, VideoInfo, VideoReader, open_reader, open_writer

SHARED = Path(__file__).resolve().parents[2] / "shared"
TICK = Fraction(1, 12800)


def picture(t: int = 0, width: int = 48, height: int = 32) -> torch.Tensor:
    """A smooth coloured picture that changes with t: (3, H, W) in [0.1, 0.9]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([x, y, (x + y) / 2]) * 0.7 + 0.1 + 0.02 * (t % 6)


def info(width: int = 48, height: int = 32, **changes: object) -> VideoInfo:
    return dataclasses.replace(VideoInfo(width, height, Fraction(25), TICK), **changes)  # type: ignore[arg-type]


def write(
    path: Path, frames: Sequence[torch.Tensor], about: VideoInfo, times: Sequence[int] = (), **kw: object
) -> None:
    step = round(1 / (about.frame_rate * about.time_base))
    with open_writer(path, about, threads=1, **kw) as writer:  # type: ignore[arg-type]
        for i, data in enumerate(frames):
            writer.write(Frame(data, times[i] if times else i * step, about.time_base))


def make(path: Path, count: int = 12, **kw: object) -> Path:
    write(path, [picture(t) for t in range(count)], info(), preset="ultrafast", **kw)
    return path


def read(path: Path, **kw: object) -> list[Frame]:
    with open_reader(path, threads=1, **kw) as reader:  # type: ignore[arg-type]
        return list(reader)


def make_av(
    path: Path,
    frames: Sequence[np.ndarray] = (),
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    source: str = "rgb24",
    sound: str = "",
    options: dict[str, str] | None = None,
    **attributes: object,
) -> Path:
    """A file written with PyAV alone, so that the reader is not judged by the writer."""
    with av.open(str(path), "w") as container:
        if len(frames):
            video = container.add_stream(codec, rate=25, options=options or {"crf": "1", "preset": "ultrafast"})
            first = av.VideoFrame.from_ndarray(frames[0], format=source)
            video.width, video.height, video.pix_fmt = first.width, first.height, pix_fmt
            video.codec_context.thread_count = 1
            if "rotation" in attributes:
                video.set_display_rotation(attributes.pop("rotation"), hflip=bool(attributes.pop("hflip", False)))
            for name, value in attributes.items():
                setattr(video.codec_context, name, value)
        if sound:
            audio = container.add_stream(sound, rate=48000)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format=source)
            frame.pts = i
            container.mux(video.encode(frame))
        if len(frames):
            container.mux(video.encode())
        if sound:
            wave = np.sin(np.arange(48000) * 0.05).astype(np.float32)[None].repeat(2, 0) * 0.3
            for i in range(0, 48000, 1024):
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, i : i + 1024]), "fltp", "stereo")
                block.sample_rate, block.pts = 48000, i
                container.mux(audio.encode(block))
            container.mux(audio.encode())
    return path


def array(data: torch.Tensor) -> np.ndarray:
    return (data * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


@pytest.fixture(scope="module")
def with_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of video with stereo AAC."""
    path = tmp_path_factory.mktemp("sound") / "sound.mp4"
    return make_av(path, [array(picture(t)) for t in range(25)], sound="aac")


@pytest.fixture(scope="module")
def with_subtitles(with_sound: Path) -> Path:
    """The same in Matroska, with subtitles (SubRip), a title, a chapter and a language."""
    path = with_sound.with_name("subtitles.mkv")
    text = with_sound.with_suffix(".srt")
    text.write_text("1\n00:00:00,100 --> 00:00:00,500\nhello\n\n2\n00:00:00,600 --> 00:00:00,900\nthere\n")
    with av.open(str(with_sound)) as movie, av.open(str(text)) as words, av.open(str(path), "w") as out:
        streams = {s: out.add_stream_from_template(s) for c in (movie, words) for s in c.streams}
        streams[words.streams[0]].metadata["language"] = "eng"
        out.metadata["title"] = "The gradient"
        chapter = {"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}
        out.set_chapters([chapter])
        packets = sorted(
            (p for c in (movie, words) for p in c.demux() if p.dts is not None), key=lambda p: p.dts * p.time_base
        )
        for packet in packets:
            packet.stream = streams[packet.stream]
            out.mux(packet)
    return path


# Reading: what is on the screen


def yuv(matrix: int, full: bool, depth: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Planar YUV 4:4:4 of known levels, and the RGB they mean by the definition in H.273 (independent of ffmpeg)."""
    kr, kb = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    top = 2**depth - 1
    rng = np.random.default_rng(0)
    luma = rng.integers(top // 4, 3 * top // 4, (32, 48))
    blue, red = rng.integers(int(top * 0.45), int(top * 0.55), (2, 32, 48))
    scale = 2 ** (depth - 8)
    y = luma / top if full else (luma - 16 * scale) / (219 * scale)
    b, r = ((c - 128 * scale) / (top if full else 224 * scale) for c in (blue, red))
    rgb_r, rgb_b = y + 2 * (1 - kr) * r, y + 2 * (1 - kb) * b
    rgb = np.stack([rgb_r, (y - kr * rgb_r - kb * rgb_b) / (1 - kr - kb), rgb_b])
    return np.stack([luma, blue, red]).astype(np.uint8 if depth == 8 else np.uint16), rgb


@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10])
def test_levels_become_the_rgb_that_the_tags_say(tmp_path: Path, matrix: int, full: bool, depth: int) -> None:
    levels, expected = yuv(matrix, full, depth)
    path = tmp_path / "levels.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv444p" if depth == 8 else "yuv444p10le"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame(48, 32, stream.pix_fmt)
        for plane, values in zip(frame.planes, levels, strict=True):
            padded = np.zeros((32, plane.line_size // values.itemsize), values.dtype)
            padded[:, :48] = values
            plane.update(padded.tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with open_reader(path) as reader:
        (frame_read,) = reader
        assert (reader.info.matrix, reader.info.full_range, reader.info.bit_depth) == (matrix, full, depth)
    assert frame_read.data.dtype == torch.float32
    assert np.abs(frame_read.data.numpy() - expected).max() < 0.1 / (2**depth - 1)


@pytest.mark.parametrize(("height", "matrix"), [(718, 6), (720, 1)])
def test_untagged_video_is_bt709_from_720_lines_on(tmp_path: Path, height: int, matrix: int) -> None:
    path = make_av(tmp_path / "untagged.mp4", [np.zeros((height, 16, 3), np.uint8)])
    with open_reader(path) as reader:
        assert reader.info.matrix == matrix


def test_full_range_yuvj_is_honoured(tmp_path: Path) -> None:
    grey = np.full((32, 48, 3), 20, np.uint8)
    path = make_av(tmp_path / "j.mkv", [grey], codec="mjpeg", pix_fmt="yuvj420p", options={"qscale": "1"})
    with open_reader(path) as reader:
        assert reader.info.full_range
        assert abs(float(next(reader).data.mean()) * 255 - 20) < 1.5


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_is_applied(tmp_path: Path, degrees: int, mirror: bool) -> None:
    stored = array(picture())
    path = make_av(tmp_path / "turned.mp4", [stored] * 2, rotation=degrees, hflip=mirror)
    expected = torch.rot90(picture(), degrees // 90, (1, 2))  # counter-clockwise, as the container counts
    if mirror:
        expected = expected.flip(2)
    with open_reader(path) as reader:
        frame = next(reader)
        assert (3, reader.info.height, reader.info.width) == frame.data.shape == expected.shape
    assert (frame.data - expected).abs().mean() < 0.02


def test_a_matrix_that_cannot_be_undone(tmp_path: Path) -> None:
    path = make_av(tmp_path / "ycgco.mp4", [array(picture())], pix_fmt="yuv444p", colorspace=8)
    with pytest.raises(InputError, match=r"has colour matrix 8 \(H.273\), which cannot be turned into RGB; convert it"):
        open_reader(path)


@pytest.mark.parametrize("name", ["a: b%d é.mp4", "%03d.mkv", "-z|y.mov"])
def test_names_that_mean_something_to_ffmpeg(tmp_path: Path, name: str) -> None:
    make(tmp_path / name, 2)
    assert len(read(tmp_path / name)) == 2


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([array(picture()), np.full((32, 48), 7, np.uint8)])
    path = make_av(tmp_path / "alpha.mkv", [rgba], source="rgba", codec="ffv1", pix_fmt="bgra")
    assert torch.equal((read(path)[0].data * 255).round(), (picture() * 255).round())


def test_a_size_change_in_mid_stream_comes_out_in_its_own_size(tmp_path: Path) -> None:
    parts = []
    for size in ((32, 48), (16, 64)):
        part = make_av(tmp_path / f"{size[0]}.h264", [np.zeros((*size, 3), np.uint8)] * 3)
        parts.append(part.read_bytes())
    both = tmp_path / "both.h264"
    both.write_bytes(b"".join(parts))
    frames = read(both)
    assert [tuple(f.data.shape) for f in frames] == [(3, 32, 48)] * 3 + [(3, 16, 64)] * 3
    assert all(a.pts < b.pts for a, b in itertools.pairwise(frames))  # a raw stream has no times


def test_avi_with_b_frames_counts_evenly(tmp_path: Path) -> None:
    frames = [np.full((32, 32, 3), 10 * t, np.uint8) for t in range(20)]
    path = make_av(tmp_path / "a.avi", frames, options={"preset": "fast", "bf": "3"})
    back = read(path)
    assert [f.pts for f in back] == list(range(20))
    assert [round(float(f.data.mean()) * 25.5) for f in back] == list(range(20))


# Reading: what cannot be read, and what can still be read


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file or folder .*nothing\.mp4; check the name"):
        open_reader(tmp_path / "nothing.mp4")


@pytest.mark.parametrize("name", ["note.txt", "note.mp4"])
def test_text_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("these are words\n" * 20)
    with pytest.raises(InputError, match=r"is a text file|is no video that ffmpeg can read"):
        open_reader(tmp_path / name)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(InputError, match="is empty"):
        open_reader(tmp_path / "empty.mp4")


def test_sound_without_video(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no video stream \(it holds audio\)"):
        open_reader(make_av(tmp_path / "song.m4a", sound="aac"))


def test_video_without_frames(tmp_path: Path) -> None:
    path = make_av(tmp_path / "whole.mp4", [array(picture())] * 3)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(InputError, match="has a video stream, but no frame of it can be decoded"):
        open_reader(path)


def test_frame_rate_is_refused_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="A frame rate is for folders of images"):
        open_reader(make(tmp_path / "a.mp4", 2), frame_rate=30)


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    short = path.with_stem("short")
    short.write_bytes(data[: int(len(data) * keep)])
    return short


def noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(count)]


def faststart(path: Path, count: int) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = 64
        for i, values in enumerate(noise(count)):
            frame = av.VideoFrame.from_ndarray(values)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("threads", [1, 4])  # several threads must not swallow the last frames
def test_mp4_cut_off(tmp_path: Path, threads: int) -> None:
    with open_reader(cut(faststart(tmp_path / "a.mp4", 20), 0.6), threads=threads) as reader:
        frames = list(reader)
        assert len(frames) == 11
        assert reader.damage is not None
        assert f"{len(frames)} frames were decoded, but the file is cut off" in reader.damage
        assert "of its 20 video packets are there" in reader.damage


def test_mp4_without_its_index(tmp_path: Path) -> None:
    path = make_av(tmp_path / "a.mp4", noise(10))  # the index is at the end
    with pytest.raises(InputError, match="is cut off or unreadable: its index is missing"):
        open_reader(cut(path, 0.8))


def test_mkv_cut_off(tmp_path: Path) -> None:
    path = make_av(tmp_path / "a.mkv", noise(75), sound="aac")
    with open_reader(cut(path, 0.5), threads=1) as reader:
        frames = list(reader)
        assert 25 < len(frames) < 50
        assert reader.damage is not None and "cut off: it ends after 1." in reader.damage
        assert "of 3.0 seconds" in reader.damage


def test_mkv_whose_sound_is_longer_is_whole(tmp_path: Path) -> None:
    with open_reader(make_av(tmp_path / "a.mkv", noise(2), sound="aac")) as reader:
        assert len(list(reader)) == 2
        assert reader.damage is None


@pytest.mark.parametrize("threads", [1, 3])
def test_broken_packets_in_the_middle(tmp_path: Path, threads: int) -> None:
    path = make_av(tmp_path / "a.mkv", noise(20), codec="mpeg4", options={"g": "1", "qscale": "2"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = b"\xff" * 1500
    path.write_bytes(data)
    with open_reader(path, threads=threads) as reader:
        frames = list(reader)
        assert 15 <= len(frames) <= 20
        assert (
            reader.damage is not None
            and f"{len(frames)} frames were decoded, but the file is damaged, broken packets: " in reader.damage
        )


def test_whole_file_has_no_damage_and_reads_once(tmp_path: Path) -> None:
    with open_reader(make(tmp_path / "a.mp4")) as reader:
        assert len(list(reader)) == 12 == reader.info.num_frames
        assert list(reader) == []
        assert reader.damage is None
    reader.close()


def test_closing_early_ends_the_frames(tmp_path: Path) -> None:
    reader = open_reader(make(tmp_path / "a.mp4"))
    next(reader)
    reader.close()
    assert list(reader) == []


@pytest.mark.skipif(not (SHARED / "data/hdr").is_dir(), reason="the shared clips are not here")
def test_frames_hidden_by_an_edit_list_are_no_damage() -> None:
    path = SHARED / "data/hdr/ax_hlg_building_1080p.mp4"
    with VideoReader(path, threads=1) as reader:
        assert (reader.info.matrix, reader.info.transfer, reader.info.bit_depth) == (9, 18, 10)
        assert reader.info.num_frames == 77
        assert sum(1 for _ in reader._decoded) == 76  # without turning them into RGB, which would take seconds
        assert reader.damage is None


# Folders


@pytest.mark.parametrize(("depth", "tolerance"), [(8, 0.5 / 255), (16, 0.5 / 65535), (32, 0.001)])
def test_folder_round_trip(tmp_path: Path, depth: int, tolerance: float) -> None:
    frames = [picture(t) * (3 if depth == 32 else 1) for t in range(3)]  # EXR goes above 1
    write(tmp_path / "out", frames, info(bit_depth=depth))
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [f"frame_{i:06d}.{'exr' if depth == 32 else 'png'}" for i in (1, 2, 3)]
    with open_reader(tmp_path / "out", frame_rate=Fraction(30000, 1001)) as reader:
        assert (reader.info.bit_depth, reader.info.num_frames, reader.info.is_folder) == (depth, 3, True)
        back = list(reader)
    assert [f.pts_seconds for f in back] == pytest.approx([0, 1001 / 30000, 2002 / 30000])
    for a, b in zip(frames, back, strict=True):
        assert (a - b.data).abs().max() <= tolerance * max(1, float(a.max())) + 1e-6


def test_folder_reads_jpeg_and_sorts_by_number(tmp_path: Path) -> None:
    for i in (10, 9, 1):
        make_av(
            tmp_path / f"img{i}.jpg",
            [np.full((16, 16, 3), i * 20, np.uint8)],
            codec="mjpeg",
            pix_fmt="yuvj444p",
            options={"qscale": "1"},
        )
    (tmp_path / "notes.txt").write_text("not an image")
    frames = read(tmp_path)
    assert [round(float(f.data.mean()) * 255) for f in frames] == pytest.approx([20, 180, 200], abs=1)
    assert frames[2].pts_seconds == 2 / 24


def test_folder_reads_tiff(tmp_path: Path) -> None:
    make_av(tmp_path / "a.tiff", [array(picture())], codec="tiff", pix_fmt="rgb24", options={"compression_algo": "raw"})
    assert torch.equal((read(tmp_path)[0].data * 255).round(), (picture() * 255).round())


def test_exr_keeps_nan_and_float32(tmp_path: Path) -> None:
    import OpenEXR

    values = np.random.default_rng(0).normal(0, 5, (8, 8, 3)).astype(np.float32)
    values[0, 0] = np.nan
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB": values}).write(str(tmp_path / "a.exr"))
    (frame,) = read(tmp_path)
    assert frame.data.isnan()[:, 0, 0].all()
    assert np.array_equal(frame.data.permute(1, 2, 0).numpy(), values, equal_nan=True)


def test_exr_without_rgb(tmp_path: Path) -> None:
    import OpenEXR

    OpenEXR.File({}, {"Z": np.zeros((4, 4), np.float32)}).write(str(tmp_path / "a.exr"))
    with pytest.raises(InputError, match="has no channels R, G, B or Y, only Z"):
        open_reader(tmp_path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no images \(it is empty\)"):
        open_reader(tmp_path)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "readme.md").touch()
    with pytest.raises(InputError, match=r"has no images \(only readme.md and the like\); expected files like \.png"):
        open_reader(tmp_path)


def test_folder_of_broken_images(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"not a png")
    with pytest.raises(InputError, match="None of the 2 images"):
        open_reader(tmp_path)


def test_one_broken_image_leaves_a_gap(tmp_path: Path) -> None:
    write(tmp_path / "out", [picture(t) for t in range(3)], info())
    (tmp_path / "out/frame_000002.png").write_bytes(b"")
    with open_reader(tmp_path / "out") as reader:
        assert [f.pts for f in reader] == [0, 2]
        assert reader.damage == "2 frames were read, images that cannot be: 1 (frame_000002.png)."


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_bad_frame_rate(tmp_path: Path, rate: float) -> None:
    write(tmp_path / "out", [picture()], info())
    with pytest.raises(InputError, match=r"must lie between 0.01 and 1000 images per second"):
        open_reader(tmp_path / "out", frame_rate=rate)


# Writing: what was written is what is read


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("size", [(48, 32), (47, 31)])
def test_colours_survive(tmp_path: Path, full: bool, matrix: int, size: tuple[int, int]) -> None:
    """Within a level of 8 bits, in colours as well as in grey, for subsampled and for full chroma."""
    about = info(*size, matrix=matrix, primaries=1, transfer=1, full_range=full)
    smooth = picture(0, *size)
    grey = smooth[:1].expand(3, -1, -1)
    frames = [grey, smooth if size[0] % 2 else smooth[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)]
    write(tmp_path / "a.mp4", frames, about, crf=0, preset="ultrafast")
    with open_reader(tmp_path / "a.mp4") as reader:
        back = list(reader)
        for name in ("matrix", "primaries", "transfer", "full_range", "width", "height", "bit_depth"):
            assert getattr(reader.info, name) == getattr(about, name), name
    for a, b in zip(frames, back, strict=True):
        # Half a level of rounding in Y, Cb and Cr is up to 1.5 levels in blue; grey has none of the chroma's.
        assert (a - b.data).abs().max() * 255 <= 1.75
        assert (a - b.data).abs().mean() * 255 < 0.5
        assert abs(float((a - b.data).mean())) * 255 < 0.2  # no bias
    assert (frames[0] - back[0].data).abs().max() * 255 <= 1


@pytest.mark.parametrize("size", [(48, 32), (47, 31)])
def test_a_video_passed_through_keeps_every_level(tmp_path: Path, size: tuple[int, int]) -> None:
    source, copy = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write(source, [picture(t, *size) for t in range(3)], info(*size), crf=0, preset="ultrafast")
    frames = read(source)
    write(copy, [f.data for f in frames], info(*size), crf=0, preset="ultrafast")
    for a, b in zip(frames, read(copy), strict=True):
        assert torch.equal(a.data, b.data)


def test_reserved_tags_are_left_out_and_unknown_matrices_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [picture(0, 64, 64)], info(64, 64, bit_depth=10, primaries=3, transfer=0))
    with open_reader(tmp_path / "a.mp4") as reader:
        assert (reader.info.primaries, reader.info.transfer) == (2, 2)
    with pytest.raises(InputError, match="Colour matrix 2 cannot be written; expected one of 1, 4, 5"):
        open_writer(tmp_path / "b.mp4", info(matrix=2))


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_keeps_its_tags_and_ten_bits(tmp_path: Path, transfer: int) -> None:
    about = info(64, 66, bit_depth=10, matrix=9, primaries=9, transfer=transfer)
    frames = [picture(t, 64, 66)[:1].expand(3, -1, -1) for t in range(3)]  # grey has no subsampled part
    write(tmp_path / "a.mp4", frames, about, crf=0, preset="ultrafast")
    with open_reader(tmp_path / "a.mp4") as reader:
        for name in ("matrix", "primaries", "transfer", "full_range", "bit_depth"):
            assert getattr(reader.info, name) == getattr(about, name), name
        back = list(reader)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert (container.streams.video[0].codec_context.name, container.streams.video[0].codec_tag) == ("hevc", "hvc1")
    assert (frames[0] - back[0].data).abs().max() * 1023 < 2.1


def test_values_are_rounded_clipped_and_nan_is_black(tmp_path: Path) -> None:
    data = torch.full((3, 4, 4), 100.6 / 255)
    data[:, 0] = 2.0
    data[:, 1] = -1.0
    data[:, 2] = float("nan")
    data[:, 3, 3] = float("inf")
    write(tmp_path / "out", [data], info(4, 4))
    levels = (read(tmp_path / "out")[0].data * 255).round()
    assert levels[0].tolist() == [[255] * 4, [0] * 4, [0] * 4, [101] * 3 + [255]]
    write(tmp_path / "a.mp4", [data], info(4, 4), crf=0)
    assert (read(tmp_path / "a.mp4")[0].data * 255 - levels).abs().max() < 8  # chroma is shared by two rows


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (17, 33), (34, 33), (65, 64)])
def test_any_size_is_kept(tmp_path: Path, size: tuple[int, int], depth: int) -> None:
    frames = [picture(t, *size)[1:2].expand(3, -1, -1) for t in range(3)]
    write(tmp_path / "a.mp4", frames, info(*size, bit_depth=depth), crf=1, preset="ultrafast")
    back = read(tmp_path / "a.mp4")
    assert [tuple(f.data.shape) for f in back] == [(3, size[1], size[0])] * 3
    assert (back[0].data - frames[0]).abs().mean() < 0.02


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("depth", [8, 10])
def test_very_short_videos(tmp_path: Path, count: int, depth: int) -> None:
    frames = [picture(t, 64, 64) for t in range(count)]
    write(tmp_path / "a.mp4", frames, info(64, 64, bit_depth=depth))
    assert [f.pts_seconds for f in read(tmp_path / "a.mp4")] == pytest.approx([0, 0.04][:count])


def test_pixel_aspect_survives(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [picture()], info(pixel_aspect=Fraction(4, 3)))
    with open_reader(tmp_path / "a.mp4") as reader:
        assert reader.info.pixel_aspect == Fraction(4, 3)


# Writing: time


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("start", [0, 700])
@pytest.mark.parametrize("base", [Fraction(1, 12800), Fraction(1001, 30000), Fraction(1, 90000), Fraction(1, 24)])
def test_variable_frame_rate_is_exact(tmp_path: Path, suffix: str, start: int, base: Fraction) -> None:
    steps = [0, 1, 3, 4, 10, 11, 12, 20, 21, 25, 26, 40]
    unit = max(1, round(1 / (60 * base)))
    times = [start + s * unit for s in steps]
    path = tmp_path / f"a{suffix}"
    write(path, [picture(t) for t in range(12)], info(time_base=base), times, preset="fast")  # with B frames
    assert [f.pts_seconds for f in read(path)] == pytest.approx([float(t * base) for t in times], abs=1e-6)


def test_matroska_rounds_to_milliseconds(tmp_path: Path) -> None:
    make(tmp_path / "a.mkv", 5)
    assert [f.pts_seconds for f in read(tmp_path / "a.mkv")] == pytest.approx([i / 25 for i in range(5)], abs=5e-4)


def test_times_that_do_not_grow_are_moved_on(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [picture(t) for t in range(5)], info(), [0, 512, 512, 500, 1024])
    pts = [f.pts_seconds for f in read(tmp_path / "a.mp4")]
    assert pts == pytest.approx([0, 512 / 12800, 513 / 12800, 514 / 12800, 1024 / 12800], abs=1e-6)


def test_a_frame_may_count_in_other_units(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.mp4", info()) as writer:
        for i in range(3):
            writer.write(Frame(picture(i), i, Fraction(1, 24)))
    assert [f.pts_seconds for f in read(tmp_path / "a.mp4")] == pytest.approx([0, 1 / 24, 2 / 24], abs=5e-5)


# Writing: sound and subtitles


def packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.pts is not None]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_sound_is_copied_in_sync(tmp_path: Path, with_sound: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    make(path, 25, copy_from=with_sound)
    before, after = packets(with_sound, "audio"), packets(path, "audio")
    assert [data for _, data in after] == [data for _, data in before]
    shift = [b - a for (a, _), (b, _) in zip(before, after, strict=True)]
    assert max(map(abs, shift)) < (1e-6 if suffix != ".mkv" else 1e-3)
    assert read(path)[0].pts_seconds == 0


def test_subtitles_tags_and_chapters_are_copied(tmp_path: Path, with_subtitles: Path) -> None:
    path = make(tmp_path / "a.mkv", 25, copy_from=with_subtitles)
    assert packets(path, "subtitle") == packets(with_subtitles, "subtitle")
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "The gradient"
        assert container.chapters()[0]["metadata"] == {"title": "One"}
        assert container.streams.subtitles[0].language == "eng"


def test_a_stream_that_does_not_fit_is_named_before_any_work(tmp_path: Path, with_subtitles: Path) -> None:
    with pytest.raises(
        InputError, match=r"Stream 2 of .* \(subtitle, subrip\) does not fit into .mp4; write to .mkv instead"
    ):
        open_writer(tmp_path / "a.mp4", info(), copy_from=with_subtitles)
    assert list(tmp_path.iterdir()) == []


def test_a_container_that_promises_and_then_refuses(tmp_path: Path) -> None:
    source = make_av(tmp_path / "flac.mkv", [array(picture())] * 3, sound="flac")
    with pytest.raises(InputError, match=r"\(audio, flac\) does not fit into .mov; write to .mp4 or .mkv instead"):
        open_writer(tmp_path / "a.mov", info(), copy_from=source)


def test_sound_comes_while_the_video_is_written(tmp_path: Path, with_sound: Path) -> None:
    """The packets are interleaved: none lies far from the video of its time."""
    path = make(tmp_path / "a.mkv", 25, copy_from=with_sound)
    times: dict[str, float] = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.dts is not None:
                times[packet.stream.type] = float(packet.dts * packet.time_base)
                if len(times) == 2:
                    assert abs(times["video"] - times["audio"]) < 0.2


# Writing: what cannot be written


def test_unknown_extension(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name in \.mp4, \.mov, \.mkv, .* got '\.avi'"):
        open_writer(tmp_path / "a.avi", info())


def test_existing_output_is_kept(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 2)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"exists; pass --overwrite"):
        open_writer(path, info())
    with pytest.raises(RuntimeError), open_writer(path, info(), overwrite=True) as writer:
        writer.write(Frame(picture(), 0, TICK))
        raise RuntimeError
    assert path.read_bytes() == before
    make(path, 3, overwrite=True)
    assert len(read(path)) == 3


def test_existing_folder_is_replaced_only_if_it_is_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, [picture()] * 3, info())
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        open_writer(out, info())
    write(out, [picture()], info(), overwrite=True)
    assert [p.name for p in out.iterdir()] == ["frame_000001.png"]
    (out / "thesis.doc").touch()
    with pytest.raises(InputError, match=r"holds more than numbered frames \(thesis.doc\)"):
        open_writer(out, info(), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_missing_parent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The folder .*none does not exist; make it first"):
        open_writer(tmp_path / "none/a.mp4", info())


def test_output_is_input(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 2)
    with pytest.raises(InputError, match="Input and output are both"):
        open_writer(path, info(), copy_from=path, overwrite=True)


def test_kind_of_the_existing_output(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "b").touch()
    with pytest.raises(InputError, match="is a folder, but its name is one for a video file"):
        open_writer(tmp_path / "a.mp4", info(), overwrite=True)
    with pytest.raises(InputError, match="is a file, but a name without extension is for a folder"):
        open_writer(tmp_path / "b", info(), overwrite=True)


@pytest.mark.parametrize("name", ["a.mp4", "out"])
def test_a_frame_of_another_size(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(InputError, match=r"Frame 2 .* has shape \(3, 16, 16\), but .* begun with \(3, 32, 48\); resize"),
        open_writer(tmp_path / name, info()) as writer,
    ):
        writer.write(Frame(picture(), 0, TICK))
        writer.write(Frame(torch.zeros(3, 16, 16), 512, TICK))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "out", "a.mkv"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_nothing_is_left_after_an_exception(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    with pytest.raises(error), open_writer(tmp_path / name, info()) as writer:
        writer.write(Frame(picture(), 0, TICK))
        assert [p.name for p in tmp_path.iterdir()] == [f"{name}.{os.getpid()}.part"]
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "out"])
def test_no_frames(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"No frame came, so .* was not written"):
        write(tmp_path / name, [], info())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "out"])
def test_a_closed_writer_takes_no_frames(tmp_path: Path, name: str) -> None:
    with open_writer(tmp_path / name, info()) as writer:
        writer.write(Frame(picture(), 0, TICK))
    writer.close()
    writer.discard()
    assert (tmp_path / name).exists()
    with pytest.raises(ValueError, match="is closed"):
        writer.write(Frame(picture(), 512, TICK))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"codec": "libx64"}, "no encoder 'libx64'; did you mean 'libx264'"),
        ({"codec": "aac"}, "aac encodes audio"),
        ({"codec": "prores_ks"}, r"\.mp4 cannot hold prores_ks; write to \.mov or \.mkv instead"),
        ({"crf": 60}, "crf must lie between 0"),
        ({"preset": "fastest"}, "no preset 'fastest'; did you mean 'faster'"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_writer(tmp_path / "a.mp4", info(), **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_encoder_that_refuses_the_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="libx265 refuses 4x4"):
        open_writer(tmp_path / "a.mp4", info(4, 4, bit_depth=10), codec="libx265")
    with pytest.raises(InputError, match="mpeg4 has no format for 5x5"):
        open_writer(tmp_path / "a.mp4", info(5, 5), codec="mpeg4")


@pytest.mark.parametrize("codec", ["ffv1", "prores_ks"])
def test_another_codec(tmp_path: Path, codec: str) -> None:
    write(tmp_path / "a.mkv", [picture()], info(bit_depth=10), codec=codec)
    with open_reader(tmp_path / "a.mkv") as reader:
        assert reader.info.bit_depth == 10
        assert (next(reader).data - picture()).abs().max() < 0.03


FULL_DISK = """
import resource, sys, torch
from fractions import Fraction
from unflicker.checks import InputError
from unflicker.video import Frame, VideoInfo, open_writer
tick = Fraction(1, 25)
for name, limit in [("a.mp4", 100_000), ("a.mkv", 100_000), ("a.mp4", 10), ("a.mkv", 10), ("images", 10)]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        with open_writer(f"{sys.argv[1]}/{name}", VideoInfo(128, 128, 1 / tick, tick), threads=1) as writer:
            for i in range(10):
                writer.write(Frame(torch.rand(3, 128, 128), i, tick))
    except InputError as error:
        sys.stdout.write(f"{error}\\n")
"""


def test_full_disk(tmp_path: Path) -> None:
    """A real refusal of the system, late or at the first byte: nothing is left, and the reason is told once."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.stderr == ""
    assert len(process.stdout.splitlines()) == 5
    for line in process.stdout.splitlines():
        assert line.endswith(" cannot be written: File too large. What was begun is removed.")
    assert list(tmp_path.iterdir()) == []


def test_no_space_left(tmp_path: Path) -> None:
    (tmp_path / f"a.mp4.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        make(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Frames are let go as they are read: none but the last is alive."""
    import weakref

    with open_reader(make(tmp_path / "a.mp4", 30)) as reader:
        seen: list[weakref.ref[torch.Tensor]] = []
        for frame in reader:
            seen.append(weakref.ref(frame.data))
            assert sum(ref() is not None for ref in seen) <= 2
