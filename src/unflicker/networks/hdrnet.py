"""HDRNet (Gharbi et al., SIGGRAPH 2017): a small network writes colour transforms into a bilateral grid.

A copy of the frame at 256 x 256 goes through convolutions that fill a grid of 16 x 16 cells and 8 levels of
brightness with affine colour transforms. At full size each pixel looks up its transform by its place and by its own
brightness, the guide, so that edges stay sharp. `from_tensorflow` reads the authors' published weights.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError

POINTS = 16  # bends of each guide curve
HIDDEN = 16  # features of the guide network
IN_CACHE = 2**18  # numbers that are worked on at once; more run slower by half at 4K on a CPU
NORM_EPSILON = 1e-3  # of TensorFlow's batch normalisation


class Curves(nn.Module):
    """Bends each channel by a curve of its own, a sum of ramps: slope_k * max(x - shift_k, 0).

    As in the paper's section 3.3 the curves start as the identity on positive values.
    """

    def __init__(self, channels: int = 3, points: int = POINTS) -> None:
        super().__init__()
        self.shifts = nn.Parameter(torch.linspace(0, 1, points + 1)[:-1].repeat(channels, 1))
        self.slopes = nn.Parameter(torch.zeros(channels, points))
        with torch.no_grad():
            self.slopes[:, 0] = 1

    def forward(self, x: Tensor) -> Tensor:
        # max(x - s, 0) is max(x, s) - s: one pass a ramp instead of two.
        shifts, slopes = self.shifts.float(), self.slopes.float()
        constant = -(shifts * slopes).sum(1).view(-1, 1, 1)
        if _as_planes(x):
            y = constant.expand_as(x)
            for shift, slope in zip(shifts.unbind(1), slopes.unbind(1), strict=True):
                y = torch.addcmul(y, torch.maximum(x.float(), shift.view(-1, 1, 1)), slope.view(-1, 1, 1))
            return y.to(x.dtype)
        pieces = []
        with torch.autocast(x.device.type, enabled=False):
            for piece in x.flatten(2).split(max(1, IN_CACHE // slopes.shape[1]), -1):
                ramps = torch.maximum(piece.float().unsqueeze(2), shifts.unsqueeze(-1))
                pieces.append(torch.matmul(slopes.unsqueeze(1), ramps).squeeze(2))
        return (torch.cat(pieces, -1).view(x.shape) + constant).to(x.dtype)


class CurveGuide(nn.Module):
    """The guide of the paper: a change of colour, a curve for each channel, and their weighted sum, clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Conv2d(3, 3, 1)
        self.curves = Curves()
        self.mixing = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.colour.weight.copy_(torch.eye(3)[..., None, None] + 1e-4 * torch.randn(1))
            self.colour.bias.zero_()  # type: ignore[union-attr]
            self.mixing.weight.fill_(1 / 3)
            self.mixing.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.mixing(self.curves(self.colour(x))).clamp(0, 1)


