"""evaluate(): whole videos in one pass, every metric, for a base and what makes it steady."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unflicker.checks import InputError, nearest
from unflicker.corruptions import parse
from unflicker.data.base import Recording, Video
from unflicker.data.clips import read_frames
from unflicker.flow import flow as find_flow
from unflicker.layers import evaluating
from unflicker.measure import FLOW_WIDTH
from unflicker.metrics.base import vector
from unflicker.metrics.motion import NOISE, FlickerStream, WarpingStream
from unflicker.metrics.quality import frame_psnr, frame_ssim
from unflicker.metrics.temporal import InstabilityStream, TemporalDifferenceStream
from unflicker.model import MOST, StabilizedModel, stabilize
from unflicker.stabilizers import Stabilizer
from unflicker.state import State
from unflicker.video.ahead import read_ahead

BASE, TRUTH = "base", "truth"  # rows that are always called so
BEST_PSNR = 100.0  # dB; a frame without any error would make the mean infinite
FORMAT = 1

Numbers = dict[str, float | None]


# --- metrics ----------------------------------------------------------------------------------------------------------


class FrameStream(Protocol):
    """One video on its way through a metric."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take the next frames, (T, C, H, W) each."""
        ...

    def totals(self) -> Tensor:
        """Return a sum and what it is divided by, float64 (2,)."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric as evaluations know it: what it is called, which way is better, and how a video goes through it."""

    heading: str
    unit: str
    higher_is_better: bool
    stream: Callable[[Motion], FrameStream]
    root: bool = False
    """The number is the square root of the mean."""
    of_truth: bool = False
    """It says something of the truth alone as well: the floor."""

    def value(self, totals: Sequence[float]) -> float | None:
        """Return the number that sums make; None where there is nothing, or what came is no number."""
        mean = totals[0] / totals[1] if totals[1] else math.nan
        return (math.sqrt(mean) if self.root else mean) if math.isfinite(mean) else None


class Motion:
    """The optical flow of the truth, found once for each pair of frames, whoever asks: DIS, "fast"."""

    def __init__(self) -> None:
        self._pair: tuple[Tensor, Tensor] | None = None
        self._flows: tuple[Tensor, Tensor] | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if self._pair is not None and self._flows is not None:
            for one, other, found in ((*self._pair, self._flows[0]), (*reversed(self._pair), self._flows[1])):
                if torch.equal(a, one) and torch.equal(b, other):
                    return found
        find = partial(find_flow, preset="fast", scale=min(1.0, FLOW_WIDTH / a.shape[-1]))
        self._pair, self._flows = (a, b), (find(a, b), find(b, a))
        return self._flows[0]


class _Mean:
    """The mean over frames of what each frame has for itself."""

    def __init__(self, measure: Callable[[Tensor, Tensor], Tensor], most: float = math.inf) -> None:
        self.measure, self.most = measure, most
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        found = self.measure(preds, target).clamp(max=self.most)
        self.sums += vector(found.sum(dtype=torch.float64), len(found))

    def totals(self) -> Tensor:
        return self.sums


class _Instability(InstabilityStream):
    """Of the output alone."""

    def update(self, preds: Tensor, target: Tensor | None = None) -> None:
        super().update(preds)

    def totals(self) -> Tensor:
        return self.sums[:2]


class _Warping(WarpingStream):
    """Sums over pairs instead of videos."""

    def totals(self) -> Tensor:
        return vector(self.sum, self.pairs)


class _Flicker(FlickerStream):
    """Sums over values instead of videos."""

    def totals(self) -> Tensor:
        return vector(self.energy / NOISE, self.counted)


