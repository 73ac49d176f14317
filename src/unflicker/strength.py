"""Which strength suits a video: the largest that costs little fidelity, with or without a truth to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.data.base import Recording, Video
from unflicker.data.clips import read_frames
from unflicker.flow import consistent
from unflicker.flow import flow as find_flow
from unflicker.functional import sample
from unflicker.layers import evaluating
from unflicker.measure import FLOW_WIDTH
from unflicker.metrics.quality import frame_psnr
from unflicker.model import MOST, StabilizedModel
from unflicker.sharing import SharedBase, attach
from unflicker.state import State
from unflicker.video.ahead import read_ahead

Reference = Literal["output", "input"]

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
ROUNDING = 1 / (12 * 255**2)  # mean square error of 8 bits; less is no error
FINEST = 1 / 20  # share of the base's error below which what is left of it cannot be estimated
FOLLOWED = 0.1  # share of the pixels whose motion must be known; frames with nothing in common reach 0.07
STUCK = 0.25  # share of the true motion's energy below which an output has collapsed
MOVING = 0.1  # share of the base's changes that must be true motion before its lack means anything


@dataclass(frozen=True)
class Trial:
    """What one strength gives."""

    strength: float
    psnr: float
    """dB: against the truth, or estimated against what stands for it, see `reference`."""
    loss_db: float
    """How much less that is than the best of all strengths tried; 0 or more."""
    instability: float
    """Root mean square change per value from frame to frame."""
    collapsing: bool
    """It changes far less than true motion explains, or stays at its first frame."""


@dataclass(frozen=True)
class Recommendation:
    """The strength to take, and what speaks for it."""

    strength: float
    trials: tuple[Trial, ...]
    true_instability: float
    """Of the truth, or estimated: what a perfect output would have where motion can be followed."""
    followed: float
    """Share of pixels and frames on which the estimate rests; 1 with a truth."""
    frames: int
    warning: str | None


def recommend_strength(
    model: StabilizedModel,
    video: Video,
    *,
    limit_db: float = 0.5,
    strengths: Sequence[float] = STRENGTHS,
    truth: Video | None = None,
    reference: Reference = "output",
    frames: int | None = 120,
    size: tuple[int, int] | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> Recommendation:
    """Try several strengths on a video of yours in one pass, and return the largest that costs little fidelity.

    With a truth, fidelity is the PSNR against it, mean over frames, and the choice is the largest strength at most
    `limit_db` below the best strength.

    Without, it is estimated. The output y at frame t knows the frames up to t. The next frame of the reference,
    brought back along the motion, is another picture f of the scene x, whose flicker y cannot know. So
    E|y - f|^2 = E|y - x|^2 + E|f - x|^2 tells how the errors of any two strengths differ; and the base's own error is
    E (b - f)(b - p), p being the reference's last frame, for the errors of b, f and p are independent. This counts
    flicker that is left as well as lag and ghosts, where forward and backward flow agree (`followed`). Flicker that
    lasts for several frames passes for the scene, so the choice is careful.

    A strength is never chosen when its output collapses: Instant Video Models, section 3, where smoothing so strong
    that the output stays at the first frame is the optimum. Frames whose flicker is independent, of energy v, change
    by |b_t - b_t-1|^2 = |x_t - x_t-1|^2 + 2 v, so the true motion is known without a truth, and likewise the distance
    from the first frame. An output with less than a quarter of either has collapsed: that is half of the amplitude, so
    what moves has lost half of its contrast. Where less than a tenth of the base's changes is true motion, that says
    nothing, and a still may be as steady as it likes.

    Args:
        model: takes frames (1, 3, H, W) in [0, 1] and returns such frames.
        video: what it will run on, one shot of three frames or more.
        limit_db: of fidelity lost, in dB, 0 or more.
        strengths: to be tried, each 0 or more; every one is a stream of its own. A base whose output alone is
            stabilized runs once a frame.
        truth: what the output should look like, frame by frame.
        reference: without a truth, what is right on average: the base's "output", for any network; what it does wrong
            in all frames alike is then right, and an adapter that mends it wrong. Or the "input", if that is the
            truth but for noise that is independent from frame to frame, as in denoising: much closer to the truth.
        frames: how many, from the first on; None takes all.
        size: (height, width) to average frames to, first of all. Take the size that the model will run at.
        on_frame: called with the number of frames done and to be done.

    Raises:
        InputError: something does not fit, or without a truth the motion can be followed hardly anywhere.

    >>> from types import SimpleNamespace
    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import EMA
    >>> clip = 0.5 + 0.05 * torch.randn(12, 3, 24, 32)  # noise on grey: the more averaging the better
    >>> video = SimpleNamespace(name="grey", num_frames=12, height=24, width=32, read=lambda numbers: clip[numbers])
    >>> model = stabilize(torch.nn.Identity(), {"": EMA(0.2)}, example=clip[:1])
    >>> recommend_strength(model, video, strengths=(0, 1, 4)).strength
    4.0
    """
    _check(model, video, limit_db, strengths, truth, reference, frames, size)
    count = video.num_frames if frames is None else min(frames, video.num_frames)
    judge = _Seeing(strengths) if truth is not None else _Blind(strengths, reference)
    states: list[State | None] = [None] * len(strengths)
    once = SharedBase(model.base)
    first = next(model.base.parameters(), torch.zeros(()))
    running: StabilizedModel | None = None
    recording = Recording(video, {} if truth is None else {"truth": truth})
    read = partial(read_frames, recording, target="clean" if truth is None else "truth", size=size)
    frames_ahead = read_ahead(read([i]) for i in range(count))
    with evaluating(model), torch.inference_mode(), closing(frames_ahead) as ahead:
        for done, (frame, target) in enumerate(ahead, start=1):
            x = frame.to(first)
            base = _picture(once(x), x)
            running = running or attach("", model, once, x)
            outputs = []
            for i, strength in enumerate(strengths):
                if strength == 0:
                    outputs.append(base)
                    continue
                y, states[i] = running(x, states[i], strength=float(strength))
                outputs.append(_picture(y, x))
            judge.update(base, outputs, x.float() if truth is None else target.to(base))
            if on_frame is not None:
                on_frame(done, count)
    return _recommend(judge, [float(s) for s in strengths], limit_db, count)


def _check(
    model: StabilizedModel,
    video: Video,
    limit_db: float,
    strengths: Sequence[float],
    truth: Video | None,
    reference: str,
    frames: int | None,
    size: tuple[int, int] | None,
) -> None:
    if not isinstance(model, StabilizedModel):
        raise InputError(f"model must be what stabilize() returns, got {type(model).__name__}.")
    if not model.places:
        raise InputError("The model has no stabilizers, so every strength is alike: choose an adapter.")
    if not 0 <= limit_db < math.inf:
        raise InputError(f"limit_db must be 0 or more, in dB, got {limit_db}.")
    if len(strengths) < 2 or len(set(strengths)) < len(strengths) or not all(0 <= s <= MOST for s in strengths):
        raise InputError(
            f"strengths must be two or more different numbers from 0 to {MOST:g}, got {', '.join(map(str, strengths))}."
        )
    if reference not in get_args(Reference):
        raise InputError(f"There is no reference {reference!r}; {nearest(reference, get_args(Reference))}")
    if frames is not None and frames < 3:
        raise InputError(f"frames must be 3 or more, got {frames}.")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise InputError(f"size must be (height, width) in pixels, got {size}.")
    if video.num_frames < 3:
        raise InputError(f"{video.name} has {video.num_frames} frames; three or more tell how much may be averaged.")
    if truth is not None and truth.num_frames < video.num_frames:
        raise InputError(
            f"The truth {truth.name} has {truth.num_frames} frames, but {video.name} has {video.num_frames}: "
            "cut the video to its length."
        )


def _picture(y: object, x: Tensor) -> Tensor:
    if not isinstance(y, Tensor) or y.ndim != 4 or y.shape[1] != 3:
        came = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"The network must return frames (1, 3, H, W) to choose a strength, got {came}.")
    return y.float().clamp(0, 1)


class _Changes:
    """Sums of what all strengths have in common: how far outputs change, and how far they are from the first."""

    def __init__(self, strengths: Sequence[float]) -> None:
        self.count = 0
        self.last: list[Tensor] = []
        self.beginning: list[Tensor] = []
        self.steps = [0.0] * len(strengths)
        self.ways = [0.0] * len(strengths)
        self.roots = [0.0] * len(strengths)  # of the instability, which is a mean of roots

    def add(self, outputs: list[Tensor]) -> None:
        if self.count:
            for i, (y, last, beginning) in enumerate(zip(outputs, self.last, self.beginning, strict=True)):
                step = _mean_square(y, last)
                self.steps[i] += step
                self.roots[i] += math.sqrt(step)
                self.ways[i] += _mean_square(y, beginning)
        else:
            self.beginning = outputs
        self.last = outputs
        self.count += 1

    def means(self) -> tuple[list[float], list[float], list[float]]:
        """The mean energy of a step, that of the way from the first frame, and the instability."""
        pairs = self.count - 1
        return [s / pairs for s in self.steps], [w / pairs for w in self.ways], [r / pairs for r in self.roots]


class _Judge:
    """Looks at the outputs of all strengths, frame by frame, and at the base's."""

    def __init__(self, strengths: Sequence[float]) -> None:
        self.outputs, self.reference = _Changes(strengths), _Changes([0.0])

    def update(self, base: Tensor, outputs: list[Tensor], other: Tensor) -> None:
        """Take the next frame: the base's output, that of each strength, and the truth, or without one the input."""
        raise NotImplementedError

    def fidelity(self) -> list[float]:
        """PSNR in dB for each strength."""
        raise NotImplementedError

    def flicker(self) -> float:
        """Energy of the independent part of the reference's frames."""
        return 0.0

    def followed(self) -> float:
        return 1.0


