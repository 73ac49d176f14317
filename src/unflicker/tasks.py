"""What a task is: a network with its weights, or none, and the adapters that come with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unflicker.checkpoint import compose_adapters, load_adapter
from unflicker.checks import InputError, nearest
from unflicker.data.scenes import CLASSES
from unflicker.kinds import Kind, output_kinds
from unflicker.model import StabilizedModel, stabilize
from unflicker.networks import adain, classifier, deeplab, depth_anything
from unflicker.networks.adain import AdaIN
from unflicker.networks.base import Framed
from unflicker.networks.classifier import Classifier
from unflicker.networks.deeplab import DeepLab
from unflicker.networks.depth_anything import DepthAnything
from unflicker.networks.hdrnet import HDRNet
from unflicker.networks.nafnet import NAFNet
from unflicker.networks.unet import UNet
from unflicker.outputs import main_entry, main_tensor, run_once
from unflicker.plans import Plan
from unflicker.stabilizers import EMA, Aligned, Controlled, Layout, Merged, Spatial, Stabilizer
from unflicker.stabilizers.aligned import Signal

WEIGHTS = Path(__file__).parent / "weights"
# Adapters that need no training, for every task, and for denoisers; "none" passes the network through.
BUILT_IN = ("aligned", "ema", "none")
FOR_DENOISERS = ("aligned-recover", "merged")
PRESETS = ("paper",)
SIGNALS: dict[Kind, Signal] = {"pictures": "image", "own depth": "depth", "labels": "logits", "classes": "logits"}


@dataclass(frozen=True)
class Task:
    """A network for a purpose, and all that goes with the purpose."""

    name: str
    network: Callable[[], nn.Module]
    signal: Signal = "image"
    """What the network returns, and so the space in which results are averaged: values as they are shown for
    "image", disparity for "depth", logits for "logits"."""
    trained: tuple[str, ...] = ()
    """Adapters in the package, besides those of `BUILT_IN` that every task has."""
    default: str = "aligned"
    denoises: bool = False
    """Whether the picture is to be what the input is without its noise: detail can be recovered from the input, and
    averages of it can stand for it."""
    weights: bool = True
    """Whether the network has weights in the package."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `load_task` takes, "none" last."""
        return (*self.trained, *(FOR_DENOISERS if self.denoises else ()), *BUILT_IN)


def _styled() -> nn.Module:
    raise InputError(
        "The task style takes a picture and the published weights of AdaIN: give --model style:PICTURE with --weights "
        "FOLDER, which holds vgg_normalised.pth and decoder.pth."
    )


SMALL_NAFNET = partial(NAFNet, width=16, encoder_blocks=(1, 1, 2), middle_blocks=2, decoder_blocks=(1, 1, 1))
# denoise: Gaussian noise of unknown strength up to 0.2 (51 of 255); denoise-heavy: of 0.6 (153 of 255), and averages
# of such frames; enhance: HDRNet, details brought out; depth: disparity up to scale and shift; segment: the
# classes of `unflicker.data.scenes.CLASSES`; style and classify: published weights alone; none: the video as it is, to
# take its own flicker out.
TASKS = {
    task.name: task
    for task in (
        Task(
            "denoise",
            SMALL_NAFNET,
            trained=("aligned-learned", "spatial", "learned-ema"),
            default="aligned-learned",
            denoises=True,
        ),
        Task("denoise-heavy", SMALL_NAFNET, default="merged", denoises=True),
        Task(
            "enhance",
            HDRNet,
            trained=("aligned-learned", "aligned-spatial", "aligned-jpeg"),
            default="aligned-learned",
        ),
        Task(
            "depth",
            partial(UNet, 1),
            signal="depth",
            trained=("aligned-learned",),
            default="aligned-learned",
        ),
        Task(
            "segment",
            partial(UNet, len(CLASSES)),
            signal="logits",
            trained=("aligned-learned",),
            default="aligned-learned",
        ),
        Task("style", _styled, weights=False),
        Task(
            "classify",
            classifier.load,
            signal="logits",
            weights=False,
        ),
        Task("none", nn.Identity, weights=False),
    )
}
# Where the papers put stabilizers, by network; where they name no place (U-Net, AdaIN), the like.
SITES: dict[type[nn.Module], Mapping[str, str]] = {
    NAFNet: {"encoders.*.*": "map", "middle_blks.*": "map", "decoders.*.*": "map", "": "map"},
    HDRNet: {
        **{"splat.conv*": "map", "local.conv*": "map", "overall.conv*": "map", "overall.fc*": "vector"},
        **{"prediction": "map", "guide.colour": "map", "guide.mixing": "map", "": "map"},
    },
    DepthAnything: depth_anything.PAPER_SITES,
    DeepLab: deeplab.PAPER_SITES,
    Classifier: classifier.PAPER_SITES,
    AdaIN: adain.SITES,
    UNet: {"encoders.*": "map", "middle": "map", "decoders.*": "map", "": "map"},
}

