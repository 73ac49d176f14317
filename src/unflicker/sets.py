"""The recordings of a recipe: which train, which choose the best weights, which the results are reported on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unflicker.checks import InputError, nearest
from unflicker.data import LAYOUTS, EnhancedVideo, Recording, cached, open_folder, scaled, scenes, select, stills
from unflicker.data.local_laplacian import MODERATE, STRONG
from unflicker.recipes import Data, Recipe, Selection

FILE = "sets.json"
HELD_OUT = 5  # one recording in so many goes to validation, and one to the test
ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class Sets:
    """Recordings to train on, to choose the best weights by, and to report on; and what could not be opened."""

    train: list[Recording]
    validation: list[Recording]
    test: list[Recording]
    skipped: list[str]
    """A sentence for each recording that was left out."""

    def names(self) -> dict[str, list[str]]:
        """The names of each set's recordings."""
        return {role: [each.name for each in getattr(self, role)] for role in ROLES}


def open_sets(recipe: Recipe, roles: Sequence[str] = ROLES) -> Sets:
    """Find the recordings of a recipe, at least those of these roles: "train", "validation" and "test".

    What it names is taken for that; if it does not say what trains, everything else does, less every fifth recording
    for each of validation and test that it does not name either.

    Raises:
        InputError: the recipe does not say where they are, none is there, or one would be in two sets.
    """
    data = recipe.data
    named = {role: getattr(data, role) for role in ROLES}
    if data.root is None and not _is_made(data) and not any(each and each.root for each in named.values()):
        raise InputError("The recipe does not say where the clips are: add data.root=FOLDER.")
    complaints: list[str] = []
    sets: dict[str, list[Recording]] = {role: [] for role in ROLES}
    enough = all(named[role] is not None for role in roles)
    for role, selection in named.items():
        if selection is not None and (role in roles or not enough):
            sets[role], skipped = _open(data, selection)
            complaints += skipped
    if data.train is None and not enough:
        everything, skipped = _open(data, Selection())
        complaints += skipped
        taken = {_identity(each) for found in sets.values() for each in found}
        rest = [each for each in everything if _identity(each) not in taken]
        for role, first in (("validation", 1), ("test", 2)):
            if named[role] is None:
                sets[role] = rest[first::HELD_OUT]
        held = {_identity(each) for found in sets.values() for each in found}
        sets["train"] = [each for each in rest if _identity(each) not in held]
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = {_identity(each) for each in sets[one]} & {_identity(each) for each in sets[other]}
        if both:
            name = next(each.name for each in sets[one] if _identity(each) in both)
            raise InputError(
                f"The recording {name!r} is in data.{one} and in data.{other}; leave it out of one of them."
            )
    return Sets(**sets, skipped=list(dict.fromkeys(complaints)))


def note_sets(sets: Sets, folder: Path) -> None:
    """Write into the folder of a run which recordings it knows.

    Raises:
        InputError: a file of that name is there, and says otherwise.
    """
    file, names = folder / FILE, sets.names()
    if not file.exists():
        part = file.with_name(f"{file.name}.part")
        part.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
        return
    before = known_sets(folder)
    told = [f"{name} is new in {role}" for role in ROLES for name in _without(names[role], before.get(role, []))]
    told += [
        f"{name} is not in {role} any more" for role in ROLES for name in _without(before.get(role, []), names[role])
    ]
    if told:
        shown = "; ".join(told[:3]) + ("; ..." if len(told) > 3 else "")
        raise InputError(
            f"The recordings have changed since the run in {folder} began ({shown}): choose another folder."
        )


def known_sets(folder: Path) -> dict[str, list[str]]:
    """Read what `note_sets` wrote; nothing if there is no such file, or another."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _without(names: Iterable[str], others: Sequence[str]) -> Iterator[str]:
    return (name for name in names if name not in others)


def _identity(recording: Recording) -> tuple[Any, ...]:
    """Where a recording comes from: its files, or its name if it has none."""
    return tuple(recording.frames.paths) or (recording.name,)


def _open(data: Data, selection: Selection) -> tuple[list[Recording], list[str]]:
    root = selection.root or data.root
    if root is None and not _is_made(data):
        raise InputError("The recipe does not say where the clips are: add data.root=FOLDER.")
    skipped: list[str] = []
    if data.layout == "folder":
        assert root is not None
        for what, value in (("data.options", data.options), ("split", selection.split)):
            if value:
                raise InputError(f'The layout "folder" has no {what}: name the recordings by `only` and `without`.')
        found, skipped = open_folder(root, only=selection.only, without=selection.without, targets=data.targets)
    else:
        if data.targets is not None:
            raise InputError(f'data.targets is for the layout "folder"; {data.layout!r} has its own.')
        recordings = {each.name: each for each in _published(data, root, selection.split)}
        where = data.layout if root is None else str(root)
        found = [recordings[name] for name in select(recordings, selection.only, selection.without, where)]
    if data.short_side is not None:
        asked = [Recording(each.frames, {k: v for k, v in each.targets.items() if k == data.target}) for each in found]
        found = [scaled(each, data.short_side) for each in asked]
    if data.enhance is not None:
        if data.target != "truth" or data.targets is not None:
            raise InputError("data.enhance makes the truth: set data.target=truth, and leave data.targets out.")
        settings = {"moderate": MODERATE, "strong": STRONG}[data.enhance]
        found = [Recording(each.frames, {"truth": EnhancedVideo(each.frames, settings)}) for each in found]
    if data.targets is not None and data.target != "truth":
        found = [dataclasses.replace(each, targets={}) for each in found]  # the recipe does not ask for it
    if data.cache is not None:
        found = cached(found, data.cache, limit_gib=data.cache_gib)
    return found, skipped


def _is_made(data: Data) -> bool:
    """Whether the recordings come from nothing."""
    return data.layout == "scenes"


def _published(data: Data, root: Path | None, split: str | None) -> list[Recording]:
    """The recordings of a layout that somebody else laid out, or that are made."""
    options: dict[str, Any] = dict(data.options)
    places = () if root is None else (root,)
    if data.layout == "scenes":
        if root is not None:
            raise InputError('The layout "scenes" makes its recordings: leave data.root out.')
        reader: Callable[..., list[Recording]] = scenes
    elif data.layout == "stills":
        reader = stills
    else:
        if data.layout not in LAYOUTS:
            hint = nearest(data.layout, ("folder", "stills", "scenes", *LAYOUTS))
            raise InputError(f"There is no layout {data.layout!r}; {hint}")
        reader = LAYOUTS[data.layout]
        options["targets"] = () if data.target in ("clean", "base") else (data.target,)
    if split is not None:
        options["split"] = split
    try:
        return reader(*places, **options)
    except TypeError as error:
        raise InputError(f"data.options do not suit the layout {data.layout!r}: {error}.") from None
