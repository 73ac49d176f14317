"""finetune(): train an image network itself on still images, with a regularizer that makes it steady on video.

Single-frame Regularization for Temporally Stable CNNs (Eilertsen, Mantiuk, Unger, CVPR 2019). Without a regularizer it
is plain training: the network before it, and the fine-tuning it is compared with.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from unflicker.checks import InputError
from unflicker.regularizers import Augmentation, Perturbation, Regularizer, check_images, check_scale, weight_of

Pair = tuple[Tensor, Tensor]
Reconstruction = Callable[[Tensor, Tensor], Tensor]


def finetune(
    network: nn.Module,
    batches: Iterable[Tensor | Pair],
    *,
    steps: int,
    term: Regularizer | None = None,
    ratio: float = 4.0,
    reconstruction: Reconstruction = F.mse_loss,
    mask: Callable[[Tensor], Tensor] | None = None,
    augment: Perturbation | None = None,
    learning_rate: float = 1e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
    statistics: Literal["batch", "kept"] = "batch",
    seed: int = 0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train an image network on stills by (1 - a) * reconstruction + a * term, a / (1 - a) being `ratio`.

    Equation 1 of the paper, by Adam without weight decay. Each step calls the network on the images and, with a term,
    once more on changed ones; gradients flow through both. The same network, batches and seed give the same bits.

    Args:
        network: from images (B, C, H, W) to images (B, C', h, w), h and w being H and W times or divided by a whole
            number. Its weights that require gradients are changed in place, on the device where they are; it ends in
            the mode it came in.
        batches: x, or pairs (x, y) of inputs and targets. Without a target it is what the network made of x before.
        steps: how many batches to take.
        term: what makes the network steady; None trains without.
        ratio: of the term to the reconstruction, r = a / (1 - a), 0 or more; about 4 to 32.
        reconstruction: from (preds, y) to one number.
        mask: from targets to how much each place counts in the term, (B, 1, h, w), as `saturation_mask` for HDR.
        augment: change x and y alike before all else (equation 5, the paper's baseline; it needs targets).
        learning_rate: its highest value.
        schedule: "cosine", down to a hundredth after a short rise; or "constant".
        statistics: of batch norm. "batch", as published: of each of the two passes its own, both of which the running
            ones follow. "kept": the running ones, which stay as they are; for small batches. The rest of the network,
            such as dropout, is in training mode either way.
        seed: what is drawn, by the term, by `augment` and by the network, is a function of it and the step.
        on_step: called with each step's number, from 1, and what is returned of it.

    Returns:
        Of every step "reconstruction", "term", "total" and "learning_rate".

    Raises:
        InputError: a setting is out of range, there is nothing to train, the batches end early, they are not images,
            or the network makes none of them, or crops them, or makes others than the targets.
        FloatingPointError: the loss or its gradient stopped being finite; the network is as it was before that step.

    >>> from unflicker.regularizers import TransformInvariance
    >>> net, x = nn.Conv2d(3, 3, 3, padding=1), torch.rand(4, 3, 32, 32)
    >>> history = finetune(net, [x, x], steps=2, term=TransformInvariance())
    >>> sorted(history[0])
    ['learning_rate', 'reconstruction', 'term', 'total']
    """
    weight = weight_of(ratio) if term is not None else 0.0
    parameters = _check(network, steps, term, learning_rate, schedule, statistics)
    device = parameters[0].device
    original: nn.Module | None = None
    modes = {module: module.training for module in network.modules()}
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    history: list[dict[str, float]] = []
    try:
        with torch.random.fork_rng():
            for batch in itertools.islice(batches, steps):
                step = len(history)
                x: Tensor = batch if isinstance(batch, Tensor) else batch[0]
                y: Tensor | None = None if isinstance(batch, Tensor) else batch[1]
                check_images(x)
                x = x.to(device)
                if y is None:
                    if augment is not None:
                        raise InputError("augment changes inputs and targets alike: give pairs (x, y).")
                    original = original or copy.deepcopy(network).eval()
                    y = _made_of(original, x)
                _train_mode(network, statistics)
                torch.manual_seed(seed * 1_000_003 + step)
                generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
                y = y.to(device)
                if augment is not None:
                    change = augment.draw(x, generator)
                    x, y = change(x), change(y)
                rate = learning_rate * _relative_rate(step, steps, schedule)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad()
                before = _running(network)
                preds = _images(network(x), x)
                if preds.shape != y.shape:
                    raise InputError(
                        f"The targets must be as the network's output, {tuple(preds.shape)}, got {tuple(y.shape)}."
                    )
                error = reconstruction(preds, y)
                total, steady = error, 0.0
                if term is not None and weight > 0:
                    chosen = None if mask is None else mask(y)
                    value = term(network, x, y, preds=preds, mask=chosen, generator=generator)
                    total, steady = (1 - weight) * error + weight * value, value.item()
                total.backward()
                told = {"reconstruction": error.item(), "term": steady, "total": total.item(), "learning_rate": rate}
                _check_finite(told["total"], parameters, step + 1, network, before)
                optimizer.step()
                history.append(told)
                if on_step is not None:
                    on_step(step + 1, told)
    finally:
        for module, was_training in modes.items():
            module.training = was_training
        optimizer.zero_grad()
    if len(history) < steps:
        raise InputError(f"The batches ended after {len(history)} of {steps} steps.")
    return history


