"""HDRCNN (Eilertsen et al., SIGGRAPH Asia 2017): rebuilds what a camera clipped, from a single exposure.

The network, its two losses, how its output is joined with the input, and a reader of the authors' weights, with all
numbers as in the authors' code, the one that Single-frame Regularization for Temporally Stable CNNs (CVPR 2019) trains.
Light is linear, and 1 where the sensor clips; a network says ln(light + 1/255).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError

if TYPE_CHECKING:
    import numpy as np

EPS = 1 / 255  # added to light before its logarithm is taken
FADE = 0.05  # the mask of clipped pixels rises over the last of the range up to 1
VGG_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
LUMINANCE = (0.213, 0.715, 0.072)
VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# --- the network ------------------------------------------------------------------------------------------------------


class HDRCNN(nn.Module):
    """Rebuilds clipped light: RGB as displayed (B, 3, H, W) in [0, 1] to ln(light + 1/255) of the same shape.

    The convolutions of VGG16, then five times a transposed convolution, joined with the encoder's features of that
    size in the logarithmic domain; 29,447,332 weights. A fresh network interpolates and adds. `load_published` reads
    the authors' weights, `hdr_loss` trains it, `blend` makes the final image.

    Any size is accepted: the border is repeated up to a multiple of 32, and what it made is cut off again.

    Raises:
        InputError: the input is not (B, 3, H, W).

    >>> net = HDRCNN().eval()
    >>> x = torch.rand(1, 3, 32, 40)
    >>> blend(x, net(x)).shape
    torch.Size([1, 3, 32, 40])
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoders, self.ups, self.fuses = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = 3
        for widths in VGG16_WIDTHS:
            layers: list[nn.Module] = []
            for width in widths:
                layers += [_convolution(channels, width), nn.ReLU()]
                channels = width
            self.encoders.append(nn.Sequential(*layers))
        self.middle = nn.Sequential(_convolution(channels, channels), nn.BatchNorm2d(channels), nn.ReLU())
        for widths in reversed(VGG16_WIDTHS):
            width = widths[-1]
            self.ups.append(nn.Sequential(_doubling(channels, width), nn.BatchNorm2d(width), nn.ReLU()))
            self.fuses.append(_addition(width))
            channels = width
        to_rgb = nn.Conv2d(channels, 3, 1)
        nn.init.xavier_normal_(to_rgb.weight)
        nn.init.zeros_(to_rgb.bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(to_rgb, nn.BatchNorm2d(3), nn.ReLU())
        self.last_fuse = _addition(3)
        self.register_buffer("mean", torch.tensor(VGG_MEAN).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise InputError(f"HDRCNN takes RGB images (B, 3, H, W) in [0, 1], got {tuple(x.shape)}.")
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        features, skips = 255 * x.flip(1) - self.mean, []
        for encoder in self.encoders:
            features = encoder(features)
            skips.append(features)
            features = F.max_pool2d(features, 2)
        features = self.middle(features)
        for up, fuse, skip in zip(self.ups, self.fuses, reversed(skips), strict=True):
            features = fuse(torch.cat([up(features), _to_log_domain(skip / 255)], 1))
        log_light = self.last_fuse(torch.cat([self.head(features), _to_log_domain(x)], 1))
        return log_light[..., :height, :width]


def _to_log_domain(displayed: Tensor) -> Tensor:
    """Values as displayed to the logarithm of light, for which a display's curve is taken to be a square."""
    return torch.log(displayed.square() + EPS)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """A transposed convolution that interpolates each channel bilinearly, to twice the size."""
    layer = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(outputs), range(outputs)] = torch.outer(tent, tent)
        layer.bias.zero_()  # type: ignore[union-attr]
    return layer


def _addition(channels: int) -> nn.Conv2d:
    """A 1x1 convolution that adds the two halves of its input."""
    layer = nn.Conv2d(2 * channels, channels, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels).repeat(1, 2)[..., None, None])
        layer.bias.zero_()  # type: ignore[union-attr]
    return layer


# --- masks, images and losses -----------------------------------------------------------------------------------------


