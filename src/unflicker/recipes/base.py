"""What all recipes share: YAML files that are joined, changed by KEY=VALUE, and checked to the last key and line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unflicker.checks import InputError, nearest

Keys = tuple[str | int, ...]
Whole = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    """Unknown keys are refused, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Settings = TypeVar("Settings", bound=Strict)


@dataclass(frozen=True)
class Shelf(Generic[Settings]):
    """Recipes of one kind: the settings they have, and the folder of the package where its own are."""

    settings: type[Settings]
    folder: Path

    def titles(self) -> dict[str, str]:
        """Return the recipes in the package, each with what it is about."""
        return {path.stem: self._read(path)[0].get("about", "") for path in sorted(self.folder.glob("*.yaml"))}

    def load(self, name: str | Path, changes: Sequence[str] = ()) -> Settings:
        """Read a recipe, NAME+NAME or a file, change it by KEY=VALUE, and check it.

        Raises:
            InputError: no such recipe, or a key or value that cannot be; the line and the key are named.
        """
        settings, places = self._gathered(str(name), Path(), ())
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
            return self.settings.model_validate(settings)
        except ValidationError as error:
            raise InputError(_sentence(error, places, str(name), self.settings)) from None

    def _gathered(self, names: str, folder: Path, below: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Keys, str]]:
        """Read NAME+NAME, each on what it is `like`, and where each key stands; files may be in `folder`."""
        settings: dict[str, Any] = {}
        places: dict[Keys, str] = {}
        for name in [names] if Path(names).is_file() else names.split("+"):
            path = self._find(name, folder)
            if path in below:
                raise InputError(f"The recipe {path} is like itself, by way of {', '.join(p.name for p in below)}.")
            own, own_places = self._read(path)
            if (parents := own.pop("like", None)) is not None:
                inherited, inherited_places = self._gathered(str(parents), path.parent, (*below, path))
                own, own_places = _merged(inherited, own), inherited_places | own_places
            settings, places = _merged(settings, own), places | own_places
        return settings, places

    def _find(self, name: str, folder: Path) -> Path:
        path = folder / name
        if path.suffix in (".yaml", ".yml"):
            if not path.is_file():
                raise InputError(f"There is no recipe file {path}; check the name.")
            return path
        packaged = self.folder / f"{name}.yaml"
        if not packaged.is_file():
            hint = nearest(name, [each.stem for each in sorted(self.folder.glob("*.yaml"))])
            raise InputError(f"There is no recipe {name!r} in the package, and it names no .yaml file; {hint}")
        return packaged

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[Keys, str]]:
        try:
            text = path.read_text(encoding="utf-8")
            node, settings = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise InputError(f"{path}, line {line}: this is no YAML: {error.problem}.") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise InputError(f"{path} is no YAML text.") from None
        if not isinstance(settings, dict):
            first, second, third = [key for key in self.settings.model_fields if key != "about"][:3]
            raise InputError(f"{path} is no recipe: it must have keys such as {first}, {second} and {third}.")
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


def _sentence(error: ValidationError, places: Mapping[Keys, str], name: str, settings: type[Strict]) -> str:
    """Make one sentence of the first thing that is wrong, with its place and key."""
    errors = error.errors()
    first = errors[0]
    keys: Keys = tuple(part for part in first["loc"] if not _is_kind(part))
    known = next((places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in places), name)
    key = ".".join(str(part) for part in keys)
    if first["type"] == "extra_forbidden":
        return f"{known}: there is no setting {key}; {nearest(str(keys[-1]), _fields(settings, keys[:-1]))}"
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


def _fields(settings: type[Strict], keys: Keys) -> list[str]:
    """The settings there are at a place."""
    model: Any = settings
    for key in keys:
        if isinstance(key, str):
            model = _model(model.model_fields[key].annotation)
    return list(model.model_fields)


def _model(annotation: Any) -> Any:
    """The settings class in an annotation, as in Selection | None or tuple[ControllerSettings, ...]; None if none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model, get_args(annotation))), None)
