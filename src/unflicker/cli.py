"""The commands. Torch and everything heavy is loaded when a command needs it, so that help answers at once."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unflicker.checks import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from unflicker.experiments import OnStep
    from unflicker.model import StabilizedModel
    from unflicker.recipes import Recipe
    from unflicker.results import Evaluation
    from unflicker.run import RunResult

BAD_INPUT, INCOMPLETE, INTERRUPTED = 2, 3, 130

app = typer.Typer(
    help="Makes image networks steady on video.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A .yaml file or the name of a recipe; several are joined by +.")
]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As loss.stability=0.4.", show_default=False)
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="The folder of clips: data.root.", show_default=False)
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NETWORK",
        help="A network of yours: FILE.py:FUNCTION, FILE.onnx, timm:NAME, hf:OWNER/NAME or hf:./FOLDER, "
        "smp:ARCHITECTURE:ENCODER.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        help='Weights for the network: .safetensors, .pth or .pt; or "random", to try one out.', show_default=False
    ),
]


MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Besides the recipe's: ssim, warping_error, flicker; of depth abs_rel, delta1; of labels miou, "
        "pixel_accuracy; of classes accuracy; each several times.",
        show_default=False,
    ),
]
ProcessesOption = Annotated[int, typer.Option(help="Videos at a time, each in a process of its own.")]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Makes image networks steady on video."""
    if show:
        from importlib.metadata import version as installed

        typer.echo(installed("unflicker"))
        raise typer.Exit


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A video, or a folder of images.")],
    destination: Annotated[str, typer.Argument(metavar="OUT", help="A video (.mp4 .mkv .mov), or a new folder.")],
    task: Annotated[
        str | None,
        typer.Option(
            help="What to do: denoise (noise up to 0.2), denoise-heavy (0.6), enhance (bring details out), depth, "
            "segment (indoor and street scenes), none (no network: take the video's own flicker out) [denoise].",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        str,
        typer.Option(
            help="aligned, ema, none (the network alone); for denoisers aligned-recover (gives back detail that was "
            "taken for noise) and merged (averages frames before the network; the default of denoise-heavy); for "
            "denoise, enhance, depth and segment aligned-learned (their default), for denoise spatial and learned-ema; "
            "or a folder of yours.",
            show_default=False,
        ),
    ] = "default",
    strength: Annotated[float, typer.Option(help="How much the past counts: 0 off, 1 as trained, 2 stronger.")] = 1.0,
    processed: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEO",
            help="IN after any program that made it flicker: this is made steady, and IN says what is flicker.",
            show_default=False,
        ),
    ] = None,
    render: Annotated[
        str | None,
        typer.Option(
            metavar="STYLE",
            help="How to show what the network returns: picture, depth (colours), grey (depth in 16 bits), labels "
            "(colours on the frame), index (class numbers in PNGs), classes (their names); by its shape unless told.",
            show_default=False,
        ),
    ] = None,
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range",
            metavar="LOW HIGH",
            help="What is black and brightest of depth (of distances the other way round).",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Write network alone | stabilized.")] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Write a second video that shows why, out.explain.mp4 for out.mp4: the result | evidence, 0 to 8 "
            "frames that agree (violet to yellow) / where the past was taken from (blue: same place, orange: along "
            "the motion, red: nothing) | what was changed, times 8, around grey.",
        ),
    ] = False,
    scene_cuts: Annotated[bool, typer.Option("--scene-cuts/--no-scene-cuts", help="Start afresh at a cut.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    frame_rate: Annotated[float | None, typer.Option(help="Frames per second of a folder of images [24].")] = None,
    network: ModelOption = None,
    weights: WeightsOption = None,
    device: Annotated[str, typer.Option(help="What computes: cpu, cuda, cuda:1, mps, xpu.")] = "cpu",
) -> None:
    """Take a video through a network, stabilized; sound and subtitles are kept."""
    tune_process()
    from unflicker.experiments import open_model
    from unflicker.run import run_video
    from unflicker.tasks import load_task

    if processed is not None and not (task in (None, "none") and network is None and weights is None):
        raise InputError("--processed is what a program has made of IN already; leave --task, --model, --weights out.")
    task = task or ("denoise" if processed is None else "none")
    if network is not None or weights is not None or Path(adapter).is_dir():
        model = open_model(network or task, weights, adapter, example=_example(source))
    else:
        model = load_task(task, adapter)
    with _progress(source.name) as on_frame:
        result = run_video(
            _on(device, model),
            source,
            destination,
            processed=processed,
            render=render,
            value_range=value_range,
            strength=strength,
            scene_cuts=scene_cuts,
            compare=compare,
            explain=explain,
            overwrite=overwrite,
            frame_rate=frame_rate,
            on_frame=on_frame,
        )
    _report(destination, result)


@app.command()
def corrupt(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A video, or a folder of images.")],
    destination: Annotated[str, typer.Argument(metavar="OUT", help="A video (.mp4 .mkv .mov), or a new folder.")],
    kind: Annotated[str, typer.Argument(metavar="KIND[:SEVERITY|PRESET]", help="As snow, jpeg:5, elastic:ivm.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same corruption.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    frame_rate: Annotated[float | None, typer.Option(help="Frames per second of a folder of images [24].")] = None,
) -> None:
    """Spoil a video in a way that can be repeated: noise, compression, lost frames, blur, weather."""
    tune_process()
    from unflicker.corruptions import parse
    from unflicker.run import corrupt_video

    corruption = parse(kind, seed=seed)
    with _progress(source.name) as on_frame:
        result = corrupt_video(
            corruption, source, destination, overwrite=overwrite, frame_rate=frame_rate, on_frame=on_frame
        )
    _report(destination, result)


@app.command()
def measure(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video, or a folder of images.")],
    truth: Annotated[Path | None, typer.Option(help="What it should look like.")] = None,
    guide: Annotated[
        Path | None, typer.Option(help="Where its motion is found; the truth or itself if left out.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another version of it, for comparison.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all numbers and curves to this file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with pictures into this folder.")] = None,
    trim: Annotated[bool, typer.Option("--trim", help="Stop at the end of the shortest video.")] = False,
    flow: Annotated[
        bool, typer.Option("--flow/--no-flow", help="Take motion out; most of the time goes there.")
    ] = True,
    frame_rate: Annotated[float | None, typer.Option(help="Frames per second of folders of images [24].")] = None,
) -> None:
    """Measure how steady a video is, by itself or beside its truth or another version."""
    tune_process()
    from rich.console import Console

    from unflicker.measure import measure_video
    from unflicker.page import table, write_json, write_page

    with _progress(video.name) as on_frame:
        found = measure_video(
            video,
            truth=truth,
            guide=guide,
            against=against,
            trim=trim,
            with_flow=flow,
            frame_rate=frame_rate,
            on_frame=on_frame,
        )
    Console().print(table(found))
    if json is not None:
        write_json(found, json)
    if report is not None:
        _say(f"Look at {write_page(found, report)}.")
    for line in [*found.damage, *found.notes]:
        _say(f"warning: {line}")
    if found.damage:
        raise typer.Exit(INCOMPLETE)


@app.command()
def train(
    recipe: RecipeName,
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the adapter goes [runs/RECIPE].", show_default=False)
    ] = None,
    data: DataFolder = None,
    network: ModelOption = None,
    weights: WeightsOption = None,
) -> None:
    """Train an adapter for a network on your clips, as a recipe says; a run that was stopped goes on where it was."""
    tune_process()
    from unflicker.experiments import train as train_recipe
    from unflicker.recipes import load_recipe
    from unflicker.training import shard

    loaded = load_recipe(recipe, _changes(changes, data, network, weights))
    folder = Path("runs") / _file_name(recipe) if out is None else out
    try:
        with _training_bar(loaded.training.steps) as on_step:
            trained = train_recipe(loaded, folder, on_step=on_step)
    except KeyboardInterrupt:
        _say(f"stopped; the same command goes on from the last checkpoint in {folder}.")
        sys.exit(INTERRUPTED)
    if shard()[0] != 0:  # of many processes the first one speaks
        return
    for complaint in trained.skipped:
        _say(f"warning: {complaint}")
    best = "" if trained.validation is None else f", lowest validation loss {trained.validation:.5f}"
    _say(f"{folder}: {trained.steps} steps{best}.")


@app.command()
def evaluate(
    recipe: RecipeName,
    changes: Changes = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="A folder, or a name as for run; may be given several times.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to [runs/RECIPE/evaluation].", show_default=False)
    ] = None,
    metric: MetricOption = None,
    baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Those of the recipe.")] = True,
    processes: ProcessesOption = 1,
    data: DataFolder = None,
    network: ModelOption = None,
    weights: WeightsOption = None,
) -> None:
    """Measure adapters on whole test videos, beside the network alone and plain averages; draw the trade-off."""
    tune_process()
    from unflicker.experiments import evaluate_recipe
    from unflicker.recipes import load_recipe

    loaded = load_recipe(recipe, _changes(changes, data, network, weights))
    with _progress("evaluating") as on_frame:
        found = evaluate_recipe(
            loaded,
            _labelled(adapter or ()),
            with_baselines=baselines,
            metrics=metric or (),
            processes=processes,
            on_frame=on_frame,
        )
    name = _file_name(recipe)
    _show_results(found, Path("runs") / name / "evaluation" if out is None else out, name)


