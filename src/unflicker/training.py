"""fit(): train what was added to a frozen base, on clips, with the unified loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.losses import unified_loss
from unflicker.model import StabilizedModel


def fit(
    model: StabilizedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    steps: int,
    learning_rate: float = 1e-4,
    stability: float = 0.2,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train the stabilizers and their controller, with back-propagation through all frames of each clip.

    Instant Video Models, section 5: Adam, no weight decay, clips of 8 frames, frozen base. Here the learning rate
    falls along a cosine, after a short rise.

    Args:
        model: a stabilized model; what it added is changed in place.
        batches: pairs (input, target) of clips (B, T, C, H, W).
        steps: how many batches to take.
        learning_rate: its highest value.
        stability: the weight of the stability term, below 1/2; the paper's lambda.
        on_step: called with the step's number, from 1, and its loss terms.

    Returns:
        The loss terms of every step.

    Raises:
        InputError: there is nothing to train, or the batches end early.
        FloatingPointError: the loss stopped being finite; the weights are those of the step before.

    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import LearnedEMA
    >>> clean = torch.rand(1, 1, 3, 8, 8).expand(1, 4, 3, 8, 8)
    >>> model = stabilize(torch.nn.Conv2d(3, 3, 1), {"": LearnedEMA()}, example=clean[:, 0])
    >>> len(fit(model, [(clean, clean)] * 2, steps=2))
    2
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("There is nothing to train: the stabilizers of this model have no weights.")
    if steps < 1:
        raise InputError(f"fit takes one step or more, got {steps}.")
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    warm_up = max(1, steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / warm_up) * (0.01 + 0.99 * (1 + math.cos(math.pi * i / steps)) / 2)
    )
    history: list[dict[str, float]] = []
    was_training = model.training
    model.train()
    try:
        for step, (clip, target) in enumerate(batches, start=1):
            preds, _ = model(clip)
            if not isinstance(preds, Tensor):
                kind = type(preds).__name__
                raise InputError(f"fit needs a network that returns a tensor; this one returns a {kind}: wrap it.")
            terms = unified_loss(preds, target, stability=stability)
            if not torch.isfinite(terms["total"]):
                found = terms["total"].item()
                raise FloatingPointError(
                    f"The loss is {found} at step {step}: lower the learning rate, or look for NaN in the clips."
                )
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
            schedule.step()
            history.append({name: value.item() for name, value in terms.items()})
            if on_step is not None:
                on_step(step, history[-1])
            if step == steps:
                break
    finally:
        model.train(was_training)
    if len(history) < steps:
        raise InputError(f"The batches ended after {len(history)} of {steps} steps.")
    return history
