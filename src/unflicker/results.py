"""What an evaluation found: every number of every method, and the JSON file that holds them."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unflicker.checks import InputError

BASE, TRUTH = "base", "truth"  # rows that are always called so
FORMAT = 1

Numbers = dict[str, float | None]


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