@app.command()
def sweep(
    recipe: RecipeName,
    over: Annotated[
        str, typer.Option(metavar="KEY=V,V,...", help="loss.stability=0.1,0.2,0.4 trains; strength=0.5,1,2 does not.")
    ],
    changes: Changes = None,
    adapter: Annotated[
        str | None, typer.Option(help="For a sweep over strength: a folder or a name, as for run.", show_default=False)
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(help="A video of yours to recommend a strength for.", show_default=False),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="What that video should look like.", show_default=False)] = None,
    limit: Annotated[float, typer.Option(help="How many dB of fidelity the recommended strength may cost.")] = 0.5,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to [runs/RECIPE-sweep].", show_default=False)
    ] = None,
    metric: MetricOption = None,
    processes: ProcessesOption = 1,
    data: DataFolder = None,
    network: ModelOption = None,
    weights: WeightsOption = None,
) -> None:
    """Draw how quality and steadiness trade off over a setting, or over the strength of one adapter."""
    tune_process()
    from unflicker.experiments import evaluate_recipe, sweep_recipe
    from unflicker.recipes import load_recipe

    key, equals, values = over.partition("=")
    if not equals or not values:
        raise InputError(f"--over {over}: write KEY=V,V,..., as loss.stability=0.1,0.2 or strength=0.5,1,2.")
    chosen, settings = _values(values, over), _changes(changes, data, network, weights)
    for video in (clip, truth):
        if video is not None and not video.exists():
            raise InputError(f"There is no file or folder {video}; check the name.")
    name = _file_name(recipe)
    folder = Path("runs") / f"{name}-sweep" if out is None else out
    if key != "strength":
        if clip is not None or adapter is not None:
            raise InputError("--adapter and --clip are for a sweep over strength: --over strength=0.5,1,2.")
        found = sweep_recipe(
            recipe,
            settings,
            key,
            chosen,
            folder,
            label=name,
            metrics=metric or (),
            processes=processes,
            on_run=lambda run, each: _training_bar(each.training.steps, run),
        )
        return _show_results(found, folder, name)
    loaded = load_recipe(recipe, settings)
    spec = adapter or "default"
    strengths = [_number(value, over) for value in chosen]
    named = any(each and each.root for each in (loaded.data.train, loaded.data.validation, loaded.data.test))
    if loaded.data.root is not None or loaded.data.layout == "scenes" or named:
        with _progress("evaluating") as on_frame:
            found = evaluate_recipe(
                loaded,
                _labelled([spec]),
                strengths=strengths,
                metrics=metric or (),
                processes=processes,
                on_frame=on_frame,
            )
        _show_results(found, folder, name)
    elif clip is None:
        raise InputError("A sweep needs test videos (--data DIR), or a video of yours to find a strength for (--clip).")
    if clip is not None:
        _recommend(loaded, spec, clip, truth, strengths, limit)


