"""The commands. Torch and everything heavy is loaded when a command needs it, so that help answers at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unflicker.checks import InputError

if TYPE_CHECKING:
    from unflicker.run import RunResult

BAD_INPUT, INCOMPLETE, INTERRUPTED = 2, 3, 130

app = typer.Typer(
    help="Makes image networks steady on video.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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
        str,
        typer.Option(
            help="What to do: denoise (noise up to 0.2), denoise-heavy (0.6), "
            "none (no network: take the video's own flicker out)."
        ),
    ] = "denoise",
    adapter: Annotated[
        str,
        typer.Option(
            help="aligned (the default), ema, none (the network alone); for denoise also aligned-learned (its "
            "default), spatial, learned-ema; or a folder of yours.",
            show_default=False,
        ),
    ] = "default",
    strength: Annotated[float, typer.Option(help="How much the past counts: 0 off, 1 as trained, 2 stronger.")] = 1.0,
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
) -> None:
    """Take a video through a network, stabilized; sound and subtitles are kept."""
    tune_process()
    from unflicker.run import run_video
    from unflicker.tasks import load_task

    model = load_task(task, adapter)
    with _progress(source.name) as on_frame:
        result = run_video(
            model,
            source,
            destination,
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


def _report(destination: str, result: RunResult) -> None:
    cuts = f", {len(result.cuts)} scene cuts" if result.cuts else ""
    speed = result.frames / max(result.seconds, 1e-9)
    _say(f"{destination}: {result.frames} frames at {speed:.1f} frames per second{cuts}.")
    if result.explanation:
        _say(f"Look at {result.explanation} for why.")
    if result.resized:
        _say(f"warning: {result.resized} frames came in another size than the first and were resized to it.")
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
