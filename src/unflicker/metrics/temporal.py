"""How much a clip flickers, by the differences of its frames: what needs no optical flow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.metrics.base import check_alike, check_clip, check_continues, euclidean, joined, vector

Distance = Callable[[Tensor, Tensor], Tensor]
Domain = Callable[[Tensor], Tensor]
DOMAINS = ("identity", "lab", "log")


def instability(preds: Tensor, *, normalized: bool = False) -> Tensor:
    """Return how far consecutive frames of a clip are apart, averaged over the pairs; a scalar.

    mean_t ||y_t - y_t-1||_2 over all values of a frame, the measure of Instant Video Models; 0 is a still. It needs no
    target. True motion counts as well, so compare with the instability of the truth, where that is known. A clip that
    was frozen or blurred is rewarded, and drift that is slow is not seen. NaN propagates.

    Args:
        preds: a clip (T, C, H, W), T of 2 or more.
        normalized: divide by sqrt(C * H * W): the root mean square per value, which can be compared between sizes.

    Raises:
        InputError: `preds` is no clip of two frames or more.

    >>> import torch
    >>> instability(torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)).item()
    1.0
    """
    return frame_changes(_two_or_more(preds), normalized=normalized).mean()


def frame_changes(clip: Tensor, *, normalized: bool = False, mask_nan: bool = False) -> Tensor:
    """Return ||y_t - y_t-1||_2 for each pair of consecutive frames of a clip (T, C, H, W).

    Args:
        clip: T frames; one alone has no pairs.
        normalized: the root mean square per value instead.
        mask_nan: leave out values that are NaN in either frame, and pairs without any value; the norm is over what
            is left. Otherwise NaN propagates.

    >>> frame_changes(torch.tensor([0.0, 1.0, float("nan")]).view(3, 1, 1, 1), mask_nan=True).tolist()
    [1.0]
    """
    change = clip.diff(dim=0).flatten(1)
    if not mask_nan:
        distances = change.norm(dim=1)
        return distances / change.shape[1] ** 0.5 if normalized else distances
    kept = ~change.isnan()
    counts = kept.sum(1)
    distances = torch.where(kept, change, 0).norm(dim=1)[counts > 0]
    return distances / counts[counts > 0].sqrt() if normalized else distances


def temporal_difference_error(preds: Tensor, target: Tensor) -> Tensor:
    """Return the root mean square by which a clip changes otherwise than the truth changes; a scalar.

    sqrt(mean ((y_t - y_t-1) - (x_t - x_t-1))^2) over all pairs, channels and pixels, with truth x; on the scale of the
    values, 0 is best. Motion as in the truth costs nothing and a constant error neither: what is left is flicker, and
    ghosts behind what moves. It does not see a lasting error, and does not tell flicker from ghosts. NaN propagates.

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
    check_alike(preds, target)
    return (_two_or_more(preds) - target).diff(dim=0).square().mean().sqrt()


def categorical_instability(preds: Tensor) -> Tensor:
    """Return the share of pixels whose class changes from frame to frame, averaged over the pairs; a scalar.

    mean_t |{p : c_t(p) != c_t-1(p)}| / (H * W) in [0, 1], c the class of the largest logit: the "l0 norm" of Instant
    Video Models. Classes that move with their objects count as well (compare with the labels' own), and how sure the
    network was is not seen. A pixel with a NaN among its logits has a class of its own.

    Args:
        preds: logits or probabilities (T, C, H, W), or integer classes (T, H, W); T of 2 or more.

    Raises:
        InputError: `preds` is neither, or there are fewer than two frames.

    >>> categorical_instability(torch.tensor([[[0, 1]], [[0, 2]], [[0, 2]]])).item()
    0.25
    """
    classes = class_map(preds)
    if len(classes) < 2:
        raise InputError(f"A clip of two frames or more is needed, got {tuple(preds.shape)}.")
    return (classes[1:] != classes[:-1]).double().mean().float()


