"""Exponential moving averages: one fixed decay, or one learned decay per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.functional import scale_odds
from unflicker.stabilizers.base import Layout, Stabilizer
from unflicker.state import State


class EMA(Stabilizer):
    """The present and the last result, averaged with one fixed weight; no parameters.

    result = (1 - decay) z + decay past: Instant Video Models, section 4, "output fixed" and "simple fixed", with
    decay = 1 - beta; the paper tries 0.01 to 0.4.

    Args:
        decay: the weight of the past, in [0, 1).
        layout: see `Stabilizer`.

    >>> ema = EMA(0.5)
    >>> first, second = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    >>> _, state = ema(first, ema.fresh(first), strength=torch.ones(1, 1, 1, 1))
    >>> ema(second, state, strength=torch.ones(1, 1, 1, 1))[0].item()
    0.5
    """

    kind = "ema"

    def __init__(self, decay: float = 0.1, *, layout: Layout = "auto") -> None:
        super().__init__(layout)
        if not 0 <= decay < 1:
            raise InputError(f"EMA's decay is the weight of the past and lies in [0, 1), got {decay}.")
        self.decay = decay

    def rule(
        self, z: Tensor, known: Tensor, state: State, strength: Tensor, contexts: tuple[Tensor, ...]
    ) -> tuple[Tensor, State]:
        decay = scale_odds(torch.full_like(strength, self.decay), strength)
        return torch.lerp(z, state["past"], decay), {}


class LearnedEMA(Stabilizer):
    """The same with a learned decay per channel: Instant Video Models, section 4, "simple learned".

    Args:
        initial_logit: the decay starts at sigmoid(initial_logit); the paper's -4 is a decay of 0.018.
        layout: see `Stabilizer`.

    >>> ema = LearnedEMA()
    >>> ema.build(channels=8, layout="map", context_channels=())
    >>> ema.logit.shape
    torch.Size([8])
    """

    kind = "learned_ema"
    logit: nn.Parameter

    def __init__(self, initial_logit: float = -4.0, *, layout: Layout = "auto") -> None:
        super().__init__(layout)
        self.initial_logit = initial_logit

    def build(self, channels: int, layout: Layout, context_channels: tuple[int, ...]) -> None:
        super().build(channels, layout, context_channels)
        self.logit = nn.Parameter(torch.full((channels,), float(self.initial_logit)))

    def rule(
        self, z: Tensor, known: Tensor, state: State, strength: Tensor, contexts: tuple[Tensor, ...]
    ) -> tuple[Tensor, State]:
        decay = torch.sigmoid(self.logit.to(z.dtype)).view(1, -1, 1, 1)
        return torch.lerp(z, state["past"], scale_odds(decay, strength)), {}
