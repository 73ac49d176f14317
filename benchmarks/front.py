"""Which method makes video steady at what price: every method, every kind of flicker, one command.

    python benchmarks/front.py --clips FOLDER --out FOLDER [--videos NAME ...] [--processes 2]
    python benchmarks/front.py --clips FOLDER --out FOLDER --start docs/front/results.json --redo aligned-learned
    python benchmarks/front.py --out FOLDER --only-report

Every method in every condition on every clip is one item, kept in the out folder as it is finished, and so are the
adapters that are trained; the same command goes on where it was killed. `--redo METHOD` measures a method anew, and
`--start` begins an out folder with what was published (in few digits), for a method that is new or changed. At the
end come results.json, table.md, tradeoff_denoise.png and tradeoff_flicker.png.

Clips at 320x192 (area down-scale), seed 1, each one a stream. PSNR in dB, at most 60 (what 8 bits can tell) for a
frame; SSIM and the warping error (Lai et al. 2018, flow of the truth) on every eighth frame and its successor; raw
instability and temporal-difference error (TDE) as root mean squares. Stabilizers at the output and FFmpeg's filters
run on kept outputs of the network. Adapters in the layers are trained for each condition, all with the same steps; the
paper's, which are slow, at half its width, in four conditions, and on the first 60 frames of each clip. Without a
network the flickering video stands for the output of one whose input is the steady clip; "lamp" has no such input.
All of it takes about an hour and a quarter on two free cores.

Costs are measured alone, on one thread: milliseconds are the least of 12 frames at which all methods take turns (for
FFmpeg's filters the mean over the clip), memory is the state kept between frames and how far the largest sum of new
tensors within a frame rises above the network's, without OpenCV's own.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from front_methods import (
    CONDITIONS,
    METHODS,
    SEED,
    SIZE,
    Colours,
    Condition,
    Method,
    Scene,
    Stream,
    filtered,
    load,
    train,
    train_colours,
)
from front_report import write_report
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.data.folder import choose, find_videos, read_clip
from unflicker.flow import consistent, flow, warp
from unflicker.metrics.quality import frame_psnr, ssim
from unflicker.metrics.temporal import instability, temporal_difference_error
from unflicker.tasks import load_network

# Reported on, never trained or tuned on. Clips in neither list are trained on.
TEST = (
    "sam2_blocks sam2_coffee mdn_stream ax_london_pan_a ax_london_pan_b intel_cars_topdown tos_organ_rope bbb_bunny"
).split()
VALIDATION = "sam2_cups ax_rooftop_360p tos_tower intel_asl_sister udacity_highway_a udacity_highway_b".split()
EVERY, MOST_PSNR, TIMED = 8, 60.0, 12  # TIMED frames come after 3 that warm up
Numbers = dict[str, float]
Job = tuple[Any, ...]  # a function and its arguments


@dataclass(frozen=True)
class Run:
    """What does not change between the items of an out folder."""

    out: Path
    frames: int | None
    steps: int
    training: tuple[Path, ...]

    def item(self, condition: str, video: str, method: str) -> Path:
        return self.out / "items" / condition / video / f"{method}.json"

    def adapter(self, condition: str, method: str) -> Path:
        return self.out / "adapters" / condition / method

    @property
    def colours(self) -> Path:
        return self.out / "colours.safetensors"

    def network(self, condition: Condition) -> nn.Module | None:
        if condition.colours:
            network = Colours().eval()
            network.load_state_dict(load_file(str(self.colours)))
            return network
        return None if condition.task is None else load_network(condition.task)

    def length(self, method: Method) -> int | None:
        limits = [limit for limit in (self.frames, method.frames) if limit is not None]
        return min(limits, default=None)


class Truth:
    """A true clip, and what comparisons with it share: the flow of every eighth frame to its successor."""

    def __init__(self, clip: Tensor) -> None:
        self.clip = clip
        self.some = torch.arange(min(EVERY // 2, len(clip) - 2), len(clip) - 1, EVERY)  # the first is always the base's
        before, after = clip[self.some], clip[self.some + 1]
        self.flow = flow(before, after)
        self.mask = consistent(self.flow, flow(after, before))

    def compare(self, output: Tensor) -> Numbers:
        clip = self.clip
        return {
            "psnr": float(frame_psnr(output, clip).clamp(max=MOST_PSNR).mean()),
            "ssim": float(ssim(output[self.some], clip[self.some])),
            "tde": float(temporal_difference_error(output, clip)),
            **self.alone(output),
        }

    def alone(self, output: Tensor) -> Numbers:
        """What is measured on the truth as well, for the floor."""
        change = (output[self.some] - warp(output[self.some + 1], self.flow)).square() * self.mask
        counts = self.mask.expand_as(change).flatten(1).sum(1)
        errors = change.flatten(1).sum(1)[counts > 0] / counts[counts > 0]
        return {"instability": float(instability(output, normalized=True)), "warping": float(errors.mean())}


def run_clip(run: Run, name: str, video: Path, names: list[str]) -> str:
    """Make items of a clip in a condition; all by name, so that other processes understand."""
    start = time.time()
    condition, methods = CONDITIONS[name], [METHODS[each] for each in names]
    scene = condition.scene(read_clip(video, size=SIZE, frames=run.frames).float() / 255)
    with torch.inference_mode():
        base = scene.flickering
        network = run.network(condition)
        if network is not None:
            base = torch.stack([network(frame[None])[0] for frame in base])
    references: dict[int, tuple[Truth, Numbers]] = {}
    failures = []
    for method in methods:
        count = min(len(base), run.length(method) or len(base))
        if count not in references:
            truth = Truth(scene.truth[:count])
            references[count] = truth, truth.compare(base[:count].clamp(0, 1))
        truth, reference = references[count]
        try:
            output = base if method.name == "base" else steadied(run, condition, method, scene, base, count)
            numbers = truth.compare(output[:count].clamp(0, 1))
            found = {"frames": count, "base": reference, "truth": truth.alone(truth.clip), "method": numbers}
            write(run.item(condition.name, video.stem, method.name), found)
        except Exception as error:  # the others go on, and the next run tries again
            failures.append(f"\n  {method.name} FAILED: {type(error).__name__}: {error}")
    took = f"{condition.name}, {video.stem}: {len(methods)} methods, {time.time() - start:.0f} s"
    return took + "".join(failures)


def steadied(run: Run, condition: Condition, method: Method, scene: Scene, base: Tensor, count: int) -> Tensor:
    """Return what a method makes of the first `count` frames."""
    if method.filters:
        return filtered(base[:count], method.filters, method.late)
    model = load(method, condition, run.adapter(condition.name, method.name))
    frames = base if method.output else scene.flickering
    mask = scene.mask[:count] if method.masked and scene.mask is not None else None
    return Stream(model, frames[:count], scene.guide[:count], mask).all()


def run_training(run: Run, condition: str, method: str) -> str:
    start = time.time()
    train(METHODS[method], CONDITIONS[condition], list(run.training), run.steps, run.adapter(condition, method))
    return f"trained {method} for {condition}, {time.time() - start:.0f} s"


def run_colours(run: Run, *_: str) -> str:
    start = time.time()
    train_colours(list(run.training), run.colours)
    return f"trained a network that colours, {time.time() - start:.0f} s"


def write(path: Path, content: object) -> None:
    """Write JSON so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    part.replace(path)


