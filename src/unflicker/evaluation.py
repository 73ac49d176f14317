"""evaluate(): whole videos in one pass, every metric, for a base and what makes it steady."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unflicker.checks import InputError, nearest
from unflicker.corruptions import parse
from unflicker.data.base import Recording, Video
from unflicker.data.clips import read_frames
from unflicker.kinds import Kind, as_output, as_target, check_fits, output_kinds, target_kinds
from unflicker.layers import evaluating
from unflicker.model import MOST, StabilizedModel
from unflicker.outputs import main_tensor, run_once
from unflicker.processes import spread
from unflicker.results import BASE, TRUTH, About, Costs, Evaluation, Numbers, Skipped, VideoNumbers
from unflicker.scores import METRICS, Motion, fitting
from unflicker.sharing import SharedBase, attach, clock
from unflicker.stabilizers import Stabilizer
from unflicker.state import State
from unflicker.video.ahead import read_ahead


@dataclass(frozen=True)
class Method:
    """What makes the base steady, and how strongly."""

    model: StabilizedModel | Stabilizer
    strength: float = 1.0


def evaluate(
    base: nn.Module,
    recordings: Sequence[Recording],
    methods: Mapping[str, StabilizedModel | Stabilizer | Method],
    *,
    corruptions: Sequence[str] = (),
    metrics: Sequence[str] = ("psnr", "instability", "temporal_difference_error"),
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    every: int = 1,
    seed: int = 0,
    target: str | None = None,
    processes: int = 1,
    with_base: bool = True,
    on_frame: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Take whole videos through a base and through what makes it steady, and measure all of them in one pass.

    Each video is one stream that begins afresh, frame by frame as `unflicker run` takes it, its first frame included;
    memory does not grow with its length but for one time a frame. What is unknown of a target (NaN, a negative class)
    is left out of every number.

    The target says what the network is for: pictures (B, C, H, W), which are clipped to [0, 1]; with "depth" or
    "disparity", 1 / depth up to scale and shift, (B, 1, H, W) or (B, H, W); with labels, logits (B, K, H, W); with
    classes of frames, logits (B, K). Of a tuple or dict the main entry is taken, see `unflicker.outputs.main_output`.

    "instability" is that of Instant Video Models: of pictures and depth the root mean square change per value, times
    sqrt(C * H * W) the paper's number; of disparity after the fit of every frame to the truth, which hides flicker of
    scale and shift, so against "base" without it; of labels and classes the share that changes. "abs_rel" and "delta1"
    compare depth, at most 200, after that fit; "miou" is of the pixels of all videos together.

    Args:
        base: the network on frames (B, 3, H, W) in [0, 1].
        recordings: the videos.
        methods: by name, what is compared with the base: models made by `stabilize(base, ...)`, stabilizers for the
            base's output, or a `Method` of either with a strength. What stabilizes only the output of this very base
            shares its output, found once for each frame.
        corruptions: what is done to the frames, for `unflicker.corruptions.parse`, in this order; seeded from `seed`,
            the place in this list and the number of the video.
        metrics: keys of `unflicker.scores.METRICS` that fit the target. "ssim" and what follows motion
            ("warping_error", "flicker": flow of the target) take several times as long as the others;
            `metric_milliseconds` tells.
        size: (height, width) to average frames to, first of all.
        frames: stop each video after that many.
        every: take one frame in so many.
        seed: of the corruptions.
        target: a key of the recordings' targets, as "truth", "depth" or "labels"; "clean", the frame before
            corruption; or "base", what the network makes of that, which is what any network can be held to. Unless
            given, the truth where there is one, else "clean".
        processes: videos at a time, each in a process of one thread, which needs the `if __name__ == "__main__"`
            of scripts. All but times is the same to the last digit as one process with one thread.
        with_base: measure the base alone as well; without it a network whose layers are stabilized runs only once.
        on_frame: called with the number of frames done and to be done, after each or twice a second.

    Raises:
        InputError: something asked for does not exist or does not fit, or no video could be read. A video that cannot
            be read, among others that can, is left out and named in `skipped`.

    >>> from types import SimpleNamespace
    >>> from unflicker.stabilizers import EMA
    >>> clip = torch.rand(3, 3, 16, 24)
    >>> video = SimpleNamespace(name="noise", num_frames=3, height=16, width=24, read=lambda numbers: clip[numbers])
    >>> found = evaluate(nn.Identity(), [Recording(video)], {"average": EMA(0.5)})
    >>> found.overall["average"]["instability"] < found.overall["base"]["instability"]
    True
    """
    job = _Job(
        base,
        {name: each if isinstance(each, Method) else Method(each) for name, each in methods.items()},
        tuple(corruptions),
        tuple(metrics),
        size,
        frames,
        every,
        seed,
        with_base,
        target,
    )
    _check(job, recordings, processes)
    job = replace(job, kind=_kind(job, recordings))
    start = time.perf_counter()
    expected = sum(len(job.numbers(recording.frames)) for recording in recordings)

    def on_step(done: int) -> None:
        if on_frame is not None:
            on_frame(done, expected)

    found = spread(partial(_evaluate_video, job), recordings, processes, on_step)
    good = [each for each in found if each.reason is None]
    if not good:
        raise InputError(
            f"None of the {len(found)} videos could be read; the first, {found[0].name}: {found[0].reason}"
        )
    return _summary(job, found, good, time.perf_counter() - start)