def saturation_mask(image: Tensor) -> Tensor:
    """Return (B, 1, H, W) in [0, 1], how clipped each pixel is: its largest channel, from 0 at 0.95 to 1 at 1.

    Args:
        image: (B, C, H, W), as displayed or light: the input when an image is made, the target in training.

    >>> saturation_mask(torch.tensor([0.5, 0.975, 7.0]).view(1, 1, 1, 3)).flatten().round(decimals=3).tolist()
    [0.0, 0.5, 1.0]
    """
    return ((image.amax(1, keepdim=True) - (1 - FADE)) / FADE).clamp(0, 1)


def log_light(light: Tensor) -> Tensor:
    """Return ln(light + 1/255), the domain of outputs; negative light counts as none.

    As in `SparseJacobian(domain=log_light)`.

    >>> log_light(torch.tensor([1 - 1 / 255, -2.0])).exp().mul(255).round().tolist()
    [255.0, 1.0]
    """
    return torch.log(light.clamp_min(0) + EPS)


def blend(x: Tensor, preds: Tensor) -> Tensor:
    """Return the final image, light of the shape of x: the prediction where the input is clipped, x^2 elsewhere.

    Args:
        x: the input, as displayed, (B, C, H, W) in [0, 1].
        preds: the network's output for it, ln(light + 1/255).

    Where a prediction stands, light may be down to -1/255, as published.

    Raises:
        InputError: the shapes differ.

    >>> x = torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)
    >>> blend(x, log_light(torch.full_like(x, 9.0))).flatten().round(decimals=3).tolist()
    [0.25, 9.0]
    """
    if x.shape != preds.shape:
        raise InputError(f"The input and the prediction must be of one shape, got {_shapes(x, preds)}.")
    return torch.lerp(x.square(), preds.exp() - EPS, saturation_mask(x))


