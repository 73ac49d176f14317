"""Adapters on disk: a folder with `adapter.safetensors`, `adapter.json` and a card. Never the base, never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.controllers import Controller
from unflicker.layers import parse
from unflicker.model import StabilizedModel
from unflicker.plans import Place
from unflicker.stabilizers import Chain, describe, from_description

FORMAT = 1
WEIGHTS, SETTINGS, CARD = "adapter.safetensors", "adapter.json", "README.md"


def adapter_state_dict(model: StabilizedModel) -> dict[str, Tensor]:
    """Return the weights that were added to the base, and nothing of the base.

    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import LearnedEMA
    >>> model = stabilize(nn.Conv2d(3, 3, 1), {"": LearnedEMA()}, example=torch.rand(1, 3, 8, 8))
    >>> list(adapter_state_dict(model))
    ['stabilizers.output.logit']
    """
    return {name: value for name, value in model.state_dict().items() if not name.startswith("base.")}


def save_adapter(model: StabilizedModel, folder: str | Path, *, notes: str = "") -> None:
    """Write what was added to a base: weights, settings, and a card that says what it is.

    Args:
        model: the stabilized model.
        folder: where to; created if missing, replaced as a whole if it is an adapter already.
        notes: text for the card: what it was trained on, what it gains, its limits.

    Raises:
        InputError: the folder holds something else.

    >>> import tempfile
    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import EMA
    >>> model = stabilize(nn.Conv2d(3, 3, 1), {"": EMA(0.1)}, example=torch.rand(1, 3, 8, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(model, f"{folder}/mine")
    ...     again = load_adapter(model.remove(), f"{folder}/mine")
    >>> again.stabilizers["output"].decay
    0.1
    """
    folder = Path(folder)
    if folder.exists() and not (folder / SETTINGS).exists() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an adapter; choose another folder.")
    settings = {
        "format": FORMAT,
        "unflicker": _version(),
        "base": {
            "class": type(model.base).__name__,
            "shapes": _shapes(model.base),
            "fingerprint": _fingerprint(model.base),
        },
        "frame_shape": list(model.frame_shape),
        "controllers": [controller.settings() for controller in model.controllers],
        "plan": {
            str(place.address): {
                "layout": place.layout,
                "shape": list(place.shape),
                "stabilizer": describe(model.stabilizers[key.replace(".", "/")]),
            }
            for key, place in model.places.items()
        },
    }
    part, old = (folder.with_name(f"{folder.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    _tidy(folder, part, old)
    try:
        part.mkdir(parents=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in adapter_state_dict(model).items()}
        try:
            save_file(weights, str(part / WEIGHTS))
        except SafetensorError as error:
            raise InputError(f"The adapter {folder} cannot be written ({error}): make room and try again.") from None
        (part / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (part / CARD).write_text(_card(model, folder.name, notes), encoding="utf-8")
        (part / WEIGHTS).chmod((part / CARD).stat().st_mode)  # safetensors keeps its files to their owner
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    finally:
        _tidy(folder, part, old)


def load_adapter(base: nn.Module, folder: str | Path) -> StabilizedModel:
    """Insert a saved adapter into its base.

    Args:
        base: the network the adapter was made for; it is frozen, as `stabilize` does.
        folder: what `save_adapter` wrote.

    Raises:
        InputError: the folder holds no adapter, or the adapter was made for another base; the differences are listed.

    It warns if the base has the right shape but other weights. `save_adapter` has an example.
    """
    folder = Path(folder)
    settings = _read(folder)
    try:
        shapes, made_for = dict(settings["base"]["shapes"]), settings["base"]["class"]
        places = [
            Place(parse(text), entry["layout"], tuple(entry["shape"])) for text, entry in settings["plan"].items()
        ]
        templates = {
            place: from_description(entry["stabilizer"])
            for place, entry in zip(places, settings["plan"].values(), strict=True)
        }
        controllers = tuple(Controller(**controller) for controller in settings["controllers"])
        frame_shape = tuple(settings["frame_shape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / SETTINGS} is damaged: {error!r}.") from None
    try:
        weights = load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read: {error}.") from None
    names = {name for name, _ in base.named_modules()}
    differences = _differences(shapes, _shapes(base)) or [
        f"there is no layer {place.address.layer!r}" for place in places if place.address.layer not in names
    ]
    if differences:
        raise InputError(f"The adapter {folder} was made for another base, a {made_for}: " + "; ".join(differences))
    model = StabilizedModel(base, templates, controllers, frame_shape)
    first = next(base.parameters(), torch.zeros(()))
    for module in (*model.stabilizers.values(), *model.controllers):
        module.to(first)
    wrong = _differences(_sizes(weights), _sizes(adapter_state_dict(model)))
    if wrong:
        model.remove()
        raise InputError(f"{folder / WEIGHTS} does not fit its own settings: " + "; ".join(wrong))
    model.load_state_dict(weights, strict=False)
    if settings["base"].get("fingerprint", _fingerprint(base)) != _fingerprint(base):
        warnings.warn(
            f"The adapter {folder} was trained for a {made_for} of this shape with other weights.", stacklevel=2
        )
    return model


def compose_adapters(base: nn.Module, folders: Sequence[str | Path]) -> StabilizedModel:
    """Insert several saved adapters into their base, one after the other at each layer, without training them again.

    Instant Video Models, appendix C: adapters that were trained for one corruption each, of the same plan, and blind
    to features (`Controlled(feature_inputs=False)`), for then one does not see what the other has changed.

    Args:
        base: the network all of them were made for.
        folders: two or more, in the order in which they work.

    Raises:
        InputError: an adapter does not fit the base, or they sit at different layers.

    >>> import tempfile
    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import EMA
    >>> network = nn.Conv2d(3, 3, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for decay in (0.1, 0.2):
    ...         save_adapter(stabilize(network, {"": EMA(decay)}, example=torch.rand(1, 3, 8, 8)), f"{folder}/{decay}")
    ...     compose_adapters(network, [f"{folder}/0.1", f"{folder}/0.2"]).stabilizers["output"]
    Chain(EMA(0.1), EMA(0.2))
    """
    if len(folders) < 2:
        raise InputError(f"Adapters are composed from two on; got {len(folders)}.")
    models = []
    for folder in folders:
        models.append(load_adapter(base, folder))
        models[-1].remove()  # only what was added is wanted
    first = models[0]
    for model, folder in zip(models, folders, strict=True):
        if model.places != first.places or len(model.controllers) != len(first.controllers):
            raise InputError(f"The adapters {folders[0]} and {folder} have different plans, and cannot be composed.")
    templates = {
        place: Chain(*(from_description(describe(model.stabilizers[key.replace(".", "/")])) for model in models))
        for key, place in first.places.items()
    }
    controllers = tuple(Controller(**controller.settings()) for model in models for controller in model.controllers)
    composed = StabilizedModel(base, templates, controllers, first.frame_shape)
    weights = {}
    for i, model in enumerate(models):
        for name, value in adapter_state_dict(model).items():
            kind, layer, rest = name.split(".", 2)
            weights[f"{kind}.{layer}.members.{i}.{rest}" if kind == "stabilizers" else f"{kind}.{i}.{rest}"] = value
    composed.load_state_dict(weights, strict=False)
    like = next(base.parameters(), torch.zeros(()))
    for module in (*composed.stabilizers.values(), *composed.controllers):
        module.to(like)
    return composed


def _tidy(folder: Path, part: Path, old: Path) -> None:
    """Put the old adapter back if the new one did not get there, and leave nothing else."""
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)


def _read(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        found = settings["format"]
    except OSError:
        raise InputError(f"{folder} is no adapter: it has no {SETTINGS}.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / SETTINGS} is damaged: it is not the JSON that save_adapter writes.") from None
    if found != FORMAT:
        raise InputError(f"{folder} has format {found}, this version of unflicker reads {FORMAT}: update unflicker.")
    return settings


def _shapes(base: nn.Module) -> dict[str, list[int]]:
    return _sizes(base.state_dict())


def _fingerprint(base: nn.Module) -> str:
    """Tell networks of one shape apart by some of their weights; all of a large one would take long to read."""
    digest = hashlib.sha256()
    for value in base.state_dict().values():
        digest.update(value.detach().flatten()[:64].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sizes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in tensors.items()}


def _differences(expected: dict[str, list[int]], found: dict[str, list[int]]) -> list[str]:
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} is not in the adapter's base" for name in found if name not in expected]
    lines += [
        f"{name} is {tuple(found[name])} where {tuple(shape)} was expected"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return lines if len(lines) <= 8 else [*lines[:8], f"and {len(lines) - 8} more"]


def _version() -> str:
    from importlib.metadata import version

    return version("unflicker")


def _card(model: StabilizedModel, name: str, notes: str) -> str:
    return f"""---
library_name: unflicker
tags: [video, temporal-consistency]
---
# {name}

An adapter of unflicker {_version()}: stabilizers for a frozen image network.

```python
from unflicker import load_adapter
model = load_adapter(network, "{name}")  # network: a {type(model.base).__name__}
y, state = model(frame, state)
```

```
{model.summary()}
```
{notes}"""
