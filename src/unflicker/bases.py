"""Base models: a task's network by its name, a user's own from a file, or one of other packages; and their weights."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unflicker.checks import InputError, nearest
from unflicker.data import open_video
from unflicker.data.layouts import VIPER_CLASSES
from unflicker.data.scenes import CLASSES
from unflicker.networks import adain, deeplab, hub
from unflicker.networks.base import IMAGENET_MEAN, IMAGENET_STD, Framed, Sizing, misfits, needed, told
from unflicker.networks.hdrnet import HDRNet
from unflicker.networks.nafnet import NAFNet
from unflicker.networks.onnx_file import OnnxNetwork
from unflicker.networks.unet import UNet
from unflicker.tasks import TASKS, load_network

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nafnet": NAFNet,
    "hdrnet": HDRNet,
    "deeplab-viper": partial(deeplab.untrained, len(VIPER_CLASSES)),
    "unet-depth": partial(UNet, 1),
    "unet-segment": partial(UNet, len(CLASSES)),
}
WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "net")  # where checkpoints keep weights
RANDOM = "random"


def load_base(name: str, weights: str | Path | None = None) -> nn.Module:
    """Return a network, frozen and in evaluation mode.

    Args:
        name: one of
            a task, whose bundled network is taken;
            one of `NETWORKS`, at its published size and with random weights;
            FILE.py:FUNCTION, a function without arguments that returns the network. The file is imported: it runs
            with all your rights;
            timm:NAME, a classifier of timm;
            hf:OWNER/NAME or hf:./FOLDER, a network of transformers for depth, segmentation, image-to-image or classes;
            smp:ARCHITECTURE:ENCODER, a segmentation network of segmentation-models-pytorch;
            style:PICTURE, AdaIN in the style of a picture, with `weights` a folder of the published files;
            FILE.onnx, run by onnxruntime; only its input and output can be stabilized.
        weights: a .safetensors file, or a .pth or .pt file that holds nothing but tensors; None keeps those the
            network comes with, which timm: and hf: fetch from the hub. "random" leaves those of timm:, hf: and smp:
            untrained, to look at a network without fetching anything.

    The networks of other packages take frames (B, 3, H, W) RGB in [0, 1] like all others: what they want to see is
    prepared inside (`networks.base.Framed`), and their layers are found under "net.".

    Raises:
        InputError: no such task, file or function, the function fails or returns no network, a package is missing,
            the hub cannot be reached, or the weights do not fit; what is missing and what is left over is listed.

    >>> type(load_base("denoise")).__name__
    'NAFNet'
    """
    kind, _, rest = name.partition(":")
    file, colon, function = name.rpartition(":")
    if kind in OTHERS:
        return _of_package(kind, rest, weights).eval().requires_grad_(False)
    if kind == "style":
        return _styled(rest, weights)
    if name.endswith(".onnx"):
        if weights is not None:
            raise InputError(f"{name} has its weights inside; leave {weights} out.")
        return OnnxNetwork(name).eval()
    if colon and file.endswith(".py"):
        network = _made_by(Path(file), function)
    elif name in TASKS:
        network = load_network(name)
    elif name in NETWORKS:
        network = NETWORKS[name]()
    else:
        hint = nearest(name, (*TASKS, *NETWORKS))
        raise InputError(
            f"There is no network {name!r}; {hint} A network of yours is FILE.py:FUNCTION or FILE.onnx, AdaIN is "
            "style:PICTURE, one of other packages timm:NAME, hf:OWNER/NAME, hf:./FOLDER or smp:ARCHITECTURE:ENCODER."
        )
    if weights is not None:
        _load_weights(network, Path(weights))
    return network.eval().requires_grad_(False)


def _of_package(kind: str, name: str, weights: str | Path | None) -> nn.Module:
    """A network of another package, with the weights of a file, its own, or random ones."""
    found = None if weights is None or str(weights) == RANDOM else _read_weights(Path(weights))
    if found and all(key.startswith("net.") for key in found):  # as the network is named within its preparation
        found = {key.removeprefix("net."): value for key, value in found.items()}
    network = OTHERS[kind](name, found, weights is None)
    if found is not None and kind != "hf":
        _put_weights(network.net, found, Path(str(weights)))
    return network


def _timm(name: str, found: Mapping[str, Tensor] | None, trained: bool) -> Framed:
    timm = needed("timm", f"timm:{name}")
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
    settings = timm.get_pretrained_cfg(name)
    if trained and not settings.has_weights:
        raise InputError(f"timm has no weights for {name!r}: give a file of yours with --weights, or --weights random.")
    head = settings.classifier
    classes = _rows(found, f"{head}.weight") if isinstance(head, str) else None
    try:
        net = timm.create_model(name, pretrained=trained, **({} if classes is None else {"num_classes": classes}))
    except Exception as error:
        if not trained:
            raise InputError(f"timm:{name} cannot be made: {told(error)[:300]}.") from error
        raise InputError(
            f"The weights of timm:{name} could not be fetched ({told(error)[:100]}); without network, bring its "
            "model.safetensors here and give it with --weights, or look at the network untrained with --weights random."
        ) from None
    side = settings.input_size[-1]
    if settings.fixed_input_size:
        size = Sizing("exact", *settings.input_size[-2:])
    else:
        size = Sizing("short", round(side / (settings.crop_pct or 1)))
    mode: Any = "bicubic" if settings.interpolation == "bicubic" else "bilinear"
    return Framed(net, mean=settings.mean, std=settings.std, sizing=size, mode=mode)


def _hub(name: str, found: Mapping[str, Tensor] | None, trained: bool) -> Framed:
    return hub.load(name, trained=trained, weights=found)


def _smp(name: str, found: Mapping[str, Tensor] | None, trained: bool) -> Framed:
    smp = needed("segmentation_models_pytorch", f"smp:{name}")
    architecture, colon, encoder = name.partition(":")
    if not colon:
        raise InputError(f"smp:{name} names no encoder; write smp:ARCHITECTURE:ENCODER, as smp:unet:resnet34.")
    if trained:
        raise InputError(
            f"smp:{name} has no trained decoder of its own: give your weights with --weights, or --weights random."
        )
    classes = _rows(found, "segmentation_head.0.weight") or 1
    try:
        net = smp.create_model(architecture, encoder_name=encoder, encoder_weights=None, classes=classes)
    except Exception as error:  # it raises KeyErrors whose text lists everything there is
        raise InputError(f"smp:{name} cannot be made: {told(error)[:200]}.") from None
    # Nearly all encoders of that package were trained with ImageNet's normalisation.
    return Framed(net, mean=IMAGENET_MEAN, std=IMAGENET_STD, sizing=Sizing(multiple=32))


def _styled(picture: str, weights: str | Path | None) -> nn.Module:
    if not Path(picture).is_file():
        raise InputError(f"There is no picture {picture!r} to take the style from; write style:PICTURE.")
    style = open_video(Path(picture)).read([0])[0]
    style = style.float() / 255 if style.dtype == torch.uint8 else style
    if str(weights) == RANDOM:
        return adain.AdaIN(style).eval().requires_grad_(False)
    if weights is None:
        raise InputError(
            "style:PICTURE needs the published weights of AdaIN: give --weights FOLDER, which holds vgg_normalised.pth "
            "and decoder.pth."
        )
    return adain.load(Path(weights) / "vgg_normalised.pth", Path(weights) / "decoder.pth", style)


def _rows(found: Mapping[str, Tensor] | None, name: str) -> int | None:
    """How many classes a file of weights was made for."""
    return len(found[name]) if found is not None and name in found else None


# Given the name, the weights of a file if there are any, and whether to fetch those that were published.
OTHERS: dict[str, Callable[[str, Mapping[str, Tensor] | None, bool], Framed]] = {
    "timm": _timm,
    "hf": _hub,
    "smp": _smp,
}


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
        raise InputError(f"{file} cannot be imported: {told(error)}.") from error
    make = getattr(module, function, None)
    if not callable(make):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"{file} has no function {function!r}; {nearest(function, known)}")
    try:
        network = make()
    except Exception as error:
        raise InputError(f"{function}() of {file} failed: {told(error)}.") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{function}() of {file} must return a torch.nn.Module, but gave {type(network).__name__}.")
    return network


def _load_weights(network: nn.Module, file: Path) -> None:
    _put_weights(network, _read_weights(file), file)


def _read_weights(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise InputError(f"There is no file {file} with weights; check the name.")
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(str(file))
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise InputError(f"The weights {file} cannot be read: {told(error)}.") from None
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
    return found


def _put_weights(network: nn.Module, found: Mapping[str, Tensor], file: Path) -> None:
    expected = network.state_dict()
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    other = [
        f"{name} {tuple(found[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    wrong = misfits(missing, extra, other)
    if wrong:
        raise InputError(f"The weights {file} do not fit {type(network).__name__}: {wrong}.")
    network.load_state_dict(dict(found))
