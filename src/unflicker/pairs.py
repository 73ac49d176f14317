"""Images of a folder, and what a network should make of each: crops of them, to fine-tune on."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unflicker.checks import InputError, nearest
from unflicker.data.camera import HDR_FILES, read_hdr
from unflicker.data.stills import PICTURES, find_pictures, picture_size, read_picture

LEAST, MOST, UNIT = 64, 128, 32  # pixels of a crop's sides, and what they are a multiple of
ENOUGH = 64  # few images are gone through several times, so that batches can be drawn from them


class Pair(NamedTuple):
    """An image and its target; both of whatever size, the target's a whole number of times the image's or a part."""

    image: Path
    target: Path | None


def find_pairs(images: str | Path, targets: str | Path | None = None) -> tuple[list[Pair], list[str]]:
    """Return the pictures of a folder with their targets, and a sentence for each picture that is left out.

    Left out is what cannot be opened, and what is smaller than 64 pixels.

    Args:
        images: a folder of PNG, JPEG, TIFF, BMP or WebP files.
        targets: a folder with one file for each, of the same name but for the extension; EXR, Radiance and PFM are
            read as linear light.

    Raises:
        InputError: a folder is missing or empty, or nothing of it can be used; targets do not match the images.

    Example::

        pairs, skipped = find_pairs("frames/", "wanted/")
    """
    truths = None if targets is None else _targets(Path(targets))
    found = find_pictures(Path(images))
    if truths is not None:
        _check_names({path.stem: path for path in found}, truths, Path(images), Path(str(targets)))
    pairs: list[Pair] = []
    skipped: list[str] = []
    factor: Fraction | None = None
    for path in found:
        target = None if truths is None else truths[path.stem]
        try:
            size = picture_size(path)
            other = None if target is None else _target_size(target)
        except InputError as error:
            skipped.append(str(error))
            continue
        if min(size) < LEAST:
            skipped.append(f"{path} has {size[0]}x{size[1]} pixels, and {LEAST}x{LEAST} are needed.")
            continue
        if other is not None:
            factor = factor or Fraction(other[0], size[0])
            if not factor == Fraction(other[0], size[0]) == Fraction(other[1], size[1]):
                raise InputError(
                    f"{target} has {other[0]}x{other[1]} pixels (width x height), but {path} {size[0]}x{size[1]}: "
                    "targets must be as large as their images, or all larger or smaller by one factor."
                )
        pairs.append(Pair(path, target))
    if not pairs:
        raise InputError(
            f"None of the {len(skipped)} pictures in {images} can be used; the first of them: {skipped[0]}"
        )
    return pairs, skipped


class ImagePairs(Dataset[Any]):
    """Square crops at random: `dataset[i]` is x (3, size, size) in [0, 1], or x and y if there are targets.

    A file that turns out to be damaged gives way to the next, and is noted. With few images the length is a multiple of
    their number, and each has several crops.

    Args:
        pairs: of `find_pairs`.
        channels: of the targets; 1 takes the mean of red, green and blue.
        seed: of the places of the crops, which are drawn one after the other.

    Attributes:
        size: of the crops' sides, in pixels: 128, or less if an image is smaller.
        damaged: those pairs that turned out to be, and a sentence for each.

    Raises:
        InputError: there are no pairs; or, when an item is asked for, not one file can be read.

    Example::

        x, y = ImagePairs(find_pairs("frames/", "wanted/")[0])[0]
    """

    def __init__(self, pairs: Sequence[Pair], *, channels: int = 3, seed: int = 0) -> None:
        if not pairs:
            raise InputError("ImagePairs needs one pair or more, got none.")
        self.pairs, self.channels = list(pairs), channels
        self.size = min(MOST, *(min(picture_size(pair.image)) // UNIT * UNIT for pair in pairs))
        self.damaged: dict[Pair, str] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.pairs) * -(-ENOUGH // len(self.pairs))

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} crops, counted from 0; got {index}.")
        for offset in range(len(self.pairs)):
            pair = self.pairs[(index + offset) % len(self.pairs)]
            if pair in self.damaged:
                continue
            try:
                return self._crop(pair)
            except InputError as error:
                self.damaged[pair] = str(error)
        first = next(iter(self.damaged.values()))
        raise InputError(f"None of {len(self.pairs)} pictures can be read; the first of them: {first}")

    def _crop(self, pair: Pair) -> Tensor | tuple[Tensor, Tensor]:
        x = _floats(read_picture(pair.image))
        y = None if pair.target is None else _read_target(pair.target)
        factor = Fraction(1) if y is None else Fraction(y.shape[-1], x.shape[-1])
        step = factor.denominator  # a crop begins where a pixel of the target does
        top, left = (
            step * int(torch.randint((n - self.size) // step + 1, (), generator=self._generator)) for n in x.shape[-2:]
        )
        x = x[:, top : top + self.size, left : left + self.size]
        if y is None:
            return x
        top, left, size = (int(factor * n) for n in (top, left, self.size))
        y = y[:, top : top + size, left : left + size]
        return x, y.mean(0, keepdim=True) if self.channels == 1 else y


def _targets(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with a target for each image.")
    known = {*PICTURES, *HDR_FILES}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in known)
    if not files:
        raise InputError(f"{folder} has no targets ({', '.join(sorted(known))}); give a folder that has.")
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} are both the target of {path.stem}; keep one of them.")
        found[path.stem] = path
    return found


def _check_names(images: dict[str, Path], targets: dict[str, Path], images_in: Path, targets_in: Path) -> None:
    """Every image has a target, and every target an image."""
    for these, others, where, what in (
        (images, targets, targets_in, "target"),
        (targets, images, images_in, "image"),
    ):
        alone = [name for name in these if name not in others]
        if alone:
            more = f", nor for {len(alone) - 1} others" if len(alone) > 1 else ""
            raise InputError(
                f"There is no {what} for {these[alone[0]]} in {where}{more}: files belong together by their names "
                f"without extension; {nearest(alone[0], others)}"
            )


def _target_size(path: Path) -> tuple[int, int]:
    if path.suffix.lower() not in HDR_FILES:
        return picture_size(path)
    height, width = read_hdr(path).shape[-2:]
    return width, height


def _read_target(path: Path) -> Tensor:
    return read_hdr(path) if path.suffix.lower() in HDR_FILES else _floats(read_picture(path))


def _floats(picture: Tensor) -> Tensor:
    return picture.float() / 255 if picture.dtype == torch.uint8 else picture
