"""From a plan to the places it means: names and globs resolved, and one example run to learn what each layer gives."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.layers import Address, find, is_glob, parse, pick
from unflicker.stabilizers import Layout, Stabilizer

Plan = Mapping[str, Stabilizer | None]


@dataclass(frozen=True)
class Place:
    """One place where a stabilizer sits, as the example frame showed it."""

    address: Address
    layout: Layout
    shape: tuple[int, ...]
    """What the layer gave for the example, without the batch axis."""

    @property
    def channels(self) -> int:
        return {"map": self.shape[0], "plane": 1}.get(self.layout, self.shape[-1])


@dataclass(frozen=True)
class Choice:
    template: Stabilizer
    by_glob: bool


def resolve(base: nn.Module, plan: Plan) -> dict[Address, Choice]:
    """Turn a plan's names and globs into the layers they mean."""
    chosen: dict[Address, Choice | None] = {}
    exact: set[Address] = set()
    if not isinstance(plan, Mapping) or not plan:
        found = "an empty one" if isinstance(plan, Mapping) else type(plan).__name__
        raise InputError(f'A plan says where to put what, as {{"": EMA(0.1)}} does for the output; got {found}.')
    for text, template in plan.items():
        if not isinstance(text, str):
            raise InputError(f'A plan names layers by text, as "decoder.0"; got {text!r}.')
        if isinstance(template, type) and issubclass(template, Stabilizer):
            raise InputError(f"The plan gives the class {template.__name__} for {text!r}; write {template.__name__}().")
        if template is not None and not isinstance(template, Stabilizer):
            raise InputError(f"The plan gives {type(template).__name__} for {text!r}; it must be a stabilizer or None.")
        pattern = parse(text)
        by_glob = is_glob(pattern.layer)
        for name in find(base, pattern.layer) if pattern.layer else [""]:
            address = pattern._replace(layer=name)
            if by_glob and address in exact:
                continue
            if not by_glob:
                exact.add(address)
            chosen[address] = None if template is None else Choice(template, by_glob)
    kept = {address: choice for address, choice in chosen.items() if choice}
    if not kept:
        raise InputError("The plan leaves out every layer it names: give at least one a stabilizer.")
    return kept


def probe(base: nn.Module, choices: Mapping[Address, Choice], example: Tensor) -> list[Place]:
    """Run the example once and return the places in the order they run.

    A layer named in full that cannot be stabilized is an error. One that a glob swept up is left out with a warning,
    silently if it is a container or only passes on what a layer inside it returned.
    """
    seen: dict[Address, list[Any]] = {}
    order: list[Address] = []

    def note(address: Address, value: Any) -> None:
        seen.setdefault(address, []).append(value)
        order.append(address)

    handles = []
    for address in choices:
        if not address.layer:
            if address.is_input:
                note(address, ((example,), {}))
            continue
        layer = base.get_submodule(address.layer)
        if address.is_input:
            hook = lambda m, args, kwargs, a=address: note(a, (args, kwargs))  # noqa: E731
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(lambda m, args, output, a=address: note(a, output)))
    try:
        with torch.no_grad():
            output = base(example)
    finally:
        for handle in handles:
            handle.remove()
    for address in choices:
        if not address.layer and not address.is_input:
            note(address, output)
    places, skipped, claimed = [], [], set()
    for address in [*dict.fromkeys(order), *(a for a in choices if a not in seen)]:
        container = type(base.get_submodule(address.layer)).forward is nn.Module.forward
        try:
            place, z = _place(address, seen.get(address, []), example, choices[address].template.layout)
        except InputError as error:
            if not choices[address].by_glob:
                raise
            if not container:
                skipped.append(str(error))
            continue
        if choices[address].by_glob and id(z) in claimed:
            continue
        claimed.add(id(z))
        places.append(place)
    if not places:
        raise InputError(
            skipped[0] if skipped else "The plan matches only containers that never run; name other layers."
        )
    if skipped:
        warnings.warn(f"Left out of the plan: {' '.join(skipped)}", stacklevel=3)
    return places


def _place(address: Address, values: list[Any], example: Tensor, layout: Layout) -> tuple[Place, Tensor]:
    where = where_is(address)
    if not values:
        raise InputError(f"{where} never runs when the network is called; take it out of the plan.")
    if len(values) > 1:
        raise InputError(f"{where} runs more than once in a forward pass; stabilize a layer around it.")
    z = pick_input(address, *values[0]) if address.is_input else pick(values[0], address.selector, where)
    if not z.is_floating_point() or z.ndim not in (2, 3, 4):
        raise InputError(
            f"{where} gives {shown(z)}; stabilizers take floats (B, C, H, W), (B, H, W), (B, N, C), (B, C)."
        )
    if z.shape[0] != example.shape[0]:
        raise InputError(
            f"{where} gives {shown(z)} for {example.shape[0]} frames: it folds something into the batch; "
            "stabilize a layer around it."
        )
    if layout == "auto":
        layout = _layout(z, example, at_output=not address.layer)
    axes = {"map": 4, "plane": 3, "tokens": 3, "vector": 2}[layout]
    if z.ndim != axes:
        raise InputError(f"{where} gives {shown(z)}, which is no {layout}: that has {axes} axes.")
    return Place(address, layout, tuple(z.shape[1:])), z


def _layout(z: Tensor, example: Tensor, *, at_output: bool) -> Layout:
    """Tell planes (B, H, W) from tokens (B, N, C): a plane is the frame's size, or that divided by a power of two.

    At the network's output it is enough that the proportions are nearly the frame's.
    """
    if z.ndim != 3:
        return "map" if z.ndim == 4 else "vector"
    (h, w), (height, width) = z.shape[1:], example.shape[-2:]
    exact = any((h, w) == (height // 2**i, width // 2**i) for i in range(6))
    return "plane" if exact or (at_output and 0.9 < h * width / (w * height) < 1.1) else "tokens"


def pick_input(address: Address, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Take a layer's input: by number among those passed by position (the first unless told), or by keyword."""
    selector = address.selector or "0"
    if not address.selector and not args:
        raise InputError(
            f"{where_is(address)} is passed by keyword; name it, as in "
            + " or ".join(f'"in:{address.layer}::{name}"' for name in list(kwargs)[:4])
            + "."
        )
    return pick(args if selector.isdigit() else kwargs, selector, where_is(address))


def where_is(address: Address) -> str:
    """Name an address in a sentence.

    >>> where_is(parse("in:head"))
    "The input of layer 'head'"
    """
    side = "input" if address.is_input else "output"
    return f"The {side} of layer {address.layer!r}" if address.layer else f"The network's {side}"


def shown(value: Tensor) -> str:
    """Say what a tensor is: its type and shape.

    >>> shown(torch.zeros(1, 3))
    'float32 (1, 3)'
    """
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
