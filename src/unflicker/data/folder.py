"""A folder of videos, or of folders of images: what is in it, and what of it is wanted."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.data.base import FileVideo, FolderVideo, Recording, Video, extent
from unflicker.video.reader import IMAGES, open_reader

EXTENSIONS = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".ogv", ".3gp", ".mxf", ".y4m"),
}


def find_videos(folder: str | Path) -> list[Path]:
    """Return the video files of a folder, sorted by name.

    Raises:
        InputError: there is no such folder, or no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with video files.")
    paths = sorted(path for path in folder.iterdir() if _is_video(path))
    if not paths:
        raise InputError(f"{folder} has no video files ({', '.join(sorted(EXTENSIONS))}).")
    return paths


def choose(paths: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Return the videos with these names (without extension), in that order.

    >>> choose([Path("a.mp4"), Path("b.mkv")], ["b"])
    [PosixPath('b.mkv')]
    """
    known = {path.stem: path for path in paths}
    for name in names:
        if name not in known:
            raise InputError(f"There is no video {name!r} in the folder; {nearest(name, known)}")
    return [known[name] for name in names]


def read_clip(path: Path, *, size: tuple[int, int] | None = None, frames: int | None = None, every: int = 1) -> Tensor:
    """Decode a video from its start into memory: (T, 3, H, W) uint8.

    Args:
        path: the video.
        size: (height, width) to average the frames down to; None keeps them.
        frames: stop after that many.
        every: keep one frame in so many.
    """
    kept: list[Tensor] = []
    with open_reader(path) as reader:
        for i, frame in enumerate(reader):
            if frames is not None and len(kept) == frames:
                break
            if i % every == 0:
                data = frame.data
                if size is not None and size != tuple(data.shape[-2:]):
                    data = F.interpolate(data[None], size=size, mode="area")[0]
                kept.append(data.clamp(0, 1).mul(255).round().byte())
    return torch.stack(kept)


def open_folder(
    folder: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    targets: str | os.PathLike[str] | None = None,
) -> tuple[list[Recording], list[str]]:
    """Open every video file and every subfolder of images in a folder; one that directly holds images is one video.

    Images that lie beside video files are left alone.

    Args:
        folder: with videos, in any mix.
        only: names of those to take, without extension; `*` and `?` stand for anything, as in file names.
        without: names of those to leave out.
        targets: a folder with videos of the same names, which hold the ground truth; it is the target "truth".

    Returns:
        The recordings, sorted by name, and one sentence for each that cannot be opened and is left out.

    Raises:
        InputError: nothing is there, or nothing of it can be opened; a name is not known; a video has no ground truth,
            or one of another length or size.

    Example::

        recordings, damaged = open_folder("clips/", without=["test_*"])
    """
    found = _found(Path(folder))
    chosen = {name: found[name] for name in select(found, only, without, str(folder))}
    truths = {} if targets is None else _found(Path(targets))
    recordings, damaged = [], []
    for name, path in chosen.items():
        try:
            frames = open_video(path, name)
        except InputError as error:
            damaged.append(str(error))
            continue
        if targets is None:
            recordings.append(Recording(frames))
            continue
        if name not in truths:
            raise InputError(f"There is no ground truth for {path} in {targets}; {nearest(name, truths)}")
        truth = open_video(truths[name], name)
        if (truth.num_frames, truth.height, truth.width) != (frames.num_frames, frames.height, frames.width):
            raise InputError(
                f"{truths[name]} has {extent(truth)}, but is the ground truth of {path}, which has {extent(frames)}; "
                "they must be alike."
            )
        recordings.append(Recording(frames, {"truth": truth}))
    if not recordings:
        raise InputError(
            f"None of the {len(damaged)} videos in {folder} can be opened; the first of them: {damaged[0]}"
        )
    return recordings, damaged


def _found(folder: Path) -> dict[str, Path]:
    """Name -> video, sorted; where files share a name they keep their extensions."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with video files or folders of images.")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    videos = [path for path in entries if _is_video(path)]
    if not videos and _holds_images(folder):
        return {folder.resolve().name: folder}
    videos = sorted([*videos, *(path for path in entries if path.is_dir() and _holds_images(path))])
    if not videos:
        raise InputError(
            f"{folder} has neither video files ({', '.join(sorted(EXTENSIONS))}) nor folders of images; are they one "
            "folder further down?"
        )
    names = [path.name if path.is_dir() else path.stem for path in videos]
    return {name if names.count(name) == 1 else path.name: path for name, path in zip(names, videos, strict=True)}


def select(names: Collection[str], only: Sequence[str], without: Sequence[str], where: str) -> list[str]:
    """Return the names that match one of `only` (all, if there is none) and none of `without`, `*` and `?` allowed.

    Raises:
        InputError: a pattern matches nothing, or nothing is left; `where` says in what.

    >>> select(["cat_a", "cat_b", "dog"], ["cat_*"], ["*_b"], "the folder")
    ['cat_a']
    """
    for pattern in (*only, *without):
        if not fnmatch.filter(names, pattern):
            raise InputError(f"There is no video {pattern!r} in {where}; {nearest(pattern, names)}")
    chosen = [
        name
        for name in names
        if (not only or any(fnmatch.fnmatchcase(name, each) for each in only))
        and not any(fnmatch.fnmatchcase(name, each) for each in without)
    ]
    if not chosen:
        raise InputError(f"All {len(names)} videos in {where} are left out by `without`; leave out fewer.")
    return chosen


def open_video(path: str | Path, name: str = "") -> Video:
    """Open a video file or a folder of images, to be read from any frame on.

    Raises:
        InputError: there is nothing that can be read.
    """
    path = Path(path)
    try:
        video = FolderVideo(path) if path.is_dir() else FileVideo(path)
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror or error}.") from error
    video.name = name or video.name
    return video


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file() and not path.name.startswith(".")


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(Path(e.name).suffix.lower() in IMAGES and not e.name.startswith(".") for e in entries)