@dataclass(frozen=True)
class _Job:
    """What is asked of every video."""

    base: nn.Module
    methods: Mapping[str, Method]
    corruptions: tuple[str, ...]
    metrics: tuple[str, ...]
    size: tuple[int, int] | None
    frames: int | None
    every: int
    seed: int
    with_base: bool
    target: str | None
    kind: Kind = "pictures"
    """Of output, that the target asks for and the metrics fit."""

    def key(self, recording: Recording) -> str:
        """What a recording's target is called."""
        return self.target or ("truth" if "truth" in recording.targets else "clean")

    def numbers(self, video: Video) -> range:
        """The frames that are read."""
        most = video.num_frames if self.frames is None else min(video.num_frames, self.every * self.frames)
        return range(0, most, self.every)


@dataclass
class _Found:
    """What came out of one video: plain numbers, which pass between processes."""

    name: str
    frames: int = 0
    height: int = 0
    width: int = 0
    totals: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    state_bytes: dict[str, int] = field(default_factory=dict)
    metric_seconds: dict[str, float] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    """How many frames of how many methods each metric saw."""
    reason: str | None = None


def _check(job: _Job, recordings: Sequence[Recording], processes: int) -> None:
    if not recordings:
        raise InputError("There is no video to evaluate on; give one recording or more.")
    if not job.methods and not job.with_base:
        raise InputError("There is nothing to evaluate: give a method, or leave with_base on.")
    for name in job.metrics:
        if name not in METRICS:
            raise InputError(f"There is no metric {name!r}; {nearest(name, METRICS)}")
    if not job.metrics or len(set(job.metrics)) < len(job.metrics):
        raise InputError(f"metrics must name one or more, each once, got {', '.join(job.metrics) or 'none'}.")
    for name, method in job.methods.items():
        if name in (BASE, TRUTH):
            raise InputError(f"{name!r} is the name of a row that is there anyway; call the method otherwise.")
        if not isinstance(method.model, (StabilizedModel, Stabilizer)):
            raise InputError(
                f"The method {name!r} must be a StabilizedModel or a Stabilizer, got {type(method.model).__name__}."
            )
        if not 0 <= method.strength <= MOST:
            raise InputError(
                f"The strength of {name!r} must be 0 (off) or more, up to {MOST:g}, got {method.strength}."
            )
    for position, text in enumerate(job.corruptions):
        parse(text, seed=_seed(job.seed, position, 0))
    for what, value in (("frames", job.frames), ("every", job.every), ("processes", processes)):
        if value is not None and value < 1:
            raise InputError(f"{what} must be 1 or more, got {value}.")
    for recording in recordings if job.target not in (None, "clean", "base") else ():
        if job.key(recording) not in recording.targets:
            hint = nearest(job.key(recording), [*recording.targets, "clean", "base"])
            raise InputError(f"The recording {recording.name!r} has no target {job.target!r}; {hint}")
    if job.size is not None and (len(job.size) != 2 or min(job.size) < 1):
        raise InputError(f"size must be (height, width) in pixels, got {job.size}.")


