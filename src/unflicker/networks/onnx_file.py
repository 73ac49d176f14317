"""A network out of an ONNX file, run by onnxruntime on the CPU: it can be stabilized at its input and output only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.networks.base import needed, told

TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


class OnnxNetwork(nn.Module):
    """Takes frames (B, C, H, W) as the file's only input wants them, and returns its outputs.

    One output comes as a tensor, several as a dict by name, in the type of the frames. The file is read again after
    a copy or pickle, so that it has to stay where it is.

    Args:
        file: an ONNX file with one input of floats (N, C, H, W).

    Raises:
        InputError: onnxruntime is missing, the file cannot be read, or it has other inputs.
    """

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        self.file = str(file)
        self._session: Any = None
        if not Path(file).is_file():
            raise InputError(f"There is no file {file}; check the name.")
        self._open()

    def forward(self, x: Tensor) -> Any:
        session = self._open()
        (given,) = session.get_inputs()
        if x.ndim != 4 or any(
            isinstance(n, int) and i > 0 and n != x.shape[i] for i, n in enumerate(given.shape) if x.ndim == 4
        ):
            raise InputError(
                f"{self.file} takes frames {_shape(given)}, got {tuple(x.shape)}: "
                "scale the video, or export the network with free height and width."
            )
        frames = x.detach().to("cpu", TYPES[given.type])
        fixed = given.shape[0] if isinstance(given.shape[0], int) else len(frames)
        if len(frames) % fixed:
            raise InputError(f"{self.file} takes {fixed} frames at a time, got {len(frames)}.")
        names = [output.name for output in session.get_outputs()]
        parts = [session.run(names, {given.name: part.numpy()}) for part in frames.split(fixed)]
        outputs = [_joined([part[i] for part in parts], x) for i in range(len(names))]
        return outputs[0] if len(outputs) == 1 else dict(zip(names, outputs, strict=True))

    def extra_repr(self) -> str:
        return self.file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}  # sessions neither pickle nor copy

    def _open(self) -> Any:
        if self._session is None:
            runtime = needed("onnxruntime", self.file)
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            try:
                session = runtime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime has an exception of its own for each way to be wrong
                raise InputError(f"{self.file} cannot be read as an ONNX network: {told(error)[:200]}.") from None
            inputs = session.get_inputs()
            if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) != 4:
                found = ", ".join(f"{each.name} {each.type} {_shape(each)}" for each in inputs) or "none"
                raise InputError(
                    f"{self.file} must have one input, frames of floats (N, C, H, W), but has {found}; "
                    "export it again so that everything else is inside."
                )
            self._session = session
        return self._session


def _shape(node: Any) -> str:
    return "(" + ", ".join(str(n) if n is not None else "?" for n in node.shape) + ")"


def _joined(arrays: list[Any], like: Tensor) -> Tensor:
    joined = torch.cat([torch.from_numpy(array) for array in arrays])
    return joined.to(like) if joined.is_floating_point() else joined.to(like.device)