@app.command()
def finetune(
    network: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NETWORK",
            help="A network of yours, FILE.py:FUNCTION, or any other that `run` takes, but for ONNX files.",
        ),
    ],
    images: Annotated[
        Path, typer.Option(metavar="DIR", help="PNG, JPEG, TIFF, BMP or WebP: frames or photos, as your video is like.")
    ],
    targets: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="What the network should make of each, by the same name; EXR and the like are linear light. Without "
            "it, what it makes now: it keeps doing what it does, and nobody has to know better.",
            show_default=False,
        ),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="CLIP", help="A real clip to measure on as well.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="[NETWORK-steady.safetensors].", show_default=False)
    ] = None,
    term: Annotated[
        str, typer.Option(help="transform-invariance, sparse-jacobian, noise, or stability (only to compare with).")
    ] = "transform-invariance",
    ratio: Annotated[float, typer.Option(help="How much steadiness counts against the target; up to about 32.")] = 4.0,
    steps: Annotated[int, typer.Option(help="Of training.")] = 500,
    batch: Annotated[int, typer.Option(help="Crops a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 1e-4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    weights: WeightsOption = None,
) -> None:
    """Fine-tune a network on images alone so that it is steady on video by itself, and say what that did."""
    tune_process()
    from rich.console import Console

    from unflicker.bases import load_base
    from unflicker.steadying import steady, table

    if network.endswith(".onnx"):
        raise InputError(f"{network} cannot be trained: ONNX files are run as they are; give the network itself.")
    name = Path(network.rpartition(":")[0] or network).stem
    with _training_bar(steps, name) as on_step:
        found = steady(
            load_base(network, weights),
            images,
            Path(f"{name}-steady.safetensors") if out is None else out,
            targets=targets,
            video=video,
            term=term,
            ratio=ratio,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            overwrite=overwrite,
            on_step=lambda step, told: on_step(
                step, {"accuracy": told["reconstruction"], "stability": told["term"], "total": told["total"]}
            ),
        )
    Console().print(table(found))
    for line in found.notes:
        _say(f"warning: {line}")
    _say(f"{found.file}: run it by `unflicker run IN OUT --model {network} --weights {found.file}`.")


@app.command()
def inspect(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A task, FILE.py:FUNCTION, FILE.onnx, timm:NAME, hf:OWNER/NAME, hf:./FOLDER, smp:ARCH:ENCODER.",
        ),
    ],
    video: Annotated[
        Path | None, typer.Argument(metavar="[VIDEO]", help="Some frames to see how its layers flicker.")
    ] = None,
    weights: WeightsOption = None,
    depth: Annotated[int, typer.Option(help="How deep the list goes into the network.")] = 3,
    frames: Annotated[int, typer.Option(help="Of the video.")] = 12,
) -> None:
    """List a network's layers, measure which of them flicker, and suggest a plan for `stabilize` and for a recipe."""
    tune_process()
    import torch
    from rich.console import Console

    from unflicker.bases import load_base
    from unflicker.inspecting import inspect_layers, plan_as_python, plan_as_yaml, table

    if frames < 2 or depth < 1:
        raise InputError(f"Give 2 frames or more and a depth of 1 or more, got {frames} and {depth}.")
    clip = None if video is None else _some_frames(video, frames)
    example = torch.rand(1, 3, 192, 320, generator=torch.Generator().manual_seed(0)) if clip is None else clip[0]
    found = inspect_layers(load_base(network, weights), example, clip)
    Console().print(table(found, depth=depth))
    typer.echo(f"\nIn Python:\n\n{plan_as_python(found)}\n\nIn a recipe:\n\n{plan_as_yaml(found)}")


