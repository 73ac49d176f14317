"""The unified accuracy-stability-robustness loss (Instant Video Models, section 3) and its distance."""

from __future__ import annotations

from torch import Tensor

from unflicker.checks import InputError


def rmse(preds: Tensor, target: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Return the root of the mean squared difference of each frame: (..., C, H, W) to (...).

    The paper's norm as its code computes it; `epsilon` under the root keeps the gradient finite.

    >>> import torch
    >>> rmse(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), epsilon=0.0).tolist()
    [1.0, 1.0]
    """
    return (preds - target).square().mean((-3, -2, -1)).add(epsilon).sqrt()


def unified_loss(preds: Tensor, target: Tensor, *, stability: float = 0.2) -> dict[str, Tensor]:
    """Weigh how far a clip is from the truth against how much it changes from frame to frame.

    total = (sum_t d(preds_t, target_t) + stability * sum_t d(preds_t, preds_t-1)) / T with d = `rmse`, averaged over
    the batch. Below a weight of 1/2 the truth itself is the unique minimum (the paper's oracle bound).

    Args:
        preds: clips (B, T, C, H, W) in [0, 1], not clipped.
        target: as preds.
        stability: the weight of the second term, the paper's lambda.

    Returns:
        "accuracy", "stability" (unweighted) and "total", scalars.

    >>> import torch
    >>> truth = torch.rand(1, 3, 3, 8, 8)
    >>> sorted(unified_loss(truth, truth))
    ['accuracy', 'stability', 'total']
    """
    if preds.shape != target.shape or preds.ndim != 5:
        raise InputError(f"preds and target must be alike, (B, T, C, H, W); got {preds.shape = }, {target.shape = }.")
    frames = preds.shape[1]
    accuracy = rmse(preds, target).sum(1).mean() / frames
    change = rmse(preds[:, 1:], preds[:, :-1]).sum(1).mean() / frames
    return {"accuracy": accuracy, "stability": change, "total": accuracy + stability * change}