def class_map(preds: Tensor, name: str = "preds") -> Tensor:
    """Return the classes (T, H, W) of logits (T, C, H, W); integer classes are returned as they are.

    A pixel with a NaN among its logits becomes -1.

    Raises:
        InputError: `preds` is neither.

    >>> class_map(torch.tensor([0.1, 0.7, 0.2]).view(1, 3, 1, 1)).item()
    1
    """
    if preds.is_floating_point() and preds.ndim == 4 and preds.numel():
        best = preds.max(1)  # NaN if one of them is, and a third of the time of argmax
        return torch.where(best.values.isnan(), -1, best.indices)
    if preds.ndim == 3 and not preds.is_floating_point() and not preds.is_complex() and preds.numel():
        return preds.long()
    raise InputError(
        f"{name} must be logits (T, C, H, W) or integer classes (T, H, W), got {preds.dtype} {tuple(preds.shape)}."
    )


def smoothness(
    preds: Tensor,
    target: Tensor,
    *,
    frame_rate: float,
    domain: str | Domain = "identity",
    mask: Tensor | None = None,
    seconds: float = 0.15,
    truncate: float = 4.0,
    epsilon: float = 1 / 255,
) -> Tensor:
    """Return how smooth a clip is in time against the truth: below 1 less smooth, above 1 smoother; a scalar.

    S = sqrt(sum D(x) / sum D(y)) with preds y, truth x and D(v) = |v - G_sigma *_t v|^2 per value, G a Gaussian in
    time (Single-frame Regularization, equations 9 and 10): each channel's sums run over pixels and frames, and S is
    averaged over the channels. In [0, inf]; 1 where both stand still. It sees changes faster than about 1.5 Hz, also
    those of true motion, whatever the frame rate; it rewards what lags, blurs or freezes, and sees no lasting error.
    NaN propagates, into the frames around as well.

    Args:
        preds: a clip (T, C, H, W), T of 2 or more.
        target: the truth, as `preds`.
        frame_rate: frames a second; sigma is `seconds * frame_rate` frames. The paper does not state its rate.
        domain: what is compared: "identity", the values; "lab", a and b of RGB in [0, 1], for colorization; "log",
            log(max(v, 0) + epsilon), for HDR; or a callable from frames (T, C, H, W) to frames.
        mask: (T, 1, H, W), the pixels of each frame that count, such as what was saturated in the
            input; the whole clip is filtered first.
        seconds: sigma.
        truncate: sigmas at which the Gaussian ends; beyond the clip it is reflected (as in scipy, "reflect").
        epsilon: of "log".

    Raises:
        InputError: clips or mask do not fit, there are fewer than two frames, nothing is left by the mask, or a
            setting is out of range.

    >>> flicker = torch.tensor([0.0, 1.0] * 8).view(16, 1, 1, 1)
    >>> smoothness(flicker, 0.5 * flicker, frame_rate=24).item()
    0.5
    """
    stream = SmoothnessStream(frame_rate, domain, seconds, truncate, epsilon)
    stream.update(preds, target, mask)
    total = stream.totals()
    if not total[1]:
        raise InputError(f"A clip of two frames or more with unmasked pixels is needed, got {tuple(preds.shape)}.")
    return (total[0] / total[1]).to(preds)


def corruption_robustness(preds: Tensor, target: Tensor, *, distance: Distance = euclidean) -> Tensor:
    """Return R_c = -sum_t d(y_t, x_t) of the outputs for corrupted frames against the truth; a scalar, 0 at best.

    Instant Video Models, section 3: a plain sum over the frames, so compare clips of one length and size. NaN
    propagates. It does not see in which order the frames are wrong: flicker and a lasting error cost alike.

    Args:
        preds: a clip (T, C, H, W), what the network returned for the corrupted frames.
        target: the truth, as `preds`.
        distance: from two clips to one distance a frame, (T, C, H, W) twice to (T,); the L2 norm unless given.

    Raises:
        InputError: the shapes differ, or `distance` returns another shape.

    >>> corruption_robustness(torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2)).item()
    -6.0
    """
    check_clip(preds)
    check_alike(preds, target)
    return -distances(distance, preds, target).sum()


