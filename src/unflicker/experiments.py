"""A recipe carried out: its recordings found, its model built, trained into a folder, measured."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unflicker.bases import load_base
from unflicker.checkpoint import save_adapter
from unflicker.checks import InputError
from unflicker.controllers import Controller
from unflicker.corruptions import Compose, parse
from unflicker.data import ClipDataset, Recording, load, read_frames
from unflicker.evaluation import Method, evaluate
from unflicker.layers import pick
from unflicker.losses import unified_loss
from unflicker.model import StabilizedModel, stabilize
from unflicker.outputs import main_output, main_tensor
from unflicker.recipes import Recipe, load_recipe
from unflicker.results import Evaluation, Skipped
from unflicker.sets import FILE as SETS
from unflicker.sets import Sets, known_sets, note_sets, open_sets
from unflicker.stabilizers import from_description
from unflicker.state import State
from unflicker.tasks import TASKS, add_adapter, paper_plan
from unflicker.tradeoff import QUALITIES, figure, frontier, markdown_table
from unflicker.training import Batch, device, fit, known_frames, shard

RECIPE, PROGRESS, LOG, RESULT, LOCK = "recipe.yaml", "progress.safetensors", "log.csv", "result.json", ".lock"
ADAPTER, WEIGHTS = "adapter", "base.safetensors"
COLUMNS = ("step", "accuracy", "stability", "total", "learning_rate", "validation")
CHUNK = 8  # frames that are validated at a time
OnStep = Callable[[int, dict[str, float]], None]
# What may change when a run goes on: it changes no number; which recordings there are is looked at by itself.
MAY_CHANGE = (
    *("about", "evaluation", "data.root", "data.cache", "data.cache_gib"),
    *("training.workers", "training.checkpoint_every", "training.tensorboard"),
)


@dataclass(frozen=True)
class Trained:
    """What `train` made."""

    folder: Path
    steps: int
    validation: float | None
    """The lowest unified loss on the validation set; None without one."""
    skipped: list[str]
    """A sentence for each recording that could not be used."""


def build_model(recipe: Recipe) -> StabilizedModel:
    """Build the network of a recipe with the stabilizers to be trained; the seed decides their first weights.

    Raises:
        InputError: network, weights, plan or adapter do not fit each other.
    """
    network = load_base(recipe.base.network, recipe.base.weights)
    crop = recipe.data.crop or 64
    example = torch.zeros(1, 3, *((crop, crop) if isinstance(crop, int) else crop))
    adapter = recipe.adapter
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        if adapter.start is not None:
            if adapter.plan:
                raise InputError("The recipe has both adapter.plan and adapter.start; leave one out.")
            return with_adapter(recipe, network, adapter.start)
        plan = adapter.stabilizers()
        if "paper" in plan:
            everywhere = plan.pop("paper")
            if everywhere is None:
                raise InputError("adapter.plan: paper takes a stabilizer, as {kind: controlled}; leave it out instead.")
            plan = {**paper_plan(network, everywhere), **plan}
        if not plan:
            with _told_of(network, example), torch.no_grad():
                network(example)
            return add_adapter(network, "none", example=example)
        controllers = tuple(
            Controller(each.width, depth=each.depth, downscale=each.downscale, antialias=each.antialias)
            for each in adapter.controllers
        )
        with _told_of(network, example):
            return stabilize(network, plan, controller=controllers or None, example=example)


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    on_step: OnStep | None = None,
) -> Trained:
    """Train what a recipe describes, into a folder; a run that was stopped there goes on where it was.

    The folder gets `recipe.yaml` (with every default written out), `log.csv`, `progress.safetensors` (all that a
    stopped run needs) and at the end `adapter/`, `base.safetensors` if the network was trained, and `result.json`.

    Args:
        recipe: see `unflicker.recipes.load_recipe`.
        folder: made if it is missing.
        on_step: called with the number of each step and its numbers, as `fit` does.

    Raises:
        InputError: the recipe does not fit the data or the network, or the folder holds another run.
        FloatingPointError: the loss stopped being finite; the best weights until then are in the folder.
    """
    folder = Path(folder)
    settings, loss = recipe.training, recipe.loss
    sets = open_sets(recipe)
    if not sets.train:
        raise InputError("No recording is left to train on: give data.train, or more videos.")
    model = build_model(recipe)
    if settings.trains == "base" and model.places:
        raise InputError("The recipe trains the base alone, yet has an adapter: leave it out, or train both.")
    if recipe.data.target == "base" and loss.distance == "inverse_depth_rmse":
        raise InputError(
            "inverse_depth_rmse holds disparity to a depth, but what the base makes is disparity: set "
            "loss.distance=affine_aligned_rmse with data.target=base."
        )
    if settings.batch % shard()[1]:
        raise InputError(
            f"training.batch must be a multiple of the number of processes, {shard()[1]}, got {settings.batch}."
        )
    dataset = _dataset(recipe, sets.train)
    teacher = _teacher(recipe, model)
    if settings.trains != "adapter":
        model.unfreeze()
    for recording in sets.validation[:1]:
        _try(model, read_frames(recording, [0], target="clean", size=recipe.data.size)[0])
    damaged: dict[str, str] = {}

    def batches(start: int) -> Iterator[Batch]:
        counts = {"batch": settings.batch, "steps": settings.steps, "start": start, "workers": settings.workers}
        for batch in load(dataset, shard=shard(), **counts):
            yield batch["input"], _target(batch["target"], teacher, loss.distance)

    def validate(judged: StabilizedModel) -> float:
        losses = []
        for n, each in enumerate(sets.validation):
            if each.name not in damaged:
                try:
                    losses.append(validation_loss(judged, each, recipe, teacher, n))
                except InputError as error:
                    damaged[each.name] = str(error)
        if not losses:
            raise InputError(f"No validation recording can be read: {next(iter(damaged.values()))}")
        return sum(losses) / len(losses)

    with claimed(folder):
        _note_recipe(recipe, folder)
        if shard()[0] == 0:
            note_sets(sets, folder)
        log = _Log(folder, settings.tensorboard)
        started = time.monotonic()

        def stepped(step: int, terms: dict[str, float]) -> None:
            log.add(step, terms)
            if on_step is not None:
                on_step(step, terms)

        try:
            fit(
                model,
                batches,
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                schedule=settings.schedule,
                stability=loss.stability,
                distance=loss.distance,
                truncate=settings.truncate,
                recompute=settings.recompute,
                average=settings.average,
                precision=settings.precision,
                seed=settings.seed,
                validate=validate if sets.validation else None,
                validate_every=settings.validate_every,
                checkpoint=folder / PROGRESS,
                checkpoint_every=settings.checkpoint_every,
                on_step=stepped,
            )
        except FloatingPointError as error:
            _save(model, recipe, folder, log, started)
            raise FloatingPointError(f"{error} The best weights until then are in {folder}.") from None
        finally:
            log.close()
        _save(model, recipe, folder, log, started)
    complaints = [*sets.skipped, *dataset.skipped, *dataset.damaged.values(), *damaged.values()]
    return Trained(folder, settings.steps, log.best(), list(dict.fromkeys(complaints)))


def validation_loss(
    model: StabilizedModel, recording: Recording, recipe: Recipe, teacher: nn.Module | None = None, number: int = 0
) -> float:
    """Return the unified loss of a model on the first frames of a recording, as one video.

    `teacher` makes the target where the recipe's is "base"; `number` makes the corruption another for each recording.
    """
    data, loss = recipe.data, recipe.loss
    corrupt = Compose([parse(text, seed=1000 * number + i) for i, text in enumerate(data.corruptions)])
    every = _first(data.every)
    length = min(len(range(0, recording.frames.num_frames, every)), data.frames or recording.frames.num_frames)
    state: State | None = None
    previous: Batch | None = None
    total, known = 0.0, 0
    entry: str | None = None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        for start in range(0, length, CHUNK):
            numbers = [every * t for t in range(start, min(start + CHUNK, length))]
            clean, truth = read_frames(recording, numbers, target=data.target, size=data.size)
            entry = main_output(model.base, clean[:1].to(device)) if entry is None else entry
            output, state = model(corrupt(clean, start=start)[None].to(device), state)
            preds = pick(output, entry.removeprefix("::"), "The network's output")
            target = _target(truth[None].to(device), teacher, loss.distance).to(device)
            terms = unified_loss(
                preds, target, stability=loss.stability, distance=loss.distance, previous=previous, frames=1
            )
            previous = (preds[:, -1], target[:, -1])
            total += terms["total"].item()
            known += known_frames(target)
    return total / max(known, 1)


def evaluate_recipe(
    recipe: Recipe,
    adapters: Mapping[str, str],
    *,
    strengths: Sequence[float] = (1.0,),
    with_baselines: bool = True,
    metrics: Sequence[str] = (),
    processes: int = 1,
    on_frame: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure adapters on the test recordings of a recipe, beside the network alone and the recipe's baselines.

    Args:
        recipe: says which network, recordings, corruptions and metrics.
        adapters: by what they are called in the results: names or folders, as `unflicker.tasks.add_adapter` takes
            them, or folders that `train` made; a network that was trained along is taken with its adapter.
        strengths: each adapter is measured at each of these.
        with_baselines: False leaves out the recipe's.
        metrics: besides the recipe's.
        processes: videos at a time.
        on_frame: called with the number of frames done and to be done.

    Raises:
        InputError: no recording is left for a test, or an adapter does not fit.
    """
    sets = open_sets(recipe, ("test",))
    if not sets.test:
        raise InputError("No recording is left for a test: give data.test, or three videos or more.")
    base = load_base(recipe.base.network, recipe.base.weights)
    methods: dict[str, Method] = {}
    if with_baselines:
        methods |= {name: Method(from_description(each)) for name, each in recipe.evaluation.baselines.items()}
    for name, spec in adapters.items():
        model = with_adapter(recipe, base, spec)
        _warn_of_seen(spec, sets)
        for strength in strengths:
            methods[name if len(strengths) == 1 else f"{name} {strength:g}"] = Method(model, strength)
    data, settings = recipe.data, recipe.evaluation
    found = evaluate(
        base,
        sets.test,
        methods,
        corruptions=data.corruptions,
        metrics=tuple(dict.fromkeys((*settings.metrics, *metrics))),
        size=data.size,
        frames=settings.frames,
        every=_first(data.every),
        seed=settings.seed,
        target=data.target,
        processes=processes,
        on_frame=on_frame,
    )
    found.skipped += [Skipped(each.split()[0], each) for each in sets.skipped]
    return found


