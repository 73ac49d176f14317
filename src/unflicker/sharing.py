"""A base that runs once for each frame, whoever asks, and what makes it steady attached to that."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.model import StabilizedModel, stabilize
from unflicker.outputs import main_entry
from unflicker.stabilizers import Stabilizer


class SharedBase(nn.Module):
    """A base whose output for a frame is computed once, whoever asks for it.

    It hides the base from what is built around it, so that nothing about the base changes.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self._base = (base,)  # a tuple is no submodule
        self._seen: Tensor | None = None
        self._output: Any = None
        self.computed = 0
        """How many times the base has run."""
        self.seconds = 0.0
        """What it took the last time."""

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def forward(self, x: Tensor) -> Any:
        if x is not self._seen:
            start = clock(x)
            self._output = self.base(x)
            self.seconds = clock(x) - start
            self._seen = x
            self.computed += 1
        return self._output

    def shared_by(self, model: StabilizedModel) -> bool:
        return model.base is self


def attach(name: str, model: StabilizedModel | Stabilizer, once: SharedBase, x: Tensor) -> StabilizedModel:
    """Return a method's model, on the shared base where it touches nothing but that base's output.

    A stabilizer goes on the main entry of the output, where that is a tuple or dict.

    Raises:
        InputError: the stabilizer has weights, which nobody has trained.
    """
    if isinstance(model, Stabilizer):
        made = stabilize(once, {main_entry(once(x), x): model}, example=x)
        if any(True for _ in made.parameters()):
            raise InputError(
                f"The method {name!r} is a {type(model).__name__} whose weights are not trained: give the model that "
                "stabilize() made and fit() trained."
            )
        return made
    outside = all(not place.address.layer and not place.address.is_input for place in model.places.values())
    if model.base is not once.base or not outside:
        return model
    copied = copy.copy(model)  # shares all weights; the model itself stays on its base
    copied._modules = {**model._modules, "base": once}
    return copied


def clock(x: Tensor) -> float:
    """Return the time in seconds, once all that was asked of the device of `x` is done.

    >>> clock(torch.zeros(1)) <= clock(torch.zeros(1))
    True
    """
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