def corruption_stability(preds: Tensor, *, distance: Distance = euclidean) -> Tensor:
    """Return S_c = -sum_t d(y_t, y_t+1) of the outputs for corrupted frames; a scalar, 0 at best.

    Instant Video Models, section 3: a plain sum over the T - 1 pairs, so compare clips of one length and size. True
    motion counts as well, and an output that never changes is the best of all. NaN propagates.

    Args:
        preds: a clip (T, C, H, W), T of 2 or more: what the network returned for the corrupted frames.
        distance: from two clips to one distance a frame, (T, C, H, W) twice to (T,); the L2 norm unless given.

    Raises:
        InputError: `preds` is no clip of two frames or more, or `distance` returns another shape.

    >>> corruption_stability(torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)).item()
    -2.0
    """
    _two_or_more(preds)
    return -distances(distance, preds[:-1], preds[1:]).sum()


def distances(distance: Distance, preds: Tensor, target: Tensor) -> Tensor:
    """Return a distance for each frame, and make sure there is one for each."""
    found = distance(preds, target)
    if found.shape != (len(preds),):
        raise InputError(
            f"distance must return one number a frame, ({len(preds)},), for clips {tuple(preds.shape)}, got "
            f"{tuple(found.shape)}."
        )
    return found


class InstabilityStream:
    """Sums for `instability` over a video: [sum, pairs, sum of the target, pairs of the target]."""

    def __init__(self, normalized: bool, mask_nan: bool) -> None:
        self.settings = {"normalized": normalized, "mask_nan": mask_nan}
        self.last: Tensor | None = None
        self.last_target: Tensor | None = None
        self.sums = torch.zeros(4, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor | None = None) -> None:
        check_clip(preds)
        check_continues(preds, self.last)
        if target is not None:
            check_alike(preds, target)
        if self.last is not None and (target is None) != (self.last_target is None):
            raise InputError("Give a target for every chunk of a video, or for none.")
        if target is not None and self.settings["mask_nan"]:  # the same values for both, so that they compare
            missing = preds.isnan() | target.isnan()
            preds, target = preds.masked_fill(missing, torch.nan), target.masked_fill(missing, torch.nan)
        self.sums[:2] += _sum_and_count(frame_changes(joined(self.last, preds), **self.settings))
        self.last = preds[-1].detach().clone()
        if target is not None:
            self.sums[2:] += _sum_and_count(frame_changes(joined(self.last_target, target), **self.settings))
            self.last_target = target[-1].detach().clone()

    def totals(self) -> Tensor:
        return self.sums


class TemporalDifferenceStream:
    """Sums for `temporal_difference_error` over a video: [sum of squares, values]."""

    def __init__(self, mask_nan: bool) -> None:
        self.mask_nan = mask_nan
        self.last: Tensor | None = None
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        check_clip(preds)
        check_alike(preds, target)
        check_continues(preds, self.last)
        error = preds - target
        squares = joined(self.last, error).diff(dim=0).square()
        kept = ~squares.isnan() if self.mask_nan else torch.ones_like(squares, dtype=torch.bool)
        self.sums += vector(torch.where(kept, squares, 0).sum(dtype=torch.float64), kept.sum())
        self.last = error[-1].detach().clone()

    def totals(self) -> Tensor:
        return self.sums


