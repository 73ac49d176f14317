"""The unified accuracy-stability-robustness loss (Instant Video Models, section 3), its distances and its two bounds.

A distance is a plain function (preds, target) -> one value per frame. NaN in the target says that there is no ground
truth at that place: such values take no part, whatever the prediction is there, and a frame without any gives 0.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from unflicker.checks import InputError, nearest

Distance = Callable[[Tensor, Tensor], Tensor]
Values = Tensor | Mapping[str, Tensor]

FRAME = (-3, -2, -1)


def rmse(preds: Tensor, target: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Return the root of the mean squared difference of each frame.

    sqrt(mean (p - y)^2 + epsilon), the paper's norm as its code computes it: one value over channels and pixels. A
    norm, up to epsilon, and so the bounds below hold for it.

    Args:
        preds: frames (..., C, H, W) of any range.
        target: as preds; NaN where the truth is unknown.
        epsilon: keeps the gradient finite where preds equal the target; there the distance is sqrt(epsilon).

    Returns:
        (...), at least 0, in the units of preds.

    Raises:
        InputError: the shapes differ, or are no frames.

    >>> rmse(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), epsilon=0.0).tolist()
    [1.0, 1.0]
    """
    difference, known = _difference(preds, target)
    return _root(_mean(difference.square(), known), known, epsilon)


def l1(preds: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of each frame, mean |p - y|; a norm, and so the bounds below hold for it.

    Args:
        preds: frames (..., C, H, W) of any range.
        target: as preds; NaN where the truth is unknown.

    Returns:
        (...), at least 0, in the units of preds.

    Raises:
        InputError: the shapes differ, or are no frames.

    >>> l1(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)).tolist()
    [0.5, 0.5]
    """
    difference, known = _difference(preds, target)
    return _mean(difference.abs(), known)


def mse(preds: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of each frame, mean (p - y)^2; what the paper trains base models with.

    It is no norm: its gradient vanishes at the truth, so in the unified loss any positive weight of the stability term
    moves the minimum away from the truth and towards smoothness.

    Args:
        preds: frames (..., C, H, W) of any range.
        target: as preds; NaN where the truth is unknown.

    Returns:
        (...), at least 0, in the squared units of preds.

    Raises:
        InputError: the shapes differ, or are no frames.

    >>> mse(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)).tolist()
    [0.25, 0.25]
    """
    difference, known = _difference(preds, target)
    return _mean(difference.square(), known)


