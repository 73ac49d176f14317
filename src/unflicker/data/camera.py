"""Pairs to train on out of pictures: HDR ones through a virtual camera, ordinary ones as grey and colour.

`VirtualCamera` is that of HDRCNN, and `to_lab` what a colorization network sees and gives, both as Single-frame
Regularization trains on them. The readers `celeba`, `places`, `youtube_faces` and `hdm_hdr` take the folder a data set
was unpacked into. What is not where it is published to be is reported with its place.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from unflicker.checks import InputError, nearest
from unflicker.corruptions.compression import JPEG
from unflicker.data.base import FilesVideo, Published, Recording, Video
from unflicker.video.reader import read_exr

HDR_FILES = (".exr", ".hdr", ".pfm")
DARKEST, LIGHTEST = 1e-5, 1e5  # what a picture is held between before it is exposed
LOOKED_AT = 2**16  # values of a picture by which it is judged
PLATEAU = 0.05  # with as many values at the highest, no exposure that clips 5 % hides anything


def read_hdr(path: str | Path) -> Tensor:
    """Read a picture of linear light, OpenEXR, Radiance or PFM: (3, H, W) float32 RGB, 0 or more, of any scale.

    Values below 0, as wide gamuts leave them, become 0.

    Raises:
        InputError: there is no such file, it cannot be read, it has values that are not finite, or it is no HDR
            picture: it is of another format, has no more different values than 8 bits have, or 5 % of them and more
            are at the highest, so that nothing lies beyond a clip level. The range that was found is told.

    Example::

        read_hdr("church.exr").max()  # tensor(312.5)
    """
    path = Path(path)
    picture = _read_linear(path)
    _check_range(path, picture)
    return picture


class Shot(NamedTuple):
    """What a virtual camera gives.

    Attributes:
        x: the picture, display-referred, (3, size, size) in [0, 1], 8 bits, coded as JPEG.
        y: the light it saw, (3, size, size), linear, 1 at the clip level, above 0. The mask of HDRCNN's loss is that
            of this, `unflicker.networks.hdrcnn.saturation_mask(y)`.
        exponent, knee: n and a of the camera's curve, (1 + a) y^n / (y^n + a).
        quality: of the JPEG.
    """

    x: Tensor
    y: Tensor
    exponent: float
    knee: float
    quality: int


@dataclass(frozen=True)
class VirtualCamera:
    """Take crops of an HDR picture as a camera would that nobody has set: `camera(picture, seed)`.

    A square crop is scaled to `size` and mirrored half of the time; exposed so that a share of its values stays below
    the clip level of 1; given noise, and another hue and saturation (in HSV of its square root). That is the target.
    The input is the target through the camera's curve, clipped at 1 and coded as JPEG. Everything is drawn from the
    seed. The ranges are those of HDRCNN (Eilertsen et al. 2017), which Single-frame Regularization trains with; apart
    from it, crops are averaged when they are scaled down, and saturation stays within [0, 1].

    Args:
        size: of the sides of what comes out, in pixels.
        crop: least and most share of the picture's width that a crop takes; never less than `size` pixels, nor more
            than there are.
        unclipped: least and most share of the values (of all channels) that stay below 1.
        noise: least and most standard deviation of the Gaussian noise, in units of the clip level.
        hue: standard deviation, in degrees.
        saturation: standard deviation, in units of HSV's saturation.
        exponent: mean and standard deviation of the curve's n, which is held within 0.2 and 2.5.
        knee: mean and standard deviation of the curve's a, which is held within 0 and 5.
        quality: least and most of the JPEG. As in HDRCNN four more are drawn, and become the most, so that 100, which
            loses almost nothing, is more frequent than each other.

    Raises:
        InputError: a setting is out of range; a picture is not (3, H, W) float32, is smaller than `size`, or dark.

    >>> light = torch.rand(3, 80, 120) ** 8 * 50
    >>> shot = VirtualCamera(size=32)(light, seed=0)
    >>> shot.x.shape, bool(0.8 < (shot.y < 1).float().mean() < 1)
    (torch.Size([3, 32, 32]), True)
    """

    size: int = 320
    crop: tuple[float, float] = (0.2, 0.6)
    unclipped: tuple[float, float] = (0.85, 0.95)
    noise: tuple[float, float] = (0.0, 0.01)
    hue: float = 7.0
    saturation: float = 0.1
    exponent: tuple[float, float] = (0.9, 0.1)
    knee: tuple[float, float] = (0.6, 0.1)
    quality: tuple[int, int] = (30, 100)

    def __post_init__(self) -> None:
        if self.size < 8:
            raise InputError(f"size must be 8 pixels or more, got {self.size}.")
        for name, low, high in (("crop", 0, 1), ("unclipped", 0, 1), ("noise", 0, 1), ("quality", 1, 100)):
            least, most = getattr(self, name)
            if not low <= least <= most <= high:
                raise InputError(f"{name} must be two numbers from {low} to {high}, got {(least, most)}.")
        for name in ("exponent", "knee"):
            if not min(getattr(self, name)) >= 0:
                raise InputError(f"{name} must be a mean and a deviation of 0 or more, got {getattr(self, name)}.")
        for value in (self.hue, self.saturation):
            if not value >= 0:
                raise InputError(f"hue and saturation must be 0 or more, got {value}.")

    def __call__(self, picture: Tensor, seed: int | Sequence[int]) -> Shot:
        """Return what is seen of a picture (3, H, W), linear, with a seed, or several numbers that make one."""
        if picture.ndim != 3 or len(picture) != 3 or picture.dtype != torch.float32:
            raise InputError(
                f"A picture must be (3, H, W), float32, got {tuple(picture.shape)} {picture.dtype}; convert it."
            )
        height, width = picture.shape[-2:]
        if min(height, width) < self.size:
            raise InputError(
                f"A picture of {width}x{height} pixels (width x height) is too small for crops of "
                f"{self.size}x{self.size}; give a larger one, or ask for smaller crops."
            )
        rng = np.random.default_rng(seed)
        # All are drawn first, whatever is used, so that one setting changes nothing else.
        share, unclipped, noise = (rng.uniform(*each) for each in (self.crop, self.unclipped, self.noise))
        top, left, mirrored = rng.uniform(), rng.uniform(), rng.uniform() < 0.5
        hue, saturation = rng.normal() * self.hue, rng.normal() * self.saturation
        exponent = float(np.clip(rng.normal(*self.exponent), 0.2, 2.5))
        knee = float(np.clip(rng.normal(*self.knee), 0, 5))
        quality = min(int(rng.integers(self.quality[0], self.quality[1] + 5)), self.quality[1])

        side = min(max(self.size, round(share * width)), height, width)
        row, column = int(top * (height - side + 1)), int(left * (width - side + 1))
        crop = _scaled(picture[:, row : row + side, column : column + side], self.size)
        seen = (crop.flip(-1) if mirrored else crop).clamp(DARKEST, LIGHTEST).numpy()
        level = float(np.quantile(seen, unclipped))
        if level <= DARKEST:
            raise InputError(f"There is no light in a crop of {side}x{side} pixels at row {row}, column {column}.")
        seen = seen / np.float32(level)
        seen = seen + np.float32(noise) * rng.standard_normal(seen.shape, np.float32)
        y = torch.from_numpy(_tinted(seen, hue, saturation)).clamp_min_(DARKEST)
        power = y**exponent
        x = ((1 + knee) * power / (power + knee)).clamp_max(1)
        return Shot(JPEG(quality=quality)(x[None])[0], y, exponent, knee, quality)


class HDRPhotos(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (x, y) by a `VirtualCamera` from HDR files: `dataset[i]` is crop i % crops of file i // crops.

    The last two files stay in memory: it is quicker to take several crops of one before going to the next.

    Args:
        files: as `read_hdr` takes them.
        crops: of each file. HDRCNN takes about 10 for each million of its pixels.
        camera: what takes them.
        seed: of all of them, 0 or more; each crop has its own out of this one and its number.

    Raises:
        InputError: there are no files, a number is out of range, or, when it is asked for, a file cannot be used.

    Example::

        x, y = HDRPhotos(sorted(Path("hdr/").glob("*.exr")))[0]  # both (3, 320, 320)
    """

    def __init__(
        self, files: Iterable[str | Path], *, crops: int = 20, camera: VirtualCamera | None = None, seed: int = 0
    ) -> None:
        self.files = [Path(path) for path in files]
        if not self.files:
            raise InputError("HDRPhotos needs one file or more, got none.")
        if crops < 1 or seed < 0:
            raise InputError(f"crops must be 1 or more and seed 0 or more, got {crops} and {seed}.")
        self.crops, self.camera, self.seed = crops, camera or VirtualCamera(), seed

    def __len__(self) -> int:
        return self.crops * len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} crops, counted from 0; got {index}.")
        index %= len(self)
        shot = self.camera(_kept(self.files[index // self.crops]), (self.seed, index))
        return shot.x, shot.y


def to_lab(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Split RGB (B, 3, H, W) or (3, H, W) in [0, 1] into L / 100, one channel, and a and b / 100, two channels.

    CIE Lab of sRGB under D65. L / 100 is in [0, 1], a and b / 100 are within -1.08 and 0.99.

    Raises:
        InputError: there are not three channels.

    >>> l, ab = to_lab(torch.ones(1, 3, 2, 2))
    >>> l.shape, ab.shape, round(l.max().item(), 3)
    (torch.Size([1, 1, 2, 2]), torch.Size([1, 2, 2, 2]), 1.0)
    """
    from kornia.color import rgb_to_lab

    if rgb.ndim < 3 or rgb.shape[-3] != 3:
        raise InputError(f"RGB must have 3 channels, got {tuple(rgb.shape)}; repeat grey three times.")
    lab = rgb_to_lab(rgb) / 100
    return lab[..., :1, :, :], lab[..., 1:, :, :]


def to_rgb(l: Tensor, ab: Tensor) -> Tensor:  # noqa: E741 - its name in Lab
    """Put L / 100 (B, 1, H, W) and a, b / 100 (B, 2, H, W) together again: RGB (B, 3, H, W), clipped to [0, 1].

    Raises:
        InputError: the channels or sizes are others.

    >>> rgb = torch.rand(1, 3, 4, 4)
    >>> torch.allclose(to_rgb(*to_lab(rgb)), rgb, atol=1e-3)
    True
    """
    from kornia.color import lab_to_rgb

    same = l.shape[:-3] == ab.shape[:-3] and l.shape[-2:] == ab.shape[-2:]
    if min(l.ndim, ab.ndim) < 3 or (l.shape[-3], ab.shape[-3]) != (1, 2) or not same:
        raise InputError(
            f"Lab must come as L (B, 1, H, W) and ab (B, 2, H, W), got {tuple(l.shape)} and {tuple(ab.shape)}."
        )
    return lab_to_rgb(100 * torch.cat([l, ab], -3))


class ColourPairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs for colorization from ordinary pictures: L / 100 (1, size, size) and a, b / 100 (2, size, size).

    The square in the middle of a picture is averaged down to the size.

    Args:
        files: PNG, JPEG and the like, at least `size` pixels high and wide.
        size: of the sides, in pixels.

    Raises:
        InputError: there are no files, or, when it is asked for, one cannot be read or is too small.

    Example::

        l, ab = ColourPairs(celeba("CelebA/")[:20000])[0]
    """

    def __init__(self, files: Iterable[str | Path], *, size: int = 128) -> None:
        self.files, self.size = [Path(path) for path in files], size
        if not self.files:
            raise InputError("ColourPairs needs one file or more, got none.")
        if size < 1:
            raise InputError(f"size must be 1 pixel or more, got {size}.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.files[index]
        picture = _read_rgb(path)
        if min(picture.shape[-2:]) < self.size:
            raise InputError(
                f"{path} has {picture.shape[-1]}x{picture.shape[-2]} pixels (width x height), too few for "
                f"{self.size}x{self.size}; leave it out."
            )
        return to_lab(_middle(picture, self.size))


def without_greys(files: Iterable[str | Path], share: float = 0.05) -> list[Path]:
    """Leave out the pictures with the least colour: that share of them, rounded down; the others keep their order.

    Colour is the mean chroma, the root of a^2 + b^2 in Lab, of the picture at 32 pixels. The large colorization
    network of Single-frame Regularization is trained without about 5 % of Places; how it measured is not known.

    Raises:
        InputError: the share is not in [0, 1), or a file cannot be read.
    """
    paths = [Path(path) for path in files]
    if not 0 <= share < 1:
        raise InputError(f"share must be 0 or more and below 1, got {share:g}.")
    count = int(share * len(paths))
    if not count:
        return paths
    chroma = [to_lab(_middle(_read_rgb(path), 32))[1].norm(dim=0).mean().item() for path in paths]
    left_out = set(np.argsort(chroma, kind="stable")[:count].tolist())
    return [path for i, path in enumerate(paths) if i not in left_out]


def colour_recording(recording: Recording, size: int | None = None) -> Recording:
    """Return a video to colour: frames L / 100 (1, H, W), and a, b / 100 (2, H, W) as the target "truth".

    Args:
        recording: of RGB frames.
        size: the square in the middle of the frames is averaged down to that many pixels; None keeps them whole.

    Raises:
        InputError: the frames are smaller.
    """
    video = recording.frames
    if size is not None and not 1 <= size <= min(video.height, video.width):
        raise InputError(
            f"{video.name} has frames of {video.width}x{video.height} pixels (width x height), too few for "
            f"{size}x{size}; leave it out, or ask for less."
        )
    shape = (video.height, video.width) if size is None else (size, size)
    light, colour = (_Changed(video, shape, functools.partial(_lab_part, size=size, part=i)) for i in range(2))
    return Recording(light, {"truth": colour})


def hdr_recording(recording: Recording, *, unclipped: float = 0.9, size: tuple[int, int] | None = None) -> Recording:
    """Return an HDR video as a camera sees it, (3, H, W) uint8, with its linear frames as the target "truth".

    The exposure is the same for all frames, 1 at the clip level; the input is the square root, clipped, so that its
    square is the truth wherever nothing clipped. There is neither noise nor JPEG.

    Args:
        recording: of linear frames (3, H, W) float32, as `hdm_hdr` gives.
        unclipped: share of the first frame's values that stay below 1.
        size: (height, width) to average the frames down to; None keeps theirs.

    Raises:
        InputError: the share is not between 0 and 1, or the first frame is dark.
    """
    if not 0 < unclipped < 1:
        raise InputError(f"unclipped must be between 0 and 1, got {unclipped}.")
    video = recording.frames
    shape = size or (video.height, video.width)
    level = float(np.quantile(_linear(video.read([0]), size=size, gain=1.0).numpy(), unclipped))
    if level <= DARKEST:
        raise InputError(f"There is no light in the first frame of {video.name}; leave it out, or clip less.")
    truth, seen = (
        _Changed(video, shape, functools.partial(each, size=size, gain=1 / level)) for each in (_linear, _photographed)
    )
    return Recording(seen, {"truth": truth})


def celeba(root: str | Path, split: str = "train") -> list[Path]:
    """CelebA: 202,599 faces of well-known people, aligned, 178 x 218; the files of a split.

    Page: http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. img_align_celeba.zip and the list, as they lie there::

        Img/img_align_celeba/000001.jpg
        Eval/list_eval_partition.txt         a line each: 000001.jpg 0    (0 train, 1 validation, 2 test)

    or both directly in the folder, as torchvision keeps them. Single-frame Regularization trains on 20,000 of them and
    does not tell which.

    Sources: torchvision's reader and OpenVINO's datumaro (folders, the list's format); the page itself was not at hand.

    Args:
        root: the folder that holds Img/ and Eval/, or img_align_celeba/ and list_eval_partition.txt.
        split: "train", "validation" or "test".

    Raises:
        InputError: a file is missing, the list is not of that form, or there is no such split.
    """
    at = _Set("CelebA", "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html", "Img/ and Eval/", Path(root))
    number = at.split(split, ("train", "validation", "test"))
    images = at.first("folder", "Img/img_align_celeba", "img_align_celeba")
    listed = at.first("file", "Eval/list_eval_partition.txt", "list_eval_partition.txt")
    there = {path.name for path in images.iterdir()}
    found = []
    for i, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        name, _, part = line.strip().partition(" ")
        if part.strip() not in ("0", "1", "2"):
            raise InputError(f"{listed} should hold a file and 0, 1 or 2; line {i} holds {line!r}: download it anew.")
        if int(part) == number:
            if name not in there:
                raise at.missing(images / name)
            found.append(images / name)
    return found


def places(root: str | Path, split: str = "train") -> list[Path]:
    """Places365: 1.8 million pictures of scenes; the files of a split, sorted.

    Page: http://places2.csail.mit.edu. Small pictures (256 x 256) unpacked; large ones alike, with
    data_large, val_large and test_large::

        data_256/a/airfield/00000001.jpg                   train_256_places365standard.tar
        data_256/c/church/outdoor/00000001.jpg
        val_256/Places365_val_00000001.jpg                 val_256.tar
        test_256/Places365_test_00000001.jpg               test_256.tar

    torchvision's names data_256_standard and data_large_standard will do. Single-frame Regularization trains on about
    2.1 million pictures of "Places", more than are in this set; which ones is not told.

    Sources: torchvision's reader (archives, folders) and copies of the README of the authors' kit,
    https://github.com/zhoubolei/places_devkit (counts). The page itself was not at hand, and the names in test_256 are
    not verified; any *.jpg will do.

    Args:
        root: the folder that holds data_256/, val_256/ or the like.
        split: "train", "validation" or "test".

    Raises:
        InputError: a folder is missing or empty, or there is no such split.
    """
    at = _Set("Places365", "http://places2.csail.mit.edu", "data_256/, val_256/ or the like", Path(root))
    names = (
        ("data_256", "data_256_standard", "data_large", "data_large_standard"),
        ("val_256", "val_large"),
        ("test_256", "test_large"),
    )
    folder = at.first("folder", *names[at.split(split, ("train", "validation", "test"))])
    found = sorted(folder.rglob("*.jpg"))
    if not found:
        raise at.empty(folder, ".jpg")
    return found


def youtube_faces(root: str | Path, *, aligned: bool = False, only: Sequence[str] | None = None) -> list[Recording]:
    """YouTube Faces: 3,425 videos of 1,595 people, of 48 frames and more, 24 frames a second; no targets.

    Page: https://www.cs.tau.ac.il/~wolf/ytfaces/. Unpacked::

        frame_images_DB/Al_Gore/0/0.618.jpg                         video 0 of this person, frame 618
        aligned_images_DB/Al_Gore/0/aligned_detect_0.618.jpg        faces, cropped and turned

    A recording is named "Al_Gore-0". Single-frame Regularization tests on 72 close-ups of 50 to 200 frames, chosen by
    hand; its list is not known.

    Sources: the data set's page (counts, 24 frames a second) and a copy of its README (folders, names).

    Args:
        root: the folder that holds frame_images_DB/ or aligned_images_DB/.
        aligned: take the cropped faces.
        only: take these videos; the first frame of each is read here, so that fewer open faster.

    Raises:
        InputError: a folder is missing or empty, or there is no such video.
    """
    at = _Set("YouTube Faces", "https://www.cs.tau.ac.il/~wolf/ytfaces/", "frame_images_DB/", Path(root))
    folder = at.first("folder", "aligned_images_DB" if aligned else "frame_images_DB")
    videos = {f"{path.parent.name}-{path.name}": path for path in _folders(folder.glob("*/*"))}
    if not videos:
        raise at.missing(folder / "Al_Gore" / "0", "folder")
    return [
        Recording(FilesVideo(at.numbered(videos[name], ".jpg"), _read_rgb, name, 24))
        for name in at.chosen(videos, only)
    ]


def hdm_hdr(root: str | Path, *, only: Sequence[str] | None = None, frame_rate: float = 24) -> list[Recording]:
    """HdM-HDR-2014: 33 HDR scenes, 1920 x 1080; linear frames (3, H, W) float32, unclipped; no targets.

    Page: https://www.hdm-stuttgart.de/vmlab/hdm-hdr-2014/; paper: Froehlich et al., SPIE 2014. Free for academic use;
    commercial use takes a licence. The camera's footage, 80 GB of OpenEXR, as it lies there::

        HdM-HDR-2014_Original-HDR-Camera-Footage/bistro_01/bistro_01_000295.exr

    `hdr_recording` makes pairs of them. The primaries are those of the ALEXA's wide gamut. Others crop 10 pixels off
    each side, where two cameras' frames were laid over each other; here that is left to you.

    Sources: public repositories that read it (page, folders, names, gamut, crop, licence; their notes say "scene
    radiance", which is linear). The page itself was not at hand. Not verified: that values are linear, and the frame
    rate, which therefore is an argument. The paper's other set, of UBC (Banitalebi-Dehkordi et al.), was not found;
    this reads any folder of folders of EXR files.

    Args:
        root: the folder with the scenes, or one that holds it.
        only: take these scenes.
        frame_rate: frames a second.

    Raises:
        InputError: there are no EXR files, or no such scene.
    """
    page = "https://www.hdm-stuttgart.de/vmlab/hdm-hdr-2014/"
    at = _Set("HdM-HDR-2014", page, "a folder of .exr files for each scene", Path(root))
    inside = at.root / "HdM-HDR-2014_Original-HDR-Camera-Footage"
    at.first("folder", ".")
    scenes = {path.parent.name: path.parent for path in sorted(at.root.rglob("*.exr")) if path.name[0] != "."}
    if not scenes:
        raise at.missing(inside / "bistro_01", "folder")
    return [
        Recording(FilesVideo(at.numbered(scenes[name], ".exr"), _read_linear, name, frame_rate))
        for name in at.chosen(scenes, only)
    ]


class _Set(Published):
    """A data set whose folder is read."""

    def empty(self, folder: Path, suffix: str) -> InputError:
        return InputError(f"{self.title} expects files *{suffix} in {folder}, but there are none: see {self.page}.")

    def split(self, split: str, splits: Sequence[str]) -> int:
        if split not in splits:
            raise InputError(f"{self.title} has no split {split!r}; {nearest(split, splits)}")
        return splits.index(split)

    def first(self, what: str, *places: str) -> Path:
        """The first of these places that is there; the first of all is the one that is missed."""
        for place in places:
            path = self.root / place
            if path.is_dir() if what == "folder" else path.is_file():
                return path
        raise self.missing(self.root / places[0], what)

    def numbered(self, folder: Path, suffix: str) -> list[Path]:
        """The files of a folder in the order of the last numbers in their names."""
        found = [
            (int(numbers[-1]), path)
            for path in folder.iterdir()
            if path.suffix.lower() == suffix and path.name[0] != "." and (numbers := re.findall(r"\d+", path.stem))
        ]
        if not found:
            raise self.empty(folder, suffix)
        return [path for _, path in sorted(found)]

    def chosen(self, names: Iterable[str], only: Sequence[str] | None) -> list[str]:
        names = sorted(names)
        if isinstance(only, str):
            raise InputError(f"only is a list of names, got {only!r}; write [{only!r}].")
        for name in only or ():
            if name not in names:
                raise InputError(f"{self.title} has no {name!r}; {nearest(name, names)}")
        return names if only is None else [name for name in names if name in only]


class _Changed(Video):
    """The frames of a video, each changed by a function of (1, C, H, W)."""

    def __init__(self, video: Video, size: tuple[int, int], change: Callable[[Tensor], Tensor]) -> None:
        self.name, self.num_frames, self.frame_rate = video.name, video.num_frames, video.frame_rate
        self.height, self.width = size
        self.paths, self._video, self._change = video.paths, video, change

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Return the changed frames with these numbers: (len(numbers), C, H, W)."""
        return torch.cat([self._change(self._video.read([n])) for n in self._checked(numbers)])


def _lab_part(frames: Tensor, size: int | None, part: int) -> Tensor:
    frames = _floats(frames)
    return to_lab(frames if size is None else _middle(frames, size))[part]


def _linear(frames: Tensor, size: tuple[int, int] | None, gain: float) -> Tensor:
    return gain * (frames if size is None else F.interpolate(frames, size=size, mode="area"))


def _photographed(frames: Tensor, size: tuple[int, int] | None, gain: float) -> Tensor:
    return _linear(frames, size, gain).clamp(0, 1).sqrt().mul_(255).round_().byte()


def _folders(paths: Iterable[Path]) -> list[Path]:
    return [path for path in sorted(paths) if path.is_dir() and path.name[0] not in "._"]


def _read_rgb(path: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture; replace it, or leave it out.") from error


def _floats(picture: Tensor) -> Tensor:
    return picture.float().div_(255) if picture.dtype == torch.uint8 else picture


def _middle(picture: Tensor, size: int) -> Tensor:
    """The square in the middle of (..., C, H, W), averaged down to a size, as floats."""
    height, width = picture.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = _floats(picture[..., top : top + side, left : left + side])
    if square.ndim == 3:
        return F.interpolate(square[None], size=(size, size), mode="area")[0]
    return F.interpolate(square, size=(size, size), mode="area")


def _scaled(picture: Tensor, size: int) -> Tensor:
    """A crop (C, side, side) at another size; smaller ones are averaged, so that fine detail does not alias."""
    if picture.shape[-1] == size:
        return picture
    return F.interpolate(picture[None], size=(size, size), mode="bilinear", antialias=True)[0]


def _tinted(picture: np.ndarray, hue: float, saturation: float) -> np.ndarray:
    """Turn the hue by degrees and add to the saturation of linear (3, H, W), in HSV of its square root."""
    import cv2

    root = np.sqrt(np.maximum(picture, 0)).transpose(1, 2, 0)
    hsv = cv2.cvtColor(np.ascontiguousarray(root), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(hue)) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] + np.float32(saturation), 0, 1)
    return np.ascontiguousarray(np.square(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).transpose(2, 0, 1))


@functools.lru_cache(maxsize=2)
def _kept(path: Path) -> Tensor:
    return read_hdr(path)


def _read_linear(path: Path) -> Tensor:
    """Read an HDR file of whatever range: (3, H, W) float32, 0 or more."""
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the name.")
    if path.suffix.lower() not in HDR_FILES:
        picture = _read_rgb(path)
        raise InputError(
            f"{path} is no HDR picture: its values are read as 8 bits, from {int(picture.min())} to "
            f"{int(picture.max())}; give files of linear light, {', '.join(HDR_FILES)}."
        )
    try:
        picture = read_exr(path)[0] if path.suffix.lower() == ".exr" else _by_opencv(path)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error}); is it damaged? Copy it anew or leave it out.") from error
    if not bool(torch.isfinite(picture.sum())) and (bad := int((~torch.isfinite(picture)).sum())):
        raise InputError(f"{path} has {bad} values that are not finite; repair it, or leave it out.")
    return picture.clamp_min_(0)


def _by_opencv(path: Path) -> Tensor:
    import cv2

    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
    try:
        picture: Any = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags)
    except cv2.error as error:
        raise ValueError(str(error.err)) from error
    if picture is None or picture.dtype != np.float32:
        raise ValueError("OpenCV finds no picture of floats in it")
    return torch.from_numpy(np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1)))


def _check_range(path: Path, picture: Tensor) -> None:
    """Refuse what has no range beyond a clip level, and tell what it has."""
    low, high = (float(v) for v in picture.aminmax())
    told = f"{path} is no HDR picture: its values run from {low:.3g} to {high:.3g}"
    advice = "give one of linear light that was not clipped."
    clipped = float((picture >= high).float().mean())
    if clipped >= PLATEAU:
        raise InputError(f"{told}: {100 * clipped:.0f} % of them are at the highest, as where it was clipped; {advice}")
    values = picture.flatten()[:: max(1, picture.numel() // LOOKED_AT)]
    if len(values) >= 4096 and len(levels := values.unique()) <= 256:
        raise InputError(f"{told}: there are {len(levels)} different values, as in 8 bits; {advice}")
