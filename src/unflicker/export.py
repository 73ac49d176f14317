"""The stabilized model as one graph with explicit state, for torch.export and ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from unflicker.checks import InputError
from unflicker.layers import evaluating
from unflicker.model import StabilizedModel
from unflicker.state import State


class _Step(nn.Module):
    """One frame in, one frame out, with tensors alone: what a graph can hold."""

    def __init__(self, model: StabilizedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, strength: Tensor, state: State) -> tuple[list[Tensor], State]:
        sized = {"size": frame.new_zeros(frame.shape[0], 0, *frame.shape[-2:]), **state}
        y, following = self.model(frame, sized, strength=strength)
        return list(_outputs(y).values()), {name: following[name] for name in state}


def fresh_state(model: StabilizedModel, frame: Tensor) -> State:
    """Return the all-zero state with which an exported model starts a video of frames like `frame` (B, C, H, W).

    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import EMA
    >>> frame = torch.rand(1, 3, 8, 8)
    >>> model = stabilize(nn.Conv2d(3, 3, 1), {"": EMA(0.1)}, example=frame)
    >>> {name: tuple(value.shape) for name, value in fresh_state(model, frame).items()}
    {'output/past': (1, 3, 8, 8), 'output/seen': (1, 1, 8, 8)}
    """
    with evaluating(model), torch.no_grad():
        _, state = model(frame)
    return {name: torch.zeros_like(value) for name, value in state.items() if name != "size"}


def to_exported_program(model: StabilizedModel, example: Tensor) -> ExportedProgram:
    """Trace one step of the model at the size of `example` (B, C, H, W).

    The program takes (frame, strength (B,), state) and returns (outputs, state); `fresh_state` starts it.

    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import EMA
    >>> frame = torch.rand(1, 3, 8, 8)
    >>> model = stabilize(nn.Conv2d(3, 3, 1), {"": EMA(0.1)}, example=frame)
    >>> program = to_exported_program(model, frame)
    >>> (y,), state = program.module()(frame, torch.ones(1), fresh_state(model, frame))
    >>> bool(torch.allclose(y, model.base(frame)))
    True
    """
    state = fresh_state(model, example)
    strength = torch.ones(example.shape[0], dtype=example.dtype, device=example.device)
    with evaluating(model), torch.no_grad():
        return torch.export.export(_Step(model), (example, strength, state))


def to_onnx(model: StabilizedModel, path: str | Path, example: Tensor) -> dict[str, list[str]]:
    """Write one step of the model as ONNX with named state.

    Inputs: `frame` (B, C, H, W) as `example`, `strength` (B,), and one per state tensor, all zeros for a new video.
    Outputs: `output` (or the names of the base's entries), and for each state input NAME an output `next:NAME` to be
    fed back with the next frame.

    The graph is fixed to the size and batch of `example`; `fresh_state` tells the shapes of the state. Everything is in
    one file, which holds up to 2 GB.

    Returns:
        {"inputs": names, "outputs": names}, in the graph's order.

    Raises:
        InputError: the extra "export" is not installed.
    """
    try:
        import onnx  # noqa: F401
        from onnxscript import ir, optimizer
    except ImportError as error:
        raise InputError(f'Writing ONNX needs {error.name}: pip install "unflicker[export]".') from None
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"The folder {Path(path).parent} does not exist; make it first.")
    program = to_exported_program(model, example)
    state = list(fresh_state(model, example))
    with evaluating(model), torch.no_grad():
        outputs = list(_outputs(model(example)[0]))
    names = {"inputs": ["frame", "strength", *state], "outputs": [*outputs, *(f"next:{name}" for name in state)]}
    # What torch would have done besides, matching patterns, takes four times as long and leaves as fast a graph.
    written = torch.onnx.export(
        program,
        input_names=names["inputs"],
        output_names=names["outputs"],
        verbose=False,
        optimize=False,
    )
    assert written is not None  # as with dynamo, which is the default
    tidy = ir.passes.common
    tidy.InlinePass()(written.model)
    for _ in range(2):  # a second time folds what the first laid open
        optimizer.fold_constants(written.model)
        optimizer.remove_unused_nodes(written.model)
    ir.passes.Sequential(
        tidy.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        tidy.DeduplicateInitializersPass(),
        tidy.CommonSubexpressionEliminationPass(),
    )(written.model)
    written.save(path, external_data=False)
    return names


def _outputs(y: object) -> dict[str, Tensor]:
    """Name the tensors a base returns."""
    if isinstance(y, Tensor):
        return {"output": y}
    entries = y.items() if isinstance(y, dict) else enumerate(y) if isinstance(y, (tuple, list)) else ()
    found = {f"output:{name}": value for name, value in entries if isinstance(value, Tensor)}
    if not found:
        raise InputError(f"The network returns a {type(y).__name__} without tensors; it cannot be exported.")
    return found