def _kind(job: _Job, recordings: Sequence[Recording]) -> Kind:
    """Which kind of output it is: the likeliest that all metrics fit."""
    kinds = _kinds(job, recordings)
    for kind in kinds:
        if all(kind in METRICS[name].streams for name in job.metrics):
            return kind
    if not kinds:
        raise InputError(f"No metric compares with the target {job.target!r}; take another.")
    name = next(name for name in job.metrics if kinds[0] not in METRICS[name].streams)
    made = f" of a network that makes {kinds[0].removeprefix('own ')}" if job.target == "base" else ""
    raise InputError(
        f"The metric {name!r} does not fit the target {job.target or 'clean'!r}{made}; those that fit are "
        f"{', '.join(fitting(kinds[0]))}."
    )


def _kinds(job: _Job, recordings: Sequence[Recording]) -> tuple[Kind, ...]:
    """Which kinds of output it may be, by the first target that can be read, or by what the base makes of a frame."""
    if job.target in (None, "clean", "truth"):
        return ("pictures",)
    size = job.size if job.target == "base" else None  # the size of a target tells nothing
    for recording in recordings:
        with contextlib.suppress(InputError, OSError):
            numbers = job.numbers(recording.frames)[:1]
            clean, target = read_frames(recording, numbers, target=job.key(recording), size=size)
            break
    else:
        return get_args(Kind)  # nobody can tell, and nothing will be measured
    if job.target != "base":
        return target_kinds(target, job.key(recording))
    x = clean.to(next(job.base.parameters(), torch.zeros(())))
    return output_kinds(main_tensor(run_once(job.base, x), x))


def _evaluate_video(job: _Job, number: int, recording: Recording, tell: Callable[[], None]) -> _Found:
    """Take one video through everything."""
    found = _Found(recording.name)
    rows = ([BASE] if job.with_base else []) + list(job.methods)
    motion = Motion()
    streams = {row: {name: METRICS[name].streams[job.kind](motion) for name in job.metrics} for row in rows}
    floor = {name: METRICS[name].streams[job.kind](motion) for name in job.metrics if METRICS[name].of_truth}
    if floor:
        streams[TRUTH] = floor
    states: dict[str, State | None] = dict.fromkeys(job.methods)
    models: dict[str, StabilizedModel] = {}
    once = SharedBase(job.base)
    first = next(job.base.parameters(), torch.zeros(()))
    found.metric_seconds, found.measured = dict.fromkeys(job.metrics, 0.0), dict.fromkeys(job.metrics, 0)
    with ExitStack() as stack:
        stack.enter_context(evaluating(job.base))
        stack.enter_context(torch.inference_mode())
        ahead = stack.enter_context(closing(read_ahead(_frames(job, number, recording))))
        try:
            for frame, wanted in ahead:
                x, target = frame.to(first), wanted.to(first.device)
                if job.target == "base":
                    target = as_output(job.base(wanted.to(first)), x, job.kind)
                target = as_target(target, job.key(recording), job.kind)
                outputs: dict[str, Any] = {}
                if job.with_base:
                    outputs[BASE] = once(x)
                    found.milliseconds.setdefault(BASE, []).append(1000 * once.seconds)
                if not models:
                    for name, method in job.methods.items():
                        models[name] = attach(name, method.model, once, x)
                        stack.enter_context(evaluating(models[name]))
                for name, model in models.items():
                    before, start = once.computed, clock(x)
                    y, states[name] = model(x, states[name], strength=job.methods[name].strength)
                    seconds = clock(x) - start
                    # What another had computed already belongs to this one's time as well.
                    if once.shared_by(model) and once.computed == before:
                        seconds += once.seconds
                    found.milliseconds.setdefault(name, []).append(1000 * seconds)
                    outputs[name] = y
                for row, each in streams.items():
                    preds = target
                    if row != TRUTH:
                        preds = as_output(outputs[row], x, job.kind)
                        check_fits(preds, target, job.kind)
                    for name, stream in each.items():
                        start = time.perf_counter()
                        stream.update(preds, target)
                        found.metric_seconds[name] += time.perf_counter() - start
                        found.measured[name] += 1
                found.frames += 1
                found.height, found.width = x.shape[-2:]
                if found.frames <= 2:
                    found.state_bytes = {name: _bytes(state) for name, state in states.items()}
                tell()
        except _UnreadableError as error:
            return _Found(recording.name, reason=str(error))
    found.totals = {
        row: {name: stream.totals().tolist() for name, stream in each.items()} for row, each in streams.items()
    }
    return found


