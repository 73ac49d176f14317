"""Clips to train on: videos read from any frame on, folders, decoded copies, and draws that depend on i alone."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.corruptions import parse
from unflicker.data import base as base_room
from unflicker.data.base import FilesVideo, FileVideo, FolderVideo, Recording, Video
from unflicker.data.cache import ENDING, Cached, cached
from unflicker.data.clips import ClipDataset, load, read_frames
from unflicker.data.folder import choose, find_videos, open_folder, read_clip
from unflicker.data.scaled import ScaledVideo, scaled
from unflicker.data.scenes import scenes
from unflicker.video import Frame, VideoInfo, open_reader, open_writer

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"
TICK = Fraction(1, 12800)


def pattern(t: int, width: int = 48, height: int = 32) -> Tensor:
    """A picture with a bar that moves, different in every frame: (3, H, W)."""
    ramp = torch.linspace(0.1, 0.8, width).roll(3 * t).expand(height, width)
    return torch.stack([ramp, ramp.flip(0, 1), torch.full_like(ramp, (t % 50) / 50)])


def make(path: Path, count: int, width: int = 48, height: int = 32, **kw: object) -> Path:
    about = VideoInfo(width, height, Fraction(25), TICK)
    with open_writer(path, about, threads=1, crf=4, **kw) as writer:  # type: ignore[arg-type]
        for t in range(count):
            writer.write(Frame(pattern(t, width, height), 512 * t, TICK))
    return path


def make_av(
    path: Path,
    count: int,
    codec: str,
    options: dict[str, str] | None = None,
    times: Sequence[int] = (),
    pix_fmt: str = "yuv420p",
    rotation: float = 0,
) -> Path:
    """A file of PyAV alone, whose group of pictures is 12 long with B frames where the codec has them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
        stream.codec_context.gop_size = 12
        if rotation:
            stream.set_display_rotation(rotation)
        stream.codec_context.thread_count = 1
        for t in range(count):
            pixels = pattern(t).mul(255).byte().permute(1, 2, 0).contiguous().numpy()
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = times[t] if times else t
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def make_folder(path: Path, count: int, width: int = 48, height: int = 32, depth: int = 8) -> Path:
    about = VideoInfo(width, height, Fraction(24), Fraction(1, 24), bit_depth=depth)
    with open_writer(path, about) as writer:
        for t in range(count):
            writer.write(Frame(pattern(t, width, height), t, Fraction(1, 24)))
    return path


def in_order(path: Path) -> Tensor:
    """What the reader gives from front to back, as bytes where the file has 8 bits."""
    with open_reader(path, threads=1) as reader:
        frames = torch.stack([frame.data for frame in reader])
        return frames.mul(255).round().byte() if reader.info.bit_depth == 8 else frames


class Numbers(Video):
    """A video of which every pixel tells its place: frame, row, column; its targets are made of them as well."""

    def __init__(self, frames: int = 20, height: int = 16, width: int = 24, name: str = "numbers") -> None:
        self.name, self.num_frames, self.height, self.width, self.frame_rate = name, frames, height, width, 0

    def read(self, numbers: Sequence[int]) -> Tensor:
        t, y, x = torch.meshgrid(
            torch.tensor(list(self._checked(numbers))),
            torch.arange(self.height),
            torch.arange(self.width),
            indexing="ij",
        )
        return torch.stack([t, y, x], 1).byte()


class Labels(Numbers):
    def read(self, numbers: Sequence[int]) -> Tensor:
        t, y, x = super().read(numbers).long().unbind(1)
        return t * 10000 + y * 100 + x


class Motion(Numbers):
    """Each pixel moves by its column along x, and by its row along y."""

    def read(self, numbers: Sequence[int]) -> Tensor:
        return super().read(numbers)[:, [2, 1]].float()


class Broken(Numbers):
    """From a frame on it cannot be read."""

    def __init__(self, good: int, frames: int = 20, name: str = "broken") -> None:
        super().__init__(frames, name=name)
        self.good = good

    def read(self, numbers: Sequence[int]) -> Tensor:
        if max(numbers) >= self.good:
            raise InputError(f"Frame {self.good} of {self.name} cannot be decoded.")
        return super().read(numbers)


def clips_of(*videos: Video, **settings: object) -> ClipDataset:
    settings = {"length": 4, "crop": 8, **settings}
    return ClipDataset([Recording(video) for video in videos], **settings)  # type: ignore[arg-type]


# Videos


