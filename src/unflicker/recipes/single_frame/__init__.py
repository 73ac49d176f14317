"""Recipes of single-frame regularization: a study of what makes a network steady by still images alone.

Single-frame Regularization for Temporally Stable CNNs (Eilertsen, Mantiuk, Unger, CVPR 2019), section 4 and Table 2.
`benchmarks/single_frame.py` runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from unflicker.recipes.base import Shelf, Strict, Whole

Rate = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(gt=0)]
Term = Literal["noise stability", "warp stability", "transform invariance", "sparse Jacobian"]


class Stills(Strict):
    """What is trained on, and the videos it is measured on."""

    source: Literal["procedural", "celeba", "clips"] = "procedural"
    """Pictures of `unflicker.data.hdr`; CelebA and YouTube Faces; or frames of the clips in benchmarks/clips.yaml."""
    root: Path | None = None
    """The folder of CelebA, or of the clips."""
    videos: Path | None = None
    """The folder of YouTube Faces."""
    images: Whole = 10_000
    """To train on; those to choose settings by come on top."""
    validation: Whole = 100
    size: Annotated[int, Field(ge=32)] = 128
    """Pixels, square."""
    sequences: Whole = 50
    """To measure on, or as many as there are."""
    frames: Annotated[int, Field(ge=2)] = 200
    """Of each sequence, or as many as it has."""


class Steps(Strict):
    """As `unflicker.finetuning.finetune` takes it."""

    steps: Whole
    batch: Whole = 32
    learning_rate: Rate
    schedule: Literal["cosine", "constant"] = "cosine"
    statistics: Literal["batch", "kept"] = "batch"


class Grid(Strict):
    """What is compared; fine-tuning without a term and with augmentation come on top."""

    moves: Literal["picture", "light"] = "picture"
    """What the warp is of: the clipped picture, as published; or, for HDR, the light before a camera clips it."""

    terms: tuple[Term, ...] = ("noise stability", "warp stability", "transform invariance", "sparse Jacobian")
    ratios: tuple[Ratio, ...] = (0.5, 2, 8, 32, 128, 512)
    """Of the term to the reconstruction, a / (1 - a)."""
    seeds: Whole = 10
    """Independent fine-tunings of each."""


class SingleFrame(Strict):
    """A study: network and loss of an application, data, pre-training, fine-tuning, and the grid."""

    about: str = ""
    application: Literal["hdr", "color"]
    """HDR from one exposure by `HDRAutoencoder`, or colour from grey by `ColorizationAutoencoder`."""
    data: Stills = Stills()
    pretraining: Steps
    finetuning: Steps
    grid: Grid = Grid()

    def text(self) -> str:
        """The whole recipe as YAML, every default written out.

        >>> load_single_frame("hdr-small").text().splitlines()[1]
        'application: hdr'
        """
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


SHELF = Shelf(SingleFrame, Path(__file__).parent)


def list_single_frame() -> dict[str, str]:
    """Return the recipes of single-frame regularization in the package, each with what it is about.

    >>> "hdr-small" in list_single_frame()
    True
    """
    return SHELF.titles()


def load_single_frame(name: str | Path, changes: Sequence[str] = ()) -> SingleFrame:
    """Read a recipe of single-frame regularization and check it.

    Args:
        name: recipes in the package or YAML files, joined by +, as `unflicker.recipes.load_recipe` takes them.
        changes: KEY=VALUE, as "finetuning.steps=50"; the value is YAML.

    Raises:
        InputError: no such recipe, or a key or value that cannot be; the line and the key are named.

    >>> load_single_frame("hdr", ["grid.seeds=2"]).grid.seeds
    2
    """
    return SHELF.load(name, changes)
