"""How much a clip flickers."""

from __future__ import annotations

from torch import Tensor

from unflicker.checks import InputError


def instability(preds: Tensor, *, normalized: bool = False) -> Tensor:
    """Return how far consecutive frames of a clip are apart, averaged over the pairs; a scalar.

    mean_t ||y_t - y_t-1||_2 over all values of a frame, the measure of Instant Video Models. It needs no target.
    True motion counts as well, so compare with the instability of the truth, where that is known.

    Args:
        preds: a clip (T, C, H, W), T of 2 or more.
        normalized: divide by sqrt(C * H * W): the root mean square per value, which can be compared between sizes.

    Raises:
        InputError: `preds` is no clip of two frames or more.

    >>> import torch
    >>> instability(torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)).item()
    1.0
    """
    distances = _changes(preds).flatten(1).norm(dim=1)
    if normalized:
        distances = distances / preds[0].numel() ** 0.5
    return distances.mean()


def temporal_difference_error(preds: Tensor, target: Tensor) -> Tensor:
    """Return the root mean square by which a clip changes otherwise than the truth changes; a scalar.

    sqrt(mean ((y_t - y_t-1) - (x_t - x_t-1))^2) over all pairs, channels and pixels, with truth x. Motion as in the
    truth costs nothing and a constant error neither: what is left is flicker, and ghosts behind what moves.

    Args:
        preds: a clip (T, C, H, W), T of 2 or more.
        target: the truth, as preds.

    Raises:
        InputError: the shapes differ, or `preds` is no clip of two frames or more.

    >>> import torch
    >>> truth = torch.rand(4, 3, 8, 8)
    >>> temporal_difference_error(truth * 1.0, truth).item()
    0.0
    """
    if preds.shape != target.shape:
        raise InputError(f"preds and target must be alike, got {tuple(preds.shape)} and {tuple(target.shape)}.")
    return _changes(preds - target).square().mean().sqrt()


def _changes(clip: Tensor) -> Tensor:
    if clip.ndim != 4 or clip.shape[0] < 2:
        raise InputError(f"A clip (T, C, H, W) of two frames or more is needed, got {tuple(clip.shape)}.")
    return clip[1:] - clip[:-1]