def charbonnier(preds: Tensor, target: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Return the mean of a smoothed absolute difference of each frame.

    mean sqrt((p - y)^2 + epsilon^2): `l1` for differences well above epsilon, quadratic below. No norm, but within
    epsilon of one (Charbonnier et al., 1994).

    Args:
        preds: frames (..., C, H, W) of any range.
        target: as preds; NaN where the truth is unknown.
        epsilon: where the one turns into the other, in the units of preds; also the distance of equal frames.

    Returns:
        (...), at least epsilon where anything is known, in the units of preds.

    Raises:
        InputError: the shapes differ, or are no frames; epsilon is not positive.

    >>> charbonnier(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 4.0), epsilon=3.0).tolist()
    [5.0, 5.0]
    """
    if not epsilon > 0:
        raise InputError(f"epsilon must be positive, got {epsilon}; without it the distance is l1.")
    difference, known = _difference(preds, target)
    return _mean((difference.square() + epsilon**2).sqrt(), known)


def cross_entropy(preds: Tensor, target: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Return the cross-entropy between the class probabilities of each frame and its labels, averaged over the pixels.

    -sum_c q_c log(softmax(p)_c + epsilon), the paper's distance for segmentation. In the stability term of
    `unified_loss` q is softmax(previous logits), and the gradient reaches both frames. It is no norm (not even
    symmetric, and a frame's distance from itself is its entropy), so the bounds below do not cover it: the paper found
    a weight of 0.4 to do.

    Args:
        preds: logits (..., C, H, W).
        target: class indices (..., H, W), integers from 0 to C - 1, negative where the truth is unknown; or
            probabilities (..., C, H, W), NaN where unknown.
        epsilon: bounds the distance by -log(epsilon); 0 gives the plain cross-entropy.

    Returns:
        (...), in nats; 0 is best, up to -log(1 + epsilon).

    Raises:
        InputError: the shapes do not belong together, or an index is no class.

    >>> logits = torch.tensor([0.0, 0.0]).view(2, 1, 1)
    >>> f"{cross_entropy(logits, torch.tensor([[1]])):.4f}"
    '0.6931'
    """
    if preds.ndim < 3:
        raise InputError(f"preds must be logits (..., C, H, W); got {preds.shape = }.")
    preds = _precise(preds)
    if not target.is_floating_point() and target.shape == preds.shape[:-3] + preds.shape[-2:]:
        known = (target >= 0).unsqueeze(-3)
        log_p = _log_softmax(preds.masked_fill(~known, 0), epsilon)
        classes = preds.shape[-3]
        if target.numel() and (highest := int(target.max())) >= classes:
            raise InputError(
                f"There are {classes} classes, 0 to {classes - 1}, but the target has {highest}; "
                "where the truth is unknown it must be negative."
            )
        cost = -log_p.gather(-3, target.long().clamp_min(0).unsqueeze(-3))
    elif target.is_floating_point() and target.shape == preds.shape:
        known = ~target.isnan().any(-3, keepdim=True)
        log_p = _log_softmax(preds.masked_fill(~known, 0), epsilon)
        cost = -(target.to(log_p.dtype).masked_fill(~known, 0) * log_p).sum(-3, keepdim=True)
    else:
        raise InputError(
            "To logits (..., C, H, W) belong integer class indices (..., H, W) or probabilities (..., C, H, W); "
            f"got {preds.shape = }, {target.shape = } of {target.dtype}."
        )
    return _mean(cost, known)


def affine_align(preds: Tensor, target: Tensor, *, upright: bool = False) -> Tensor:
    """Return each frame of preds under the scale and shift that bring it closest to its own target.

    s p + m with s, m = argmin mean (s p + m - y)^2, for every frame apart, over the values whose truth is known. For
    depth networks that leave scale and shift open: align in the space they predict in, mostly disparity. It also
    hides that flicker which is a change of scale or shift. The scale may come out negative; a frame that is constant
    becomes the mean of its target. The gradient goes through the fit.

    Args:
        preds: frames (..., C, H, W); one scale and shift for all channels.
        target: as preds; NaN where the truth is unknown.
        upright: take the scale without its sign, so that what is upside down is further from the truth than nothing
            is, and a network that trains from nothing finds out which way is near.

    Returns:
        As preds, in the units of target, everywhere; a frame without any truth becomes 0.

    Raises:
        InputError: the shapes differ, or are no frames.

    >>> truth = torch.rand(2, 1, 4, 4)
    >>> torch.allclose(affine_align(3 * truth + 1, truth), truth, atol=1e-5)
    True
    """
    _check_frames(preds, target)
    preds, target = _precise(preds), _precise(target)
    known = ~target.isnan()
    preds = preds.masked_fill(~known & ~preds.isfinite(), 0)  # else its product with a zero gradient is NaN
    mean_p, mean_y = (_mean(v.masked_fill(~known, 0), known)[..., None, None, None] for v in (preds, target))
    from_p, from_y = ((v - m).masked_fill(~known, 0) for v, m in ((preds, mean_p), (target, mean_y)))
    variance = _mean(from_p.square(), known)[..., None, None, None]
    covariance = _mean(from_p * from_y, known)[..., None, None, None]
    varies = variance > (32 * torch.finfo(preds.dtype).eps * mean_p).square()  # more than rounding makes it
    scale = torch.where(varies, covariance / torch.where(varies, variance, 1), 0)
    scale = scale.abs() if upright else scale
    return preds * scale + (mean_y - scale * mean_p)


