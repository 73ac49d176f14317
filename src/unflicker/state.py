"""What passes between frames: a flat dict of tensors, one row of the first axis per stream.

Zero means fresh, so an all-zero state is a new video and single streams are restarted by zeroing their row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unflicker.checks import InputError

State = dict[str, Tensor]


def restart(state: State, which: Tensor) -> State:
    """Return `state` with the streams where `which` (B,) is true started afresh.

    >>> restart({"past": torch.ones(2, 3)}, torch.tensor([True, False]))["past"].sum(1).tolist()
    [0.0, 3.0]
    """
    return {name: value.masked_fill(which.view(-1, *(1,) * (value.ndim - 1)), 0) for name, value in state.items()}


def detach(state: State) -> State:
    """Cut the gradient, as truncated back-propagation does between clips."""
    return {name: value.detach() for name, value in state.items()}


def move(state: State, device: torch.device | str) -> State:
    """Return the state on another device."""
    return {name: value.to(device) for name, value in state.items()}


def select(state: State, streams: slice | Sequence[int]) -> State:
    """Take some streams out of a batch.

    >>> select({"past": torch.arange(3.0)[:, None]}, [2])["past"].tolist()
    [[2.0]]
    """
    return {name: value[streams if isinstance(streams, slice) else list(streams)] for name, value in state.items()}


def join(states: Sequence[State]) -> State:
    """Put streams together into one batch; the states must come from the same model at the same frame size.

    >>> join([{"past": torch.zeros(1, 2)}, {"past": torch.ones(1, 2)}])["past"].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def save(state: State, path: str | Path) -> None:
    """Write a state as safetensors, to go on with the stream later.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save({"past": torch.ones(1, 2)}, f"{folder}/stream.safetensors")
    ...     load(f"{folder}/stream.safetensors")
    {'past': tensor([[1., 1.]])}
    """
    save_file({name: value.contiguous() for name, value in state.items()}, str(path))


def load(path: str | Path) -> State:
    """Read what `save` wrote.

    Raises:
        InputError: there is no such file, or it is no safetensors file.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"The state {path} cannot be read: {error}.") from None


def part(state: State, prefix: str) -> State:
    """Return the entries under `prefix/`, without it."""
    start = prefix + "/"
    return {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}


def under(prefix: str, state: State) -> State:
    """Return the entries with `prefix/` put before their names; undone by `part`."""
    return {f"{prefix}/{name}": value for name, value in state.items()}
