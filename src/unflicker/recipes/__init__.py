"""Recipes: an experiment as a YAML file, checked to the last key before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator

from unflicker.checks import InputError, nearest
from unflicker.corruptions import parse
from unflicker.losses import DISTANCES
from unflicker.recipes.base import Share, Shelf, Strict, Whole
from unflicker.stabilizers import Stabilizer, from_description


class Base(Strict):
    """The image network."""

    network: str = "denoise"
    """A task, or FILE.py:FUNCTION."""
    weights: Path | None = None
    """A file that replaces the weights it comes with."""


class ControllerSettings(Strict):
    """As `unflicker.Controller`; the paper's is width 32, depth 7, downscale 1, antialias off."""

    width: Whole = 16
    depth: Whole = 4
    downscale: Whole = 4
    antialias: bool = True


class Adapter(Strict):
    """What is put into the network: a plan, or an adapter to start from."""

    plan: dict[str, dict[str, Any] | None] = {}
    """Layers by name or glob, as for `stabilize`: {"": {kind: ema, decay: 0.2}}; "paper" stands for all those that the
    papers name (`unflicker.tasks.paper_plan`)."""
    controllers: tuple[ControllerSettings, ...] = ()
    """None: the default one, if the plan needs it. Several are for chains."""
    start: str | None = None
    """A folder, or the name of an adapter that comes with the task."""

    @field_validator("plan")
    @classmethod
    def _known(cls, plan: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
        for description in plan.values():
            if description is not None:
                from_description(description)
        return plan

    def stabilizers(self) -> dict[str, Stabilizer | None]:
        """The plan with templates in place of their descriptions."""
        return {layer: None if each is None else from_description(each) for layer, each in self.plan.items()}


class Selection(Strict):
    """Which recordings make up a set."""

    root: Path | None = None
    """Another folder than `data.root`."""
    split: str | None = None
    """The layout's own name for the set."""
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class Data(Strict):
    """Where clips come from, what is done to them, and what should come out."""

    root: Path | None = None
    layout: str = "folder"
    """"folder" of videos and of folders of images, "stills", "scenes" that need no root, or a published layout: see
    `unflicker.data.LAYOUTS`."""
    options: dict[str, Any] = {}
    """Of the layout's reader, as {num_frames: 32} for "stills" or {count: 60} for "scenes"."""
    targets: Path | None = None
    """A folder with the truth, of the same names, for layout "folder"."""
    short_side: Whole | None = None
    """Larger videos are averaged down to so many pixels first."""
    enhance: Literal["moderate", "strong"] | None = None
    """The truth is the frame, scaled as it may be, with its details brought out by a local Laplacian filter; target
    "truth" asks for it."""
    train: Selection | None = None
    validation: Selection | None = None
    test: Selection | None = None
    """If none of the three is given, every fifth recording is for validation and every fifth for the test."""
    corruptions: tuple[str, ...] = ()
    """What the input goes through, in order, as `unflicker.corruptions.parse` takes it."""
    target: str = "clean"
    """"clean": the frame before it was corrupted; "base": what the network makes of that; or "truth"."""
    length: Whole = 8
    """Frames of a clip."""
    crop: Whole | tuple[Whole, Whole] | None = 128
    """Pixels, square or (height, width); null for whole frames."""
    scales: tuple[Share, ...] = (1.0,)
    """Shares of a video's size; one is drawn for each clip."""
    every: Whole | tuple[Whole, ...] = 1
    """Keep one frame in so many, or draw the number from these; a validation or test set takes the first."""
    reverse: bool = True
    flip: bool = True
    size: tuple[Whole, Whole] | None = None
    """(height, width) of validation and test frames; null keeps theirs."""
    frames: Whole | None = 64
    """Of each validation video; null for all."""
    cache: Path | None = None
    """A folder for decoded videos."""
    cache_gib: Annotated[float, Field(gt=0)] = 20.0

    @field_validator("corruptions")
    @classmethod
    def _known(cls, corruptions: tuple[str, ...]) -> tuple[str, ...]:
        for text in corruptions:
            parse(text)
        return corruptions


class Loss(Strict):
    """The unified loss."""

    distance: str = "rmse"
    stability: Annotated[float, Field(ge=0)] = 0.2

    @field_validator("distance")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in DISTANCES:
            raise InputError(f"There is no distance {name!r}; {nearest(name, DISTANCES)}")
        return name


class Training(Strict):
    """As `unflicker.training.fit` takes it."""

    trains: Literal["adapter", "both", "base"] = "adapter"
    """The adapter in a frozen base, both together, or the base alone."""
    steps: Whole = 2000
    batch: Whole = 2
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["cosine"] | tuple[Annotated[int, Field(ge=0)], ...] = "cosine"
    truncate: Whole | None = None
    recompute: bool = False
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    seed: Annotated[int, Field(ge=0)] = 42
    workers: Annotated[int, Field(ge=0)] = 1
    validate_every: Whole | None = 500
    checkpoint_every: Whole = 100
    tensorboard: bool = False


class Evaluation(Strict):
    """What the results are measured with, and against."""

    metrics: tuple[str, ...] = ("psnr", "instability", "temporal_difference_error")
    baselines: dict[str, dict[str, Any]] = {
        "output EMA 0.1": {"kind": "ema", "decay": 0.1},
        "output EMA 0.2": {"kind": "ema", "decay": 0.2},
        "output EMA 0.4": {"kind": "ema", "decay": 0.4},
        "Gaussian 0.5": {"kind": "gaussian", "window": 4, "sigma": 0.5},
        "Gaussian 1": {"kind": "gaussian", "window": 4, "sigma": 1.0},
    }
    """Stabilizers at the output that need no training, by a name for the table."""
    frames: Whole | None = None
    """Of each test video; null for all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the corruptions, whatever the seed of the training."""

    @field_validator("baselines")
    @classmethod
    def _known(cls, baselines: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for description in baselines.values():
            from_description(description)
        return baselines


class Recipe(Strict):
    """An experiment: network, adapter, data, loss, training, evaluation. See docs/train-your-own.md."""

    about: str = ""
    base: Base = Base()
    adapter: Adapter = Adapter()
    data: Data = Data()
    loss: Loss = Loss()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    def text(self) -> str:
        """The whole recipe as YAML, every default written out.

        >>> load_recipe("denoise-0.1-small").text().splitlines()[1]
        'base:'
        """
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


SHELF = Shelf(Recipe, Path(__file__).parent)


def list_recipes() -> dict[str, str]:
    """Return the recipes in the package, each with what it is about."""
    return SHELF.titles()


def load_recipe(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check it.

    NAME+NAME is the first recipe, changed by what the second says, as "denoise-0.1+controlled". A file may begin with
    `like: NAME`, which it changes in the same way: mappings are gone into key by key, but a plan, baselines and
    options are replaced whole.

    Args:
        name: recipes in the package or YAML files, joined by +.
        changes: KEY=VALUE, as "loss.stability=0.4" or "data.corruptions=[snow:3]"; the value is YAML.

    Raises:
        InputError: no such recipe, or a key or value that cannot be; the line and the key are named.

    >>> load_recipe("denoise-0.1-small", ["loss.stability=0.4"]).loss.stability
    0.4
    >>> load_recipe("denoise-0.1-small", ["loss.stabilty=0.4"])
    Traceback (most recent call last):
    unflicker.checks.InputError: The option loss.stabilty=0.4: there is no setting loss.stabilty; did you mean \
'stability'?
    """
    return SHELF.load(name, changes)