INSIDE: dict[str, type[nn.Module]] = {
    "DepthAnythingForDepthEstimation": DepthAnything,
    "MobileNetV2ForSemanticSegmentation": DeepLab,
    "ResNetForImageClassification": Classifier,
}


def find_task(name: str) -> Task:
    """Return a task by name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in TASKS:
        raise InputError(f"There is no task {name!r}; {nearest(name, TASKS)}")
    return TASKS[name]


def load_network(name: str) -> nn.Module:
    """Return a task's network alone, frozen, with its weights, which takes frames (B, 3, H, W) RGB in [0, 1].

    It returns pictures of the same size and range, not clipped; for depth disparity (B, 1, H, W) up to scale and
    shift, for segment logits (B, K, H, W), for classify logits (B, K).

    Raises:
        InputError: there is no such task, or its weights have to be fetched and cannot be.

    >>> load_network("none")
    Identity()
    """
    task = find_task(name)
    network = task.network().eval().requires_grad_(False)
    if task.weights:
        network.load_state_dict(load_file(str(WEIGHTS / f"{name}.safetensors")))
    # Convolutions on a CPU are a quarter faster on channels-last weights.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_task(name: str, adapter: str | Path = "default", *, preset: str | None = None) -> StabilizedModel:
    """Return a task's network with an adapter, ready for frames or clips in [0, 1].

    Args:
        name: a key of `TASKS`.
        adapter: "default", the task's own; one of the task's `adapters`; "none" for a model that passes the base
            through; or the folder of an adapter saved with `save_adapter`.
        preset: "paper" for controlled averages at the paper's layers instead, which nobody has trained: for `fit`.

    Raises:
        InputError: an unknown name, or an adapter made for another network.

    >>> model = load_task("denoise", adapter="ema")
    >>> y, state = model(torch.rand(1, 3, 24, 32))
    >>> y.shape
    torch.Size([1, 3, 24, 32])
    """
    network = load_network(name)
    if preset is None:
        return add_adapter(network, adapter, task=name)
    if preset not in PRESETS:
        raise InputError(f"There is no preset {preset!r}; {nearest(preset, PRESETS)}")
    return stabilize(network, paper_plan(network), example=torch.zeros(1, 3, 64, 64))


def add_adapter(
    network: nn.Module, adapter: str | Path = "default", *, task: str | None = None, example: Tensor | None = None
) -> StabilizedModel:
    """Put an adapter into a network: one that needs no training, one that comes with a task, or a saved one.

    Args:
        network: takes frames (B, 3, H, W) in [0, 1].
        adapter: "default", which is the task's, else "aligned"; "aligned", "ema" or "none"; for a denoiser
            "aligned-recover" and, if it takes averages of frames, "merged"; the name of one trained for the task; or
            the folder of one saved with `save_adapter`.
        task: the task whose network this is; None for a network of yours.
        example: a frame that the network can take; (1, 3, 64, 64) unless given.

    Raises:
        InputError: there is no such adapter, or it was made for another network.

    >>> sorted(add_adapter(nn.Conv2d(3, 3, 1), "ema").places)
    ['output']
    """
    found = TASKS[task] if task is not None else None
    known = found.adapters if found is not None else (*FOR_DENOISERS, *BUILT_IN)
    chosen = adapter
    if adapter == "default":
        chosen = found.default if found is not None else "aligned"
    parts = [_inside(part) for part in _parts(str(chosen))]
    if len(parts) > 1:
        here = found.trained if found is not None else ()
        return compose_adapters(network, [str(WEIGHTS / str(task) / each) if each in here else each for each in parts])
    chosen = parts[0]
    if chosen not in known and not (Path(chosen) / "adapter.json").exists():
        if Path(chosen).exists():
            raise InputError(f"{chosen} is no adapter: it has no adapter.json.")
        whose = f"The task {task!r}" if task is not None else "A network of your own"
        hint = nearest(str(chosen), known)
        raise InputError(f"{whose} has no adapter {str(chosen)!r}, and there is no such folder; {hint}")
    if found is not None and chosen in found.trained:
        return load_adapter(network, WEIGHTS / found.name / chosen)
    if chosen not in known:
        return load_adapter(network, chosen)
    example = torch.zeros(1, 3, 64, 64) if example is None else example
    if chosen == "none":
        return StabilizedModel(network, {}, (), tuple(example.shape[1:]))
    if chosen == "merged":
        return stabilize(network, {"in:": Merged()}, example=example)
    entry, signal = "", found.signal if found is not None else None
    if signal is None:  # a network of yours may return a tuple or a dict
        output = run_once(network, example)
        entry = main_entry(output, example)
        signal = SIGNALS[output_kinds(main_tensor(output, example))[0]]
    stabilizer = EMA(0.2) if chosen == "ema" else Aligned(signal=signal, recover=chosen == "aligned-recover")
    return stabilize(network, {entry: stabilizer}, example=example)


def paper_plan(network: nn.Module, stabilizer: Stabilizer | None = None) -> Plan:
    """Return the plan that puts a stabilizer where the papers do: the preset "paper".

    Args:
        network: one of `SITES`: of Instant Video Models, section 5 and appendix D, and two that the papers do not
            stabilize, U-Net and AdaIN, in the same manner.
        stabilizer: what goes there; `Controlled` unless given. `Spatial` needs maps: vectors get `Controlled`.

    Raises:
        InputError: it is another network.

    >>> sorted(paper_plan(UNet(1)))
    ['', 'decoders.*', 'encoders.*', 'middle']
    """
    kind = type(network)
    if isinstance(network, Framed):  # as `hf:` gives it
        kind = INSIDE.get(type(network.net).__name__, kind)
    if kind not in SITES:
        known = ", ".join(kind.__name__ for kind in SITES)
        raise InputError(
            f"The papers name no layers of a {type(network).__name__}, only of {known}: name yours in a plan, which "
            "`unflicker inspect` suggests."
        )
    template = Controlled() if stabilizer is None else stabilizer
    plan: dict[str, Stabilizer | None] = {}
    for layer, layout in SITES[kind].items():
        flat = isinstance(template, Spatial) and layout not in ("map", "plane")
        here = Controlled() if flat else copy.deepcopy(template)
        here.layout = cast(Layout, layout)
        plan[layer] = here
    return plan


def _inside(chosen: str) -> str:
    """The adapter in the folder of a training run, if that is what was given."""
    adapter = Path(chosen) / "adapter"
    return str(adapter) if (adapter / "adapter.json").exists() else chosen


def _parts(chosen: str) -> list[str]:
    """The adapters that are joined by a plus; a folder that has one in its name is one adapter."""
    return [chosen] if Path(chosen).exists() else chosen.split("+")
