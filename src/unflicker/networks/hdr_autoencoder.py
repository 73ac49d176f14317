"""A small network that rebuilds what a camera clipped, of one channel: HDR from a single exposure.

Single-frame Regularization for Temporally Stable CNNs (Eilertsen, Mantiuk, Unger, CVPR 2019), Table 2, after HDRCNN
(Eilertsen et al. 2017). Layers are rebuilt from the published number of weights, 1,289,653.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError

WIDTHS = (16, 32, 64, 128, 128)
EPS = 1 / 255  # added to light before its logarithm is taken


class HDRAutoencoder(nn.Module):
    """Rebuilds clipped light: (B, 1, H, W) as displayed, in [0, 1], to ln(light + 1/255), where the sensor clips at 1.

    Five levels of 3x3 convolutions and max pooling, transposed 4x4 convolutions on the way back, additive skip
    connections from before each pooling, batch norm after every layer. Two arrangements have exactly the published
    number of weights:

    Args:
        variant: "A" has both convolutions of a level in the encoder; "B" has one there, and one in the decoder after
            the addition.
        input_skip: add ln(x^2 + 1/255), the light of the input, to the output, as HDRCNN's last layer does at first;
            whether the paper does is not known.

    Any size is accepted: the border is repeated up to a multiple of 32, and what it made is cut off again.

    Raises:
        InputError: no such variant; the input is not (B, 1, H, W).

    >>> net = HDRAutoencoder().eval()
    >>> net(torch.rand(2, 1, 40, 64)).shape
    torch.Size([2, 1, 40, 64])
    """

    def __init__(self, variant: Literal["A", "B"] = "A", *, input_skip: bool = False) -> None:
        super().__init__()
        if variant not in ("A", "B"):
            raise InputError(f"HDRAutoencoder comes as variant 'A' or 'B', got {variant!r}.")
        self.input_skip = input_skip
        self.encoders, self.ups, self.decoders = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = 1
        for width in WIDTHS:
            layers = [_layer(channels, width)] + ([_layer(width, width)] if variant == "A" else [])
            self.encoders.append(nn.Sequential(*layers))
            channels = width
        for width in reversed(WIDTHS):
            deconvolution = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)
            self.ups.append(nn.Sequential(deconvolution, nn.BatchNorm2d(width), nn.ReLU()))
            self.decoders.append(_layer(width, width) if variant == "B" else nn.Identity())
            channels = width
        self.output = nn.Sequential(nn.Conv2d(channels, 1, 3, padding=1), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1:
            raise InputError(f"HDRAutoencoder takes images of one channel, (B, 1, H, W), got {tuple(x.shape)}.")
        height, width = x.shape[-2:]
        features = F.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        skips = []
        for encoder in self.encoders:
            features = encoder(features)
            skips.append(features)
            features = F.max_pool2d(features, 2)
        for up, decoder, skip in zip(self.ups, self.decoders, reversed(skips), strict=True):
            features = decoder(up(features) + skip)
        log_light = self.output(features)[..., :height, :width]
        return log_light + torch.log(x.square() + EPS) if self.input_skip else log_light


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
