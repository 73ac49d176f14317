"""Recipes: an experiment as a YAML file, checked to the last key before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from unflicker.checks import InputError, nearest
from unflicker.corruptions import parse
from unflicker.losses import DISTANCES
from unflicker.stabilizers import Stabilizer, from_description

FOLDER = Path(__file__).parent
Keys = tuple[str | int, ...]
Whole = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    """Unknown keys are refused, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Base(_Strict):
    """The image network."""

    network: str = "denoise"
    """A task, or FILE.py:FUNCTION."""
    weights: Path | None = None
    """A file that replaces the weights it comes with."""


class ControllerSettings(_Strict):
    """As `unflicker.Controller`; the paper's is width 32, depth 7, downscale 1, antialias off."""

    width: Whole = 16
    depth: Whole = 4
    downscale: Whole = 4
    antialias: bool = True


class Adapter(_Strict):
    """What is put into the network: a plan, or an adapter to start from."""

    plan: dict[str, dict[str, Any] | None] = {}
    """Layers by name or glob, as for `stabilize`: {"": {kind: ema, decay: 0.2}}."""
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


class Selection(_Strict):
    """Which recordings make up a set."""

    root: Path | None = None
    """Another folder than `data.root`."""
    split: str | None = None
    """The layout's own name for the set."""
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class Data(_Strict):
    """Where clips come from, what is done to them, and what should come out."""

    root: Path | None = None
    layout: str = "folder"
    """"folder" of videos and of folders of images, "stills", or a published layout: see `unflicker.data.LAYOUTS`."""
    options: dict[str, Any] = {}
    """Of the layout's reader, as {num_frames: 32} for "stills"."""
    targets: Path | None = None
    """A folder with the truth, of the same names, for layout "folder"."""
    enhance: Literal["moderate", "strong"] | None = None
    """The truth is the frame with its details brought out by a local Laplacian filter; target "truth" asks for it."""
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
    crop: Whole | None = 128
    """Pixels, square; null for whole frames."""
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


class Loss(_Strict):
    """The unified loss."""

    distance: str = "rmse"
    stability: Annotated[float, Field(ge=0)] = 0.2

    @field_validator("distance")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in DISTANCES:
            raise InputError(f"There is no distance {name!r}; {nearest(name, DISTANCES)}")
        return name


class Training(_Strict):
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


class Evaluation(_Strict):
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


class Recipe(_Strict):
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


def list_recipes() -> dict[str, str]:
    """Return the recipes in the package, each with what it is about."""
    return {path.stem: _read(path)[0].get("about", "") for path in sorted(FOLDER.glob("*.yaml"))}


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
    settings, places = _gathered(str(name), Path(), ())
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise InputError(f"{change!r} is no change to a recipe: write KEY=VALUE, as loss.stability=0.4.")
        keys: Keys = tuple(key.split("."))
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"The option {change}: the value is no YAML; put it in quotes.") from None
        for part in reversed(keys):
            nested = {part: nested}
        settings = _merged(settings, nested)
        places |= {keys[: n + 1]: f"The option {change}" for n in range(len(keys))}
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise InputError(_sentence(error, places, str(name))) from None


def _gathered(names: str, folder: Path, below: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Keys, str]]:
    """Read NAME+NAME, each on top of the recipe it is `like`, and where each key stands; files may be in `folder`."""
    settings: dict[str, Any] = {}
    places: dict[Keys, str] = {}
    for name in [names] if Path(names).is_file() else names.split("+"):
        path = _find(name, folder)
        if path in below:
            raise InputError(f"The recipe {path} is like itself, by way of {', '.join(p.name for p in below)}.")
        own, own_places = _read(path)
        if (parents := own.pop("like", None)) is not None:
            inherited, inherited_places = _gathered(str(parents), path.parent, (*below, path))
            own, own_places = _merged(inherited, own), inherited_places | own_places
        settings, places = _merged(settings, own), places | own_places
    return settings, places


def _find(name: str, folder: Path) -> Path:
    path = folder / name
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"There is no recipe file {path}; check the name.")
        return path
    packaged = FOLDER / f"{name}.yaml"
    if not packaged.is_file():
        hint = nearest(name, [each.stem for each in sorted(FOLDER.glob("*.yaml"))])
        raise InputError(f"There is no recipe {name!r} in the package, and it names no .yaml file; {hint}")
    return packaged


def _read(path: Path) -> tuple[dict[str, Any], dict[Keys, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        node, settings = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}, line {line}: this is no YAML: {error.problem}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{path} is no YAML text.") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} is no recipe: it must have keys such as base, adapter and data.")
    places: dict[Keys, str] = {}
    for keys, line in _lines(node):
        if keys in places:
            raise InputError(f"{path}, line {line}: {'.'.join(map(str, keys))} is set twice; keep one.")
        places[keys] = f"{path}, line {line}"
    return settings, places


def _lines(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """Every key of a YAML document with its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*keys, key.value), key.start_mark.line + 1
            yield from _lines(value, (*keys, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*keys, number), value.start_mark.line + 1
            yield from _lines(value, (*keys, number))


def _merged(old: Any, new: Any, key: str = "") -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or key in ("plan", "baselines", "options"):
        return new
    return {**old, **{name: _merged(old[name], value, name) if name in old else value for name, value in new.items()}}


def _sentence(error: ValidationError, places: Mapping[Keys, str], name: str) -> str:
    """Make one sentence of the first thing that is wrong, with its place and key."""
    errors = error.errors()
    first = errors[0]
    keys: Keys = tuple(part for part in first["loc"] if not _is_kind(part))
    known = next((places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in places), name)
    key = ".".join(str(part) for part in keys)
    if first["type"] == "extra_forbidden":
        return f"{known}: there is no setting {key}; {nearest(str(keys[-1]), _fields(keys[:-1]))}"
    cause = (first.get("ctx") or {}).get("error")
    if isinstance(cause, InputError):
        return f"{known}: {key}: {cause}"
    got = first["input"]
    shown = "nan" if isinstance(got, float) and math.isnan(got) else repr(got)
    reasons = [each["msg"][:1].lower() + each["msg"][1:] for each in errors if each["loc"][: len(keys)] == keys]
    return f"{known}: {key} cannot be {shown}: {', or '.join(dict.fromkeys(reasons))}."


def _is_kind(part: str | int) -> bool:
    """Pydantic names the members of a union in an error's place; they are no keys of ours."""
    return isinstance(part, str) and (part in ("int", "constrained-int") or "[" in part)


def _fields(keys: Keys) -> list[str]:
    """The settings there are at a place."""
    model: Any = Recipe
    for key in keys:
        if isinstance(key, str):
            model = _model(model.model_fields[key].annotation)
    return list(model.model_fields)


def _model(annotation: Any) -> Any:
    """The settings class in an annotation, as in Selection | None or tuple[ControllerSettings, ...]; None if none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model, get_args(annotation))), None)
