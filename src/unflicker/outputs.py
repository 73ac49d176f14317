"""What a network returns: the address of the tensor that matters, and how to run an example through it safely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.layers import evaluating, pick
from unflicker.networks.base import told

# As transformers, torchvision and others name what a network is for, the clearest first.
NAMES = ("predicted_depth", "reconstruction", "logits", "out", "sample", "output", "prediction", "pred", "image")


def main_output(network: nn.Module, example: Tensor) -> str:
    """Return the address of a network's main output, as a plan names it: "" for a tensor, else "::ENTRY".

    Among the entries of a tuple or dict it is the one with a name that says so (`NAMES`), else the first picture, of
    the example's proportions, else the first tensor with a row for every frame.

    Args:
        network: takes frames (B, C, H, W).
        example: such frames; run once.

    Raises:
        InputError: the network cannot take the example, or returns no tensor.

    >>> main_output(nn.Identity(), torch.zeros(1, 3, 8, 8))
    ''
    """
    return main_entry(run_once(network, example), example)


def main_entry(value: Any, example: Tensor) -> str:
    """Return the address of the main tensor in what a network returned for an example, as `main_output` does.

    Raises:
        InputError: there is none.

    >>> main_entry({"features": torch.zeros(1, 8), "logits": torch.zeros(1, 5)}, torch.zeros(1, 3, 8, 8))
    '::logits'
    """
    if isinstance(value, Tensor):
        return ""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, (tuple, list)):
        entries = list(enumerate(value))
    usable = [(str(name), each) for name, each in entries if is_usable(each, example)]
    if not usable:
        inside = f" of {len(entries)} entries without one" if entries else ""
        raise InputError(
            f"The network must return a tensor of floats with a row for every frame, or a flat tuple or dict with "
            f"one, got {type(value).__name__}{inside}; wrap it in a module that returns the tensor."
        )
    named = [name for known in NAMES for name, _ in usable if name == known]
    pictures = [name for name, each in usable if _is_picture(each, example)]
    return f"::{[*named, *pictures, usable[0][0]][0]}"


def main_tensor(value: Any, example: Tensor) -> Tensor:
    """Return the main tensor in what a network returned for an example, as `main_entry` finds it.

    Raises:
        InputError: there is none.

    >>> main_tensor((torch.zeros(1, 8), torch.ones(1, 3, 8, 8)), torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """
    return pick(value, main_entry(value, example).removeprefix("::"), "The network's output")


def is_usable(value: Any, example: Tensor) -> bool:
    """Whether a value is a tensor that a stabilizer can take: floats, (B, ...) with 2 to 4 axes.

    >>> is_usable(torch.zeros(1, 5), torch.zeros(1, 3, 8, 8)), is_usable(None, torch.zeros(1, 3, 8, 8))
    (True, False)
    """
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim in (2, 3, 4)
        and value.shape[0] == example.shape[0]
    )


def run_once(network: nn.Module, example: Tensor) -> Any:
    """Return what a network gives for example frames (B, C, H, W), in evaluation mode.

    Raises:
        InputError: it fails; the sentence says with what, and on frames of which shape.

    >>> run_once(nn.Flatten(), torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 192])
    """
    try:
        with evaluating(network), torch.no_grad():
            return network(example)
    except InputError:
        raise
    except Exception as error:  # whatever a network of someone else may raise
        hint = "" if example.shape[1] == 3 else " It may want RGB frames, with three channels."
        raise InputError(
            f"{type(network).__name__} fails on frames {tuple(example.shape)}: {told(error)[:300]}.{hint}"
        ) from error


def _is_picture(value: Tensor, example: Tensor) -> bool:
    if value.ndim < 3:
        return False
    (h, w), (height, width) = value.shape[-2:], example.shape[-2:]
    return 0.9 < h * width / (w * height) < 1.1
