"""Find layers of a network by dotted name or glob, pick tensors out of what they return, freeze."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from unflicker.checks import InputError, nearest


class Address(NamedTuple):
    """Where a tensor is found: a layer's dotted name or glob, its output or input, and a selector into it."""

    layer: str
    is_input: bool
    selector: str

    @property
    def key(self) -> str:
        """The unique name under which `state` holds what belongs here."""
        side = "in" if self.is_input else "out"
        place = f"{side}:{self.layer}" if self.layer else f"{side}put"
        return f"{place}::{self.selector}" if self.selector else place

    def __str__(self) -> str:
        place = f"in:{self.layer}" if self.is_input else self.layer
        return f"{place}::{self.selector}" if self.selector else place


def parse(text: str) -> Address:
    """Read an address as a plan writes it.

    >>> parse("in:blocks.*::0")
    Address(layer='blocks.*', is_input=True, selector='0')
    >>> parse("").key, parse("in:").key, parse("decoder.0").key
    ('output', 'input', 'out:decoder.0')
    """
    place, _, selector = text.partition("::")
    is_input = place.startswith("in:")
    return Address(place.removeprefix("in:"), is_input, selector)


def is_glob(name: str) -> bool:
    """Whether a layer's name is a pattern."""
    return "*" in name


def match(pattern: str, names: list[str]) -> list[str]:
    """Return the names a glob matches: `*` stands for one part between dots, `**` for any number of parts.

    >>> match("blocks.*", ["blocks", "blocks.0", "blocks.0.conv"])
    ['blocks.0']
    >>> match("**.conv", ["conv", "blocks.0.conv", "blocks.0"])
    ['conv', 'blocks.0.conv']
    """
    parts = [r"(?:[^.]+\.)*" if p == "**" else re.escape(p).replace(r"\*", "[^.]*") + r"\." for p in pattern.split(".")]
    expression = re.compile("".join(parts))
    return [name for name in names if name and expression.fullmatch(name + ".")]


def find(model: nn.Module, pattern: str) -> list[str]:
    """Return the names of the layers that a dotted name or glob means.

    Raises:
        InputError: there is none; the nearest name is suggested.

    >>> find(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), "*")
    ['0', '1']
    """
    names = [name for name, _ in model.named_modules()]
    found = match(pattern, names) if is_glob(pattern) else [name for name in names if name == pattern]
    if not found and len(names) == 1:
        raise InputError(
            f'{type(model).__name__} has no layers inside: only its output "" and its input "in:" can be stabilized.'
        )
    if not found:
        raise InputError(f"The network has no layer {pattern!r}; {nearest(pattern, names[1:])}")
    return found


def pick(value: Any, selector: str, where: str) -> Tensor:
    """Take the tensor to stabilize out of what a layer returns.

    Raises:
        InputError: the value is a tuple or dict and there is no selector, or it has no such entry.

    >>> import torch
    >>> pick({"depth": torch.ones(1)}, "depth", "The network's output")
    tensor([1.])
    """
    if not selector and not isinstance(value, Tensor):
        raise InputError(f"{where} is {_named(value)}, not a tensor; say which entry to stabilize{_entries(value)}.")
    if not selector:
        return value
    name = _entry(value, selector)
    if name is None:
        raise InputError(f"{where} is {_named(value)} without an entry {selector!r}{_entries(value)}.")
    if not isinstance(value[name], Tensor):
        raise InputError(
            f"Entry {selector!r} of {where[0].lower() + where[1:]} is {_named(value[name])}, not a tensor."
        )
    return value[name]


def put(value: Any, selector: str, tensor: Tensor) -> Any:
    """Return `value` with the entry that `pick` takes replaced; the original is left as it was.

    >>> put((1, 2), "0", 5)
    (5, 2)
    """
    if not selector:
        return tensor
    name = _entry(value, selector)
    if isinstance(value, tuple):
        items = list(value)
        items[name] = tensor
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    # Plain dicts and lists without copy.copy, which torch.compile cannot follow.
    changed = dict(value) if type(value) is dict else list(value) if type(value) is list else copy.copy(value)
    changed[name] = tensor
    return changed


def _entry(value: Any, selector: str) -> Any:
    """Return the key or index a selector means in a tuple, list or dict, or None."""
    index = int(selector) if selector.removeprefix("-").isdigit() else None
    if isinstance(value, dict):
        # The outputs of transformers are dicts that count their entries too.
        names = list(value)
        counted = index is not None and selector not in value and not any(isinstance(n, int) for n in names)
        if counted and -len(names) <= index < len(names) and _takes_index(value):  # type: ignore[operator]
            return names[index]  # type: ignore[index]
        return selector if selector in value else index if index in value else None
    if isinstance(value, (tuple, list)) and index is not None and -len(value) <= index < len(value):
        return index
    return None


def _takes_index(value: Any) -> bool:
    try:
        value[0]
    except KeyError:
        return False
    return True


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_tensors(function, item) for item in value]
    if isinstance(value, dict):
        changed = copy.copy(value)
        for name in value:
            changed[name] = map_tensors(function, value[name])
        return changed
    return value


def freeze(model: nn.Module) -> None:
    """Keep a network as it is: evaluation mode, no gradients for its weights."""
    model.eval().requires_grad_(False)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode for the length of a `with` block, then every layer back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _named(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _entries(value: Any) -> str:
    entries: list[Any] = []
    if isinstance(value, dict):
        entries = [name for name, item in value.items() if isinstance(item, Tensor)]
    elif isinstance(value, (tuple, list)):
        entries = [i for i, item in enumerate(value) if isinstance(item, Tensor)]
    return ", as in " + " or ".join(f'"...::{entry}"' for entry in entries[:4]) if entries else ""