class CategoricalStream:
    """Sums for `categorical_instability` over a video: [sum of shares, pairs, those of the target, its pairs]."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.last_target: Tensor | None = None
        self.sums = torch.zeros(4, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor | None = None) -> None:
        classes = class_map(preds)
        check_continues(classes, self.last)
        truth = None if target is None else class_map(target, "target")
        if truth is not None:
            check_alike(classes, truth, "The classes of preds and target")
        if self.last is not None and (truth is None) != (self.last_target is None):
            raise InputError("Give a target for every chunk of a video, or for none.")
        self.sums[:2] += _sum_and_count(_changed(joined(self.last, classes)))
        self.last = classes[-1].clone()
        if truth is not None:
            self.sums[2:] += _sum_and_count(_changed(joined(self.last_target, truth)))
            self.last_target = truth[-1].clone()

    def totals(self) -> Tensor:
        return self.sums


class RobustnessStream:
    """The sum for `corruption_robustness` over a video: [R_c, 1]."""

    def __init__(self, distance: Distance) -> None:
        self.distance = distance
        self.last: Tensor | None = None
        self.sum = torch.zeros((), dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        check_clip(preds)
        check_alike(preds, target)
        check_continues(preds, self.last)
        self.sum -= distances(self.distance, preds, target).sum(dtype=torch.float64).cpu()
        self.last = preds[-1].detach().clone()

    def totals(self) -> Tensor:
        return vector(self.sum, float(self.last is not None))


class StabilityStream:
    """The sum for `corruption_stability` over a video: [S_c, 1], or zeros for a single frame."""

    def __init__(self, distance: Distance) -> None:
        self.distance = distance
        self.last: Tensor | None = None
        self.sum = torch.zeros((), dtype=torch.float64)
        self.pairs = 0

    def update(self, preds: Tensor) -> None:
        check_clip(preds)
        check_continues(preds, self.last)
        clip = joined(self.last, preds)
        if len(clip) > 1:
            self.sum -= distances(self.distance, clip[:-1], clip[1:]).sum(dtype=torch.float64).cpu()
            self.pairs += len(clip) - 1
        self.last = preds[-1].detach().clone()

    def totals(self) -> Tensor:
        return vector(self.sum, float(self.pairs > 0))


class SmoothnessStream:
    """Sums for `smoothness` over a video: [S, 1, sum D(target), sum D(preds)], or zeros for a single frame.

    A frame is settled once the window around it is complete; the last ones are settled anew, with the clip reflected,
    each time `totals` is asked. At most three times the radius of the Gaussian is kept.
    """

    def __init__(
        self, frame_rate: float, domain: str | Domain, seconds: float, truncate: float, epsilon: float
    ) -> None:
        if not (0 < frame_rate < float("inf") and 0 < seconds < float("inf") and 0 < truncate < float("inf")):
            raise InputError(
                f"frame_rate, seconds and truncate must be above 0 and finite, got {frame_rate}, {seconds} and "
                f"{truncate}."
            )
        if not callable(domain) and domain not in DOMAINS:
            raise InputError(f"There is no domain {domain!r}; {nearest(str(domain), DOMAINS)}")
        sigma = float(seconds * frame_rate)
        self.radius = int(truncate * sigma + 0.5)
        offsets = torch.arange(-self.radius, self.radius + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        self.weights = weights / weights.sum()
        self.domain, self.epsilon = domain, epsilon
        self.frames: list[Tensor] = []  # preds and target, (2, C, H, W)
        self.masks: list[Tensor | None] = []
        self.first = self.settled = self.seen = 0  # numbers of frames: first kept, next to be settled, next to come
        self.shape: Tensor | None = None
        self.energy: Tensor | None = None  # of what is settled: (2, C)
        self.counted = 0  # values that count in what is settled

    def update(self, preds: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        check_clip(preds)
        check_alike(preds, target)
        check_continues(preds, self.shape)
        if mask is not None and mask.shape != (len(preds), 1, *preds.shape[2:]):
            raise InputError(f"mask must be {(len(preds), 1, *preds.shape[2:])}, got {tuple(mask.shape)}.")
        pairs = torch.stack([in_domain(clip.detach(), self.domain, self.epsilon) for clip in (preds, target)], 1)
        self.shape = torch.empty(preds.shape[1:], device="meta")
        for t, pair in enumerate(pairs):
            self.frames.append(pair)
            self.masks.append(None if mask is None else (mask[t] > 0).to(pair.device))
            self.seen += 1
            if self.seen - self.settled >= 2 * self.radius + 1:
                self._settle()

    def totals(self) -> Tensor:
        if self.seen < 2:
            return torch.zeros(4, dtype=torch.float64)
        energy, counted = self._energy(self.settled, self.seen, ended=True)
        if self.energy is not None:
            energy = energy + self.energy
        if not counted + self.counted:
            return torch.zeros(4, dtype=torch.float64)
        ours, truth = energy
        ratio = torch.where((ours == 0) & (truth == 0), 1, truth / ours).sqrt()
        return vector(ratio.mean(), 1, truth.sum(), ours.sum())

    def _settle(self) -> None:
        end = self.seen - self.radius
        energy, counted = self._energy(self.settled, end, ended=False)
        self.energy = energy if self.energy is None else self.energy + energy
        self.counted += counted
        self.settled = end
        gone = max(0, end - self.radius) - self.first
        del self.frames[:gone], self.masks[:gone]
        self.first += gone

    def _energy(self, start: int, end: int, *, ended: bool) -> tuple[Tensor, int]:
        """Return sum D of preds and target, (2, C), over frames `start` to `end` - 1, and how many values count."""
        numbers = torch.arange(start, end).unsqueeze(1) + torch.arange(-self.radius, self.radius + 1)
        if ended:
            numbers = numbers.remainder(2 * self.seen)
            numbers = torch.where(numbers >= self.seen, 2 * self.seen - 1 - numbers, numbers)
        else:
            numbers = torch.where(numbers < 0, -1 - numbers, numbers)
        matrix = torch.zeros(end - start, len(self.frames), dtype=torch.float64)
        matrix.scatter_add_(1, numbers - self.first, self.weights.expand(end - start, -1))
        matrix = matrix.to(self.frames[0])
        part = slice(start - self.first, end - self.first)
        some = [mask for mask in self.masks[part] if mask is not None]
        chosen = None
        if some:
            whole = torch.ones_like(some[0])
            chosen = torch.stack([whole if mask is None else mask for mask in self.masks[part]])
        channels = self.frames[0].shape[1]
        energy = torch.zeros(2, channels, dtype=torch.float64)
        for i in range(2):
            for c in range(channels):  # one plane at a time: a window of all of them is large
                planes = torch.stack([frame[i, c] for frame in self.frames])
                planes -= planes[0].clone()  # the weights sum to 1: only the rounding changes, and a still has none
                squares = planes[part] - (matrix @ planes.flatten(1)).view(planes[part].shape)
                squares = squares.square_()
                if chosen is not None:
                    squares = torch.where(chosen[:, 0], squares, 0)
                energy[i, c] = squares.sum(dtype=torch.float64).cpu()
        return energy, int(chosen.sum()) if chosen is not None else (end - start) * self.frames[0][0].numel()


def in_domain(clip: Tensor, domain: str | Domain, epsilon: float) -> Tensor:
    """Return a clip in the values that `smoothness` compares."""
    if callable(domain):
        return domain(clip)
    if domain == "log":
        return clip.clamp_min(0).add(epsilon).log()
    if domain == "lab":
        if clip.shape[1] != 3:
            raise InputError(f"The domain 'lab' needs RGB, (T, 3, H, W); got {tuple(clip.shape)}.")
        from kornia.color import rgb_to_lab

        return rgb_to_lab(clip)[:, 1:]
    return clip


def _two_or_more(clip: Tensor) -> Tensor:
    if clip.ndim != 4 or clip.shape[0] < 2:
        raise InputError(f"A clip (T, C, H, W) of two frames or more is needed, got {tuple(clip.shape)}.")
    check_clip(clip)
    return clip


def _changed(classes: Tensor) -> Tensor:
    return (classes[1:] != classes[:-1]).flatten(1).double().mean(1)


def _sum_and_count(values: Tensor) -> Tensor:
    return vector(values.sum(dtype=torch.float64), len(values))