def sweep_recipe(
    name: str,
    changes: Sequence[str],
    key: str,
    values: Sequence[str],
    folder: str | Path,
    *,
    label: str,
    metrics: Sequence[str] = (),
    processes: int = 1,
    on_run: Callable[[str, Recipe], AbstractContextManager[OnStep]],
    on_frame: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Train a recipe once for each value of a setting, and measure all of them together.

    Each run has its folder, KEY=VALUE; what is finished is not trained again, what was stopped goes on.

    Args:
        name, changes: as `load_recipe` takes them.
        key: the setting, as "loss.stability".
        values: its values, as YAML.
        folder: for the runs.
        label: what the curve is called.
        metrics, processes, on_frame: as for `evaluate_recipe`.
        on_run: called with the name of a run and its recipe; what it returns is entered while that trains, and gives
            what `train` is to call after each step.

    Raises:
        InputError: as `train` and `evaluate_recipe`.
    """
    folder = Path(folder)
    if key.split(".")[0] not in ("adapter", "loss", "training") and key not in ("data.length", "data.crop"):
        raise InputError(f"A sweep over {key} would measure each run on something else; sweep over loss or training.")
    recipes = {value: load_recipe(name, [*changes, f"{key}={value}"]) for value in values}  # mistakes come first
    for value, recipe in recipes.items():
        run = f"{key}={value}"
        with on_run(run, recipe) as on_step:
            train(recipe, folder / run, on_step=on_step)
    return evaluate_recipe(
        recipes[values[0]],
        {f"{label} {value}": str(folder / f"{key}={value}") for value in values},
        metrics=metrics,
        processes=processes,
        on_frame=on_frame,
    )


def write_results(evaluation: Evaluation, folder: str | Path, title: str) -> list[Path]:
    """Write an evaluation as evaluation.json, table.md and, of instability and a quality, tradeoff.png.

    Returns:
        The files.
    """
    folder = Path(folder)
    files = [folder / name for name in ("evaluation.json", "table.md", "tradeoff.png")]
    evaluation.write(files[0])
    files[1].write_text(markdown_table({title: evaluation}), encoding="utf-8")
    if "instability" not in evaluation.metrics or not set(QUALITIES) & set(evaluation.metrics):
        return files[:2]  # there is nothing to draw
    figure(frontier(evaluation), files[2])
    return files


def with_adapter(recipe: Recipe, base: nn.Module, spec: str) -> StabilizedModel:
    """Put an adapter into a recipe's network; one that `train` made together with the network comes with that.

    Args:
        recipe: says which network it is.
        base: that network.
        spec: a name or folder, as `unflicker.tasks.add_adapter` takes it, or a folder that `train` made.

    Raises:
        InputError: there is no such adapter, or it does not fit.
    """
    return open_model(recipe.base.network, recipe.base.weights, spec, base=base)


def open_model(
    network: str,
    weights: str | Path | None,
    adapter: str,
    *,
    base: nn.Module | None = None,
    example: Tensor | None = None,
) -> StabilizedModel:
    """Open a network with an adapter, each by name, and the weights that were trained along with the adapter.

    Args:
        network, weights: as `unflicker.bases.load_base` takes them.
        adapter: as for `with_adapter`.
        base: the network, if it is there already.
        example: a frame that the network can take; (1, 3, 64, 64) unless given.

    Raises:
        InputError: one of them cannot be found, or they do not fit.
    """
    run = next((each for each in (Path(adapter), Path(adapter).parent) if (each / WEIGHTS).exists()), None)
    if run is not None and (run / RECIPE).exists():
        if not (run / ADAPTER).exists():
            adapter = "none"
        return add_adapter(load_base(network, run / WEIGHTS), adapter, example=example)
    task = network if network in TASKS and weights is None else None
    return add_adapter(load_base(network, weights) if base is None else base, adapter, task=task, example=example)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder and keep it to this process; the claim ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if shard()[0] == 0:
            try:
                import fcntl

                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not the workers' as well
            except ImportError:  # not on Windows
                pass
            except OSError:
                raise InputError(f"Another run is at work in {folder}: wait, or choose another folder.") from None
        yield


def _first(every: int | tuple[int, ...]) -> int:
    """The thinning for whole videos, of those that clips draw from."""
    return every if isinstance(every, int) else every[0]


def _note_recipe(recipe: Recipe, folder: Path) -> None:
    """Write the recipe beside the result; a folder that holds a run goes on with the same recipe only."""
    file = folder / RECIPE
    if not (folder / PROGRESS).exists():  # nothing to go on with
        if shard()[0] == 0:
            _write(file, recipe.text())
            (folder / SETS).unlink(missing_ok=True)
        return
    try:
        old = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        old = None
    if not isinstance(old, dict):
        raise InputError(f"{folder} holds a run, but {file} cannot be read: choose another folder.")
    new = yaml.safe_load(recipe.text())
    changed = [each for key, each in _differences(old, new) if not key.startswith(MAY_CHANGE)]
    if changed:
        raise InputError(f"{folder} holds a run of another recipe ({'; '.join(changed[:3])}): choose another folder.")


def _write(file: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _warn_of_seen(spec: str, sets: Sets) -> None:
    """A test on what an adapter was trained on, or chosen by, says little."""
    for folder in (Path(spec), Path(spec).parent):
        known = known_sets(folder)
        seen = {*known.get("train", ()), *known.get("validation", ())}
        again = [each.name for each in sets.test if each.name in seen]
        if again:
            told = f"{folder} was trained on recordings of this test, or chosen by them: {', '.join(again)}."
            warnings.warn(told, stacklevel=3)


def _try(model: StabilizedModel, frame: Tensor) -> None:
    """Take one whole frame through a network before hours are spent on crops."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), _told_of(model.base, frame), model.disabled():
        model(frame.to(device))


@contextlib.contextmanager
def _told_of(network: nn.Module, frame: Tensor) -> Iterator[None]:
    """Make a sentence of what a network of somebody's says when it cannot take a frame."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        told = " ".join(str(error).split())
        raise InputError(
            f"The network, a {type(network).__name__}, cannot take a frame {tuple(frame.shape)}: {told}"
        ) from error


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield key, f"{key} was {old}, is {new}"


def _dataset(recipe: Recipe, recordings: Sequence[Recording]) -> ClipDataset:
    data = recipe.data
    return ClipDataset(
        recordings,
        length=data.length,
        crop=data.crop,
        scales=data.scales,
        every=data.every,
        reverse=data.reverse,
        flip=data.flip,
        corruptions=data.corruptions,
        target=data.target,
        seed=recipe.training.seed,
    )


def _teacher(recipe: Recipe, model: StabilizedModel) -> nn.Module | None:
    """The network that makes the targets, if that is the base: as it is now, should it be trained itself."""
    if recipe.data.target != "base":
        return None
    return model.base if recipe.training.trains == "adapter" else copy.deepcopy(model.base).to(device())


def _target(clean: Tensor, teacher: nn.Module | None, distance: str) -> Tensor:
    """What a teacher makes of clean frames (B, T, C, H, W); the frames, if there is none. Of logits, probabilities."""
    if teacher is None:
        return clean
    with torch.no_grad():
        device = next((p.device for p in teacher.parameters()), clean.device)
        frames = clean.flatten(0, 1).to(device)
        made = main_tensor(teacher(frames), frames).unflatten(0, clean.shape[:2])
        return made.softmax(2) if distance == "cross_entropy" else made


def _save(model: StabilizedModel, recipe: Recipe, folder: Path, log: _Log, started: float) -> None:
    if shard()[0] != 0:
        return
    if model.places:
        data = recipe.data
        told = f"Corruptions: {', '.join(data.corruptions) or 'none'}. Loss: {recipe.loss.distance}, stability weight "
        told += f"{recipe.loss.stability:g}. {log.step} steps of {recipe.training.batch} clips of {data.length} frames."
        save_adapter(model, folder / ADAPTER, notes=f"{recipe.about}\n{told}\n".lstrip())
    if recipe.training.trains != "adapter":
        weights = {name: value.detach().cpu().contiguous() for name, value in model.base.state_dict().items()}
        try:
            save_file(weights, folder / f"{WEIGHTS}.part")
        except SafetensorError as error:
            raise InputError(f"{folder / WEIGHTS} cannot be written ({error}): make room and run again.") from None
        (folder / f"{WEIGHTS}.part").replace(folder / WEIGHTS)
    result = {"steps": log.step, "validation": log.best(), "seconds": round(time.monotonic() - started, 1)}
    _write(folder / RESULT, json.dumps(result, indent=1) + "\n")


class _Log:
    """The run's numbers, a line of CSV for each step; lines of steps that will be taken again are dropped."""

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.file = folder / LOG
        self.rows: list[dict[str, str]] = []
        self.opened: Any = None
        self.board = _board(folder) if tensorboard and shard()[0] == 0 else None
        if self.file.exists():
            with self.file.open(newline="", encoding="utf-8") as file:
                # A line that was cut off in the middle of writing has empty columns.
                self.rows = [row for row in csv.DictReader(file) if row.get("learning_rate")]

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def add(self, step: int, terms: dict[str, float]) -> None:
        if self.opened is None:
            self.rows = [row for row in self.rows if int(row["step"]) < step]
            self._begin()
        self.rows.append({"step": str(step), **{name: repr(value) for name, value in terms.items()}})
        csv.DictWriter(self.opened, COLUMNS).writerow(self.rows[-1])
        self.opened.flush()
        if self.board is not None:
            for name, value in terms.items():
                self.board.add_scalar(name, value, step)

    def best(self) -> float | None:
        return min((float(row["validation"]) for row in self.rows if row.get("validation")), default=None)

    def close(self) -> None:
        if self.opened is not None:
            self.opened.close()
        if self.board is not None:
            self.board.close()

    def _begin(self) -> None:
        """Write the lines that stay, and keep the file open; of many processes only the first writes."""
        if shard()[0] != 0:
            self.file = Path(os.devnull)
        part = self.file.with_name(f"{self.file.name}.part") if self.file.name == LOG else self.file
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        if part != self.file:
            part.replace(self.file)
        self.opened = self.file.open("a", newline="", encoding="utf-8")


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("training.tensorboard needs the package tensorboard: pip install tensorboard.") from None
    return SummaryWriter(str(folder / "tensorboard"))
