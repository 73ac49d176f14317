"""Base models: a task's network by its name, or a user's own from a Python file, with weights from a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unflicker.checks import InputError, nearest
from unflicker.networks.nafnet import NAFNet
from unflicker.tasks import TASKS, load_network

NETWORKS: dict[str, Callable[[], nn.Module]] = {"nafnet": NAFNet}
WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "net")  # where checkpoints keep weights
SHOWN = 4  # names of weights in a sentence


def load_base(name: str, weights: str | Path | None = None) -> nn.Module:
    """Return a network, frozen and in evaluation mode.

    Args:
        name: a task, whose bundled network is taken; one of `NETWORKS`, at its published size and with random
            weights; or FILE.py:FUNCTION, a function without arguments that returns the network. The file is imported:
            it runs with all your rights.
        weights: a .safetensors file, or a .pth or .pt file that holds nothing but tensors; None keeps those the
            network comes with.

    Raises:
        InputError: no such task, file or function, the function fails or returns no network, or the weights do not
            fit; what is missing and what is left over is listed.

    >>> type(load_base("denoise")).__name__
    'NAFNet'
    """
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        network = _made_by(Path(file), function)
    elif name in TASKS:
        network = load_network(name)
    elif name in NETWORKS:
        network = NETWORKS[name]()
    else:
        hint = nearest(name, (*TASKS, *NETWORKS))
        raise InputError(f"There is no network {name!r}; {hint} A network of yours is FILE.py:FUNCTION.")
    if weights is not None:
        _load_weights(network, Path(weights))
    return network.eval().requires_grad_(False)


def _made_by(file: Path, function: str) -> nn.Module:
    if not file.is_file():
        raise InputError(f"There is no file {file} to take {function!r} from; check the name.")
    folder, module_name = str(file.resolve().parent), file.stem
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that other processes find the module too, and it its own neighbours
    found = importlib.util.find_spec(module_name) if module_name.isidentifier() else None
    if found is None or found.origin is None or Path(found.origin).resolve() != file.resolve():
        raise InputError(f"{file} cannot be imported as {module_name!r}, which is taken or no name: rename the file.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(f"{file} cannot be imported: {_told(error)}.") from error
    make = getattr(module, function, None)
    if not callable(make):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"{file} has no function {function!r}; {nearest(function, known)}")
    try:
        network = make()
    except Exception as error:
        raise InputError(f"{function}() of {file} failed: {_told(error)}.") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{function}() of {file} must return a torch.nn.Module, but gave {type(network).__name__}.")
    return network


def _load_weights(network: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise InputError(f"There is no file {file} with weights; check the name.")
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(str(file))
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise InputError(f"The weights {file} cannot be read: {_told(error)}.") from None
    except Exception:  # torch names its own unpickling error; it asks people to trust the file, which we do not
        raise InputError(
            f"{file} holds more than tensors, or is no file of weights; save it as torch.save(net.state_dict(), ...)."
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{file} holds no weights by name; save it as torch.save(net.state_dict(), ...).")
    if found and all(name.startswith("module.") for name in found):  # as DataParallel names them
        found = {name.removeprefix("module."): value for name, value in found.items()}
    expected = network.state_dict()
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    other = [
        f"{name} {tuple(found[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    wrong = [
        f"{what} {len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, names in (("it lacks", missing), ("it has too many:", extra), ("of another size:", other))
        if names
    ]
    if wrong:
        raise InputError(f"The weights {file} do not fit {type(network).__name__}: {'; '.join(wrong)}.")
    network.load_state_dict(found)


def _told(error: Exception) -> str:
    """An error in one line.

    >>> _told(KeyError("a"))
    "KeyError: 'a'"
    """
    return " ".join(f"{type(error).__name__}: {error}".split())
