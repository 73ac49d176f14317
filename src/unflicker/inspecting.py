"""Look into a network: its layers as they run, how much flicker each carries, and which to stabilize.

A layer is **unsteady** by the change of its output from frame to frame, root mean square, over its contrast: the
deviation of its values from the mean of their channel. Bias and scale of a layer do not count that way, and layers can
be compared with each other and with the frames. It is measured twice:

- on a still frame with fresh noise added each time, where every change is flicker. Divided by the same number of the
  frames it says how much of the noise survives to the layer: 1 is as noisy as the frame, 0 as steady as the still.
- on the video as it is, where things move as well.

What is suggested: the output, always. Inside, layers of one size in a row are a stage, and one stands for it: the last
of the outermost blocks, for it holds all that the stage did and is narrower than what blocks have inside. A stage is
suggested if at least half as much noise survives to it as to the noisiest one, the noisiest first, `MOST` at most. Left
out is a stage that ends with the output's channels, for it is what the output is made of and the output's stabilizer
stands behind it, and a layer that nothing after it looks at.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.layers import evaluating, parse, pick, put
from unflicker.outputs import is_usable, main_entry, run_once
from unflicker.plans import Choice, probe
from unflicker.stabilizers import EMA, Aligned, Controlled, Layout, Stabilizer, describe

if TYPE_CHECKING:
    from rich.table import Table

MOST = 6  # stages suggested
ENOUGH = 0.5  # of the noise of the noisiest stage
TRIES = 3  # layers of a stage, until one is found that matters
SAMPLE = 65_536  # values kept of each layer: enough for a mean square, and little memory


@dataclass(frozen=True)
class Layer:
    """One layer of a network, or what goes in ("in:") and out ("")."""

    name: str
    """Dotted, as in a plan."""
    type: str
    shape: tuple[int, ...] | None = None
    """What it gives for one frame; None if that is no tensor."""
    runs: int = 1
    """How often it runs in a forward pass."""
    parameters: int = 0
    """Weights in it and in the layers inside it."""
    address: str | None = None
    """What a plan calls its output, as "NAME" or "NAME::0"; None if it cannot be stabilized."""
    why_not: str = ""
    """Why it cannot."""
    noise: float | None = None
    """How much of the noise on a still frame survives to here: 1 as in the frame."""
    video: float | None = None
    """Change from frame to frame of the video, over contrast."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_layers` found."""

    network: str
    frame: tuple[int, ...]
    """The frames' shape (3, H, W)."""
    layers: tuple[Layer, ...]
    """The frame first, then layers in the order in which they end, the output, and those that never run."""
    plan: dict[str, Stabilizer] = field(default_factory=dict)
    """The suggestion, ready for `stabilize`."""
    frames: int = 0
    """Frames of the video that were looked at."""
    sigma: float = 0.0
    """Standard deviation of the noise that was added."""

    @property
    def suggested(self) -> tuple[str, ...]:
        """The addresses of the plan, in running order."""
        return tuple(self.plan)


