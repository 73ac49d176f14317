"""Blind video consistency (Lai et al., ECCV 2018): a network that steadies what another made of each frame alone.

It sees the video before and after that other network, and needs no optical flow when it runs. Parameter names follow
the authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError

LEAST = 8  # pixels, so that the smallest level is wide enough to be reflected at its border


class PaddedConv(nn.Module):
    """A convolution of an image reflected at its border, after doubling the image's size if asked to."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, stride: int = 1, upsample: bool = False) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(inputs, outputs, kernel_size, stride=stride)
        self.padding = 4 * (kernel_size // 2,)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv2d(F.pad(x, self.padding, mode="reflect"))


class ResidualBlock(nn.Module):
    """Adds two convolutions of its input to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = PaddedConv(channels, channels, 3)
        self.conv2 = PaddedConv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(_leaky(self.conv1(x)))


class ConvLSTM(nn.Module):
    """A long short-term memory at every pixel; its gates see the 3x3 pixels around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Gates = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        take, keep, show, candidate = self.Gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        cell = torch.sigmoid(keep) * cell + torch.sigmoid(take) * torch.tanh(candidate)
        return torch.sigmoid(show) * torch.tanh(cell), cell


class TransformNet(nn.Module):
    """Steadies processed frames, 2,979,555 weights at the published width.

    Called as `net(processed, last_output, frame, last_frame, state)`, all frames (B, 3, H, W) RGB in [0, 1], it
    returns the steady frame, not clipped, and the state for the next. The first frame of a video is taken as it was
    processed, and counts as the last output for the second. Published training detaches the last output and the state.

    Args:
        width: channels at full size; four times as many at a quarter of it.
        blocks: residual blocks.

    The state is {"hidden", "cell"}, each (B, 4 * width, h, w) at a quarter of the size, rounded up; None and zeros
    both start afresh. Any size is accepted: the border is repeated up to a multiple of 4, and cut off again.

    Raises:
        InputError: the frames are not of one shape (B, 3, H, W), or the state is not of such frames.

    >>> net = TransformNet(width=8, blocks=1)
    >>> frames, processed = torch.rand(3, 1, 3, 18, 22), torch.rand(3, 1, 3, 18, 22)
    >>> outputs, state = [processed[0]], None
    >>> for t in range(1, 3):
    ...     y, state = net(processed[t], outputs[-1].detach(), frames[t], frames[t - 1], state)
    ...     outputs.append(y)
    >>> outputs[-1].shape, state["cell"].shape
    (torch.Size([1, 3, 18, 22]), torch.Size([1, 32, 5, 6]))
    """

    def __init__(self, width: int = 32, blocks: int = 5) -> None:
        super().__init__()
        self.conv1a = PaddedConv(6, width, 7)  # a: the processed frame and the last output
        self.conv1b = PaddedConv(6, width, 7)  # b: this frame and the last, as they were
        self.conv2a = PaddedConv(width, 2 * width, 3, stride=2)
        self.conv2b = PaddedConv(width, 2 * width, 3, stride=2)
        self.conv3 = PaddedConv(4 * width, 4 * width, 3, stride=2)
        self.ResBlocks = nn.ModuleList(ResidualBlock(4 * width) for _ in range(blocks))
        self.convlstm = ConvLSTM(4 * width)
        self.deconv1 = PaddedConv(4 * width, 2 * width, 3, upsample=True)
        self.deconv2 = PaddedConv(4 * width, width, 3, upsample=True)
        self.deconv3 = PaddedConv(2 * width, 3, 7)
        self.channels = 4 * width

    def forward(
        self,
        processed: Tensor,
        last_output: Tensor,
        frame: Tensor,
        last_frame: Tensor,
        state: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        shapes = [tuple(each.shape) for each in (processed, last_output, frame, last_frame)]
        if len(set(shapes)) > 1 or processed.ndim != 4 or processed.shape[1] != 3:
            raise InputError(
                "TransformNet takes four frames of one shape (B, 3, H, W): processed, last_output, frame, last_frame; "
                f"got {', '.join(map(str, shapes))}."
            )
        height, width = processed.shape[-2:]
        right, below = _padding(width), _padding(height)

        def pad(one: Tensor, two: Tensor) -> Tensor:
            return F.pad(torch.cat([one, two], 1), (0, right, 0, below), mode="replicate")

        full = _leaky(self.conv1a(pad(processed, last_output)))
        half = _leaky(self.conv2a(full))
        other_half = _leaky(self.conv2b(_leaky(self.conv1b(pad(frame, last_frame)))))
        features = _leaky(self.conv3(torch.cat([half, other_half], 1)))
        for block in self.ResBlocks:
            features = block(features)
        hidden, cell = self.convlstm(features, *self._memory(state, features))
        up = _leaky(self.deconv1(hidden))
        up = _leaky(self.deconv2(torch.cat([up, half], 1)))
        change = torch.tanh(self.deconv3(torch.cat([up, full], 1)))
        return processed + change[..., :height, :width], {"hidden": hidden, "cell": cell}

    def _memory(self, state: dict[str, Tensor] | None, features: Tensor) -> tuple[Tensor, Tensor]:
        if state is None:
            return torch.zeros_like(features), torch.zeros_like(features)
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        expected = tuple(features.shape)
        if shapes != {"hidden": expected, "cell": expected}:
            raise InputError(
                f"The state of TransformNet for these frames is hidden and cell of {expected}, got {shapes}; give None "
                "to start a video, or one of another size."
            )
        return state["hidden"], state["cell"]


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _padding(size: int) -> int:
    """Pixels to add, for a multiple of 4 and no fewer than `LEAST`.

    >>> [_padding(size) for size in (3, 8, 9)]
    [5, 0, 3]
    """
    return max(size + -size % 4, LEAST) - size