class _UnreadableError(Exception):
    """A frame could not be read."""


def _frames(job: _Job, number: int, recording: Recording) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what goes in, (1, C, H, W), and what should come out; against "base" that is still the frame."""
    key = job.key(recording)
    truth = recording.targets.get(key)
    spoil = [parse(text, seed=_seed(job.seed, i, number)) for i, text in enumerate(job.corruptions)]
    numbers = job.numbers(recording.frames)
    if not numbers:
        raise _UnreadableError("it has no frames.")
    if truth is not None and truth.num_frames < recording.frames.num_frames:
        raise _UnreadableError(
            f"its target {key!r} has {truth.num_frames} frames, but it has {recording.frames.num_frames}."
        )
    for t, i in enumerate(numbers):
        try:
            frame, target = read_frames(recording, [i], target=key, size=job.size)
        except (InputError, OSError) as error:  # a file may be gone by the time it is its turn
            raise _UnreadableError(str(error)) from error
        for corruption in spoil:
            frame = corruption(frame, start=t)
        yield frame, target


def _seed(seed: int, position: int, number: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be an integer, 0 or more, got {seed!r}.")
    return int(np.random.SeedSequence((seed, position, number)).generate_state(1)[0])


def _bytes(state: State | None) -> int:
    return sum(value.nbytes for value in (state or {}).values())


# --- summing up -------------------------------------------------------------------------------------------------------


def _summary(job: _Job, found: list[_Found], good: list[_Found], seconds: float) -> Evaluation:
    def number(each: list[_Found], row: str, name: str) -> float | None:
        columns = zip(*(one.totals[row][name] for one in each), strict=True)
        return METRICS[name].value([math.fsum(column) for column in columns])  # the same in whatever order

    def numbers(each: list[_Found]) -> dict[str, Numbers]:
        return {row: {name: number(each, row, name) for name in names} for row, names in each[0].totals.items()}

    measured = {name: max(1, sum(each.measured[name] for each in good)) for name in job.metrics}
    return Evaluation(
        metrics={
            name: About(METRICS[name].heading, METRICS[name].unit, METRICS[name].higher_is_better)
            for name in job.metrics
        },
        overall=numbers(good),
        videos=[VideoNumbers(each.name, each.frames, each.height, each.width, numbers([each])) for each in good],
        costs=_costs(job, good),
        strengths={name: float(method.strength) for name, method in job.methods.items()},
        metric_milliseconds={
            name: 1000 * sum(each.metric_seconds[name] for each in good) / measured[name] for name in job.metrics
        },
        frames=sum(each.frames for each in good),
        seconds=seconds,
        settings={
            "corruptions": list(job.corruptions),
            "size": None if job.size is None else list(job.size),
            "frames": job.frames,
            "every": job.every,
            "seed": job.seed,
            "target": job.target,
        },
        skipped=[Skipped(each.name, each.reason) for each in found if each.reason is not None],
    )


def _costs(job: _Job, good: list[_Found]) -> dict[str, Costs]:
    """Times and memory as they were found, weights and multiply-adds counted on one frame more."""
    once = SharedBase(job.base)
    first = next(job.base.parameters(), torch.zeros(()))
    x = torch.zeros(1, 3, good[0].height, good[0].width).to(first)

    def typical(row: str) -> float | None:
        times = [value for each in good for value in each.milliseconds.get(row, [])]
        return statistics.median(times) if times else None

    with evaluating(job.base), torch.inference_mode():
        own = _multiply_adds(partial(once, x))
        weights = sum(p.numel() for p in job.base.parameters())
        costs = {BASE: Costs(typical(BASE), 0.0, weights, own)}
        for name, method in job.methods.items():
            model = attach(name, method.model, once, x)
            with evaluating(model):
                added = _multiply_adds(partial(model, x))
            if not once.shared_by(model):
                added = max(0, added - own)
            weights = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("base."))
            state = max(each.state_bytes[name] for each in good) / 2**20
            costs[name] = Costs(typical(name), state, weights, added)
    return costs


def _multiply_adds(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2