LONG = {"crf": "10", "bf": "3", "g": "250", "preset": "medium"}
FILES = {
    "B frames, long GOP": lambda p: make_av(p / "a.mp4", 60, "libx264", LONG),
    "short GOP, open": lambda p: make_av(
        p / "a.mp4", 50, "libx264", {"x264-params": "keyint=12:bframes=3:open-gop=1:b-pyramid=normal"}
    ),
    "Matroska": lambda p: make_av(p / "a.mkv", 40, "libx264", {"bf": "3"}),
    "transport stream": lambda p: make_av(p / "a.ts", 40, "libx264", {"bf": "2"}),
    "upside down": lambda p: make_av(p / "a.mp4", 30, "libx264", rotation=180),
    "no order": lambda p: make_av(p / "a.mp4", 40, "libx264", {"bf": "0"}),
    "varying frame rate": lambda p: make_av(p / "a.mkv", 30, "libx264", times=[t * t for t in range(30)]),
    "every frame a key": lambda p: make_av(p / "a.mov", 20, "mjpeg", pix_fmt="yuvj420p"),
    "10 bits": lambda p: make_av(p / "a.mp4", 20, "libx264", pix_fmt="yuv420p10le"),
    "VP8, hidden frames": lambda p: make_av(
        p / "a.webm", 60, "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b:v": "300k"}
    ),
    "VP9": lambda p: make_av(p / "a.webm", 40, "libvpx-vp9", {"cpu-used": "8", "lag-in-frames": "16"}),
    "AV1": lambda p: make_av(p / "a.mp4", 24, "libsvtav1", {"preset": "12", "svtav1-params": "keyint=12"}),
    "AVI, B frames": lambda p: make_av(p / "a.avi", 40, "mpeg4", {"bf": "2"}),
    "AVI, H.264": lambda p: make_av(p / "a.avi", 30, "libx264", {"bf": "2"}),
    "the project's writer": lambda p: make(p / "a.mp4", 30),
}


@pytest.mark.parametrize("kind", FILES)
def test_any_frame_is_the_one_that_the_reader_gives(kind, tmp_path):
    try:
        path = FILES[kind](tmp_path)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this ffmpeg cannot make the file: {error}")
    expected = in_order(path)
    video = FileVideo(path)
    assert (video.num_frames, video.height, video.width) == (len(expected), 32, 48)
    generator = torch.Generator().manual_seed(0)
    for n in torch.randperm(len(expected), generator=generator).tolist():
        assert torch.equal(video.read([n])[0], expected[n]), f"frame {n}"
    assert torch.equal(video.read(range(len(expected))), expected)
    assert torch.equal(video.read([5, 2, 2, 9]), expected[[5, 2, 2, 9]])


def test_most_files_are_sought_in(tmp_path):
    for kind in ("B frames, long GOP", "Matroska", "transport stream", "varying frame rate", "VP9"):
        assert FileVideo(FILES[kind](tmp_path))._index is not None, kind
    assert FileVideo(FILES["AVI, B frames"](tmp_path))._index is None


