"""What a task is: a network with its weights, or none, and the adapters that come with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from unflicker.checkpoint import load_adapter
from unflicker.checks import InputError, nearest
from unflicker.model import StabilizedModel, stabilize
from unflicker.networks.nafnet import NAFNet
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
    task = find_task(name)
    chosen = task.default if adapter == "default" else adapter
    if chosen not in task.adapters and not (Path(chosen) / "adapter.json").exists():
        if Path(chosen).exists():
            raise InputError(f"{chosen} is no adapter: it has no adapter.json.")
        hint = nearest(str(chosen), task.adapters)
        raise InputError(f"The task {name!r} has no adapter {str(chosen)!r}, and there is no such folder; {hint}")
    network = load_network(name)
    if chosen in task.trained:
        return load_adapter(network, WEIGHTS / name / chosen)
    if chosen not in BUILT_IN:
        return load_adapter(network, chosen)
    plan = BUILT_IN[str(chosen)]
    if not plan:
        return StabilizedModel(network, {}, (), (3, 64, 64))
    return stabilize(network, plan, example=torch.zeros(1, 3, 64, 64))
