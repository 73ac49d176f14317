"""Colorization networks: from the lightness of an image to its colour, both without skip connections.

Single-frame Regularization for Temporally Stable CNNs (Eilertsen, Mantiuk, Unger, CVPR 2019), Table 2 and section 5.1,
after Iizuka et al. (SIGGRAPH 2016) without the global features. Layers are rebuilt from the numbers of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError

VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ColorizationAutoencoder(nn.Module):
    """Colours images: lightness (B, 1, H, W), L / 100 of Lab in [0, 1], to a / 100 and b / 100 (B, 2, H, W).

    The small network of the study, 1,568,698 weights: 3x3 convolutions, each with batch norm, strided on the way down
    and after nearest resizing on the way up; the colour comes out at half the size and is doubled. The paper says
    nothing of the last activation: here there is none, for a mean squared error against ab / 100. Colours are not
    clipped.

    Any size is accepted: the border is repeated up to a multiple of 8, and what it made is cut off again.

    Raises:
        InputError: the input is not (B, 1, H, W).

    >>> net = ColorizationAutoencoder().eval()
    >>> net(torch.rand(1, 1, 30, 44)).shape
    torch.Size([1, 2, 30, 44])
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            _layer(1, 32, stride=2),
            _layer(32, 64),
            _layer(64, 64, stride=2),
            _layer(64, 128),
            _layer(128, 128, stride=2),
            _layer(128, 256),
        )
        self.middle = nn.Sequential(_layer(256, 256), _layer(256, 128))
        self.decoder = nn.Sequential(
            _layer(128, 64),
            nn.Upsample(scale_factor=2),
            _layer(64, 32),
            _layer(32, 32),
            nn.Upsample(scale_factor=2),
            _layer(32, 16),
            _layer(16, 2, last=True),
            nn.Upsample(scale_factor=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        _check_lightness(self, x)
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        # About zero, so that the zeros around each convolution are grey rather than black.
        return self.decoder(self.middle(self.encoder(x - 0.5)))[..., :height, :width]


class VGGColorization(nn.Module):
    """Colours images as `ColorizationAutoencoder` does, with the convolutions of VGG16 as its encoder.

    The large network, 18,683,434 weights, or 18,679,202 without batch norm. Where its decoder doubles the size is not
    published: here after the first three of its convolutions, and once more at the end.

    Args:
        batch_norm: normalise after each of the seven new layers; VGG16 itself has none.

    Any size is accepted: the border is repeated up to a multiple of 16, and what it made is cut off again.

    Raises:
        InputError: the input is not (B, 1, H, W).

    >>> net = VGGColorization().eval()
    >>> net(torch.rand(1, 1, 20, 32)).shape
    torch.Size([1, 2, 20, 32])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, batch_norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths in VGG16_WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)  # numbered as in torchvision, up to where the last pooling would be
        self.middle = nn.Sequential(_layer(512, 512, norm=batch_norm), _layer(512, 256, norm=batch_norm))
        self.decoder = nn.Sequential(
            _layer(256, 128, norm=batch_norm),
            nn.Upsample(scale_factor=2),
            _layer(128, 64, norm=batch_norm),
            nn.Upsample(scale_factor=2),
            _layer(64, 64, norm=batch_norm),
            nn.Upsample(scale_factor=2),
            _layer(64, 32, norm=batch_norm),
            _layer(32, 2, norm=batch_norm, last=True),
            nn.Upsample(scale_factor=2),
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _check_lightness(self, x)
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
        grey = (x - self.mean) / self.deviation  # (B, 3, H, W), as VGG16 was trained on
        return self.decoder(self.middle(self.features(grey)))[..., :height, :width]


def load_vgg16(network: VGGColorization, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Put the convolutions of a trained VGG16 (without batch norm) into the encoder of a network.

    Args:
        network: where they go.
        weights: a .safetensors file, a .pth or .pt file that holds nothing but tensors, or tensors by name, named as
            torchvision does: features.0.weight and so on. What else there is, such as the classifier, is left alone.

    Raises:
        InputError: no such file, it cannot be read, or its convolutions are not those of VGG16; the network is as it
            was then.

    >>> net, other = VGGColorization(), VGGColorization(batch_norm=False)
    >>> load_vgg16(net, other.state_dict())
    >>> torch.equal(net.features[28].weight, other.features[28].weight)
    True
    """
    told = "The weights" if isinstance(weights, Mapping) else f"The weights {weights}"
    found: Any = weights if isinstance(weights, Mapping) else _read(Path(weights))
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{told} hold no tensors by name; save them as torch.save(vgg.state_dict(), ...).")
    found = {name.replace("module.", ""): value for name, value in found.items()}  # as DataParallel names them
    expected = network.features.state_dict(prefix="features.")
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(
            f"{told} lack {len(missing)} of the {len(expected)} tensors of VGG16's convolutions, such as "
            f"{missing[0]!r}; take those of torchvision's vgg16, not of vgg16_bn or another network."
        )
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise InputError(
                f"{told} are of another network than VGG16: {name} is {tuple(found[name].shape)}, not "
                f"{tuple(value.shape)}; those of vgg16_bn do not fit."
            )
    network.features.load_state_dict({name.removeprefix("features."): found[name] for name in expected})


def _layer(inputs: int, outputs: int, *, stride: int = 1, norm: bool = True, last: bool = False) -> nn.Sequential:
    """A 3x3 convolution, batch norm, and ReLU but for the last one."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)]
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    if not last:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _check_lightness(network: nn.Module, x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 1:
        raise InputError(
            f"{type(network).__name__} takes the lightness of images, (B, 1, H, W) with L / 100 of Lab in [0, 1], got "
            f"{tuple(x.shape)}."
        )


def _read(file: Path) -> Any:
    if not file.is_file():
        raise InputError(f"There is no file {file} with the weights of VGG16; check the name.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(file))
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zip and safetensors each name their own; all mean the same here
        raise InputError(
            f"The weights {file} cannot be read ({type(error).__name__}): they must be nothing but tensors, saved as "
            "torch.save(vgg.state_dict(), ...) or as safetensors."
        ) from None