class _Seeing(_Judge):
    """Compares with the truth."""

    def __init__(self, strengths: Sequence[float]) -> None:
        super().__init__(strengths)
        self.sums = [0.0] * len(strengths)

    def update(self, base: Tensor, outputs: list[Tensor], other: Tensor) -> None:
        _check_size("truth", other, base)
        self.outputs.add(outputs)
        self.reference.add([other])
        highest = -10 * math.log10(ROUNDING)
        for i, y in enumerate(outputs):
            self.sums[i] += min(frame_psnr(y, other).item(), highest)

    def fidelity(self) -> list[float]:
        return [total / self.outputs.count for total in self.sums]


class _Blind(_Judge):
    """Compares with the reference's next frame, brought back along the motion of the base's outputs."""

    def __init__(self, strengths: Sequence[float], reference: str) -> None:
        super().__init__(strengths)
        self.takes_input = reference == "input"
        self.now: tuple[Tensor, Tensor, list[Tensor]] | None = None  # of the base, the reference and all strengths
        self.before: tuple[Tensor, Tensor, Tensor] | None = None  # the last of base and reference, brought to now
        self.errors = [0.0] * len(strengths)
        self.base_error = self.product = self.flicker_product = 0.0
        self.values = self.all_values = 0

    def update(self, base: Tensor, outputs: list[Tensor], other: Tensor) -> None:
        reference = other if self.takes_input else base
        _check_size("input", reference, base)
        self.outputs.add(outputs)
        self.reference.add([base])
        if self.now is not None:
            now, reference_now, outputs_now = self.now
            find = partial(find_flow, preset="fast", scale=min(1.0, FLOW_WIDTH / base.shape[-1]), method="auto")
            there, back = find(now, base), find(base, now)
            if self.before is not None:
                base_before, before, trusted = self.before
                mask = (trusted & _followed(there, back)).float()
                base_after = sample(base, there)
                after = sample(reference, there) if self.takes_input else base_after
                self.values += int(mask.sum()) * base.shape[1]
                self.all_values += base.numel()
                self.product += _dot(now - after, now - before, mask)
                self.flicker_product += _dot(now - base_after, now - base_before, mask)
                self.base_error += _dot(now - after, now - after, mask)
                for i, y in enumerate(outputs_now):
                    self.errors[i] += _dot(y - after, y - after, mask)
            base_before = sample(now, back)
            before = sample(reference_now, back) if self.takes_input else base_before
            self.before = base_before, before, _followed(back, there)
        self.now = base, reference, outputs

    def fidelity(self) -> list[float]:
        if self.followed() < FOLLOWED:
            raise InputError(
                f"The motion can be followed on {100 * self.followed():.0f} % of the pixels, too few to estimate "
                "fidelity by: give a truth, or a calmer part of the video."
            )
        least = max(ROUNDING, FINEST * self.product / self.values)
        errors = [(each - self.base_error + self.product) / self.values for each in self.errors]
        return [-10 * math.log10(max(each, least)) for each in errors]

    def flicker(self) -> float:
        return max(0.0, self.flicker_product / self.values) if self.values else 0.0

    def followed(self) -> float:
        return self.values / self.all_values if self.all_values else 0.0