# A new metric is an entry here.
METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "dB", True, lambda motion: _Mean(frame_psnr, BEST_PSNR)),
    "ssim": Metric("SSIM", "", True, lambda motion: _Mean(frame_ssim)),
    "instability": Metric("instability", "", False, lambda motion: _Instability(True, False), of_truth=True),
    "temporal_difference_error": Metric(
        "temporal-difference error", "", False, lambda motion: TemporalDifferenceStream(False), root=True
    ),
    "warping_error": Metric("warping error", "", False, _Warping, of_truth=True),
    "flicker": Metric("flicker", "", False, _Flicker, root=True, of_truth=True),
}


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What makes the base steady, and how strongly."""

    model: StabilizedModel | Stabilizer
    strength: float = 1.0


@dataclass(frozen=True)
class About:
    """What a metric's numbers mean."""

    heading: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Costs:
    """What a method takes. Of "base": the network's own; of others, weights and multiply-adds are what they add."""

    milliseconds: float | None
    """A frame's median, the base's part included; None where the base did not run alone."""
    state_mib: float
    """What passes from frame to frame, MiB, at most."""
    weights: int
    multiply_adds: int
    """A frame's, of convolutions and matrix products, at the size of the first video; 0 where nothing counts as one."""


@dataclass(frozen=True)
class VideoNumbers:
    """One video: its numbers, by method and metric."""

    name: str
    frames: int
    height: int
    width: int
    numbers: dict[str, Numbers]


@dataclass(frozen=True)
class Skipped:
    """A video that could not be read."""

    name: str
    reason: str