def hdr_loss(
    preds: Tensor,
    target: Tensor,
    *,
    kind: Literal["split", "l2"] = "split",
    illumination: float = 0.5,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the error of predicted light where the sensor clipped, one number.

    Both forms are means over all pixels and channels of squared differences in the logarithmic domain. "l2" compares
    the images, times the mask before squaring. "split" compares their illumination, which is the logarithm of
    luminance under a Gaussian, and their reflectance, which is the rest; the mask comes after squaring.

    Args:
        preds: ln(light + 1/255), (B, 3, H, W), or (B, 1, H, W), which is its own luminance.
        target: light, of the same shape, from 0 on.
        kind: one of the two published forms.
        illumination: weight of the illumination in "split", in [0, 1]; the reflectance has the rest.
        mask: (B, 1, H, W), how much each pixel counts; `saturation_mask(target)` unless given.

    Raises:
        InputError: shapes that do not belong together, no such kind, or a weight outside [0, 1].

    >>> target = 2 * torch.rand(1, 3, 16, 16)
    >>> hdr_loss(log_light(target), target).round(decimals=6)
    tensor(0.)
    """
    if preds.shape != target.shape or preds.ndim != 4 or preds.shape[1] not in (1, 3):
        raise InputError(
            f"hdr_loss compares images of one shape (B, 3, H, W) or (B, 1, H, W), got {_shapes(preds, target)}."
        )
    if kind not in ("split", "l2") or not 0 <= illumination <= 1:
        raise InputError(
            "hdr_loss takes kind 'split' or 'l2' and a weight of the illumination in [0, 1], got "
            f"{kind=}, {illumination=}."
        )
    if mask is None:
        mask = saturation_mask(target)
    elif mask.shape != preds[:, :1].shape:
        raise InputError(f"The mask must be {tuple(preds[:, :1].shape)}, got {tuple(mask.shape)}.")
    logs = log_light(target)
    if kind == "l2":
        return ((preds - logs) * mask).square().mean()
    lit, target_lit = illumination_of(preds), illumination_of(logs)
    difference = lit - target_lit
    error = illumination * difference.square() + (1 - illumination) * (preds - logs - difference).square()
    return (error * mask).mean()


def illumination_of(logs: Tensor) -> Tensor:
    """Return the logarithm of luminance, smoothed by 13x13 pixels with zeros beyond the border, (B, 1, H, W).

    Args:
        logs: ln(light + 1/255), (B, 3, H, W) RGB or (B, 1, H, W).

    >>> illumination_of(torch.full((1, 3, 13, 13), 2.0))[0, 0, 6, 6].round(decimals=5)
    tensor(2.)
    """
    if logs.shape[1] == 3:
        # ln(luminance + eps), since the weights add up to 1; in this form it cannot underflow.
        weights = logs.new_tensor(LUMINANCE).log().view(3, 1, 1)
        logs = torch.logsumexp(logs + weights, 1, keepdim=True)
    line = illumination_kernel().to(logs)
    return F.conv2d(F.conv2d(logs, line.view(1, 1, 1, -1), padding=(0, 6)), line.view(1, 1, -1, 1), padding=(6, 0))


def illumination_kernel() -> Tensor:
    """Return the 13 weights whose outer product with themselves is the 13x13 kernel of the illumination.

    Square roots of the masses of 13 equal bins of a normal distribution; the middle ones of the outer bins lie at two
    standard deviations. The root makes it wider than it looks: its own standard deviation is 3.19 pixels.

    >>> line = illumination_kernel()
    >>> len(line), line.sum().round(decimals=6)
    (13, tensor(1., dtype=torch.float64))
    """
    half_bin = 5 / 13 / 2
    edges = torch.linspace(-2 - half_bin, 2 + half_bin, 14, dtype=torch.float64)
    line = torch.special.ndtr(edges).diff().sqrt()
    return line / line.sum()


def _shapes(one: Tensor, other: Tensor) -> str:
    return f"{tuple(one.shape)} and {tuple(other.shape)}"


# --- the authors' weights ---------------------------------------------------------------------------------------------


def load_published(network: HDRCNN, file: str | Path) -> None:
    """Put the authors' weights, hdrcnn_params.npz or one of its siblings, into a network.

    TensorLayer saved them as 80 arrays in the order in which the layers were made. They come in a pickle, which is
    read here without running it: arrays of numbers are all it may hold. `np.savez(file, *arrays)` is read as well.

    Args:
        network: where they go.
        file: the .npz file.

    Raises:
        InputError: no such file, it holds anything but arrays, or they are not those of HDRCNN; the network is as it
            was then.

    >>> load_published(HDRCNN(), "hdrcnn_params.npz")
    Traceback (most recent call last):
    unflicker.checks.InputError: There is no file hdrcnn_params.npz with weights; check the name.
    """
    arrays = read_arrays(file)
    places = _places(network)
    if len(arrays) != len(places):
        raise InputError(f"HDRCNN has {len(places)} arrays of weights, but {file} holds {len(arrays)}.")
    tensors = []
    for number, (array, (name, place)) in enumerate(zip(arrays, places, strict=True)):
        tensor = torch.from_numpy(array)
        if tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1)  # TensorFlow has rows and columns first
        if tensor.shape != place.shape:
            expected = place.permute(2, 3, 1, 0).shape if place.ndim == 4 else place.shape
            raise InputError(
                f"Array {number} of {file} should be {name} of HDRCNN, {tuple(expected)}, but is {array.shape}."
            )
        tensors.append(tensor)
    with torch.no_grad():
        for tensor, (_, place) in zip(tensors, places, strict=True):
            place.copy_(tensor)


def _places(network: HDRCNN) -> list[tuple[str, Tensor]]:
    """The weights with their names, in TensorLayer's order: batch norm is beta, gamma, mean, variance."""
    layers: list[nn.Module] = [*network.encoders, network.middle]
    for up, fuse in zip(network.ups, network.fuses, strict=True):
        layers += [up, fuse]
    layers += [network.head, network.last_fuse]
    names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    tensors: list[Tensor] = []
    for layer in layers:
        for each in layer.modules():
            if isinstance(each, (nn.Conv2d, nn.ConvTranspose2d)):
                assert each.bias is not None
                tensors += [each.weight, each.bias]
            elif isinstance(each, nn.BatchNorm2d):
                assert each.running_mean is not None and each.running_var is not None
                tensors += [each.bias, each.weight, each.running_mean, each.running_var]
    return [(names[id(tensor)], tensor) for tensor in tensors]


def read_arrays(file: str | Path) -> list[np.ndarray[Any, Any]]:
    """Return the arrays of an .npz file: the list `params` of TensorLayer, or plain arrays arr_0, arr_1 and so on.

    Raises:
        InputError: no such file, no .npz, or it holds anything but arrays of floats.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/two.npz", np.ones(3, "f4"), np.zeros((2, 2), "f4"))
    ...     [array.shape for array in read_arrays(f"{folder}/two.npz")]
    [(3,), (2, 2)]
    """
    import numpy as np

    file = Path(file)
    if not file.is_file():
        raise InputError(f"There is no file {file} with weights; check the name.")
    try:
        with zipfile.ZipFile(file) as archive:
            if "params.npy" in archive.namelist():
                with archive.open("params.npy") as stream:
                    arrays = _object_array(stream)
            else:
                with np.load(file, allow_pickle=False) as plain:
                    arrays = [plain[f"arr_{number}"] for number in range(len(plain.files))]
    except InputError as error:
        raise InputError(f"{file} cannot be read as a list of arrays: {error}") from None
    except Exception as error:  # zip, numpy and damaged bytes each raise their own
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{file} cannot be read as a list of arrays ({told}).") from None
    if not all(isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in arrays):
        raise InputError(f"{file} holds more than arrays of floats.")
    return [np.array(array, dtype=np.float32) for array in arrays]


@dataclass
class _Stored:
    """An array on its way out of a pickle: what numpy rebuilds it with, once that has come."""

    value: Any = None


def _object_array(stream: IO[bytes]) -> Sequence[Any]:
    """Read an array of arrays from an .npy file, whose pickle is taken apart, not run."""
    import pickletools

    import numpy as np

    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if not read_header[version](stream)[2].hasobject:
        raise InputError("its params are a single array.")
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    argument: Any  # what comes with an operation: a name, a number, the bytes of an array
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        elif name == "STOP":
            break
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name == "GLOBAL":
            stack.append(("global", *argument.split(" ")))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [("global", *stack[-2:])]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memory[argument] = stack[-1]
        elif name == "MEMOIZE":
            memory[len(memory)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memory[argument])
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST"):
            stack.append(() if name == "EMPTY_TUPLE" else [])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "LIST":
            stack.append(since_mark())
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = _called(stack[-1], arguments)
        elif name == "BUILD":
            state = stack.pop()
            _fill(stack[-1], state)
        elif isinstance(argument, (str, bytes, int)):
            stack.append(argument)
        else:
            raise InputError(f"it holds more than arrays ({name}).")
    (stored,) = stack
    return [item.value if isinstance(item, _Stored) else item for item in stored.value]


def _called(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What one of the three functions that make arrays returns; the others are not called."""
    import numpy as np

    if function in (
        ("global", "numpy.core.multiarray", "_reconstruct"),
        ("global", "numpy._core.multiarray", "_reconstruct"),
    ):
        return _Stored()
    if function == ("global", "numpy", "dtype") and isinstance(arguments[0], str):
        return _Stored(np.dtype(arguments[0]))
    if function == ("global", "_codecs", "encode") and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")
    raise InputError(f"it holds more than arrays ({' '.join(map(str, function))}).")


def _fill(stored: Any, state: tuple[Any, ...]) -> None:
    """Give an array, or the type of its elements, what was saved of it."""
    import numpy as np

    if not isinstance(stored, _Stored):
        raise InputError("it holds more than arrays.")
    if isinstance(stored.value, np.dtype):
        stored.value = stored.value.newbyteorder(state[1])
        return
    _, shape, kind, by_columns, data = state
    if kind.value.hasobject:
        stored.value = data
        return
    if isinstance(data, str):  # Python 2 wrote bytes as strings
        data = data.encode("latin-1")
    if math.prod(shape) * kind.value.itemsize != len(data):
        raise InputError("an array has too few or too many numbers.")
    stored.value = np.frombuffer(data, kind.value).reshape(shape, order="F" if by_columns else "C")
