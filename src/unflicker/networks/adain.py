"""AdaIN (Huang and Belongie, ICCV 2017): the style of one picture on any other, through the statistics of features.

`encoder` and `decoder` are numbered as in the published files vgg_normalised.pth and decoder.pth.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.networks.base import check_rgb, told

# Instant Video Models only shows this network and names no layers; these are ours: the styled features, the decoder at
# each of its scales, the picture.
SITES = {"mix": "map", "decoder.2": "map", "decoder.15": "map", "decoder.22": "map", "": "map"}
VGG = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512)  # to relu4_1
DECODER = (256, "up", 256, 256, 256, 128, "up", 128, 64, "up", 64)
EPS = 1e-5  # of the published weights


class Mix(nn.Module):
    """Gives features (B, C, h, w) the mean and deviation that each channel has in the style: the paper's equation 8.

    `amount` between 0 and 1 blends from the content's features to the styled ones. Until a style is set it is 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, amount: float) -> None:
        super().__init__()
        self.amount = amount
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, channels, 1, 1), persistent=False)
        self.has_style = False

    def forward(self, z: Tensor) -> Tensor:
        if not self.has_style:
            return z
        mean, std = statistics(z)
        return torch.lerp(z, (z - mean) / std * self.std + self.mean, self.amount)


class AdaIN(nn.Module):
    """Takes frames (B, 3, H, W) RGB in [0, 1] and returns them in the style of a picture, same shape, not clipped.

    Args:
        style: (3, h, w) or (1, 3, h, w) RGB in [0, 1], of any size of at least 16 x 16. None: frames are only encoded
            and decoded, until `set_style`.
        amount: 1 is all of the style, 0 none.

    >>> net = AdaIN(torch.rand(3, 32, 32))
    >>> net(torch.rand(1, 3, 20, 30)).shape
    torch.Size([1, 3, 20, 30])
    """

    def __init__(self, style: Tensor | None = None, *, amount: float = 1.0) -> None:
        super().__init__()
        if not 0 <= amount <= 1:
            raise InputError(f"amount is the share of the style, between 0 and 1, got {amount}.")
        # The first layer turns RGB in [0, 1] into what VGG was trained on.
        layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
        channels = 3
        for each in VGG:
            if isinstance(each, str):
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            else:
                layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, each, 3), nn.ReLU()]
                channels = each
        self.encoder = nn.Sequential(*layers)
        self.mix = Mix(channels, amount)
        layers = []
        for each in DECODER:
            if isinstance(each, str):
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            else:
                layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, each, 3), nn.ReLU()]
                channels = each
        self.decoder = nn.Sequential(*layers, nn.ReflectionPad2d(1), nn.Conv2d(channels, 3, 3))
        self.style: Tensor | None = None
        self.register_load_state_dict_post_hook(_encode_again)
        if style is not None:
            self.set_style(style)

    def set_style(self, style: Tensor) -> None:
        """Take the style of another picture, (3, h, w) or (1, 3, h, w) RGB in [0, 1].

        Raises:
            InputError: it is no such picture.
        """
        picture = style.unsqueeze(0) if style.ndim == 3 else style
        if picture.ndim != 4 or picture.shape[:2] != (1, 3) or min(picture.shape[-2:]) < 16:
            raise InputError(f"A style is one RGB picture (3, h, w) of 16 x 16 or more, got {tuple(style.shape)}.")
        self.style = picture
        with torch.no_grad():
            mean, std = statistics(self.encoder(picture.to(self.mix.mean)))
        self.mix.mean.copy_(mean)
        self.mix.std.copy_(std)
        self.mix.has_style = True

    def forward(self, x: Tensor) -> Tensor:
        check_rgb(x, "AdaIN")
        height, width = x.shape[-2:]
        # Halving rounds up, so that the decoder's picture may be a little larger.
        return self.decoder(self.mix(self.encoder(x)))[..., :height, :width]


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, C, 1, 1) of each channel of features (B, C, h, w).

    >>> [value.item() for value in statistics(torch.full((1, 1, 2, 2), 3.0))][0]
    3.0
    """
    variance, mean = torch.var_mean(z, dim=(2, 3), keepdim=True)
    return mean, (variance + EPS).sqrt()


def load(encoder: str | Path, decoder: str | Path, style: Tensor | None = None, *, amount: float = 1.0) -> AdaIN:
    """Return AdaIN with weights in the layout that was published: vgg_normalised.pth and decoder.pth.

    The first holds all of VGG-19 ("0.weight" to "51.bias"); what lies behind relu4_1 is not used.

    Raises:
        InputError: a file cannot be read, or does not fit.
    """
    network = AdaIN(amount=amount)
    for name, file in (("encoder", encoder), ("decoder", decoder)):
        part = network.get_submodule(name)
        found = _read(file)
        expected = part.state_dict()
        wrong = [key for key in expected if key not in found or found[key].shape != expected[key].shape]
        if wrong:
            raise InputError(
                f"{file} is no {name} of AdaIN: it lacks {', '.join(wrong[:4])} or has them in another size."
            )
        part.load_state_dict({key: found[key] for key in expected})
    if style is not None:
        network.set_style(style)
    return network.eval().requires_grad_(False)


def _read(file: str | Path) -> Mapping[str, Any]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"There is no file {file} with weights; check the name.") from None
    except Exception as error:  # of many kinds, for whatever bytes are not a file of tensors
        raise InputError(f"The weights {file} cannot be read: {told(error)[:200]}.") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{file} holds no weights by name, but a {type(found).__name__}.")
    return found


def _encode_again(network: nn.Module, keys: object) -> None:
    """With other weights the style's statistics are others."""
    if isinstance(network, AdaIN) and network.style is not None:
        network.set_style(network.style)