def measure_costs(video: Path, methods: list[Method]) -> dict[str, Numbers]:
    """Weights, multiply-adds, milliseconds and MiB that each method adds to the denoiser; "base" is its own."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is talkative
    condition = CONDITIONS["denoise"]
    scene = condition.scene(read_clip(video, size=SIZE, frames=3 + TIMED).float() / 255)
    network = load_network("denoise")
    with torch.inference_mode():
        base = torch.cat([network(frame[None]) for frame in scene.flickering])
    models: dict[str, Any] = {"base": lambda x, state, guide: (network(x), None)}
    costs: dict[str, Numbers] = {"base": {"weights": float(sum(p.numel() for p in network.parameters()))}}
    for method in methods:
        if method.filters:
            start = time.perf_counter()
            filtered(base, method.filters)
            costs[method.name] = {"weights": 0, "ms": 1000 * (time.perf_counter() - start) / len(base)}
        elif method.name != "base":
            model = method.layers() if method.layers else load(method, condition)
            models[method.name] = model
            added = [p for name, p in model.named_parameters() if not name.startswith("base.")]
            costs[method.name] = {"weights": float(sum(p.numel() for p in added))}
    streams = {
        name: Stream(model, base if name in METHODS and METHODS[name].output else scene.flickering, scene.guide)
        for name, model in models.items()
    }
    for name, each in streams.items():
        each.step()  # the imports, and a state
        kept = sum(value.nbytes for value in (each.state or {}).values())
        with FlopCounterMode(display=False) as counter:
            each.step()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            each.step()
        costs[name] |= {"macs": counter.get_total_flops() / 2, "mib": _peak(profiler) / 2**20, "kept_mib": kept / 2**20}
    times = dict.fromkeys(streams, float("inf"))
    for _ in range(3, len(base)):
        for name, each in streams.items():
            start = time.perf_counter()
            each.step()
            times[name] = min(times[name], 1000 * (time.perf_counter() - start))
    alone = costs["base"]
    alone["ms"] = times["base"]
    for name in times.keys() - {"base"}:
        cost = costs[name]
        cost["ms"] = times[name]
        if METHODS[name].output:  # the network has run before, and its memory is free but for its output
            cost["mib"] += base[0].nbytes / 2**20
        else:
            cost["ms"] -= alone["ms"]
            cost["macs"] -= alone["macs"]
        cost["mib"] = max(0.0, cost["mib"] - alone["mib"]) + cost["kept_mib"]
    return costs


def _peak(profiler: profile) -> int:
    """Return the largest sum of tensors made and not yet freed within a profile, in bytes."""
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, now)
    return most


def jobs(arguments: argparse.Namespace, run: Run, videos: list[Path], methods: list[Method]) -> Iterator[list[Job]]:
    """What is left to be done, in two rounds of (function, arguments): training, then clips; the longest first."""
    colours = any(CONDITIONS[name].colours for name in arguments.conditions) and not run.colours.exists()
    yield [(run_colours, run, "colour", "all clips")] * colours + [
        (run_training, run, name, method.name)
        for method in reversed(methods)
        for name in arguments.conditions
        if method.layers and method.applies(CONDITIONS[name]) and not run.adapter(name, method.name).exists()
    ]
    work = []
    for name in arguments.conditions:
        for video in videos:
            left = [
                method
                for method in methods
                if method.applies(CONDITIONS[name]) and not run.item(name, video.stem, method.name).exists()
            ]
            if left:
                slow = sum(method.layers is not None for method in left)
                work.append((slow, (run_clip, run, name, video, [method.name for method in left])))
    yield [job for _, job in sorted(work, key=lambda each: -each[0])]


def do(work: list[Job], processes: int) -> None:
    """Do jobs, in this process or in several; say what is finished. What fails is said and left for the next run."""
    start = time.time()

    def say(done: int, job: Job, result: Callable[[], str]) -> None:
        try:
            text = result()
        except Exception as error:
            text = f"{job[0].__name__} {job[2]} {job[3]} FAILED: {type(error).__name__}: {error}"
        print(f"[{done}/{len(work)}, {(time.time() - start) / 60:.1f} min] {text}", flush=True)

    if processes == 1:
        for done, job in enumerate(work, start=1):
            say(done, job, partial(job[0], *job[1:]))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_settle_down) as pool:
        futures = {pool.submit(*job): job for job in work}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                say(done, futures[future], future.result)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _settle_down() -> None:
    """Prepare a worker; it goes when its parent has gone, however that was killed."""
    tune_process()
    torch.set_num_threads(1)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def settle(run: Run, published: Path | None) -> None:
    """Refuse to mix items of different settings in one folder; begin it with those of a results.json, if given."""
    settings = {
        "frames": run.frames,
        "steps": run.steps,
        "training": [video.stem for video in run.training],
        "size": list(SIZE),
        "seed": SEED,
    }
    path, content = run.out / "settings.json", {} if published is None else json.loads(published.read_text())
    begun = {path: json.loads(path.read_text()) if path.exists() else settings}
    if published is not None:
        begun[published] = content["settings"]
    for where, before in begun.items():
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise InputError(f"{where} has other settings ({', '.join(changed)}); choose another --out or --start.")
    write(path, settings)
    for condition, methods in content.get("clips", {}).items():
        for method, videos in methods.items():
            for video, item in videos.items():
                if not run.item(condition, video, method).exists():
                    write(run.item(condition, video, method), item)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="what is finished is kept here")
    parser.add_argument("--clips", type=Path, help="folder of clean videos")
    parser.add_argument(
        "--videos", nargs="+", default=TEST, help="names without extension; the test split unless given"
    )
    parser.add_argument("--train-videos", nargs="+", help="all that are in no other split unless given")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--start", type=Path, metavar="RESULTS", help="results.json whose items are taken over")
    parser.add_argument("--redo", nargs="+", default=[], choices=list(METHODS), help="measure these anew")
    parser.add_argument("--frames", type=int, help="of each clip; all unless given")
    parser.add_argument("--steps", type=int, default=150, help="of training, for each adapter that is trained here")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only-report", action="store_true", help="tables and figures of what is there")
    arguments = parser.parse_args()
    if arguments.only_report:
        write_report(arguments.out)
        return
    if arguments.clips is None:
        parser.error("--clips is needed, unless --only-report is given")
    torch.set_num_threads(1)
    found = find_videos(arguments.clips)
    videos = choose(found, arguments.videos)
    kept = {*TEST, *VALIDATION, *arguments.videos}
    names = arguments.train_videos or [video.stem for video in found if video.stem not in kept]
    run = Run(arguments.out, arguments.frames, arguments.steps, tuple(choose(found, names)))
    settle(run, arguments.start)
    methods = [METHODS["base"]]
    for name in arguments.methods:
        lack = METHODS[name].missing()
        if lack:
            print(f"{name} is left out: {lack}.", flush=True)
        elif name != "base" and any(METHODS[name].applies(CONDITIONS[each]) for each in arguments.conditions):
            methods.append(METHODS[name])
    for name in arguments.redo:
        for path in run.out.glob(f"items/*/*/{name}.json"):
            path.unlink()
        for path in run.out.glob(f"adapters/*/{name}"):
            shutil.rmtree(path)
        (run.out / "costs.json").unlink(missing_ok=True)
    for work in jobs(arguments, run, videos, methods):
        do(work, arguments.processes)
    costs = run.out / "costs.json"
    there = {path.stem for path in run.out.glob("items/*/*/*.json")}
    if not costs.exists() or not there <= set(json.loads(costs.read_text())):
        write(costs, measure_costs(videos[0], [method for name, method in METHODS.items() if name in there]))
    write_report(run.out)


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