@dataclass
class Evaluation:
    """What `evaluate` found.

    `overall` is over all frames of all videos alike, as in the paper's tables: a long video counts for more. `videos`
    has each one's own numbers, for other means. Both are by method, then by metric; None where there is no number
    (one frame has no instability) or what came was no number. "base" is the network alone, "truth" the truth itself,
    for the metrics that need no other: less than its instability is not better.
    """

    metrics: dict[str, About]
    overall: dict[str, Numbers]
    videos: list[VideoNumbers]
    costs: dict[str, Costs]
    strengths: dict[str, float]
    metric_milliseconds: dict[str, float]
    """What a metric took for one frame of one method, mean; what methods share (flow) is spread over them."""
    frames: int
    seconds: float
    settings: dict[str, Any]
    """corruptions, size, frames, every, seed: what was asked for."""
    skipped: list[Skipped] = field(default_factory=list)

    def write(self, path: str | Path) -> None:
        """Write it as JSON; a file at `path` is replaced once the new one is whole.

        Raises:
            InputError: the file cannot be written.
        """
        path = Path(path)
        content = {"format": FORMAT, "unflicker": importlib.metadata.version("unflicker"), **asdict(self)}
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}).") from error

    @classmethod
    def read(cls, path: str | Path) -> Evaluation:
        """Read what `write` wrote.

        Raises:
            InputError: there is no such file, or it is another.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise InputError(f"{path} is no JSON ({error}); give a file that Evaluation.write wrote.") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise InputError(f"{path} is no evaluation of this version (format {FORMAT}): evaluate anew.")
        try:
            content.pop("unflicker")
            return cls(
                **{
                    **content,
                    "metrics": {name: About(**each) for name, each in content["metrics"].items()},
                    "videos": [VideoNumbers(**each) for each in content["videos"]],
                    "costs": {name: Costs(**each) for name, each in content["costs"].items()},
                    "skipped": [Skipped(**each) for each in content["skipped"]],
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged: {error!r}.") from None


# --- evaluating -------------------------------------------------------------------------------------------------------


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
    memory does not grow with its length but for one time a frame. Outputs are clipped to [0, 1]. The target is the
    recording's "truth" if it has one, else the frame before corruption.

    Args:
        base: the network on frames (B, 3, H, W) in [0, 1].
        recordings: the videos.
        methods: by name, what is compared with the base: models made by `stabilize(base, ...)`, stabilizers for the
            base's output, or a `Method` of either with a strength. What stabilizes only the output of this very base
            shares its output, found once for each frame.
        corruptions: what is done to the frames, for `unflicker.corruptions.parse`, in this order; seeded from `seed`,
            the place in this list and the number of the video.
        metrics: keys of `METRICS`. "ssim" and what follows motion ("warping_error", "flicker": flow of the target)
            take several times as long as the others; `metric_milliseconds` tells. "instability" is the root mean
            square per value; times sqrt(C * H * W) it is the paper's.
        size: (height, width) to average frames to, first of all.
        frames: stop each video after that many.
        every: take one frame in so many.
        seed: of the corruptions.
        target: "truth" or "clean"; or "base", what the network makes of the frame before corruption, which is what
            networks that do not restore can be held to. Unless given, the truth where there is one.
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
    start = time.perf_counter()
    expected = sum(len(job.numbers(recording.frames)) for recording in recordings)
    if processes == 1:
        found, done = [], 0
        for number, recording in enumerate(recordings):

            def tell() -> None:
                nonlocal done
                done += 1
                if on_frame is not None:
                    on_frame(done, expected)

            found.append(_evaluate_video(job, number, recording, tell))
    else:
        found = _in_processes(job, recordings, processes, expected, on_frame)
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
    if job.target not in (None, "truth", "clean", "base"):
        raise InputError(f"The target of an evaluation is truth, clean or base, got {job.target!r}.")
    for recording in recordings if job.target == "truth" else ():
        if "truth" not in recording.targets:
            raise InputError(f"The recording {recording.name!r} has no truth; evaluate with the target clean or base.")
    if job.size is not None and (len(job.size) != 2 or min(job.size) < 1):
        raise InputError(f"size must be (height, width) in pixels, got {job.size}.")


def _evaluate_video(job: _Job, number: int, recording: Recording, tell: Callable[[], None]) -> _Found:
    """Take one video through everything."""
    found = _Found(recording.name)
    rows = ([BASE] if job.with_base else []) + list(job.methods)
    motion = Motion()
    streams = {row: {name: METRICS[name].stream(motion) for name in job.metrics} for row in rows}
    floor = {name: METRICS[name].stream(motion) for name in job.metrics if METRICS[name].of_truth}
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
            for frame, clean in ahead:
                x, target = frame.to(first), clean.to(first.device)
                if job.target == "base":
                    target = job.base(target).float().clamp(0, 1)
                outputs: dict[str, Any] = {}
                if job.with_base:
                    outputs[BASE] = once(x)
                    found.milliseconds.setdefault(BASE, []).append(1000 * once.seconds)
                if not models:
                    for name, method in job.methods.items():
                        models[name] = attach(name, method.model, once, x)
                        stack.enter_context(evaluating(models[name]))
                for name, model in models.items():
                    before, start = once.computed, _clock(x)
                    y, states[name] = model(x, states[name], strength=job.methods[name].strength)
                    seconds = _clock(x) - start
                    # What another had computed already belongs to this one's time as well.
                    if once.shared_by(model) and once.computed == before:
                        seconds += once.seconds
                    found.milliseconds.setdefault(name, []).append(1000 * seconds)
                    outputs[name] = y
                for row, each in streams.items():
                    preds = target if row == TRUTH else _picture(outputs[row], target)
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
    """Yield what goes in and what should come out, (1, C, H, W) each."""
    truth = recording.targets.get("truth") if job.target in (None, "truth") else None
    spoil = [parse(text, seed=_seed(job.seed, i, number)) for i, text in enumerate(job.corruptions)]
    numbers = job.numbers(recording.frames)
    if not numbers:
        raise _UnreadableError("it has no frames.")
    if truth is not None and truth.num_frames < recording.frames.num_frames:
        raise _UnreadableError(f"its truth has {truth.num_frames} frames, but it has {recording.frames.num_frames}.")
    for t, i in enumerate(numbers):
        try:
            frame, target = read_frames(recording, [i], target="clean" if truth is None else "truth", size=job.size)
        except (InputError, OSError) as error:  # a file may be gone by the time it is its turn
            raise _UnreadableError(str(error)) from error
        for corruption in spoil:
            frame = corruption(frame, start=t)
        yield frame, target


class SharedBase(nn.Module):
    """A base whose output for a frame is computed once, whoever asks for it.

    It hides the base from what is built around it, so that nothing about the base changes.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self._base = (base,)  # a tuple is no submodule
        self._seen: Tensor | None = None
        self._output: Any = None
        self.computed = 0
        """How many times the base has run."""
        self.seconds = 0.0
        """What it took the last time."""

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def forward(self, x: Tensor) -> Any:
        if x is not self._seen:
            start = _clock(x)
            self._output = self.base(x)
            self.seconds = _clock(x) - start
            self._seen = x
            self.computed += 1
        return self._output

    def shared_by(self, model: StabilizedModel) -> bool:
        return model.base is self


