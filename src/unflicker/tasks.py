"""What a task is: a network with its weights, or none, and the adapters that come with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unflicker.checkpoint import compose_adapters, load_adapter
from unflicker.checks import InputError, nearest
from unflicker.model import StabilizedModel, stabilize
from unflicker.networks.nafnet import NAFNet
from unflicker.outputs import main_output
from unflicker.plans import Plan
from unflicker.stabilizers import EMA, Aligned

WEIGHTS = Path(__file__).parent / "weights"
# Adapters that need no training, for every task; "none" passes the network through.
BUILT_IN: dict[str, Plan] = {"aligned": {"": Aligned()}, "ema": {"": EMA(0.2)}, "none": {}}


@dataclass(frozen=True)
class Task:
    """A network for a purpose, ready to run."""

    name: str
    network: Callable[[], nn.Module]
    trained: tuple[str, ...] = ()
    """Adapters in the package, besides those of `BUILT_IN` that every task has."""
    default: str = "aligned"
    weights: bool = True
    """Whether the network has weights in the package."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `load_task` takes, "none" last."""
        return (*self.trained, *BUILT_IN)


SMALL_NAFNET = partial(NAFNet, width=16, encoder_blocks=(1, 1, 2), middle_blocks=2, decoder_blocks=(1, 1, 1))
# denoise: Gaussian noise of unknown strength up to 0.2 (51 of 255); denoise-heavy: 0.6 (153 of 255); none: the video as
# it is, to take its own flicker out.
TASKS = {
    task.name: task
    for task in (
        Task(
            "denoise",
            SMALL_NAFNET,
            trained=("aligned-learned", "spatial", "learned-ema"),
            default="aligned-learned",
        ),
        Task("denoise-heavy", SMALL_NAFNET),
        Task("none", nn.Identity, weights=False),
    )
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
    """Return a task's network alone, frozen, with its weights: (B, 3, H, W) RGB in [0, 1] to the same, not clipped.

    Raises:
        InputError: there is no such task.

    >>> load_network("none")
    Identity()
    """
    task = find_task(name)
    network = task.network().eval().requires_grad_(False)
    if task.weights:
        network.load_state_dict(load_file(str(WEIGHTS / f"{name}.safetensors")))
    # Convolutions on a CPU are a quarter faster on channels-last weights.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_task(name: str, adapter: str | Path = "default") -> StabilizedModel:
    """Return a task's network with an adapter, ready for frames or clips in [0, 1].

    Args:
        name: a key of `TASKS`.
        adapter: "default", the task's own; one of the task's `adapters`; "none" for a model that passes the base
            through; or the folder of an adapter saved with `save_adapter`.

    Raises:
        InputError: an unknown name, or an adapter made for another network.

    >>> model = load_task("denoise", adapter="ema")
    >>> y, state = model(torch.rand(1, 3, 24, 32))
    >>> y.shape
    torch.Size([1, 3, 24, 32])
    """
    return add_adapter(load_network(name), adapter, task=name)


def add_adapter(
    network: nn.Module, adapter: str | Path = "default", *, task: str | None = None, example: Tensor | None = None
) -> StabilizedModel:
    """Put an adapter into a network: one that needs no training, one that comes with a task, or a saved one.

    Args:
        network: takes frames (B, 3, H, W) in [0, 1].
        adapter: "default", which is the task's, else "aligned"; "aligned", "ema" or "none"; the name of one trained
            for the task; or the folder of one saved with `save_adapter`.
        task: the task whose network this is; None for a network of yours.
        example: a frame that the network can take; (1, 3, 64, 64) unless given.

    Raises:
        InputError: there is no such adapter, or it was made for another network.

    >>> sorted(add_adapter(nn.Conv2d(3, 3, 1), "ema").places)
    ['output']
    """
    found = TASKS[task] if task is not None else None
    known = found.adapters if found is not None else tuple(BUILT_IN)
    chosen = adapter
    if adapter == "default":
        chosen = found.default if found is not None else "aligned"
    parts = [_inside(part) for part in _parts(str(chosen))]
    if len(parts) > 1:
        return compose_adapters(network, parts)
    chosen = parts[0]
    if chosen not in known and not (Path(chosen) / "adapter.json").exists():
        if Path(chosen).exists():
            raise InputError(f"{chosen} is no adapter: it has no adapter.json.")
        whose = f"The task {task!r}" if task is not None else "A network of your own"
        hint = nearest(str(chosen), known)
        raise InputError(f"{whose} has no adapter {str(chosen)!r}, and there is no such folder; {hint}")
    if found is not None and chosen in found.trained:
        return load_adapter(network, WEIGHTS / found.name / chosen)
    if chosen not in BUILT_IN:
        return load_adapter(network, chosen)
    example = torch.zeros(1, 3, 64, 64) if example is None else example
    plan = BUILT_IN[str(chosen)]
    if not plan:
        return StabilizedModel(network, {}, (), tuple(example.shape[1:]))
    if task is None:  # a network of yours may return a tuple or a dict
        plan = {main_output(network, example): plan[""]}
    return stabilize(network, plan, example=example)


def _inside(chosen: str) -> str:
    """The adapter in the folder of a training run, if that is what was given."""
    adapter = Path(chosen) / "adapter"
    return str(adapter) if (adapter / "adapter.json").exists() else chosen


def _parts(chosen: str) -> list[str]:
    """The adapters that are joined by a plus; a folder that has one in its name is one adapter."""
    return [chosen] if Path(chosen).exists() else chosen.split("+")
