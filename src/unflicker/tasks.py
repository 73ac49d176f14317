"""What a task is: a network with its weights, and the adapters that come with it."""

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
from unflicker.stabilizers import EMA

WEIGHTS = Path(__file__).parent / "weights"
OUTPUT_EMA = 0.2


@dataclass(frozen=True)
class Task:
    """A network for a purpose, ready to run."""

    name: str
    network: Callable[[], nn.Module]
    trained: tuple[str, ...]
    """Adapters in the package, besides "ema" (a fixed average of the output) and "none" that every task has."""
    default: str

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `load_task` takes, "none" last."""
        return (*self.trained, "ema", "none")


SMALL_NAFNET = partial(NAFNet, width=16, encoder_blocks=(1, 1, 2), middle_blocks=2, decoder_blocks=(1, 1, 1))
# denoise: Gaussian noise of unknown strength up to 0.2 (51 of 255); denoise-heavy: 0.6 (153 of 255).
TASKS = {
    task.name: task
    for task in (
        Task(
            "denoise",
            SMALL_NAFNET,
            trained=("spatial", "learned-ema"),
            default="spatial",
        ),
        Task(
            "denoise-heavy",
            SMALL_NAFNET,
            trained=(),
            default="ema",
        ),
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
    """Return a task's network alone, frozen, with its weights: (B, 3, H, W) RGB in [0, 1] to the same, not clipped."""
    network = find_task(name).network()
    network.load_state_dict(load_file(str(WEIGHTS / f"{name}.safetensors")))
    # Convolutions on a CPU are a quarter faster on channels-last weights.
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_task(name: str, adapter: str | Path = "default") -> StabilizedModel:
    """Return a task's network with an adapter, ready for frames or clips in [0, 1].

    Args:
        name: a key of `TASKS`.
        adapter: "default"; one of the task's `adapters`; "none" for a model that passes the base through; or the
            folder of an adapter saved with `save_adapter`.

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
    if chosen == "none":
        return StabilizedModel(network, {}, (), (3, 64, 64))
    if chosen == "ema":
        return stabilize(network, {"": EMA(OUTPUT_EMA)}, example=torch.zeros(1, 3, 64, 64))
    return load_adapter(network, WEIGHTS / name / chosen if chosen in task.trained else chosen)