def test_an_edit_list_hides_frames(tmp_path):
    """Cut without encoding anew: the packets before the cut are there, and decode to nothing."""
    source = make_av(tmp_path / "whole.mp4", 40, "libx264", {"bf": "2"})
    with av.open(str(source)) as old, av.open(str(tmp_path / "cut.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - 512 * 5, packet.dts - 512 * 5, stream
                new.mux(packet)
    expected = in_order(tmp_path / "cut.mp4")
    assert len(expected) < 40
    video = FileVideo(tmp_path / "cut.mp4")
    assert video._index is not None and video.num_frames == len(expected)
    assert torch.equal(torch.cat([video.read([n]) for n in reversed(range(len(expected)))]).flip(0), expected)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real clips are not here")
@pytest.mark.parametrize("name", ["tos_deck", "ax_face_static"])
def test_any_frame_of_a_real_clip(name):
    expected, video = in_order(REAL / f"{name}.mp4"), FileVideo(REAL / f"{name}.mp4")
    assert video.num_frames == len(expected)
    for n in (20, 3, 4, 5, 28, 0):
        assert torch.equal(video.read([n])[0], expected[n])


def test_reading_on_does_not_seek(tmp_path, monkeypatch):
    video = FileVideo(make_av(tmp_path / "a.mp4", 48, "libx264", {"sc_threshold": "0"}))  # keys at 0, 12, 24, 36
    sought = []
    seek = base_room._Decoder.seek
    monkeypatch.setattr(base_room._Decoder, "seek", lambda self, key: (sought.append(key), seek(self, key))[1])
    video.read(range(10))
    assert not sought
    video.read([11])
    assert not sought
    video.read([40])  # 36 is nearer than to go on
    video.read([41, 43])
    assert sought == [3]
    video.read([42])
    assert sought == [3, 3]


def test_few_files_stay_open(tmp_path):
    videos = [FileVideo(make(tmp_path / f"{i}.mp4", 2)) for i in range(base_room.MOST_OPEN + 3)]
    for _ in range(2):
        for video in videos:
            video.read([1])
    assert sum(video._decoder is not None for video in videos) == base_room.MOST_OPEN
    assert all(video._decoder is not None for video in videos[-base_room.MOST_OPEN :])


def test_a_video_can_be_sent_to_another_process(tmp_path):
    video = FileVideo(make(tmp_path / "a.mp4", 6))
    first = video.read([3])
    other = pickle.loads(pickle.dumps(video))
    assert torch.equal(other.read([3]), first) and other._decoder is not video._decoder
    folder = FolderVideo(make_folder(tmp_path / "folder", 4))
    first = folder.read([3])
    assert torch.equal(pickle.loads(pickle.dumps(folder)).read([3]), first)


def test_what_videos_say(tmp_path):
    video = FileVideo(make(tmp_path / "a.mp4", 6))
    with pytest.raises(InputError, match="a has no frame 6: it has 6, counted from 0; ask for one of these"):
        video.read([0, 6])
    with pytest.raises(InputError, match="a has no frame -1"):
        video.read([-1])
    with pytest.raises(InputError, match="one number or more of frames of a, got none"):
        video.read([])
    with pytest.raises(InputError, match=r"There is no file .*b\.mp4; check the name"):
        FileVideo(tmp_path / "b.mp4")
    with pytest.raises(InputError, match=r"There is no folder .*none; check the name"):
        FolderVideo(tmp_path / "none")
    with pytest.raises(InputError, match="The video x needs one file or more, got none"):
        FilesVideo([], in_order, "x")
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(InputError, match=r"text\.mp4 is no video that ffmpeg can read"):
        FileVideo(tmp_path / "text.mp4")


def damage(path: Path, start: float, end: float) -> Path:
    """Overwrite a part of a file."""
    data = bytearray(path.read_bytes())
    a, b = (int(len(data) * share) for share in (start, end))
    data[a:b] = b"\xff" * (b - a)
    path.write_bytes(data)
    return path


def test_a_damaged_frame_is_named_and_the_others_are_read(tmp_path):
    path = make_av(tmp_path / "a.mp4", 48, "libx264")
    expected = in_order(path)
    video = FileVideo(damage(path, 0.55, 0.6))
    outcomes = []
    for order in (range(48), reversed(range(48))):
        good = set()
        for n in order:
            try:
                assert torch.equal(video.read([n])[0], expected[n]) or n > 20
                good.add(n)
            except InputError as error:
                assert re.search(r"Frame \d+ of .*a\.mp4 cannot be decoded \(.*\); copy the file anew", str(error))
        outcomes.append(good)
    assert outcomes[0] == outcomes[1]  # what can be read does not depend on what was read before
    assert set(range(12)) <= outcomes[0] and len(outcomes[0]) < 48


def test_a_file_that_is_cut_off_is_shorter(tmp_path):
    path = make_av(tmp_path / "a.mkv", 48, "libx264")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    video = FileVideo(path)
    assert 12 < video.num_frames < 48
    expected = in_order(path)
    assert torch.equal(video.read([12, video.num_frames - 1]), expected[[12, video.num_frames - 1]])


@pytest.mark.parametrize("depth", [8, 16])
def test_a_folder_of_images(tmp_path, depth):
    folder = make_folder(tmp_path / "walk", 12, depth=depth)
    video, expected = FolderVideo(folder), in_order(folder)
    assert (video.name, video.num_frames, video.height, video.width, video.frame_rate) == ("walk", 12, 32, 48, 0)
    assert video.read([0]).dtype == (torch.uint8 if depth == 8 else torch.float32)
    assert torch.equal(video.read([11, 2, 10]), expected[[11, 2, 10]])


def test_a_folder_of_exr_is_not_clipped(tmp_path):
    about = VideoInfo(8, 4, Fraction(24), Fraction(1, 24), bit_depth=32)
    with open_writer(tmp_path / "exr", about) as writer:
        writer.write(Frame(torch.full((3, 4, 8), 2.5), 0, Fraction(1, 24)))
    assert torch.equal(FolderVideo(tmp_path / "exr").read([0]), torch.full((1, 3, 4, 8), 2.5))


def test_images_that_do_not_fit_or_cannot_be_read(tmp_path):
    folder = make_folder(tmp_path / "walk", 3)
    images = sorted(folder.iterdir())
    make_folder(tmp_path / "wide", 1, width=64)
    images[1].write_bytes(next((tmp_path / "wide").iterdir()).read_bytes())
    images[2].write_bytes(b"damaged")
    video = FolderVideo(folder)
    with pytest.raises(InputError, match=r"holds \(3, 32, 64\) torch.uint8, but the first frame of walk \(3, 32, 48\)"):
        video.read([1])
    with pytest.raises(InputError, match=rf"{images[2].name} cannot be read \(.*\); is it damaged\?"):
        video.read([2])


# Folders of videos


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Two files, a folder of images, a broken file, and things that are no videos."""
    root = tmp_path / "set"
    root.mkdir()
    make(root / "b.mp4", 6)
    make(root / "a.mkv", 9)
    make_folder(root / "walk", 5)
    (root / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom")
    (root / "notes.txt").write_text("no video")
    (root / "empty").mkdir()
    (root / ".hidden.mp4").write_bytes(b"")
    (root / "cover.png").write_bytes(next((root / "walk").iterdir()).read_bytes())
    return root


def test_a_folder_of_any_mix(mixed):
    recordings, damaged = open_folder(mixed)
    assert [(each.name, each.frames.num_frames) for each in recordings] == [("a", 9), ("b", 6), ("walk", 5)]
    assert len(damaged) == 1 and "broken.mp4 is cut off or unreadable" in damaged[0]
    assert [each.name for each in open_folder(mixed, only=["b", "w*"])[0]] == ["b", "walk"]
    assert [each.name for each in open_folder(mixed, without=["b*"])[0]] == ["a", "walk"]
    recordings, damaged = open_folder(mixed / "walk")
    assert [each.name for each in recordings] == ["walk"] and not damaged


def test_names_stay_different(mixed):
    make(mixed / "a.mp4", 3)
    assert [each.name for each in open_folder(mixed, only=["a*"])[0]] == ["a.mkv", "a.mp4"]


def test_what_folders_say(mixed, tmp_path):
    with pytest.raises(InputError, match="is not a folder; give one with video files or folders of images"):
        open_folder(mixed / "missing")
    with pytest.raises(InputError, match=r"has neither video files \(.*\.mp4.*\) nor folders of images"):
        open_folder(mixed / "empty")
    with pytest.raises(InputError, match=r"There is no video 'wolk' in .*; did you mean 'walk'"):
        open_folder(mixed, only=["wolk"])
    with pytest.raises(InputError, match=r"There is no video 'brokn' in .*; did you mean 'broken'"):
        open_folder(mixed, without=["brokn"])
    with pytest.raises(InputError, match=r"All 4 videos in .* are left out"):
        open_folder(mixed, without=["*"])
    with pytest.raises(InputError, match=r"None of the 1 videos in .* can be opened; the first of them: .*broken\.mp4"):
        open_folder(mixed, only=["broken"])


def test_ground_truth_lies_in_another_folder(mixed, tmp_path):
    truth = tmp_path / "truth"
    truth.mkdir()
    make_folder(truth / "a", 9)
    make(truth / "b.mkv", 6)
    recordings, _ = open_folder(mixed, only=["a", "b"], targets=truth)
    assert [each.targets["truth"].num_frames for each in recordings] == [9, 6]
    with pytest.raises(InputError, match=r"There is no ground truth for .*walk in .*truth; there is 'a', 'b'"):
        open_folder(mixed, targets=truth)
    make(truth / "walk.mp4", 4)
    with pytest.raises(InputError, match=r"walk\.mp4 has 4 frames of 32x48, but .* of .*walk, which has 5 frames"):
        open_folder(mixed, targets=truth)


def test_what_is_left_of_the_old_ways(mixed):
    assert [path.name for path in find_videos(mixed)] == ["a.mkv", "b.mp4", "broken.mp4"]
    with pytest.raises(InputError, match="is not a folder"):
        find_videos(mixed / "missing")
    with pytest.raises(InputError, match="no video 'c' in the folder; there is 'a', 'b'"):
        choose(find_videos(mixed)[:2], ["c"])
    assert read_clip(mixed / "a.mkv", size=(16, 24), frames=3, every=2).shape == (3, 3, 16, 24)
    assert torch.equal(read_clip(mixed / "a.mkv"), FileVideo(mixed / "a.mkv").read(range(9)))


# Decoded copies


def test_a_decoded_copy_is_the_video(tmp_path):
    video = FileVideo(make(tmp_path / "a.mp4", 20))
    kept = Cached(video, tmp_path / "cache", limit_gib=1)
    assert torch.equal(kept.read([7, 3]), video.read([7, 3]))
    assert [path.name.endswith(ENDING) for path in (tmp_path / "cache").iterdir()] == [True]
    video.read = None  # type: ignore[assignment]  # from here on, the copy alone
    assert kept.read([19]).shape == (1, 3, 32, 48)
    assert (kept.name, kept.num_frames, kept.height, kept.width, kept.frame_rate) == ("a", 20, 32, 48, 25.0)
    deep = FolderVideo(make_folder(tmp_path / "deep", 3, depth=16))
    assert torch.equal(Cached(deep, tmp_path / "cache", limit_gib=1).read([2]), deep.read([2]))


def test_another_file_of_the_same_name_is_another_copy(tmp_path):
    first = Cached(FileVideo(make(tmp_path / "a.mp4", 5)), tmp_path / "cache", limit_gib=1)
    first.read([0])
    make(tmp_path / "a.mp4", 5, overwrite=True)
    os.utime(tmp_path / "a.mp4", (1, 1))
    assert Cached(FileVideo(tmp_path / "a.mp4"), tmp_path / "cache", limit_gib=1)._copy != first._copy


def test_the_limit_holds(tmp_path):
    size = 10 * 3 * 32 * 48
    limit = 2.5 * size / 2**30
    videos = [FileVideo(make(tmp_path / f"{i}.mp4", 10)) for i in range(3)]
    kept = [Cached(video, tmp_path / "cache", limit_gib=limit) for video in videos]
    for i, age in ((0, 30), (1, 50)):
        kept[i].read([0])
        before = kept[i]._copy.stat().st_mtime - age
        os.utime(kept[i]._copy, (before, before))
    kept[1].read([0])  # now 0 was used longest ago
    kept[2].read([0])
    assert [each._copy.exists() for each in kept] == [False, True, True]
    assert torch.equal(kept[0].read([4]), videos[0].read([4]))
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= limit * 2**30
    large = Cached(FileVideo(make(tmp_path / "large.mp4", 30)), tmp_path / "cache", limit_gib=limit)
    assert large.read([29]).shape == (1, 3, 32, 48) and not large._copy.exists()


def test_a_copy_is_never_half_written(tmp_path, monkeypatch):
    video = FileVideo(damage(make_av(tmp_path / "a.mp4", 48, "libx264"), 0.55, 0.6))
    kept = Cached(video, tmp_path / "cache", limit_gib=1)
    assert torch.equal(kept.read([0]), video.read([0]))  # what is whole is read directly
    with pytest.raises(InputError, match="cannot be decoded"):
        kept.read(range(48))
    assert not list((tmp_path / "cache").iterdir())
    whole = Cached(FileVideo(make(tmp_path / "b.mp4", 5)), tmp_path / "cache", limit_gib=1)
    part = whole._copy.with_suffix(".part")
    part.write_bytes(b"half")
    assert whole.read([0]).shape == (1, 3, 32, 48) and part.exists() and not whole._copy.exists()  # another is at it
    os.utime(part, (1, 1))
    whole.read([0])
    assert whole._copy.exists() and not part.exists()  # that one is dead


def test_what_copies_say(tmp_path):
    with pytest.raises(InputError, match="numbers does not say what its frames come from"):
        Cached(Numbers(), tmp_path, limit_gib=1)
    video = FileVideo(make(tmp_path / "a.mp4", 3))
    with pytest.raises(InputError, match="limit_gib must be a number of GiB above 0, got 0"):
        Cached(video, tmp_path, limit_gib=0)
    with pytest.raises(InputError, match=r"The folder .*a\.mp4 for decoded frames cannot be made"):
        Cached(video, tmp_path / "a.mp4", limit_gib=1)
    made, read = cached([Recording(Numbers()), Recording(video, {"truth": video})], tmp_path / "cache", limit_gib=1)
    assert isinstance(made.frames, Numbers)
    assert isinstance(read.frames, Cached) and isinstance(read.targets["truth"], Cached)


def test_a_full_disk_is_no_end(tmp_path, monkeypatch):
    def full(path: Path, limit: int) -> None:
        raise OSError(28, "No space left on device")

    kept = Cached(FileVideo(make(tmp_path / "a.mp4", 3)), tmp_path / "cache", limit_gib=1)
    monkeypatch.setattr("unflicker.data.cache._make_room", full)
    with pytest.warns(UserWarning, match="a cannot be kept in .*No space left.*read directly"):
        kept.read([0])
    assert kept.read([1]).shape == (1, 3, 32, 48) and not list((tmp_path / "cache").iterdir())


# Draws


def settled(dataset: ClipDataset, index: int) -> tuple[list[int], Tensor, Tensor]:
    """Frames, rows and columns of the pixels of a clip of `Numbers`."""
    t, y, x = dataset[index]["input"].mul(255).round().long().unbind(1)
    return t[:, 0, 0].tolist(), y, x


def test_a_clip_is_a_piece_of_one_video_in_one_crop():
    dataset = clips_of(Numbers(), reverse=False, flip=False, every=(1, 3))
    seen = set()
    for i in range(60):
        times, y, x = settled(dataset, i)
        step = times[1] - times[0]
        assert times == list(range(times[0], times[0] + 4 * step, step)) and step in (1, 3)
        rows, columns = torch.arange(8) + y[0, 0, 0], torch.arange(8) + x[0, 0, 0]
        assert torch.equal(y, rows[None, :, None].expand(4, 8, 8))
        assert torch.equal(x, columns[None, None, :].expand(4, 8, 8))
        seen.add((step, times[0], int(rows[0]), int(columns[0])))
    assert len(seen) > 50 and {step for step, *_ in seen} == {1, 3}


def test_clips_are_reversed_flipped_and_turned():
    dataset = clips_of(Numbers())
    kinds = set()
    for i in range(80):
        times, y, x = settled(dataset, i)
        assert len(set(times)) == 4 and len(y.unique()) == len(x.unique()) == 8
        turned = bool(y[0, 0, 0] == y[0, 1, 0])  # rows have become columns
        kinds.add((times[0] > times[1], turned, bool(y[0, 0, 0] > y[0, -1, -1]), bool(x[0, 0, 0] > x[0, -1, -1])))
    assert len(kinds) == 16
    wide = clips_of(Numbers(), crop=(8, 10))
    assert all(settled(wide, i)[1].shape == (4, 8, 10) for i in range(9))
    assert all((settled(wide, i)[1][0, 0, 0] == settled(wide, i)[1][0, 0, 1]) for i in range(9))  # never turned


def test_whole_frames():
    dataset = clips_of(Numbers(), crop=None, reverse=False, flip=False)
    _, y, x = settled(dataset, 0)
    assert torch.equal(y[0, :, 0], torch.arange(16)) and torch.equal(x[0, 0], torch.arange(24))
    with pytest.raises(InputError, match=r"several sizes \(16x24, 20x24\) do not fit in one batch; give a crop"):
        load(clips_of(Numbers(), Numbers(height=20), crop=None), batch=2, steps=1)
    one = next(load(clips_of(Numbers(), Numbers(height=20), crop=None), batch=1, steps=1))
    assert one["input"].shape[-1] == 24


def test_scales_are_averages_of_the_whole_frame():
    video = Numbers(height=30, width=45)
    dataset = clips_of(video, scales=(0.4,), reverse=False, flip=False)
    small = F.interpolate(video.read(range(20)).float() / 255, size=(12, 18), mode="area")
    for i in range(5):
        clip = dataset[i]["input"]
        found = [
            (t, y, x)
            for t in range(17)
            for y in range(5)
            for x in range(11)
            if torch.allclose(small[t : t + 4, :, y : y + 8, x : x + 8], clip, atol=1e-6)
        ]
        assert len(found) == 1


def test_every_start_is_equally_likely():
    dataset = clips_of(Numbers(7, name="short"), Numbers(19, name="long"), reverse=False, flip=False)
    counts = np.zeros(20)
    for i in range(2000):
        counts[settled(dataset, i)[0][0]] += 1
    # Starts 0 to 3 are in both videos, 4 to 15 in the longer one.
    assert counts.sum() == counts[:16].sum() and np.all(np.abs(counts[:4] - 200) < 60)
    assert np.all(np.abs(counts[4:16] - 100) < 45)


def test_a_clip_depends_on_the_seed_and_its_number_alone():
    settings = {"corruptions": ["gaussian_noise:2", "jpeg:1"], "scales": (1.0, 0.6), "every": (1, 2)}
    dataset, again, other = (clips_of(Numbers(), seed=seed, **settings) for seed in (3, 3, 4))
    for i in (7, 0, 7, 2**40):
        assert torch.equal(dataset[i]["input"], again[i]["input"])
        assert not torch.equal(dataset[i]["input"], other[i]["input"])
    state = torch.get_rng_state()
    dataset[5]
    next(load(dataset, batch=1, steps=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_setting_changes_nothing_else():
    plain, noisy = clips_of(Numbers()), clips_of(Numbers(), corruptions=["gaussian_noise"])
    assert all(torch.equal(plain[i]["target"], noisy[i]["target"]) for i in range(5))


def test_corruptions_are_applied_in_order_each_clip_its_own():
    dataset = clips_of(Numbers(), corruptions=["rain:3", "gaussian_noise:ivm-moderate"])
    clips = [dataset[i] for i in range(3)]
    for clip in clips:
        assert clip["input"].dtype == torch.float32 and clip["input"].min() >= 0 and clip["input"].max() <= 1
        assert not torch.equal(clip["input"], clip["target"])
    noise = [clip["input"] - clip["target"] for clip in clips]
    assert not torch.equal(noise[0], noise[1])
    rng = np.random.default_rng((0, 1, 0))  # the draws of clip 1, one by one
    rng.integers(17), rng.integers(9), rng.integers(17), rng.integers(2, size=4)
    first, second = rng.integers(2**31, size=2).tolist()
    expected = parse("gaussian_noise:ivm-moderate", seed=second)(parse("rain:3", seed=first)(clips[1]["target"]))
    assert torch.equal(clips[1]["input"], expected)


def test_targets_are_cut_like_the_frames():
    recording = Recording(Numbers(), {"truth": Numbers(), "labels": Labels()})
    for target, scales in (("clean", (1.0, 0.6)), ("base", (1.0, 0.6)), ("truth", (1.0, 0.6)), ("labels", (1.0,))):
        dataset = ClipDataset([recording], length=4, crop=8, scales=scales, target=target)
        for i in range(20):
            clip = dataset[i]
            if target == "labels":
                t, y, x = clip["input"].mul(255).round().long().unbind(1)
                assert torch.equal(clip["target"], t * 10000 + y * 100 + x)
            else:
                assert torch.equal(clip["target"], clip["input"])
    small = ClipDataset([recording], length=4, crop=8, scales=(0.5,), target="labels", flip=False)[0]
    labels, (_, y, x) = small["target"], small["input"].mul(255).unbind(1)
    assert labels.dtype == torch.int64  # one of the pixels that the mean is of
    assert (labels % 10000 // 100 - y).abs().max() <= 0.51 and (labels % 100 - x).abs().max() <= 0.51


def test_frames_and_their_target_for_evaluation():
    recording = Recording(Numbers(), {"truth": Numbers(name="truth"), "labels": Labels(), "flow": Motion(19)})
    clean, target = read_frames(recording, [3, 5])
    assert torch.equal(clean * 255, Numbers().read([3, 5]).float()) and target is clean
    clean, target = read_frames(recording, [3], target="truth", size=(8, 12))
    assert torch.equal(clean, target) and clean.shape == (1, 3, 8, 12)
    assert read_frames(recording, [3], target="labels", size=(8, 12))[1].tolist()[0][1][:2] == [30301, 30303]
    assert torch.equal(read_frames(recording, [3], target="flow")[1], Motion().read([3]))
    with pytest.raises(InputError, match="The recording numbers has no target 'depth'; there is 'clean', 'base', 'tr"):
        read_frames(recording, [3], target="depth")
    with pytest.raises(InputError, match="'flow' is in pixels, which scaling changes"):
        read_frames(recording, [3], target="flow", size=(8, 12))


def test_motion_is_turned_with_its_clip():
    """After any flip, motion still points away from the pixel that had column 0 and row 0."""
    recording = Recording(Numbers(), {"flow": Motion(19)})
    dataset = ClipDataset([recording], length=4, crop=8, target="flow", reverse=False)
    turns = set()
    for i in range(40):
        clip = dataset[i]
        _, y, x = clip["input"].mul(255).round().unbind(1)
        flow = clip["target"]
        rows_up, columns_up = y.diff(dim=-2)[0, 0, 0], x.diff(dim=-1)[0, 0, 0]
        turned = rows_up == 0
        across = y.diff(dim=-1)[0, 0, 0] * y if turned else columns_up * x
        down = x.diff(dim=-2)[0, 0, 0] * x if turned else rows_up * y
        assert torch.equal(flow[:, 0], across) and torch.equal(flow[:, 1], down)
        turns.add((bool(turned), float(across.sign().sum()) > 0, float(down.sign().sum()) > 0))
    assert len(turns) == 8


def test_videos_too_short_or_too_small_are_skipped_and_named():
    dataset = clips_of(Numbers(), Numbers(3, name="brief"), Numbers(height=6, name="thin"))
    assert dataset.skipped == [
        "brief is too short: it has 3 frames, a clip takes 4.",
        "thin is too small: it has 6x24 pixels at its largest scale, a crop (8, 8).",
    ]
    with pytest.raises(InputError, match=r"With every=7 no recording is long enough: .* longest .* has 20 frames"):
        clips_of(Numbers(), every=7)
    with pytest.raises(InputError, match=r"At scale 0.25 no recording is large enough: .*8x8 pixels.*largest 16x24"):
        clips_of(Numbers(), scales=(1, 0.25))
    with pytest.raises(InputError, match="No recording is both long and large enough: clips are 8 frames of 12x12"):
        clips_of(Numbers(4), Numbers(height=8), length=8, crop=12)


def test_what_the_dataset_refuses():
    for settings, words in (
        ({"length": 0}, "length must be 1 frame or more, got 0"),
        ({"crop": 0}, r"crop must be a size in pixels, .* got \(0, 0\)"),
        ({"scales": (1.5,)}, r"scales must be one or more numbers above 0, up to 1, got \(1.5,\)"),
        ({"scales": ()}, "scales must be one or more"),
        ({"every": 0}, r"every must be 1 or more, to keep one frame in so many, got \(0,\)"),
        ({"seed": -1}, "seed must be an integer, 0 or more, got -1"),
        ({"corruptions": ["snw"]}, "There is no corruption 'snw'; did you mean 'snow'"),
        ({"target": "truht"}, "The recording numbers has no target 'truht'"),
        ({"target": "flow", "scales": (0.5,)}, "'flow' is in pixels, which scaling changes; keep the frames' own size"),
        ({"target": "disparity", "scales": (0.5,)}, "'disparity' is in pixels"),
        ({"target": "flow"}, "leads from each frame to the next; give every=1 and reverse=False"),
    ):
        with pytest.raises(InputError, match=words):
            clips_of(Numbers(), **settings)
    with pytest.raises(InputError, match="needs one recording or more"):
        clips_of()
    short = Recording(Numbers(), {"truth": Numbers(19)})
    with pytest.raises(InputError, match="'truth' of numbers has 19 frames of 16x24, but the frames are 20 frames"):
        ClipDataset([short], length=4, crop=8, target="truth")
    with pytest.raises(IndexError, match="numbered from 0"):
        clips_of(Numbers())[-1]


def test_damage_is_told_of_once_and_another_clip_is_drawn():
    dataset = clips_of(Broken(10), Numbers(name="good"))
    with pytest.warns(UserWarning, match="where broken is damaged: Frame 10 of broken cannot be decoded") as told:
        clips = [dataset[i]["input"] for i in range(30)]
    assert len(told) == 1 and list(dataset.damaged) == ["broken"]
    # Nothing depends on what was found before.
    fresh = clips_of(Broken(10), Numbers(name="good"))
    with pytest.warns(UserWarning):
        again = [fresh[i]["input"] for i in reversed(range(30))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(clips, again, strict=True))
    with pytest.raises(InputError, match="None of the 2 recordings can be read; the first of them: Frame 0"):
        clips_of(Broken(0), Broken(0, name="worse"))[0]


# Batches


def test_batches_are_the_same_whatever_the_workers_and_the_start(tmp_path):
    make(tmp_path / "a.mp4", 20)
    make_av(tmp_path / "b.mp4", 30, "libx264")
    make_folder(tmp_path / "c", 10)
    dataset = ClipDataset(open_folder(tmp_path)[0], length=4, crop=16, scales=(1, 0.6), corruptions=["gaussian_noise"])
    expected = [
        {key: torch.stack([dataset[b * 4 + i][key] for i in range(4)]) for key in ("input", "target")} for b in range(5)
    ]
    for start, workers in ((0, 0), (0, 1), (0, 2), (3, 0), (3, 2)):
        batches = list(load(dataset, batch=4, steps=5, start=start, workers=workers))
        assert len(batches) == 5 - start
        for batch, wanted in zip(batches, expected[start:], strict=True):
            assert all(torch.equal(batch[key], wanted[key]) for key in ("input", "target"))
    shares = [list(load(dataset, batch=4, steps=5, shard=(rank, 2))) for rank in range(2)]
    for b, wanted in enumerate(expected):
        assert torch.equal(torch.cat([share[b]["input"] for share in shares]), wanted["input"])


def test_a_dataset_can_be_sent_to_another_process(tmp_path):
    make(tmp_path / "a.mp4", 12)
    make_folder(tmp_path / "b", 10)
    recordings = cached(open_folder(tmp_path)[0], tmp_path / "cache", limit_gib=1)
    dataset = ClipDataset(recordings, length=4, crop=16, corruptions=["jpeg"])
    other = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(dataset[i]["input"], other[i]["input"]) for i in range(4))


def test_a_decoded_copy_changes_no_batch(tmp_path):
    make(tmp_path / "a.mp4", 20)
    make_folder(tmp_path / "c", 10)
    recordings = open_folder(tmp_path)[0]
    plain, kept = (
        ClipDataset(each, length=4, crop=16)
        for each in (recordings, cached(recordings, tmp_path / "cache", limit_gib=1))
    )
    pairs = zip(load(plain, batch=2, steps=4), load(kept, batch=2, steps=4, workers=2), strict=True)
    assert all(torch.equal(a["input"], b["input"]) for a, b in pairs)


def test_workers_tell_of_damage_once_and_of_errors_in_one_sentence():
    dataset = clips_of(Broken(6), Numbers(name="good"))
    with pytest.warns(UserWarning, match="broken is damaged") as told:
        list(load(dataset, batch=4, steps=6, workers=2))
    assert len(told) == 1 and list(dataset.damaged) == ["broken"]
    with pytest.raises(InputError) as error:
        list(load(clips_of(Broken(0)), batch=2, steps=2, workers=1))
    assert str(error.value).startswith("None of the 1 recordings can be read") and "\n" not in str(error.value)


def test_workers_end_with_the_iterator():
    import multiprocessing

    batches = load(clips_of(Numbers()), batch=2, steps=1000, workers=2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_what_load_refuses():
    dataset = clips_of(Numbers())
    with pytest.raises(InputError, match=r"a batch of 1 or more, .*got batch=0, steps=1, start=0, workers=0"):
        load(dataset, batch=0, steps=1)
    for shard in ((2, 2), (0, 3), (-1, 2)):
        with pytest.raises(InputError, match=r"shard is \(rank, of\) .* divisor of the batch of 4, got"):
            load(dataset, batch=4, steps=1, shard=shard)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not list(load(dataset, batch=4, steps=3, start=3))


# made, and scaled


def test_made_scenes_are_kept_as_files_are(tmp_path):
    (scene,) = scenes(1, num_frames=3, height=24, width=32)
    (kept,) = cached([scene], tmp_path, limit_gib=1)
    for one, other in ((scene.frames, kept.frames), *((scene.targets[k], kept.targets[k]) for k in scene.targets)):
        torch.testing.assert_close(one.read([0, 2]), other.read([0, 2]), rtol=0, atol=0, equal_nan=True)
    assert len(list(tmp_path.iterdir())) == 4
    (other,) = cached(scenes(1, seed=1, num_frames=3, height=24, width=32), tmp_path, limit_gib=1)
    assert not torch.equal(other.frames.read([0]), kept.frames.read([0]))


def test_videos_are_averaged_down_to_one_height(tmp_path):
    video = FileVideo(make(tmp_path / "a.mp4", 3, 96, 64))
    small = ScaledVideo(video, 32)
    assert (small.height, small.width, small.read([1]).dtype) == (32, 48, torch.uint8)
    exact = video.read([1]).float().unflatten(2, (32, 2)).unflatten(4, (48, 2)).mean((3, 5))
    assert (small.read([1]).float() - exact).abs().max() <= 0.5
    assert torch.equal(ScaledVideo(video, 100).read([2]), video.read([2]))  # nothing is made larger
    both = scaled(Recording(video, {"truth": video}), 32)
    assert torch.equal(both.targets["truth"].read([0]), both.frames.read([0]))
    with pytest.raises(InputError, match=r"target 'depth' of a cannot be scaled: leave data\.short_side out"):
        scaled(Recording(video, {"depth": video}), 32)
    with pytest.raises(InputError, match="shorter side must be 1 pixel or more, got 0"):
        ScaledVideo(video, 0)