def attach(name: str, model: StabilizedModel | Stabilizer, once: SharedBase, x: Tensor) -> StabilizedModel:
    """Return a method's model, on the shared base where it touches nothing but that base's output.

    Raises:
        InputError: the stabilizer has weights, which nobody has trained.
    """
    if isinstance(model, Stabilizer):
        made = stabilize(once, {"": model}, example=x)
        if any(True for _ in made.parameters()):
            raise InputError(
                f"The method {name!r} is a {type(model).__name__} whose weights are not trained: give the model that "
                "stabilize() made and fit() trained."
            )
        return made
    outside = all(not place.address.layer and not place.address.is_input for place in model.places.values())
    if model.base is not once.base or not outside:
        return model
    copied = copy.copy(model)  # shares all weights; the model itself stays on its base
    copied._modules = {**model._modules, "base": once}
    return copied


def _picture(y: Any, target: Tensor) -> Tensor:
    """What image metrics look at."""
    if not isinstance(y, Tensor) or y.shape != target.shape:
        came = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"The network must return what the truth is like, {tuple(target.shape)}, got {came}.")
    return y.float().clamp(0, 1)


def _seed(seed: int, position: int, number: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be an integer, 0 or more, got {seed!r}.")
    return int(np.random.SeedSequence((seed, position, number)).generate_state(1)[0])


def _bytes(state: State | None) -> int:
    return sum(value.nbytes for value in (state or {}).values())


def _clock(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


# --- summing up -------------------------------------------------------------------------------------------------------


def _summary(job: _Job, found: list[_Found], good: list[_Found], seconds: float) -> Evaluation:
    def numbers(each: list[_Found]) -> dict[str, Numbers]:
        return {
            row: {
                name: METRICS[name].value(
                    [math.fsum(one.totals[row][name][i] for one in each) for i in range(2)]  # whatever the order
                )
                for name in metrics
            }
            for row, metrics in each[0].totals.items()
        }

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


# --- several processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Worker:
    """What a process that evaluates videos keeps."""

    job: _Job
    counter: Any
    stop: Any


_worker: _Worker | None = None  # of this process, if it is one


def _in_processes(
    job: _Job,
    recordings: Sequence[Recording],
    processes: int,
    expected: int,
    on_frame: Callable[[int, int], None] | None,
) -> list[_Found]:
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    count = min(processes, len(recordings))
    with ProcessPoolExecutor(count, context, _begin, (job, counter, stop)) as pool:
        futures = [pool.submit(_work, number, recording) for number, recording in enumerate(recordings)]
        try:
            running = set(futures)
            while running:
                done, running = wait(running, timeout=0.5, return_when=FIRST_EXCEPTION)
                for each in done:
                    each.result()  # what went wrong there goes wrong here
                if on_frame is not None:
                    on_frame(counter.value, expected)
            return [each.result() for each in futures]
        except BrokenProcessPool as error:
            raise InputError(
                "A process died, most likely for lack of memory (take fewer processes), or because the script that "
                'calls evaluate has no `if __name__ == "__main__":`.'
            ) from error
        except BaseException:
            stop.set()  # they look at it after every frame
            pool.shutdown(cancel_futures=True)
            raise


def _begin(job: _Job, counter: Any, stop: Any) -> None:
    """Prepare a process; it goes when its parent has gone, however that was killed."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which sets `stop`
    torch.set_num_threads(1)
    _worker = _Worker(job, counter, stop)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(number: int, recording: Recording) -> _Found:
    assert _worker is not None
    worker = _worker

    def tell() -> None:
        with worker.counter.get_lock():
            worker.counter.value += 1
        if worker.stop.is_set():
            raise InterruptedError("stopped")

    return _evaluate_video(worker.job, number, recording, tell)
