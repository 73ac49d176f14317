"""A causal Gaussian over the last few frames: the strongest of the simple baselines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.stabilizers.base import Layout, Stabilizer
from unflicker.state import State


class Gaussian(Stabilizer):
    """The last `window` unstabilized frames, weighted by exp(-age^2 / (2 sigma^2)) over those that exist.

    Instant Video Models, appendix, the "Gaussian" baseline (there with window 20 and sigma 0.5 to 6, on the output).
    The state grows with the window: window - 1 copies of the layer's output.

    Args:
        window: frames that take part, the present one included; at least 1.
        sigma: width in frames, positive.
        layout: see `Stabilizer`.

    >>> Gaussian(window=3, sigma=1.0).weights()
    [0.6065306597126334, 0.1353352832366127]
    """

    kind = "gaussian"

    def __init__(self, window: int = 4, sigma: float = 1.0, *, layout: Layout = "auto") -> None:
        super().__init__(layout)
        if window < 1 or not sigma > 0:
            raise InputError(f"Gaussian needs a window of at least 1 and a positive sigma, got {window=}, {sigma=}.")
        self.window = window
        self.sigma = sigma

    def weights(self) -> list[float]:
        """Return the weight of the frames 1, 2, ... back against a present of weight 1."""
        return [math.exp(-(age**2) / (2 * self.sigma**2)) for age in range(1, self.window)]

    def fresh(self, z: Tensor) -> State:
        frames = z.new_zeros(z.shape[0], self.window - 1, *z.shape[1:])
        return {**super().fresh(z), "frames": frames, "frames_seen": torch.zeros_like(frames[:, :, :1])}

    def rule(
        self, z: Tensor, known: Tensor, state: State, strength: Tensor, contexts: tuple[Tensor, ...]
    ) -> tuple[Tensor, State]:
        frames, seen = state["frames"], state["frames_seen"]
        total, fused = torch.ones_like(strength), z
        for age, weight in enumerate(self.weights()):
            share = weight * strength * seen[:, age]
            total = total + share
            fused = fused + share * frames[:, age]
        more = {
            "frames": torch.cat([z.unsqueeze(1), frames], 1)[:, : self.window - 1],
            "frames_seen": torch.cat([known.unsqueeze(1), seen], 1)[:, : self.window - 1],
        }
        return fused / total, more