class NetworkGuide(nn.Module):
    """The guide of the authors' later models: a network of two layers that sees one pixel at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, HIDDEN, 1)
        self.conv2 = nn.Conv2d(HIDDEN, 1, 1)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv2(torch.relu(self.conv1(x))))


GUIDES = {"curves": CurveGuide, "network": NetworkGuide}


class HDRNet(nn.Module):
    """Enhances images: (B, 3, H, W) RGB in [0, 1] to the same shape, not clipped. Any size is accepted.

    With the defaults it is the network that Instant Video Models stabilizes: 0.48 M weights in 11 convolutions (four
    in `splat`, two in `local`, two in `overall`, `prediction` and two in `guide`) and three linear layers in
    `overall`. New weights give random colours until they are trained.

    Args:
        width: multiplies the channels inside.
        low_size: height and width of the copy that the convolutions see.
        grid_size: cells of the grid along each side; `low_size` by a power of two, and a multiple of 4.
        bins: levels of brightness in the grid.
        guide: "curves" as in the paper, or "network", as in the authors' later models.

    Raises:
        InputError: sizes that do not fit together, or no such guide.

    >>> net = HDRNet()
    >>> sum(weights.numel() for weights in net.parameters())
    482080
    >>> net(torch.rand(1, 3, 5, 7)).shape
    torch.Size([1, 3, 5, 7])
    """

    def __init__(
        self, *, width: int = 1, low_size: int = 256, grid_size: int = 16, bins: int = 8, guide: str = "curves"
    ) -> None:
        super().__init__()
        if guide not in GUIDES:
            raise InputError(f"The guide of HDRNet is one of {', '.join(map(repr, GUIDES))}, not {guide!r}.")
        halvings = int(math.log2(max(1, low_size // max(1, grid_size))))
        if grid_size < 4 or grid_size % 4 or halvings < 1 or grid_size * 2**halvings != low_size:
            raise InputError(
                "HDRNet needs a grid_size that is a multiple of 4 and a low_size that is 2, 4, 8, ... times as large, "
                f"got grid_size={grid_size} and low_size={low_size}; the paper has 16 and 256."
            )
        if min(width, bins) < 1:
            raise InputError(f"HDRNet needs a width and bins of 1 or more, got width={width} and bins={bins}.")
        self.low_size, self.bins = low_size, bins
        widths = [3, *(width * bins * 2**i for i in range(halvings))]
        channels = 8 * width * bins
        self.splat = _stack(_halved(i + 1, a, b) for i, (a, b) in enumerate(pairwise(widths)))
        self.local = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(widths[-1], channels, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            )
        )
        self.overall = _stack([_halved(1, widths[-1], channels), _halved(2, channels, channels)])
        self.overall.append(nn.Flatten())
        self.overall.add_module("fc1", nn.Linear(channels * (grid_size // 4) ** 2, 4 * channels))
        self.overall.add_module("relu3", nn.ReLU())
        self.overall.add_module("fc2", nn.Linear(4 * channels, 2 * channels))
        self.overall.add_module("relu4", nn.ReLU())
        self.overall.add_module("fc3", nn.Linear(2 * channels, channels))
        self.prediction = nn.Conv2d(channels, 12 * bins, 1)
        _initialise(self)
        self.guide = GUIDES[guide]()

    def forward(self, x: Tensor) -> Tensor:
        low = F.interpolate(x, size=(self.low_size, self.low_size), mode="bilinear", align_corners=False)
        features = self.splat(low)
        mixed = torch.relu(self.local(features) + self.overall(features)[:, :, None, None])
        grid = self.prediction(mixed).unflatten(1, (4, 3, self.bins)).transpose(1, 2)
        x = x.contiguous()  # three channels at full size are worked on as planes; channels-last takes twice the time
        return slice_and_apply(grid, self.guide(x), x)


def _halved(number: int, inputs: int, outputs: int) -> dict[str, nn.Module]:
    """A convolution to half the size; zeros stand below and to the right only, as TensorFlow puts them."""
    return {
        f"pad{number}": nn.ZeroPad2d((0, 1, 0, 1)),
        f"conv{number}": nn.Conv2d(inputs, outputs, 3, stride=2),
        f"relu{number}": nn.ReLU(),
    }


def _stack(parts: Iterable[dict[str, nn.Module]]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(pair for part in parts for pair in part.items()))


def _initialise(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def slice_and_apply(grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
    """Look up each pixel's affine colour transform in a bilateral grid and apply it (the paper's equations 1 and 5).

    The lookup is trilinear; cells are samples at their centres, and outside of the centres the nearest counts, along
    all three axes. (The authors' operator is smoothed by 1e-4 of a bin, for its gradients; this one is exact.)

    Args:
        grid: (B, O, I + 1, bins, h, w): the weights of the I input channels and a constant, for O output channels.
        guide: (B, 1, H, W) in [0, 1], the place along the bins; beyond it the first and last bin count.
        image: (B, I, H, W).

    Returns:
        (B, O, H, W) in the type of `image`; half precision is computed in float32.

    Raises:
        InputError: the shapes do not fit together.

    >>> same = torch.eye(3, 4).view(1, 3, 4, 1, 1, 1).expand(1, 3, 4, 8, 16, 16)
    >>> image = torch.rand(1, 3, 6, 9)
    >>> torch.allclose(slice_and_apply(same, image[:, :1], image), image, atol=1e-6)
    True
    """
    if (
        grid.ndim != 6
        or image.ndim != 4
        or guide.shape != (image.shape[0], 1, *image.shape[-2:])
        or grid.shape[0] != image.shape[0]
        or grid.shape[2] != image.shape[1] + 1
    ):
        raise InputError(
            "slice_and_apply takes a grid (B, O, I + 1, bins, h, w), a guide (B, 1, H, W) and an image (B, I, H, W), "
            f"got {tuple(grid.shape)}, {tuple(guide.shape)} and {tuple(image.shape)}."
        )
    dtype = image.dtype if image.dtype == torch.float64 else torch.float32
    form = _slice_by_bins if _as_planes(image) else _slice_by_strips
    return form(grid.to(dtype), guide.to(dtype), image.to(dtype)).to(image.dtype)


def _as_planes(x: Tensor) -> bool:
    """Whether to work in few passes over whole planes: in graphs, and where every pass costs a launch."""
    return torch.compiler.is_compiling() or x.device.type != "cpu"


def _slice_by_bins(grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
    """The form for graphs and GPUs: each bin's coefficients at full size, weighted by a hat around its centre.

    It makes a small graph for any size. On a CPU the strips are faster without a compiler than this with one.
    """
    size, bins = image.shape[-2:], grid.shape[3]
    place = (guide * bins - 0.5).clamp(0, bins - 1)
    total: Tensor | None = None
    for i, one in enumerate(grid.unbind(3)):
        weight = (1 - (place - i).abs()).clamp_min(0)
        part = weight * F.interpolate(one.flatten(1, 2), size=size, mode="bilinear", align_corners=False)
        total = part if total is None else total + part
    assert total is not None
    coefficients = total.unflatten(1, grid.shape[1:3])
    return (coefficients[:, :, :-1] * image.unsqueeze(1)).sum(2) + coefficients[:, :, -1]


def _slice_by_strips(grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
    """The form for CPUs: small matrix products, one for each row of pixels between two columns of the grid.

    Between two columns a coefficient is linear in x and piecewise linear in the guide: a sum of the functions
    max(guide, 1), ..., max(guide, bins), each once plain and once times x. So a row's coefficients there are a matrix
    product of its 12 x 16 numbers with those 16 functions at its pixels, and nothing is gathered.
    """
    outputs, inputs, bins, _, columns = grid.shape[1:]
    height, width = image.shape[-2:]
    rows = F.interpolate(_as_ramps(grid).flatten(1, 3), size=(height, columns), mode="bilinear", align_corners=False)
    rows = rows.permute(0, 2, 3, 1).unflatten(3, (outputs * inputs, bins))  # (B, H, columns, O * (I + 1), bins)
    knots = torch.arange(1, bins + 1, dtype=grid.dtype, device=grid.device).unsqueeze(1)
    place = (guide * bins + 0.5).clamp(1, bins).transpose(1, 2)  # (B, H, 1, W); bin i has its centre at i + 1
    pixels = image.transpose(1, 2).unsqueeze(3)  # (B, H, I, 1, W)
    x = torch.arange(0.5, width, dtype=grid.dtype, device=grid.device) * (columns / width) - 0.5
    x = x.clamp(0, columns - 1)
    # The first pixel at or behind the centre of each column; what is left and right of all centres joins in.
    starts = [0, *(_first_behind(i, columns, width) for i in range(1, columns - 1)), width]
    band = max(1, IN_CACHE * columns // (2 * bins * width * image.shape[0]))
    bands = []
    with torch.autocast(image.device.type, enabled=False):  # which would round the matrices to bfloat16
        for top in range(0, height, band):
            some = slice(top, top + band)
            strips = []
            for i, (start, end) in enumerate(pairwise(starts)):
                if start == end:
                    continue
                left, right = rows[:, some, i], rows[:, some, min(i + 1, columns - 1)]
                functions = torch.maximum(place[:, some, :, start:end], knots)
                functions = torch.cat([functions, functions * (x[start:end] - i)], 2)
                coefficients = torch.matmul(torch.cat([left, right - left], -1), functions)
                coefficients = coefficients.unflatten(2, (outputs, inputs))
                y = coefficients[:, :, :, -1]
                for channel in range(inputs - 1):
                    y = torch.addcmul(y, coefficients[:, :, :, channel], pixels[:, some, channel, :, start:end])
                strips.append(y)
            bands.append(torch.cat(strips, -1))
    return torch.cat(bands, 1).transpose(1, 2)


def _as_ramps(grid: Tensor) -> Tensor:
    """Along dimension 3, turn the values at 1, ..., bins into weights of max(v, 1), ..., max(v, bins).

    The weights are the changes of slope; the last function is a constant where v <= bins.
    """
    bins = grid.shape[3]
    slopes = grid.diff(dim=3)
    bends = torch.cat([slopes[:, :, :, :1], slopes.diff(dim=3)], 3)
    knots = torch.arange(1, bins, dtype=grid.dtype, device=grid.device).view(-1, 1, 1)
    return torch.cat([bends, (grid[:, :, :, :1] - (bends * knots).sum(3, keepdim=True)) / bins], 3)


def _first_behind(column: int, columns: int, width: int) -> int:
    """Return the first pixel whose centre is not left of the centre of a column of the grid.

    >>> [_first_behind(i, 4, 8) for i in range(4)]
    [1, 3, 5, 7]
    """
    return max(0, -(-((2 * column + 1) * width - columns) // (2 * columns)))


def load_published(file: str | os.PathLike[str]) -> HDRNet:
    """Return the network of one of the authors' checkpoints, in evaluation mode.

    Their files are TensorFlow's. Where TensorFlow is installed, bring a checkpoint into a plain archive of arrays::

        reader = tf.train.load_checkpoint("pretrained_models/local_laplacian/strong_1024")
        names = [name for name in reader.get_variable_to_shape_map() if name.startswith("inference/")]
        np.savez("hdrnet.npz", **{name: reader.get_tensor(name) for name in names})

    and give that .npz file. See `from_tensorflow` for what was checked and what was not.

    Raises:
        InputError: the file cannot be read, or does not hold such a network.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            variables = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise InputError(
            f"{file} cannot be read as an archive of arrays (.npz): {' '.join(str(error).split())}; make it from the "
            "checkpoint as load_published describes."
        ) from None
    settings, weights = _read(variables)
    network = HDRNet(**settings)
    network.load_state_dict(weights)
    return network.eval()


def from_tensorflow(variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn the variables of an authors' checkpoint into the `state_dict` of an `HDRNet` of the same settings.

    Names are those of their code, with or without `inference/` before and `:0` behind; what only training needs is
    left out. Both guides are read. Batch normalisation is folded into the layer before it: the numbers are those of
    inference. The flattened features before `fc1` are reordered, for TensorFlow keeps channels last.

    Not verified: no published file could be had here, only the authors' source and a public C++ port that lists
    the names and shapes in `local_laplacian/strong_1024`. The test runs a randomly filled file of that layout through
    an independent NumPy rendering of the authors' graph. Two things differ from their program on purpose: they shrink
    the frame to 256 x 256 by picking the nearest pixels, this network bilinearly as Instant Video Models does, and
    their lookup is smoothed by 1e-4. Their three-scale variant (`guide/level_0/...`) is not supported.

    Args:
        variables: name -> array.

    Raises:
        InputError: a variable is missing or has an unexpected shape.

    Example::

        net.load_state_dict(from_tensorflow(dict(np.load("hdrnet.npz"))))
    """
    return _read(variables)[1]


def _read(variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings of the network and its weights."""
    found = {name.removesuffix(":0").removeprefix("inference/"): value for name, value in variables.items()}
    if any(name.startswith("guide/level_") for name in found):
        raise InputError("This checkpoint is of the HDRNet with a pyramid of three scales, which is not supported.")

    def take(name: str, ndim: int) -> Tensor:
        if name not in found:
            raise InputError(
                f"A checkpoint of HDRNet must have the variable {name!r}, but it is not among the {len(found)} given; "
                "give all variables under 'inference/'."
            )
        value = np.asarray(found[name])
        if value.ndim != ndim or value.dtype.kind != "f":
            raise InputError(
                f"The variable {name!r} of HDRNet must be a float array of {ndim} dimensions, got {value.dtype} "
                f"{value.shape}."
            )
        return torch.tensor(value, dtype=torch.float32)

    weights: dict[str, Tensor] = {}

    def layer(name: str, theirs: str, *, linear: bool = False, bias: bool = True) -> None:
        weight = take(f"{theirs}/weights", 2 if linear else 4)
        weight = weight.T if linear else weight.permute(3, 2, 0, 1)
        if f"{theirs}/BatchNorm/beta" in found:
            beta, mean, variance = (
                take(f"{theirs}/BatchNorm/{each}", 1) for each in ("beta", "moving_mean", "moving_variance")
            )
            scale = torch.rsqrt(variance + NORM_EPSILON)
            weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            weights[f"{name}.bias"] = beta - mean * scale
        elif bias:
            weights[f"{name}.bias"] = take(f"{theirs}/biases", 1)
        weights[f"{name}.weight"] = weight.contiguous()

    halvings = 1
    while f"coefficients/splat/conv{halvings + 1}/weights" in found:
        halvings += 1
    for i in range(1, halvings + 1):
        layer(f"splat.conv{i}", f"coefficients/splat/conv{i}")
    layer("local.conv1", "coefficients/local/conv1")
    layer("local.conv2", "coefficients/local/conv2", bias=False)
    for i in (1, 2):
        layer(f"overall.conv{i}", f"coefficients/global/conv{i}")
    for i in (1, 2, 3):
        layer(f"overall.fc{i}", f"coefficients/global/fc{i}", linear=True)
    layer("prediction", "coefficients/prediction/conv1")
    if "guide/ccm" in found:
        guide = "curves"
        weights["guide.colour.weight"] = take("guide/ccm", 2).T[..., None, None].contiguous()
        weights["guide.colour.bias"] = take("guide/ccm_bias", 1)
        weights["guide.curves.shifts"] = take("guide/shifts", 4)[0, 0]
        weights["guide.curves.slopes"] = take("guide/slopes", 5)[0, 0, 0]
        layer("guide.mixing", "guide/channel_mixing")
    else:
        guide = "network"
        layer("guide.conv1", "guide/conv1")
        layer("guide.conv2", "guide/conv2")

    channels = weights["overall.conv2.weight"].shape[0]
    bins = weights["prediction.weight"].shape[0] // 12
    cells = math.isqrt(weights["overall.fc1.weight"].shape[1] // max(1, channels))
    settings = {
        "width": max(1, channels // max(1, 8 * bins)),
        "low_size": 4 * cells * 2**halvings,
        "grid_size": 4 * cells,
        "bins": bins,
        "guide": guide,
    }
    flat = weights["overall.fc1.weight"]
    if flat.shape[1] == cells * cells * channels:  # from rows, columns, channels to channels, rows, columns
        weights["overall.fc1.weight"] = flat.view(-1, cells, cells, channels).permute(0, 3, 1, 2).flatten(1)
    with torch.device("meta"):
        expected = HDRNet(**settings).state_dict()
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise InputError(
                f"The weights of {name} in this checkpoint of HDRNet have the shape {tuple(weights[name].shape)}, "
                f"where the other layers make it {tuple(value.shape)}."
            )
    return settings, weights