def affine_aligned_rmse(preds: Tensor, target: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Return the RMSE of each frame after the best scale and shift for that frame; the paper's distance for depth.

    rmse(affine_align(p, y), y). In the stability term of `unified_loss` a prediction is not aligned to the prediction
    before: each is aligned to its own ground truth first, p_t to y_t and p_t-1 to y_t-1, and the two results are
    compared with `rmse`, as in the paper. The truth minimizes the loss below a weight of 1/2, and with it all that
    differs from it by a scale and shift per frame.

    Args:
        preds: frames (..., C, H, W), up to scale and shift.
        target: as preds; NaN where the truth is unknown.
        epsilon: that of `rmse`.

    Returns:
        (...), at least 0, in the units of target.

    Raises:
        InputError: the shapes differ, or are no frames.

    >>> truth = torch.rand(2, 1, 4, 4)
    >>> bool((affine_aligned_rmse(3 * truth + 1, truth) < 0.0011).all())
    True
    """
    return rmse(affine_align(preds, target), target, epsilon=epsilon)


def inverse_depth_rmse(preds: Tensor, target: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Return the distance of disparity from a true depth: `affine_aligned_rmse` to 1 / depth, near being large.

    Args:
        preds: frames (..., C, H, W), 1 / depth up to scale and shift.
        target: depth as preds; NaN, 0 and beyond 1e9 are unknown.
        epsilon: that of `rmse`.

    Returns:
        (...), at least 0, in the units of 1 / target.

    Raises:
        InputError: the shapes differ, or are no frames.

    >>> depth = 1 + torch.rand(2, 1, 4, 4)
    >>> bool((inverse_depth_rmse(3 / depth + 1, depth) < 0.0011).all())
    True
    """
    target = _inverse(target)
    return rmse(affine_align(preds, target, upright=True), target, epsilon=epsilon)


def _inverse(depth: Tensor) -> Tensor:
    depth = _precise(depth)
    known = (depth > 0) & (depth <= 1e9)
    return torch.where(known, 1 / torch.where(known, depth, 1), math.nan)


DISTANCES: dict[str, Distance] = {
    each.__name__: each for each in (rmse, l1, mse, charbonnier, cross_entropy, affine_aligned_rmse, inverse_depth_rmse)
}


def oracle_bound() -> float:
    """Return 1/2: below this weight of the stability term the truth is the one best prediction.

    Theorem (Instant Video Models, oracle bound): let the distance be zeta(a - b) with any norm zeta. For a weight
    below 1/2, sum_t d(p_t, y_t) + weight * sum_t d(p_t, p_t-1) has its unique global minimum at p = y: it exceeds its
    value there by at least (1 - 2 weight) * sum_t d(p_t, y_t). A perfect network is never asked to smooth.

    Assumptions: a norm (`l1`, and `rmse` up to its epsilon; not `mse`, `charbonnier` or `cross_entropy`), and the
    minimum over predictions: a network that cannot express the truth may still trade accuracy for stability. The bound
    is sufficient, not tight: on a monotonous signal the truth stays the minimum up to a weight of 1.

    >>> oracle_bound()
    0.5
    """
    return 0.5


def collapse_bound(num_frames: int) -> int:
    """Return num_frames - 1: above this weight of the stability term the best prediction is a frozen picture.

    Theorem (Instant Video Models, collapse bound): let the distance be zeta(a - b) with any norm zeta, and let the
    first prediction p_1 be fixed, as it is for a stabilizer, which leaves the first frame alone. For a weight above
    T - 1, sum_t d(p_t, y_t) + weight * sum_t d(p_t, p_t-1) has its unique global minimum where every p_t is p_1: it
    exceeds its value there by at least (weight - (T - 1)) * max_t d(p_t, p_1).

    Assumptions: a norm, as for `oracle_bound`. The bound is sufficient, not tight: a collapse, in part or in full, is
    possible at any weight from 1/2 upwards, where neither theorem says anything (0.5 <= weight <= T - 1).

    Args:
        num_frames: T, the length of the clip, 2 or more.

    Raises:
        InputError: fewer than two frames: there is nothing to collapse onto.

    >>> collapse_bound(8)
    7
    """
    if num_frames < 2:
        raise InputError(f"A clip of 2 frames or more is needed for a collapse, got {num_frames = }.")
    return num_frames - 1


def unified_loss(
    preds: Values,
    target: Values,
    *,
    stability: float = 0.2,
    distance: str | Distance = "rmse",
    previous: tuple[Values, Values] | None = None,
    frames: float | Tensor | None = None,
) -> dict[str, Tensor]:
    """Weigh how far a clip is from the truth against how much it changes from frame to frame.

    total = (sum_t d(preds_t, target_t) + stability * sum_t d(preds_t, preds_t-1)) / T, averaged over the batch
    (Instant Video Models, section 3; the corruptions are in the input, so that accuracy is robustness). Below a weight
    of 1/2 the truth itself is the unique minimum for a distance that is a norm: see `oracle_bound`.

    Where the target is NaN, or a negative class index, there is no truth: accuracy leaves such values out, stability
    all that is unknown in either of its two frames. A pair of frames counts by the share of its values that is known
    in both, which keeps the oracle bound; a frame without any truth adds nothing and is not counted in T.

    Args:
        preds: clips (B, T, C, H, W), not clipped; or features by name, each (B, T, ...), whose terms are averaged.
        target: as preds: the truth, or the features of a reference network on the clean input. Class indices
            (B, T, H, W) for "cross_entropy"; classes are the first dimension of a frame. Logits (B, T, K) of whole
            frames have class indices (B, T), or probabilities (B, T, K).
        stability: the weight of the second term, the paper's lambda, at least 0. From 1/2 on it warns, once for each
            place in the program that asks for it.
        distance: a name from `DISTANCES` or a function from frames (..., C, H, W) twice to (...); features of other
            shapes are brought to three dimensions with ones at the end. `functools.partial(rmse, epsilon=1e-4)` sets
            an option. A function of your own is given NaN where the truth is unknown, in the second argument.
        previous: for a clip that comes in chunks: the last frame of preds and of target of the chunk before,
            (preds[:, -1], target[:, -1]), detached or not. None where the clip begins.
        frames: the sums are divided by this: the number of frames of all clips together, B * T, with a truth. Give
            that of the whole clips for each chunk and the terms of the chunks add up to those of the whole. None:
            those of preds.

    Returns:
        "accuracy", "stability" (unweighted) and "total", scalars. They are NaN, the mean of nothing, where not one
        frame has a truth and `frames` is None.

    Raises:
        InputError: shapes or names do not belong together, the weight is negative or not finite, or the distance is
            unknown.

    >>> truth = torch.rand(1, 4, 3, 8, 8)
    >>> whole = unified_loss(truth + 0.1, truth, distance="l1")
    >>> first = unified_loss(truth[:, :3] + 0.1, truth[:, :3], distance="l1", frames=4)
    >>> last = (truth[:, 2] + 0.1, truth[:, 2])
    >>> rest = unified_loss(truth[:, 3:] + 0.1, truth[:, 3:], distance="l1", frames=4, previous=last)
    >>> torch.allclose(first["total"] + rest["total"], whole["total"])
    True
    """
    compare = _named(distance)
    if previous is not None and not (isinstance(previous, tuple) and len(previous) == 2):
        raise InputError(
            "previous must be a pair, the last frame of preds and of target: (preds[:, -1], target[:, -1])."
        )
    frames = None if frames is None else float(frames)
    if frames is not None and not frames > 0:
        raise InputError(f"frames must be positive, the number of frames to divide by; got {frames}.")
    plain = compare.func if isinstance(compare, partial) else compare
    parts = _parts(preds, target, previous, plain is cross_entropy)
    batch, length = parts[0][0].shape[:2]
    if previous is not None:
        length -= 1  # the frame before is no frame of this chunk
    _check_weight(stability, length if frames is None else round(frames / batch))
    terms = torch.stack([_terms(*part, compare, int(previous is not None), frames) for part in parts]).mean(0)
    accuracy, change = terms.unbind()
    return {"accuracy": accuracy, "stability": change, "total": accuracy + stability * change}


def _terms(preds: Tensor, target: Tensor, distance: Distance, start: int, frames: float | None) -> Tensor:
    """Return accuracy and stability of the frames from `start` on, whose pairs may begin one frame earlier."""
    plain = distance.func if isinstance(distance, partial) else distance
    if plain is inverse_depth_rmse:
        target = _inverse(target)
    if target.ndim < preds.ndim:
        known = (target >= 0).unsqueeze(-3)
    elif plain is cross_entropy:
        known = ~target.isnan().any(-3, keepdim=True)
    else:
        known = ~target.isnan()
    if plain in (affine_aligned_rmse, inverse_depth_rmse):
        preds = affine_align(preds, target, upright=plain is inverse_depth_rmse)
        distance = partial(rmse, **distance.keywords) if isinstance(distance, partial) else rmse
    accuracy = distance(preds[:, start:], target[:, start:])
    expected = preds.shape[0], preds.shape[1] - start
    if accuracy.shape != expected:
        raise InputError(f"The distance must give one value per frame, {expected}; got {tuple(accuracy.shape)}.")
    count = known.sum(FRAME)
    divisor: Tensor | float = (count[:, start:] > 0).sum() if frames is None else frames
    if preds.shape[1] < 2:
        change = accuracy.new_zeros(())
    else:
        both = known[:, 1:] & known[:, :-1]
        share = both.sum(FRAME) / torch.maximum(count[:, 1:], count[:, :-1]).clamp_min(1)
        past = preds[:, :-1].softmax(-3) if plain is cross_entropy else preds[:, :-1]
        change = (distance(preds[:, 1:], past.masked_fill(~both, math.nan)) * share).sum()
    return torch.stack([accuracy.sum() / divisor, change / divisor])


def _parts(
    preds: Values, target: Values, previous: tuple[Values, Values] | None, classes: bool
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs (B, T, C, H, W), each with the frame before in front, if there is one; check them all.

    Where `classes` are compared (B, T, K) may be the logits of whole frames.
    """
    whole = isinstance(preds, Tensor)
    if isinstance(preds, Tensor) and isinstance(target, Tensor):
        of_frames = preds.ndim == 3 and (classes or not target.is_floating_point())
        if not _belong(preds, target) or not (preds.ndim == 5 or of_frames):
            raise InputError(
                "preds and target must be alike, (B, T, C, H, W), or the target class indices (B, T, H, W); "
                f"got {preds.shape = }, {target.shape = }. Features of other shapes are given by name, in dicts."
            )
        preds, target = {"preds": preds}, {"preds": target}
    elif isinstance(preds, Tensor) or isinstance(target, Tensor):
        raise InputError("preds and target must both be tensors or both be dicts of features by name.")
    before: list[Mapping[str, Tensor]] = []
    for each in previous or ():
        if isinstance(each, Tensor) != whole:
            raise InputError("previous must hold tensors where preds is a tensor, and dicts where it is a dict.")
        before.append({"preds": each} if isinstance(each, Tensor) else each)
    if not preds:
        raise InputError("preds is empty: name at least one feature.")
    for what, features in zip(("target", "previous[0]", "previous[1]"), (target, *before), strict=False):
        for name in sorted(preds.keys() - features.keys()):
            raise InputError(f"{what} has no feature {name!r}; {nearest(name, features)}")
        for name in sorted(features.keys() - preds.keys()):
            raise InputError(f"{what} has a feature {name!r} that preds lacks; {nearest(name, preds)}")
    parts = []
    for name, values in preds.items():
        truth = target[name]
        if not _belong(values, truth) or values.ndim < 3 or 0 in values.shape[:2]:
            raise InputError(
                f"preds and target of {name!r} must be alike, (B, T, ...) of one frame or more; "
                f"got {tuple(values.shape)} and {tuple(truth.shape)}."
            )
        if before:
            last, last_truth = before[0][name], before[1][name]
            if last.shape != values[:, 0].shape or last_truth.shape != truth[:, 0].shape:
                raise InputError(
                    f"previous of {name!r} must be the last frame of preds and of target, "
                    f"{tuple(values[:, 0].shape)} and {tuple(truth[:, 0].shape)}; "
                    f"got {tuple(last.shape)} and {tuple(last_truth.shape)}."
                )
            values = torch.cat([last.unsqueeze(1), values], 1)
            truth = torch.cat([last_truth.unsqueeze(1), truth], 1)
        parts.append((_with_dims(values, 5), _with_dims(truth, 5 - (truth.ndim < values.ndim))))
    return parts


def _belong(preds: Tensor, target: Tensor) -> bool:
    """Shapes are the same, or the target has class indices in place of the first dimension of a frame."""
    indices = not target.is_floating_point() and target.shape == preds.shape[:2] + preds.shape[3:]
    return indices or preds.shape == target.shape


def _with_dims(x: Tensor, dims: int) -> Tensor:
    return x.flatten(dims - 1) if x.ndim > dims else x.reshape(*x.shape, *(1,) * (dims - x.ndim))


def _named(distance: str | Distance) -> Distance:
    if callable(distance):
        return distance
    if distance not in DISTANCES:
        raise InputError(f"There is no distance {distance!r}; {nearest(str(distance), DISTANCES)}")
    return DISTANCES[distance]


_warned: set[tuple[Any, ...]] = set()


def _check_weight(stability: float, num_frames: int) -> None:
    """Refuse what is no weight, and say once per calling place which bound a weight crosses."""
    if not isinstance(stability, Real) or not math.isfinite(stability) or stability < 0:
        raise InputError(f"stability must be a finite number of 0 or more, best below 1/2; got {stability!r}.")
    if stability < oracle_bound():
        return
    collapses = num_frames > 1 and stability > collapse_bound(num_frames)
    caller = sys._getframe(2)  # whoever called unified_loss
    place = (caller.f_code.co_filename, caller.f_lineno, collapses)
    if place in _warned:
        return
    _warned.add(place)
    if collapses:
        text = (
            f"stability={stability:g} is above the oracle bound, 1/2, and the collapse bound of {num_frames} frames, "
            f"{num_frames - 1}: the lowest loss is the first frame repeated. Choose a weight below 1/2."
        )
    else:
        text = (
            f"stability={stability:g} is not below the oracle bound, 1/2: the lowest loss may be smoother than the "
            "truth. Choose a weight below 1/2."
        )
    warnings.warn(text, stacklevel=3)


def _check_frames(preds: Tensor, target: Tensor) -> None:
    if preds.shape != target.shape or preds.ndim < 3:
        raise InputError(f"preds and target must be alike, (..., C, H, W); got {preds.shape = }, {target.shape = }.")


def _difference(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return preds - target, 0 where the truth is unknown, and where it is known."""
    _check_frames(preds, target)
    unknown = target.isnan()
    return (_precise(preds) - target).masked_fill(unknown, 0), ~unknown


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean over each frame's known values, 0 if there are none."""
    return values.masked_fill(~known, 0).sum(FRAME) / known.sum(FRAME).clamp_min(1)


def _root(square: Tensor, known: Tensor, epsilon: float) -> Tensor:
    """Return sqrt(square + epsilon), and 0 with a zero gradient for frames without any truth."""
    some = known.any(-1).any(-1).any(-1)
    return torch.where(some, torch.where(some, square + epsilon, 1).sqrt(), 0)


def _log_softmax(logits: Tensor, epsilon: float) -> Tensor:
    return logits.softmax(-3).add(epsilon).log() if epsilon else logits.log_softmax(-3)


def _precise(x: Tensor) -> Tensor:
    """Sums over a frame need float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
