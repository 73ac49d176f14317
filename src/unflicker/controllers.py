"""The shared network that sees this input and the last, and feeds the stabilizers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.state import State


class Controller(nn.Module):
    """Looks at the present and the last frame and hands a context to every controlled stabilizer.

    Instant Video Models, section 4: g(x_t, x_t-1), `depth` 3x3 convolutions with LeakyReLU(0.01). The paper's runs
    at full resolution (`Controller.paper()`), which can cost more than the base; the default looks at a quarter.

    Args:
        width: channels of every layer and of the context.
        depth: number of convolutions.
        downscale: the frames are averaged over downscale x downscale pixels first; 1 keeps them.
        antialias: average, rather than pick, pixels when the context goes to a smaller feature map.

    >>> controller = Controller(width=4, depth=2)
    >>> controller.build(channels=3)
    >>> frame = torch.rand(1, 3, 20, 30)
    >>> context, state = controller(frame, controller.fresh(frame))
    >>> context.shape
    torch.Size([1, 4, 5, 8])
    """

    def __init__(self, width: int = 16, *, depth: int = 4, downscale: int = 4, antialias: bool = True) -> None:
        super().__init__()
        if min(width, depth, downscale) < 1:
            raise InputError(f"Controller needs positive settings, got {width=}, {depth=}, {downscale=}.")
        self.width = width
        self.depth = depth
        self.downscale = downscale
        self.antialias = antialias
        self.layers = nn.Sequential()

    @classmethod
    def paper(cls, width: int = 32) -> Controller:
        """Return the paper's: seven convolutions at full resolution, 32 wide (16 for Depth Anything)."""
        return cls(width, depth=7, downscale=1, antialias=False)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def build(self, channels: int) -> None:
        """Create the weights for frames with `channels`."""
        inputs = 2 * channels
        for _ in range(self.depth):
            conv = nn.Conv2d(inputs, self.width, 3, padding=1)
            nn.init.xavier_uniform_(conv.weight, nn.init.calculate_gain("leaky_relu", 0.01))
            nn.init.zeros_(conv.get_parameter("bias"))
            self.layers.extend([conv, nn.LeakyReLU(0.01)])
            inputs = self.width

    def fresh(self, frame: Tensor) -> State:
        """Return the state before the first frame: the last frame as seen here, and whether there was one."""
        low = _average(frame, self.downscale)
        return {"frame": torch.zeros_like(low), "seen": frame.new_zeros(frame.shape[0], 1, 1, 1)}

    def forward(self, frame: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Take one frame (B, C, H, W) to its context (B, width, ceil(H / downscale), ceil(W / downscale)).

        Pixels that are not finite, or that `mask` (B, 1, H, W) calls invalid, are left out of the averages; where
        nothing is left the last frame stands in. The first frame is its own predecessor.
        """
        valid = torch.isfinite(frame).all(1, keepdim=True)
        if mask is not None:
            valid = valid & (mask > 0.5)
        share = _average(valid.to(frame.dtype), self.downscale)
        low = _average(torch.where(valid, frame, 0), self.downscale) / share.clamp_min(1e-6)
        low = torch.where((share > 0) & torch.isfinite(low), low, state["frame"])  # sums of huge values overflow
        last = torch.where(state["seen"] > 0, state["frame"], low)
        return self.layers(torch.cat([low, last], 1)), {"frame": low, "seen": torch.ones_like(state["seen"])}

    def context_at(self, context: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Bring a context to the size of a feature map, or to its mean (B, width, 1, 1) for `size` None."""
        if size is None:
            return context.mean((2, 3), keepdim=True)
        if context.shape[-2:] == size:
            return context
        shrinks = self.antialias and (size[0] < context.shape[-2] or size[1] < context.shape[-1])
        return F.interpolate(context, size=size, mode="bilinear", antialias=shrinks)


def _average(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False)