def shuffled(dataset: Dataset[Any], *, batch: int, seed: int = 0) -> Iterator[Any]:
    """Give batches of a dataset's images, or of its pairs, for ever: each time through in another order.

    What is left over at the end of a time through is not used in it.

    Args:
        dataset: of tensors (C, H, W) or pairs of them, with a length, such as `HDRImages` or a `TensorDataset`.
        batch: how many at a time.
        seed: of the orders.

    Raises:
        InputError: the dataset has fewer than one batch.

    >>> numbers = torch.arange(4.0).view(4, 1, 1, 1)
    >>> x, y = next(shuffled(torch.utils.data.TensorDataset(numbers, 2 * numbers), batch=4))
    >>> bool((y == 2 * x).all()), sorted(x.flatten().tolist())
    (True, [0.0, 1.0, 2.0, 3.0])
    """
    count = len(dataset)  # type: ignore[arg-type]
    if not 1 <= batch <= count:
        raise InputError(f"A batch of {batch} cannot be drawn from {count} images; take 1 to {count}.")
    return _drawn(dataset, count, batch, torch.Generator().manual_seed(seed))


def _drawn(dataset: Dataset[Any], count: int, batch: int, generator: torch.Generator) -> Iterator[Any]:
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count - batch + 1, batch):
            items = [dataset[i] for i in order[start : start + batch]]
            if isinstance(items[0], Tensor):
                yield torch.stack(items)
            else:
                columns = tuple(torch.stack(each) for each in zip(*items, strict=True))
                yield columns if len(columns) > 1 else columns[0]


def _check(
    network: nn.Module, steps: int, term: Regularizer | None, learning_rate: float, schedule: str, statistics: str
) -> list[nn.Parameter]:
    if steps < 1 or not 0 < learning_rate < math.inf:
        raise InputError(f"finetune takes 1 step or more and a learning rate above 0; got {steps=}, {learning_rate=}.")
    for name, value, known in (
        ("schedule", schedule, ("cosine", "constant")),
        ("statistics", statistics, ("batch", "kept")),
    ):
        if value not in known:
            raise InputError(f"{name} is {known[0]!r} or {known[1]!r}, got {value!r}.")
    if isinstance(term, Augmentation):
        raise InputError("Augmentation is no term beside the reconstruction: give augment=RandomWarp() instead.")
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("There is nothing to train: no weight of this network requires a gradient.")
    return parameters


def _images(preds: Any, x: Tensor) -> Tensor:
    if not isinstance(preds, Tensor) or preds.ndim != 4:
        what = tuple(preds.shape) if isinstance(preds, Tensor) else f"a {type(preds).__name__}"
        raise InputError(f"finetune needs a network that makes images (B, C, H, W) of images; this made {what}.")
    check_scale((x.shape[-2], x.shape[-1]), (preds.shape[-2], preds.shape[-1]))
    return preds


def _made_of(original: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return _images(original(x), x)


def _train_mode(network: nn.Module, statistics: str) -> None:
    network.train()
    if statistics == "kept":
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _running(network: nn.Module) -> dict[str, Tensor]:
    """What a forward pass changes, the statistics of batch norm."""
    return {name: value.clone() for name, value in network.named_buffers()}


def _check_finite(
    total: float, parameters: list[nn.Parameter], step: int, network: nn.Module, before: dict[str, Tensor]
) -> None:
    """Stop before the weights are spoiled, and take back what the forward pass has spoiled."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    finite = bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()) if gradients else True
    if math.isfinite(total) and finite:
        return
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(before[name])
    what = f"The loss is {total}" if not math.isfinite(total) else "The gradient of the loss is not finite"
    raise FloatingPointError(f"{what} at step {step}: lower the learning rate, or look for NaN in the targets.")


def _relative_rate(step: int, steps: int, schedule: str) -> float:
    if schedule == "constant":
        return 1.0
    rise = min(1.0, (step + 1) / max(1, steps // 50))
    return rise * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
