"""The paper's spatial fusion: every pixel gathers its own mixture from a small window of the past."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.functional import spatial_fusion
from unflicker.stabilizers.base import Head, Layout, Stabilizer
from unflicker.state import State


class Spatial(Stabilizer):
    """The present and a K x K window of the last result, mixed with weights predicted for every pixel.

    Instant Video Models, section 4 and appendix D.3. It follows motion up to K // 2 pixels a frame, counted at the
    resolution of the layer. For feature maps (B, C, H, W) and (B, H, W) only.

    Args:
        kernel_size: K, odd; the paper's is 3.
        groups: how many kernels the channels share; it must divide them. None is the paper's: one per channel.
        hidden: channels inside the head; the paper's is 64.
        feature_inputs: the head also sees the layer's features; see `Controlled`.
        paper_exact: repeat two faults of the published code: neighbours outside the frame count as zeros, which
            darkens borders; and the last bias is -4 whatever the window, so that 14 % of the past is mixed in at the
            start where 2 % was meant.
        layout: see `Stabilizer`.

    >>> spatial = Spatial(3, groups=1, hidden=8)
    >>> spatial.build(channels=16, layout="map", context_channels=(4,))
    >>> spatial.head[-1].out_channels
    9
    """

    kind = "spatial"
    uses_controller = True
    head: Head

    def __init__(
        self,
        kernel_size: int = 3,
        *,
        groups: int | None = None,
        hidden: int = 64,
        feature_inputs: bool = True,
        paper_exact: bool = False,
        layout: Layout = "auto",
    ) -> None:
        super().__init__(layout)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"Spatial needs an odd kernel_size of at least 1, got {kernel_size}.")
        if hidden < 1 or (groups is not None and groups < 1):
            raise InputError(f"Spatial needs at least one hidden channel and one group, got {hidden=}, {groups=}.")
        self.kernel_size = kernel_size
        self.groups = groups
        self.hidden = hidden
        self.feature_inputs = feature_inputs
        self.paper_exact = paper_exact

    def build(self, channels: int, layout: Layout, context_channels: tuple[int, ...]) -> None:
        super().build(channels, layout, context_channels)
        if layout not in ("map", "plane"):
            raise InputError(
                f"Spatial needs a feature map (B, C, H, W) or (B, H, W), but this layer returns "
                f"{'tokens (B, N, C)' if layout == 'tokens' else 'vectors (B, C)'}; use Controlled() there."
            )
        groups = channels if self.groups is None else self.groups
        if channels % groups:
            raise InputError(f"Spatial's groups must divide the layer's {channels} channels, got {groups=}.")
        window = self.kernel_size**2
        inputs = context_channels[0] + 3 * channels * self.feature_inputs
        bias = -4.0 if self.paper_exact else -4.0 - math.log(window)
        self.head = Head(inputs, self.hidden, groups * window, kernel_size=3, bias=bias)

    def fresh(self, z: Tensor) -> State:
        return {**super().fresh(z), **({"last": torch.zeros_like(z)} if self.feature_inputs else {})}

    def rule(
        self, z: Tensor, known: Tensor, state: State, strength: Tensor, contexts: tuple[Tensor, ...]
    ) -> tuple[Tensor, State]:
        inputs = [contexts[0].to(z.dtype)]
        if self.feature_inputs:
            inputs += [z, state["past"], state["last"]]
        fused = spatial_fusion(
            z,
            state["past"],
            self.head(torch.cat(inputs, 1)),
            kernel_size=self.kernel_size,
            seen=state["seen"],
            strength=strength,
            paper_exact=self.paper_exact,
        )
        return fused, {"last": z} if self.feature_inputs else {}
