"""The paper's controller-predicted average: a network decides, element by element, how much of the past to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.functional import scale_odds
from unflicker.stabilizers.base import Head, Layout, Stabilizer
from unflicker.state import State


class Controlled(Stabilizer):
    """The present and the last result, averaged with a decay predicted for every element.

    decay = sigmoid(head(g(x_t, x_t-1), z_t, past, z_t-1)): Instant Video Models, section 4, "controlled". Feature
    maps get a head of 3x3 convolutions, tokens and vectors one of linear layers fed with the controller's mean.

    Args:
        hidden: channels inside the head; None is the paper's: 64 for maps, 256 for tokens and vectors.
        feature_inputs: the head also sees the layer's features; False leaves it the controller's context alone,
            which lets independently trained stabilizers be composed with `Chain` (the paper's appendix C).
        layout: see `Stabilizer`.

    >>> controlled = Controlled(hidden=8)
    >>> controlled.build(channels=16, layout="map", context_channels=(4,))
    >>> controlled.head[0].in_channels  # context, z, past and the last z
    52
    """

    kind = "controlled"
    uses_controller = True
    head: Head

    def __init__(self, *, hidden: int | None = None, feature_inputs: bool = True, layout: Layout = "auto") -> None:
        super().__init__(layout)
        if hidden is not None and hidden < 1:
            raise InputError(f"Controlled needs at least one hidden channel, got {hidden=}.")
        self.hidden = hidden
        self.feature_inputs = feature_inputs

    def build(self, channels: int, layout: Layout, context_channels: tuple[int, ...]) -> None:
        super().build(channels, layout, context_channels)
        on_map = layout in ("map", "plane")
        inputs = context_channels[0] + 3 * channels * self.feature_inputs
        hidden = self.hidden or (64 if on_map else 256)
        self.head = Head(inputs, hidden, channels, kernel_size=3 if on_map else 1, bias=-4.0)

    def fresh(self, z: Tensor) -> State:
        return {**super().fresh(z), **({"last": torch.zeros_like(z)} if self.feature_inputs else {})}

    def rule(
        self, z: Tensor, known: Tensor, state: State, strength: Tensor, contexts: tuple[Tensor, ...]
    ) -> tuple[Tensor, State]:
        inputs = [contexts[0].to(z.dtype).expand(-1, -1, *z.shape[-2:])]
        if self.feature_inputs:
            inputs += [z, state["past"], state["last"]]
        decay = torch.sigmoid(self.head(torch.cat(inputs, 1)))
        more = {"last": z} if self.feature_inputs else {}
        return torch.lerp(z, state["past"], scale_odds(decay, strength)), more