def _followed(flow: Tensor, back: Tensor) -> Tensor:
    """Where a flow can be trusted, (1, 1, H, W); borders of motion count, for what lags leaves its ghosts there."""
    return consistent(flow, back, boundary=None)


def _check_size(what: str, frame: Tensor, base: Tensor) -> None:
    if frame.shape != base.shape:
        raise InputError(
            f"The {what} must have the size of the output, {tuple(base.shape[-2:])}, to compare them, got "
            f"{tuple(frame.shape[-2:])} (height, width)."
        )


def _dot(a: Tensor, b: Tensor, mask: Tensor) -> float:
    return (a * b * mask).sum(dtype=torch.float64).item()


def _mean_square(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean(dtype=torch.float64).item()


def _recommend(judge: _Judge, strengths: list[float], limit_db: float, count: int) -> Recommendation:
    fidelity = judge.fidelity()
    best = max(fidelity)
    steps, ways, instability = judge.outputs.means()
    (reference_step,), (reference_way,), _ = judge.reference.means()
    twice = 2 * judge.flicker()
    motion = max(0.0, reference_step - twice)
    way = max(0.0, reference_way - twice)

    def stuck(found: float, true: float, reference: float) -> bool:
        return true > MOVING * reference and true > ROUNDING and found < STUCK * true

    trials = tuple(
        Trial(
            strength,
            fidelity[i],
            best - fidelity[i],
            instability[i],
            strength > 0 and (stuck(steps[i], motion, reference_step) or stuck(ways[i], way, reference_way)),
        )
        for i, strength in enumerate(strengths)
    )
    fit = [trial for trial in trials if trial.loss_db <= limit_db and not trial.collapsing]
    chosen = max(fit, key=lambda trial: trial.strength) if fit else min(trials, key=lambda trial: trial.strength)
    collapsing = sorted(trial.strength for trial in trials if trial.collapsing)
    warning = None
    if collapsing:
        warning = (
            f"From strength {collapsing[0]:g} on the output collapses: it moves less than half as much as the scene "
            "does. Stay well below."
        )
    elif not fit:
        warning = f"No strength stays within {limit_db:g} dB; the smallest is taken."
    elif judge.followed() < 0.5:
        warning = (
            f"The motion can be followed on {100 * judge.followed():.0f} % of the pixels; look for ghosts on the rest."
        )
    return Recommendation(chosen.strength, trials, math.sqrt(motion), judge.followed(), count, warning)
