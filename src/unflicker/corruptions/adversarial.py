"""Attacks on a model that can be differentiated."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.corruptions.base import check_clip, check_seed


class IFGSM:
    """The iterated fast gradient sign attack: push what a model says of a frame up or down, the side drawn at random.

    x <- clamp(x + epsilon / iters * sign(d(s * objective(model(x))) / dx), 0, 1), `iters` times from the clean frame,
    with s = +1 or -1 drawn for each frame from (seed, b, t). It knows the base model and nothing of the
    stabilizers, as in Instant Video Models; presets "ivm" (the paper: epsilon 0.1, 20 steps) and "ivm-code" (the
    code's default: 0.5, 5).

    Not in `CORRUPTIONS`: it needs a model and has no severities; otherwise it is called like the others.

    Args:
        model: takes a frame (1, C, H, W); in eval mode. Its parameters and their gradients are left alone.
        epsilon: the largest change of a value.
        iters: how many steps.
        objective: what to push, a scalar of the model's output; its mean unless given, which has to be a tensor then.
            A classifier's is the difference of two logits.
        draw: "per_frame", or "per_clip" for the same side in all frames of a row.

    Raises:
        InputError: a setting out of range, a model in training mode, an objective without a scalar or a gradient.

    >>> clip = torch.full((2, 1, 4, 4), 0.5)
    >>> out = IFGSM(torch.nn.Conv2d(1, 1, 1).eval(), epsilon=0.1)(clip)
    >>> torch.allclose((out - clip).abs(), torch.tensor(0.1))
    True
    """

    presets: ClassVar = {"ivm": (0.1, 20), "ivm-code": (0.5, 5)}

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        *,
        epsilon: float = 0.1,
        iters: int = 20,
        seed: int = 0,
        draw: str = "per_frame",
        objective: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if not 0 <= epsilon <= 1 or iters < 1 or iters != int(iters):
            raise InputError(
                f"epsilon must be in [0, 1] and iters a whole number from 1 on, got {epsilon} and {iters}."
            )
        if draw not in ("per_frame", "per_clip"):
            raise InputError(f"draw must be 'per_frame' or 'per_clip', got {draw!r}.")
        self.model, self.epsilon, self.iters = model, epsilon, int(iters)
        self.seed, self.draw, self.objective = check_seed(seed), draw, objective

    @classmethod
    def preset(
        cls,
        name: str,
        model: Callable[[Tensor], Any],
        *,
        seed: int = 0,
        draw: str = "per_frame",
        objective: Callable[[Any], Tensor] | None = None,
    ) -> Self:
        """Make the attack with the settings of a paper, by name."""
        if name not in cls.presets:
            raise InputError(f"IFGSM has no preset {name!r}; {nearest(name, cls.presets)}")
        epsilon, iters = cls.presets[name]
        return cls(model, epsilon=epsilon, iters=iters, seed=seed, draw=draw, objective=objective)

    def __call__(self, clip: Tensor, *, start: int = 0) -> Tensor:
        """Attack a clip (B, T, C, H, W) or (T, C, H, W) in [0, 1]; frame by frame, so that chunks do not matter."""
        start = check_clip(clip, start)
        if getattr(self.model, "training", False):
            raise InputError("The model is in training mode; call model.eval() before it is attacked.")
        out = clip.detach().clone()
        for b, frames in enumerate(out[None] if clip.ndim == 4 else out):
            for t, frame in enumerate(frames, start):
                frame.copy_(self._attacked(frame, self._side(b, t)))
        return out

    def _side(self, stream: int, t: int) -> int:
        key = (self.seed, zlib.crc32(b"ifgsm"), stream, 0 if self.draw == "per_clip" else t)
        return 1 if np.random.default_rng(key).random() < 0.5 else -1

    def _attacked(self, frame: Tensor, side: int) -> Tensor:
        x = frame[None]
        for _ in range(self.iters):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                output = self.model(x)
                if self.objective is None and not isinstance(output, Tensor):
                    raise InputError(
                        f"The model returns {type(output).__name__}; give an objective that makes it a scalar."
                    )
                score = output.mean() if self.objective is None else self.objective(output)
                if not isinstance(score, Tensor) or score.numel() != 1 or not score.requires_grad:
                    raise InputError("The objective must give one scalar tensor with a gradient.")
                (gradient,) = torch.autograd.grad(score.sum(), x, allow_unused=True)
            if gradient is None:
                raise InputError("The objective does not depend on the frame; the attack has nothing to follow.")
            x = (x.detach() + side * self.epsilon / self.iters * gradient.sign()).clamp(0, 1)
        return x[0]