@app.command()
def recipes() -> None:
    """List the recipes that come with the package, and the parts to join to them with a plus."""
    from rich.console import Console
    from rich.table import Table

    from unflicker.recipes import list_recipes

    table = Table("recipe", "what it is", box=None)
    for name, about in sorted(list_recipes().items(), key=lambda each: each[1].startswith("Part:")):
        table.add_row(name, about)
    Console().print(table)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put the results.")] = Path("unflicker-demo"),
) -> None:
    """Make a noisy clip and one that flickers, take them through networks, and show what steadiness costs and gives."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tune_process()
    from unflicker.demo import demo_models, run_demo
    from unflicker.report import table

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=total)

        report = run_demo(folder, models=demo_models(), progress=show)
    Console().print(table(report["rows"], report["flicker"]))
    _say(f"Look at {folder / 'side_by_side.mp4'}, {folder / 'flicker.png'} and {folder / 'report.json'}.")


def main() -> None:
    """Run a command; bad input gets one line on stderr and exit code 2, never a stack trace."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup's wish is kept
            signal.signal(number, signal.default_int_handler)  # tidy up, as after Ctrl-C
    warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (typer.TyperException, InputError) as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        _say("error: " + " ".join(message.split()))
        code = BAD_INPUT
    except FloatingPointError as error:
        _say(f"error: {error}")
        code = INCOMPLETE
    except OSError as error:
        _say(f"error: {error.filename or 'a file'} cannot be used: {error.strerror or error}.")
        code = BAD_INPUT
    if code == INTERRUPTED:  # what typer makes of Ctrl-C
        _say("stopped; no output was written.")
    sys.exit(code)


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar with frames per second and the time left, if somebody looks; yields what to call after a frame."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.1f} frames per second")

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _changes(changes: list[str] | None, data: Path | None, network: str | None, weights: Path | None) -> list[str]:
    """The options that stand for a setting of a recipe, after those that name it."""
    named = {"data.root": data, "base.network": network, "base.weights": weights}
    # JSON is YAML, and quotes what needs it.
    return [*(changes or ()), *(f"{key}={json.dumps(str(value))}" for key, value in named.items() if value is not None)]


