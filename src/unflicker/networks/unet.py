"""A small U-shaped network that says something about every pixel of an image: its depth, or its class."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError

GROUP = 8  # channels that a norm takes together


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, the first one after a group norm."""

    def __init__(self, channels: int, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels // GROUP, channels) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.conv1(self.norm(x))))


class UNet(nn.Module):
    """Maps images (B, in_channels, H, W) in [0, 1] to (B, out_channels, H, W) of any range.

    With one channel out it is trained to relative disparity, 1 / depth up to a scale and shift per image
    (`unflicker.losses.affine_aligned_rmse`): that is finite where the depth is not, errors far away do not drown those
    nearby, and the mean of two guesses is a guess between them, so a stabilizer may blend them. With K channels out
    they are logits of K classes.

    Nothing is shared between the images of a batch, and the network is the same in training and in use. Any size is
    taken: frames are padded to a multiple of 2 ** depth by repeating their border, and cropped again.

    Args:
        out_channels: 1 for disparity, or the number of classes.
        in_channels: 3 for RGB.
        width: channels at full resolution, a multiple of 8; each halving adds as many. The default network has half a
            million weights.
        depth: how often the resolution is halved.
        norm: whether blocks begin with a group norm, whose mean and variance run over the whole image. Without it a
            pixel depends on those in its neighbourhood alone.

    Raises:
        InputError: a number is out of range; when called, the frames are none.

    >>> import torch
    >>> UNet(8, width=8, depth=2)(torch.rand(1, 3, 5, 7)).shape
    torch.Size([1, 8, 5, 7])
    """

    def __init__(
        self, out_channels: int, *, in_channels: int = 3, width: int = 16, depth: int = 4, norm: bool = True
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, width, depth) < 1:
            raise InputError(
                "UNet needs in_channels, out_channels, width and depth of 1 or more, "
                f"got {in_channels}, {out_channels}, {width}, {depth}."
            )
        if width % GROUP:
            raise InputError(f"width must be a multiple of {GROUP}, one group of the norms, got {width}.")
        self.in_channels, self.multiple = in_channels, 2**depth
        channels = [width * (level + 1) for level in range(depth + 1)]
        steps = list(itertools.pairwise(channels))
        self.intro = nn.Conv2d(in_channels, width, 3, padding=1)
        self.encoders = nn.ModuleList(ResidualBlock(fine, norm) for fine, _ in steps)
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in steps)
        self.middle = ResidualBlock(channels[-1], norm)
        self.ups = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in reversed(steps))
        self.decoders = nn.ModuleList(ResidualBlock(fine, norm) for fine, _ in reversed(steps))
        self.ending = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise InputError(f"UNet takes frames (B, {self.in_channels}, H, W), got {tuple(x.shape)}.")
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        features, skips = self.intro(x), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            features = encoder(features)
            skips.append(features)
            features = down(features)
        features = self.middle(features)
        for up, decoder, skip in zip(self.ups, self.decoders, reversed(skips), strict=True):
            # The 1x1 convolution first: it has four times fewer pixels there, and it commutes with the upsampling.
            larger = F.interpolate(up(features), scale_factor=2.0, mode="bilinear", align_corners=False)
            features = decoder(larger + skip)
        return self.ending(features)[..., :height, :width]
