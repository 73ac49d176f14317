"""How right classes are."""

from __future__ import annotations

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.metrics.base import check_alike


def confusion_matrix(preds: Tensor, target: Tensor, *, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Count pixels by true class (rows) and predicted class (columns); (num_classes, num_classes + 1) of int64.

    The last column counts what is no class: a pixel with a NaN among its logits.

    Args:
        preds: logits (B, C, H, W) with C = num_classes, or integer classes (B, H, W).
        target: integer classes (B, H, W).
        num_classes: classes are 0 to num_classes - 1.
        ignore_index: pixels of this class in `target` do not count.

    Raises:
        InputError: shapes, dtypes or classes do not fit.

    >>> confusion_matrix(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]), num_classes=2).tolist()
    [[1, 1, 0], [0, 1, 0]]
    """
    if num_classes < 1:
        raise InputError(f"num_classes must be 1 or more, got {num_classes}.")
    if preds.is_floating_point() and preds.ndim == 4:
        if preds.shape[1] != num_classes:
            raise InputError(f"preds must have {num_classes} channels, one a class, got {tuple(preds.shape)}.")
        best = preds.max(1)
        classes = torch.where(best.values.isnan(), num_classes, best.indices)
    elif preds.ndim == 3 and not preds.is_floating_point():
        classes = preds.long()
        if classes.numel() and not (int(classes.min()) >= 0 and int(classes.max()) < num_classes):
            raise InputError(f"The classes of preds must be 0 to {num_classes - 1}, got {_span(classes)}.")
    else:
        raise InputError(
            f"preds must be logits (B, C, H, W) or integer classes (B, H, W), got {preds.dtype} {tuple(preds.shape)}."
        )
    if target.is_floating_point():
        raise InputError(f"target must be integer classes (B, H, W), got {target.dtype} {tuple(target.shape)}.")
    check_alike(classes, target, "The classes of preds and target")
    target = target.long()
    kept = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    classes, target = classes[kept], target[kept]
    if target.numel() and not (int(target.min()) >= 0 and int(target.max()) < num_classes):
        raise InputError(
            f"The classes of target must be 0 to {num_classes - 1} or ignore_index, {ignore_index}; got "
            f"{_span(target)}."
        )
    columns = num_classes + 1
    return torch.bincount(target * columns + classes, minlength=num_classes * columns).view(num_classes, columns)


def mean_iou(preds: Tensor, target: Tensor, *, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Return intersection over union, averaged over the classes that occur; a scalar in [0, 1], 1 at best.

    mean_c TP_c / (TP_c + FP_c + FN_c), the counts over all frames together, and a class counts if it occurs in `preds`
    or `target`. It does not see flicker, nor where a border lies wrong. A NaN among a pixel's logits makes it wrong.

    Args and errors as for `confusion_matrix`; InputError too if no pixel counts.

    >>> mean_iou(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]), num_classes=3).item()
    0.5833333134651184
    """
    return iou_of(confusion_matrix(preds, target, num_classes=num_classes, ignore_index=ignore_index))


def pixel_accuracy(preds: Tensor, target: Tensor, *, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Return the share of pixels whose class is right; a scalar in [0, 1], 1 at best.

    Over all pixels of all frames together. Large classes drown small ones, and flicker is not seen. A NaN among a
    pixel's logits makes it wrong.

    Args and errors as for `confusion_matrix`; InputError too if no pixel counts.

    >>> pixel_accuracy(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]), num_classes=2).item()
    0.75
    """
    return accuracy_of(confusion_matrix(preds, target, num_classes=num_classes, ignore_index=ignore_index))


def iou_of(matrix: Tensor) -> Tensor:
    """Return the mean intersection over union of a confusion matrix."""
    _not_empty(matrix)
    matrix = matrix.double()
    hits = matrix.diagonal()
    union = matrix.sum(1) + matrix[:, :-1].sum(0) - hits
    return (hits[union > 0] / union[union > 0]).mean().float()


def accuracy_of(matrix: Tensor) -> Tensor:
    """Return the pixel accuracy of a confusion matrix."""
    _not_empty(matrix)
    return (matrix.diagonal().sum().double() / matrix.sum()).float()


def _not_empty(matrix: Tensor) -> None:
    if not matrix.sum():
        raise InputError("No pixel counts: there was no frame, or all of it is ignore_index.")


def _span(classes: Tensor) -> str:
    return f"{int(classes.min())} to {int(classes.max())}"
