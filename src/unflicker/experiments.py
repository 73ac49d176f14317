"""A recipe carried out: its recordings found, its model built, trained into a folder, measured."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from unflicker.bases import load_base
from unflicker.checkpoint import save_adapter
from unflicker.checks import InputError, nearest
from unflicker.controllers import Controller
from unflicker.corruptions import Compose, parse
from unflicker.data import LAYOUTS, ClipDataset, Recording, cached, load, open_folder, read_frames, select, stills
from unflicker.evaluation import Evaluation, Method, Skipped, evaluate
from unflicker.losses import unified_loss
from unflicker.model import StabilizedModel, stabilize
from unflicker.recipes import Data, Recipe, Selection, load_recipe
from unflicker.stabilizers import from_description
from unflicker.state import State
from unflicker.tasks import TASKS, add_adapter
from unflicker.tradeoff import figure, frontier, markdown_table
from unflicker.training import Batch, fit, shard

RECIPE, PROGRESS, LOG, RESULT, LOCK = "recipe.yaml", "progress.safetensors", "log.csv", "result.json", ".lock"
ADAPTER, WEIGHTS = "adapter", "base.safetensors"
COLUMNS = ("step", "accuracy", "stability", "total", "learning_rate", "validation")
HELD_OUT = 5  # one recording in so many goes to validation, and one to the test
CHUNK = 8  # frames that are validated at a time
OnStep = Callable[[int, dict[str, float]], None]
MAY_CHANGE = ("about", "evaluation")  # settings of a recipe that a run may be gone on with


@dataclass(frozen=True)
class Sets:
    """Recordings to train on, to choose the best weights by, and to report on; and what could not be opened."""

    train: list[Recording]
    validation: list[Recording]
    test: list[Recording]
    skipped: list[str]


@dataclass(frozen=True)
class Trained:
    """What `train` made."""

    folder: Path
    steps: int
    validation: float | None
    """The lowest unified loss on the validation set; None without one."""
    skipped: list[str]
    """A sentence for each recording that could not be used."""


def open_sets(recipe: Recipe) -> Sets:
    """Find the recordings of a recipe.

    Raises:
        InputError: the recipe does not say where they are, or none is there.
    """
    data = recipe.data
    chosen = (data.train, data.validation, data.test)
    if data.root is None and not any(each and each.root for each in chosen):
        raise InputError("The recipe does not say where the clips are: add data.root=FOLDER.")
    if all(each is None for each in chosen):
        found, skipped = _open(recipe, Selection())
        validation, test = found[1::HELD_OUT], found[2::HELD_OUT]
        held = {each.name for each in (*validation, *test)}
        return Sets([each for each in found if each.name not in held], validation, test, skipped)

    def of(selection: Selection | None) -> list[Recording]:
        found, skipped = ([], []) if selection is None else _open(recipe, selection)
        complaints.extend(each for each in skipped if each not in complaints)
        return found

    complaints: list[str] = []
    return Sets(of(data.train), of(data.validation), of(data.test), complaints)


def build_model(recipe: Recipe) -> StabilizedModel:
    """Build the network of a recipe with the stabilizers to be trained; the seed decides their first weights.

    Raises:
        InputError: network, weights, plan or adapter do not fit each other.
    """
    network = load_base(recipe.base.network, recipe.base.weights)
    side = recipe.data.crop or 64
    example = torch.zeros(1, 3, side, side)
    adapter = recipe.adapter
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        if adapter.start is not None:
            if adapter.plan:
                raise InputError("The recipe has both adapter.plan and adapter.start; leave one out.")
            task = recipe.base.network if recipe.base.network in TASKS else None
            return add_adapter(network, adapter.start, task=task, example=example)
        if not adapter.plan:
            return add_adapter(network, "none", example=example)
        controllers = tuple(
            Controller(each.width, depth=each.depth, downscale=each.downscale, antialias=each.antialias)
            for each in adapter.controllers
        )
        return stabilize(network, adapter.stabilizers(), controller=controllers or None, example=example)


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
    dataset = _dataset(recipe, sets.train)
    teacher = _teacher(recipe, model)
    if settings.trains != "adapter":
        model.unfreeze()

    def batches(start: int) -> Iterator[Batch]:
        counts = {"batch": settings.batch, "steps": settings.steps, "start": start, "workers": settings.workers}
        for batch in load(dataset, shard=shard(), **counts):
            yield batch["input"], _target(batch["target"], teacher)

    def validate(judged: StabilizedModel) -> float:
        losses = [validation_loss(judged, each, recipe, teacher, n) for n, each in enumerate(sets.validation)]
        return sum(losses) / len(losses)

    with claimed(folder):
        _note_recipe(recipe, folder)
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
    return Trained(folder, settings.steps, log.best(), [*sets.skipped, *dataset.skipped])


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
    total = 0.0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        for start in range(0, length, CHUNK):
            numbers = [every * t for t in range(start, min(start + CHUNK, length))]
            clean, truth = read_frames(recording, numbers, target=data.target, size=data.size)
            preds, state = model(corrupt(clean, start=start)[None].to(device), state)
            target = _target(truth[None].to(device), teacher).to(device)
            terms = unified_loss(
                preds, target, stability=loss.stability, distance=loss.distance, previous=previous, frames=length
            )
            previous = (preds[:, -1], target[:, -1])
            total += terms["total"].item()
    return total


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
    sets = open_sets(recipe)
    if not sets.test:
        raise InputError("No recording is left for a test: give data.test, or three videos or more.")
    base = load_base(recipe.base.network, recipe.base.weights)
    methods: dict[str, Method] = {}
    if with_baselines:
        methods |= {name: Method(from_description(each)) for name, each in recipe.evaluation.baselines.items()}
    for name, spec in adapters.items():
        model = with_adapter(recipe, base, spec)
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
        seed=recipe.training.seed,
        processes=processes,
        on_frame=on_frame,
    )
    found.skipped += [Skipped(each, "it could not be opened") for each in sets.skipped]
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
    """Write an evaluation as evaluation.json, table.md and tradeoff.png; return the files."""
    folder = Path(folder)
    files = [folder / name for name in ("evaluation.json", "table.md", "tradeoff.png")]
    evaluation.write(files[0])
    files[1].write_text(markdown_table({title: evaluation}), encoding="utf-8")
    figure(frontier(evaluation), files[2])
    return files


def with_adapter(recipe: Recipe, base: nn.Module, spec: str) -> StabilizedModel:
    """The model of an adapter; one that `train` made together with its network comes with that."""
    folder = Path(spec)
    task = recipe.base.network if recipe.base.network in TASKS and recipe.base.weights is None else None
    if (folder / WEIGHTS).exists():
        base = load_base(recipe.base.network, folder / WEIGHTS)
        spec = spec if (folder / ADAPTER).exists() else "none"
    return add_adapter(base, spec, task=task)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder and keep it to this process; the claim ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if shard()[0] == 0:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    if not file.exists():
        if shard()[0] == 0:
            file.write_text(recipe.text(), encoding="utf-8")
        return
    old, new = yaml.safe_load(file.read_text(encoding="utf-8")), yaml.safe_load(recipe.text())
    for name in MAY_CHANGE:
        old.pop(name, None), new.pop(name, None)
    changed = list(_differences(old, new))
    if changed:
        raise InputError(f"{folder} holds a run of another recipe ({'; '.join(changed[:3])}): choose another folder.")


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield f"{key} was {old}, is {new}"


def _open(recipe: Recipe, selection: Selection) -> tuple[list[Recording], list[str]]:
    data = recipe.data
    root = selection.root or data.root
    if root is None:
        raise InputError("The recipe does not say where the clips are: add data.root=FOLDER.")
    skipped: list[str] = []
    if data.layout == "folder":
        found, skipped = open_folder(root, only=selection.only, without=selection.without, targets=data.targets)
    else:
        recordings = {each.name: each for each in _published(data, root, selection.split)}
        found = [recordings[name] for name in select(recordings, selection.only, selection.without, str(root))]
    if data.cache is not None:
        found = cached(found, data.cache, limit_gib=data.cache_gib)
    return found, skipped


def _published(data: Data, root: Path, split: str | None) -> list[Recording]:
    """The recordings of a layout that somebody else laid out."""
    options: dict[str, Any] = dict(data.options)
    if data.layout == "stills":
        reader: Callable[..., list[Recording]] = stills
    else:
        if data.layout not in LAYOUTS:
            hint = nearest(data.layout, ("folder", "stills", *LAYOUTS))
            raise InputError(f"There is no layout {data.layout!r}; {hint}")
        reader = LAYOUTS[data.layout]
        options["targets"] = () if data.target in ("clean", "base") else (data.target,)
        if split is not None:
            options["split"] = split
    try:
        return reader(root, **options)
    except TypeError as error:
        raise InputError(f"data.options do not suit the layout {data.layout!r}: {error}.") from None


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
    return model.base if recipe.training.trains == "adapter" else copy.deepcopy(model.base)


def _target(clean: Tensor, teacher: nn.Module | None) -> Tensor:
    """What a teacher makes of clean frames (B, T, C, H, W); the frames, if there is none."""
    if teacher is None:
        return clean
    with torch.no_grad():
        device = next((p.device for p in teacher.parameters()), clean.device)
        return teacher(clean.flatten(0, 1).to(device)).unflatten(0, clean.shape[:2])


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
        save_file(weights, folder / f"{WEIGHTS}.part")
        (folder / f"{WEIGHTS}.part").replace(folder / WEIGHTS)
    result = {"steps": log.step, "validation": log.best(), "seconds": round(time.monotonic() - started, 1)}
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


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