@torch.no_grad()
def inspect_layers(
    network: nn.Module,
    example: Tensor,
    video: Iterable[Tensor] | None = None,
    *,
    sigma: float = 0.05,
    repeats: int = 4,
    seed: int = 0,
) -> Inspection:
    """List a network's layers in running order; with a video, measure each and suggest a plan.

    Memory does not grow with the video: of each layer a sample of its last output is kept.

    Args:
        network: takes frames (B, C, H, W). It is left as it was.
        example: frames (B, C, H, W), run once to see the layers.
        video: frames (C, H, W) or (1, C, H, W) in [0, 1], one after the other; None only lists, and suggests the
            output.
        sigma: of the noise added to the video's first frame; 0.05 is a camera in a dim room.
        repeats: how many noisy versions of that frame.
        seed: of the noise.

    Raises:
        InputError: the network cannot take the frames, returns no tensor, or the video is empty.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 3, 1))
    >>> found = inspect_layers(net, torch.rand(1, 3, 16, 16), torch.rand(3, 3, 16, 16))
    >>> [layer.name for layer in found.layers], found.suggested
    (['in:', '0', '1', '2', ''], ('1', ''))
    """
    if repeats < 2 or sigma <= 0:
        raise InputError(f"Noise is seen between two frames or more, and above 0; got {repeats=}, {sigma=}.")
    first_parameter = next(network.parameters(), torch.zeros(()))
    example = example.to(first_parameter)
    layers = _listed(network, example)
    frames = 0
    if video is not None:
        # A layer whose output another one passes on is measured there: its address is not its own.
        addresses = [layer.address for layer in layers if layer.address is not None]
        planes = _planes(layers)
        moving, first = _Streams(example.shape[-2:], planes), None
        with evaluating(network), _watching(network, addresses, moving):
            for frame in video:
                x = _checked(frame).to(first_parameter)
                first = x if first is None else first
                moving.take(network, x)
                frames += 1
        if first is None:
            raise InputError("The video has no frames to measure.")
        noisy = _Streams(first.shape[-2:], planes)
        random = torch.Generator().manual_seed(seed)
        with evaluating(network), _watching(network, addresses, noisy):
            for _ in range(repeats):
                noise = torch.randn(first.shape, generator=random).to(first_parameter)
                noisy.take(network, (first + sigma * noise).clamp(0, 1))
        layers = [_measured(layer, moving, noisy) for layer in layers]
    plan = _plan(network, example, layers)
    return Inspection(
        type(network).__name__, tuple(example.shape[1:]), tuple(layers), plan, frames, sigma if frames else 0.0
    )


def plan_as_python(inspection: Inspection) -> str:
    """Write the suggested plan as the program text that `stabilize` takes.

    >>> print(plan_as_python(inspect_layers(nn.Identity(), torch.zeros(1, 3, 8, 8))))
    plan = {
        "": Aligned(),
    }
    """
    lines = [f'    "{address}": {_call(template)},' for address, template in inspection.plan.items()]
    return "\n".join(["plan = {", *lines, "}"])


def plan_as_yaml(inspection: Inspection) -> str:
    """Write the suggested plan as a recipe takes it.

    >>> print(plan_as_yaml(inspect_layers(nn.Identity(), torch.zeros(1, 3, 8, 8))))
    adapter:
      plan:
        "": {kind: aligned}
    """
    lines = []
    for address, template in inspection.plan.items():
        settings = ", ".join(
            f"{name}: {value}" for name, value in {"kind": template.kind, **_changed(template)}.items()
        )
        lines.append(f'    "{address}": {{{settings}}}')
    return "\n".join(["adapter:", "  plan:", *lines])


def table(inspection: Inspection, *, depth: int | None = 3) -> Table:
    """Return the layers as a table for the terminal.

    Args:
        inspection: what `inspect_layers` found.
        depth: layers with more dotted parts in their name than this are left out unless suggested; None shows all.
    """
    from rich.markup import escape
    from rich.table import Table

    measured = inspection.frames > 0
    shape = " x ".join(str(n) for n in inspection.frame)
    result = Table(title=f"{escape(inspection.network)} on frames {shape}", caption=_caption(inspection))
    result.add_column("layer", overflow="fold")
    for name, justify in (("type", "left"), ("gives", "left"), ("runs", "right"), ("weights", "right")):
        result.add_column(name, justify=justify)  # type: ignore[arg-type]
    if measured:
        result.add_column("noise left", justify="right")
        result.add_column("video", justify="right")
    result.add_column("stabilize")
    for layer in inspection.layers:
        suggested = layer.address in inspection.plan
        if depth is not None and layer.name.count(".") >= depth and not suggested:
            continue
        numbers = [_percent(layer.noise), _percent(layer.video)] if measured else []
        result.add_row(
            escape(layer.name if layer.name else '"" (output)'),
            escape(layer.type),
            " x ".join(str(n) for n in layer.shape) if layer.shape is not None else "-",
            str(layer.runs),
            f"{layer.parameters:,}",
            *numbers,
            "yes" if suggested else layer.why_not,
            style="bold" if suggested else None,
        )
    return result