def _file_name(recipe: str) -> str:
    """A recipe's name as one of a folder.

    >>> _file_name("denoise-0.1+my/clips.yaml")
    'denoise-0.1+clips'
    """
    return "+".join(part.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml") for part in recipe.split("+"))


@contextlib.contextmanager
def _training_bar(steps: int, name: str = "") -> Iterator[OnStep]:
    """Show steps, time left and loss terms, if somebody looks; else say a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from unflicker.training import shard

    console = Console(stderr=True, quiet=shard()[0] != 0)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    smooth: dict[str, float] = {}

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=steps)

        def on_step(step: int, terms: dict[str, float]) -> None:
            for term in ("accuracy", "stability", "total"):
                smooth[term] = 0.95 * smooth.get(term, terms[term]) + 0.05 * terms[term]
            told = ", ".join(f"{term} {value:.5f}" for term, value in smooth.items())
            progress.update(bar, completed=step, description=f"{name} {told}".lstrip())
            if "validation" in terms:
                told += f", validation {terms['validation']:.5f}"
            if "validation" in terms or (not console.is_terminal and step % max(1, steps // 20) == 0):
                progress.console.print(
                    f"unflicker: {f'{name} step {step} of {steps}: {told}'.lstrip()}", highlight=False
                )

        yield on_step


def _on(device: str, model: StabilizedModel) -> StabilizedModel:
    """Bring a model to a device."""
    import torch

    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("nothing is computed there")
    except (RuntimeError, AssertionError):  # as torch says that it knows no such device, or was built without it
        here = "there is no GPU that this PyTorch can use"
        if torch.accelerator.is_available():
            here = f"there is {torch.accelerator.current_accelerator()}"
        raise InputError(f"The device {device!r} is not here: take cpu; {here}.") from None
    return model.to(device)


def _example(source: Path) -> Tensor:
    """A frame of the size of a video's, to build a model around a network by."""
    import torch

    from unflicker.video import open_reader

    with open_reader(source) as reader:
        return torch.zeros(1, 3, reader.info.height, reader.info.width)


def _some_frames(video: Path, count: int) -> list[Tensor]:
    """The first frames of a video, about 320 pixels wide, (1, 3, H, W)."""
    import torch.nn.functional as F

    from unflicker.video import open_reader

    frames = []
    with open_reader(video) as reader:
        factor = min(1.0, 320 / reader.info.width)
        size = tuple(max(16, 16 * round(n * factor / 16)) for n in (reader.info.height, reader.info.width))
        for frame in reader:
            frames.append(F.interpolate(frame.data[None], size=size, mode="area"))
            if len(frames) == count:
                break
    if len(frames) < 2:
        raise InputError(f"{video} has one frame: how a network flickers shows from two frames on.")
    return frames


def _labelled(adapters: Sequence[str]) -> dict[str, str]:
    """Short names for adapters: the folder's, that of the run it is from, or its path if others are called so.

    >>> _labelled(["ema", "runs/snow/adapter", "a/x", "b/x"])
    {'ema': 'ema', 'snow': 'runs/snow/adapter', 'a/x': 'a/x', 'b/x': 'b/x'}
    >>> list(_labelled(["runs/snow+runs/jpeg"]))
    ['snow+jpeg']
    """

    def short(part: str) -> str:
        return Path(part).parent.name if Path(part).name == "adapter" else Path(part).name

    names = ["+".join(map(short, [each] if Path(each).exists() else each.split("+"))) for each in adapters]
    return {name if name and names.count(name) == 1 else each: each for name, each in zip(names, adapters, strict=True)}


def _values(text: str, option: str) -> list[str]:
    """The values of a sweep, each as YAML in one line: they are a list without its brackets.

    >>> _values("0.1,[snow, rain],cosine", "x")
    ['0.1', '[snow, rain]', 'cosine']
    """
    import yaml

    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise InputError(f"--over {option}: what comes after = is no list of YAML values, as 0.1,0.2.") from None
    flow = {"default_flow_style": True, "width": 10_000}
    return [yaml.safe_dump(value, **flow).removesuffix("\n...\n").strip() for value in values]


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--over {option}: {text!r} is no number.") from None


def _show_results(found: Evaluation, folder: Path, title: str) -> None:
    from rich.console import Console

    from unflicker.experiments import write_results
    from unflicker.tradeoff import table

    files = write_results(found, folder, title)
    Console().print(table(found))
    for each in found.skipped:
        _say(f"warning: {each.name} was left out: {each.reason.removeprefix(each.name).strip()}")
    _say(f"Look at {', '.join(str(file) for file in files)}.")


def _recommend(
    recipe: Recipe, adapter: str, clip: Path, truth: Path | None, strengths: Sequence[float], limit: float
) -> None:
    from rich.console import Console
    from rich.table import Table

    from unflicker.bases import load_base
    from unflicker.data import open_video
    from unflicker.experiments import with_adapter
    from unflicker.strength import recommend_strength

    model = with_adapter(recipe, load_base(recipe.base.network, recipe.base.weights), adapter)
    with _progress(clip.name) as on_frame:
        found = recommend_strength(
            model,
            open_video(clip),
            truth=None if truth is None else open_video(truth),
            strengths=sorted({0.0, *strengths}),
            limit_db=limit,
            # A denoiser's input is the truth and noise that is new in every frame; of others nothing is known.
            reference="input" if recipe.base.network.startswith("denoise") else "output",
            size=recipe.data.size,
            on_frame=on_frame,
        )
    table = Table("strength", "fidelity, dB", "lost, dB", "instability", "")
    for trial in found.trials:
        told = "collapses" if trial.collapsing else "recommended" if trial.strength == found.strength else ""
        numbers = (f"{trial.strength:g}", f"{trial.psnr:.2f}", f"{trial.loss_db:.2f}", f"{trial.instability:.4f}")
        table.add_row(*numbers, told)
    Console().print(table)
    if found.warning:
        _say(f"warning: {found.warning}")
    _say(f"{clip}: strength {found.strength:g} is the largest that loses at most {limit:g} dB.")


def _report(destination: str, result: RunResult) -> None:
    cuts = f", {len(result.cuts)} scene cuts" if result.cuts else ""
    speed = result.frames / max(result.seconds, 1e-9)
    _say(f"{destination}: {result.frames} frames at {speed:.1f} frames per second{cuts}.")
    if result.explanation:
        _say(f"Look at {result.explanation} for why.")
    if result.resized:
        _say(f"warning: {result.resized} frames came in another size than the first and were resized to it.")
    if result.unpaired:
        _say(f"warning: {result.unpaired}")
    if result.damage:
        _say(f"warning: {result.damage}")
        raise typer.Exit(INCOMPLETE)


def _say(message: str) -> None:
    typer.echo(f"unflicker: {message}", err=True)


def tune_process() -> None:
    """Before torch is loaded, ask glibc to keep freed memory and OpenMP's waiting threads to sleep.

    Returning memory after every frame doubles the time at 720p on a CPU; threads that wait awake take the core away
    from the decoder and the encoder.

    For commands only; a library must not decide this for its user.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    for option, value in ((-3, 1 << 30), (-1, 2**31 - 1), (-2, 1 << 28)):  # mmap threshold, trim threshold, top pad
        libc.mallopt(option, value)