def _caption(inspection: Inspection) -> str:
    if not inspection.frames:
        return "Give a video to measure how much flicker each layer carries."
    return (
        f"noise left: of noise {inspection.sigma:g} on a still frame, 100 % as in the frame; "
        f"video: change between its {inspection.frames} frames over contrast"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


# Listing


def _listed(network: nn.Module, example: Tensor) -> list[Layer]:
    """Run the example once and describe each layer, in the order in which they end."""
    found: dict[str, Layer] = {}
    runs: dict[str, int] = {}
    owners: dict[int, tuple[weakref.ref[Tensor], str, int]] = {}  # who gave out a tensor, and its version then

    def note(name: str, layer: nn.Module, output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        if runs[name] > 1:
            return
        listed = Layer(name, type(layer).__name__, parameters=_parameters(layer))
        try:
            selector = main_entry(output, example)
            z = pick(output, selector.removeprefix("::"), name)
        except InputError:
            z = None
        if z is None:
            found[name] = replace(listed, why_not="gives no tensor of floats")
            return
        shape = tuple(z.shape[1:])
        if not is_usable(z, example):
            found[name] = replace(listed, shape=shape, why_not="has no row for every frame")
            return
        # Only references: an activation lives as long as the network needs it.
        found[name] = replace(listed, shape=shape, address=name + selector)
        known = owners.get(id(z))
        if known is not None and known[0]() is z:
            earlier, version = known[1:]
            if not earlier.startswith(f"{name}.") and z._version == version:
                found[name] = replace(found[name], address=None, why_not=f"passes {earlier} on")
                return
            # A block around it, or a layer that worked in place.
            found[earlier] = replace(found[earlier], address=None, why_not=f"the same as {name}")
        owners[id(z)] = (weakref.ref(z), name, z._version)

    handles = [
        layer.register_forward_hook(lambda m, args, output, n=name: note(n, m, output))
        for name, layer in network.named_modules()
        if name
    ]
    try:
        output = run_once(network, example)
    finally:
        for handle in handles:
            handle.remove()
    layers = [
        layer if runs[name] == 1 else replace(layer, runs=runs[name], address=None, why_not="runs more than once")
        for name, layer in found.items()
    ]
    address = main_entry(output, example)
    z = pick(output, address.removeprefix("::"), "The network's output")
    known = owners.get(id(z))
    layers = [
        replace(layer, address=None, why_not="the same as the output")
        if known is not None and known[0]() is z and layer.name == known[1] and layer.address is not None
        else layer
        for layer in layers
    ]
    never = [
        Layer(name, type(layer).__name__, runs=0, parameters=_parameters(layer), why_not="never runs")
        for name, layer in network.named_modules()
        # Lists of layers do not run themselves.
        if name and name not in found and type(layer).forward is not nn.Module.forward
    ]
    frame = Layer("in:", "frame", tuple(example.shape[1:]), address="in:")
    whole = Layer("", type(network).__name__, tuple(z.shape[1:]), parameters=_parameters(network), address=address)
    return [frame, *layers, whole, *never]


def _parameters(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


# Measuring


@dataclass
class _Stream:
    """Running sums of one layer's change and contrast."""

    change: float = 0.0
    changes: int = 0
    contrast: float = 0.0
    count: int = 0
    last: Tensor | None = None
    shape: tuple[int, ...] | None = None
    steady: bool = True
    """Whether every frame of one size gave the same shape."""

    def see(self, z: Tensor, planes: Collection[tuple[int, ...]]) -> None:
        if self.shape is not None and z.shape != self.shape:
            self.steady = False
            self.last = None
        self.shape = tuple(z.shape)
        # A copy: layers that follow may work in place. An odd step, so as not to see the same column in each row.
        sample = z.reshape(-1)[:: (-(-z.numel() // SAMPLE)) | 1].float().clone()
        if self.last is not None:
            self.change += (sample - self.last).square().mean().item()
            self.changes += 1
        self.last = sample
        self.contrast += _variance(z.float(), planes)
        self.count += 1

    def relative(self) -> float | None:
        """Root mean square of the change over that of the contrast."""
        if not self.changes or self.contrast <= 0 or not math.isfinite(self.change + self.contrast):
            return None
        return math.sqrt(self.change / self.changes / (self.contrast / self.count))


def _planes(layers: Iterable[Layer]) -> set[tuple[int, ...]]:
    """Which shapes with two axes are planes (H, W), not tokens (N, C): a frame over a power of two, or a map's of 1."""
    known = [layer.shape for layer in layers if layer.shape is not None]
    height, width = known[0][-2:]  # the frame comes first
    sizes = {(height // 2**i, width // 2**i) for i in range(6)} | {shape[1:] for shape in known if shape[:-2] == (1,)}
    return {shape for shape in known if len(shape) == 2 and shape in sizes}


def _variance(z: Tensor, planes: Collection[tuple[int, ...]]) -> float:
    """The variance of a layer's values around the mean of each channel: over pixels, tokens, or a vector's entries."""
    if z.ndim == 4:
        axes: tuple[int, ...] = (2, 3)
    elif tuple(z.shape[1:]) in planes:
        axes = (1, 2)
    else:
        axes = (1,)
    if math.prod(z.shape[axis] for axis in axes) < 2:  # a pooled map is a vector
        axes = tuple(range(1, z.ndim))
    return z.var(axes, correction=0).mean().item()


class _Streams:
    """One stream for every layer that is watched, for the frames and for the output."""

    def __init__(self, frame: torch.Size, planes: Collection[tuple[int, ...]] = ()) -> None:
        self.frame, self.planes = frame, planes
        self.streams: dict[str, _Stream] = {}

    def see(self, name: str, z: Tensor) -> None:
        self.streams.setdefault(name, _Stream()).see(z, self.planes)

    def take(self, network: nn.Module, x: Tensor) -> None:
        if x.shape[-2:] != self.frame:  # a video of several sizes is several videos
            self.frame = x.shape[-2:]
            for stream in self.streams.values():
                stream.last, stream.shape = None, None
        self.see("in:", x)
        self.see("", _output(network, x))

    def relative(self, name: str) -> float | None:
        return self.streams[name].relative() if name in self.streams else None


@contextmanager
def _watching(network: nn.Module, addresses: Iterable[str], streams: _Streams) -> Iterator[None]:
    handles = []
    for text in addresses:
        layer, is_input, selector = parse(text)
        if not layer or is_input:
            continue  # seen without a hook
        handles.append(
            network.get_submodule(layer).register_forward_hook(
                lambda m, args, output, n=layer, s=selector: streams.see(n, pick(output, s, n))
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _measured(layer: Layer, moving: _Streams, noisy: _Streams) -> Layer:
    if layer.address is None:
        return layer
    if any(not each.streams[layer.name].steady for each in (moving, noisy) if layer.name in each.streams):
        return replace(layer, address=None, why_not="changes its shape from frame to frame")
    survives, whole = noisy.relative(layer.name), noisy.relative("in:")
    noise = survives / whole if survives is not None and whole else None
    return replace(layer, noise=noise, video=moving.relative(layer.name))


def _checked(frame: Any) -> Tensor:
    if isinstance(frame, Tensor):
        x = frame.unsqueeze(0) if frame.ndim == 3 else frame
        if x.ndim == 4 and x.shape[0] == 1:
            return x
    found = f"shape {tuple(frame.shape)}" if isinstance(frame, Tensor) else type(frame).__name__
    raise InputError(f"A video gives one frame (C, H, W) after the other, got {found}.")


# Suggesting


def _plan(network: nn.Module, example: Tensor, layers: list[Layer]) -> dict[str, Stabilizer]:
    """The suggestion that this room's first lines describe."""
    output = next(layer for layer in layers if not layer.name)
    frame = tuple(example.shape[1:])
    planes = _planes(layers)
    tokens = {layer.shape for layer in layers if layer.shape is not None and len(layer.shape) == 2} - planes
    inside = [
        layer
        for layer in layers
        if layer.noise is not None and layer.name and layer.name != "in:"
        if _places(layer, planes) and not _no_map(layer, frame, tokens)
    ]

    def channels(layer: Layer) -> int:
        shape = layer.shape or (0,)
        return 1 if shape in planes else shape[-1] if shape in tokens else shape[0]

    stages = [list(members) for _, members in groupby(inside, lambda layer: _places(layer, planes))]
    stages = [members for members in stages if channels(members[-1]) != channels(output)]
    blocks = {name for name, layer in network.named_modules() if next(layer.children(), None) is not None}
    for members in stages:
        # A tensor before an entry of a tuple, blocks before their parts, the outer before the inner, the last first.
        members.reverse()
        members.sort(key=lambda each: (each.address != each.name, each.name not in blocks, each.name.count(".")))
    before = _output(network, example)
    chosen: list[Layer] = []
    for members in sorted(stages, key=lambda members: -(members[0].noise or 0)):
        if len(chosen) == MOST or (chosen and (members[0].noise or 0) < ENOUGH * (chosen[0].noise or 0)):
            break
        chosen += [each for each in members[:TRIES] if _matters(network, example, str(each.address), before)][:1]
    # What `stabilize` itself will make of the places; in this order they run.
    choices = {
        parse(str(layer.address)): Choice(EMA(layout="plane" if layer.shape in planes else "auto"), False)
        for layer in [*(layer for layer in inside if layer in chosen), output]
    }
    with evaluating(network):
        places = probe(network, choices, example)
    return {str(place.address): _template(place.layout, at_output=not place.address.layer) for place in places}


def _output(network: nn.Module, x: Tensor) -> Tensor:
    y = run_once(network, x)
    return pick(y, main_entry(y, x).removeprefix("::"), "The network's output")


def _matters(network: nn.Module, example: Tensor, text: str, before: Tensor) -> bool:
    """Whether the network's output changes with a layer's: some pass on what they do by other ways."""
    layer, _, selector = parse(text)
    handle = network.get_submodule(layer).register_forward_hook(
        lambda module, args, y: put(y, selector, 2 * pick(y, selector, layer) + 1)
    )
    try:
        return not torch.equal(_output(network, example), before)
    finally:
        handle.remove()


def _places(layer: Layer, planes: Collection[tuple[int, ...]]) -> int:
    """What makes a stage: how many places of the picture a layer gives something for; 0 if it has none."""
    shape = layer.shape or ()
    sizes = shape if shape in planes else shape[1:] if len(shape) == 3 else shape[:1] if len(shape) == 2 else (0,)
    places = math.prod(sizes)
    return places if places > 1 else 0


def _no_map(layer: Layer, frame: tuple[int, ...], tokens: Collection[tuple[int, ...]]) -> bool:
    """Whether a layer gives what only looks like a map (C, H, W).

    Some keep maps as (H, W, C), and within attention it is (heads, N, C / heads) or (heads, N, N). Maps have about the
    proportions of the frame, or are square where a network wants squares; `tokens` are the (N, C) of the same network.
    """
    shape = layer.shape or ()
    if len(shape) != 3:
        return False
    heads, height, width = shape
    if (heads * height, width) in tokens:
        return True
    if height == width:
        return any(height == n != channels and heads < n for n, channels in tokens)
    return not 0.6 < width * frame[1] / (height * frame[2]) < 1.6


def _template(layout: Layout, *, at_output: bool) -> Stabilizer:
    """Aligned needs no training and pictures; inside, averages are controlled, and trained."""
    if at_output:
        return Aligned() if layout in ("map", "plane") else EMA(0.2)
    return Controlled() if layout in ("map", "vector") else Controlled(layout=layout)


def _changed(template: Stabilizer) -> dict[str, Any]:
    """The settings that are not the kind's own."""
    own = describe(type(template)())
    return {name: value for name, value in describe(template).items() if value != own.get(name)}


def _call(template: Stabilizer) -> str:
    settings = ", ".join(f"{name}={value!r}" for name, value in _changed(template).items())
    return f"{type(template).__name__}({settings})"
