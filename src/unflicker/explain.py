"""Pictures of why a stabilizer did what it did: what the past is trusted, where it was taken from, what changed."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.evidence import LONGEST
from unflicker.functional import half, luma, resize
from unflicker.model import StabilizedModel
from unflicker.state import State
from unflicker.video.writer import names_folder

LARGEST = 640  # columns of a panel; wider frames are shown at half size
BAR, GAP = 20, 4  # height of a caption and distance between the panels, in pixels
TRUSTED = 0.1  # odds of the past below which nothing was taken from it
AMPLIFIED = 8  # times, for what was changed
# Evidence from 0 to LONGEST: dark blue, blue-green, green, yellow (after matplotlib's viridis).
RAMP = ((0.27, 0.0, 0.33), (0.23, 0.32, 0.55), (0.13, 0.57, 0.55), (0.37, 0.79, 0.38), (0.99, 0.91, 0.14))
STATIC, MOVED, NOTHING = (0.12, 0.47, 0.95), (1.0, 0.58, 0.05), (0.87, 0.1, 0.35)

EXPLAINED = ("output", "input")  # the first of them that keeps evidence

Swatches = tuple[tuple[tuple[float, float, float], str], ...]


def explain_path(destination: str | Path) -> str:
    """Return the name of the explanation that belongs to an output; that of a folder ends in a slash.

    >>> explain_path("clips/out.mp4"), explain_path("frames"), explain_path("frames.v2/")
    ('clips/out.explain.mp4', 'frames.explain/', 'frames.v2.explain/')
    """
    path = Path(destination)
    if names_folder(destination):
        return str(path.with_name(f"{path.name}.explain")) + "/"
    return str(path.with_name(f"{path.stem}.explain{path.suffix}"))


def check_explains(model: StabilizedModel) -> None:
    """See that a model keeps evidence for its network's output or input, of every place in the frame.

    Raises:
        InputError: it does not.

    >>> check_explains(StabilizedModel(torch.nn.Identity(), {}, (), (3, 8, 8)))
    Traceback (most recent call last):
    unflicker.checks.InputError: There is nothing to explain: this adapter keeps no evidence for the network's output \
or input, as "aligned" and "merged" do.
    """
    for key, place in model.places.items():
        if key.partition("::")[0] in EXPLAINED:
            kept = model.stabilizers[key].fresh(torch.zeros(1, place.channels, 2, 2))
            if {"evidence", "moved"} <= kept.keys():
                return
            if "evidence" in kept:
                raise InputError(
                    "--explain draws where in the frame the past was trusted, but the network's output has no places, "
                    f"it is one {place.layout} for all of the frame; leave it out."
                )
    raise InputError(
        "There is nothing to explain: this adapter keeps no evidence for the network's output or input, as "
        '"aligned" and "merged" do.'
    )


def explain_size(height: int, width: int) -> tuple[int, int]:
    """Return the height and width, both even, of what `explain_frame` draws for frames of a size.

    >>> explain_size(480, 640), explain_size(720, 1280)
    ((1004, 1284), (764, 1284))
    """
    height, width = _panel(height, width)
    return 2 * (BAR + height) + GAP, 2 * width + GAP


def explain_frame(result: Tensor, base: Tensor, state: State) -> Tensor:
    """Draw four panels, each with its legend above: what came out, and what lies behind it.

    Above: the result; the evidence, 0 to 8 frames that agree. Below: where the past was taken from (the same place,
    along the motion, nothing), over a grey picture; the result minus the base's output, times 8, around mid grey.

    Args:
        result: what the model returned, rendered, (1, 3, H, W) in [0, 1].
        base: what the network alone returns for the same frame, rendered alike.
        state: what the model returned with it.

    Returns:
        (3, h, w) in [0, 1], of the size that `explain_size` tells.

    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import Aligned
    >>> model = stabilize(torch.nn.Identity(), {"": Aligned()}, example=torch.zeros(1, 3, 32, 48))
    >>> frame = torch.rand(1, 3, 32, 48)
    >>> explain_frame(frame, frame, model(frame)[1]).shape
    torch.Size([3, 108, 100])
    """
    height, width = result.shape[-2:]
    canvas = torch.ones(3, *explain_size(height, width))
    height, width = _panel(height, width)
    if result.shape[-1] != width:
        result, base = half(result), half(base)
    result, base = (each.float().cpu() for each in (result, base))
    evidence, moved = (each.float().cpu() for each in _kept(state))
    # Evidence counts the present as well: what is above 1 are the odds of the past.
    origin = torch.where(
        evidence - 1 < TRUSTED, _colour(NOTHING), torch.where(moved > 0.5, _colour(MOVED), _colour(STATIC))
    )
    grey = resize(luma(result), (evidence.shape[-2], evidence.shape[-1]))
    panels = (result, _ramp(evidence), 0.55 * grey + 0.45 * origin, 0.5 + AMPLIFIED * (result - base))
    for i, (panel, legend) in enumerate(zip(panels, _legends(width), strict=True)):
        top, left = (i // 2) * (BAR + height + GAP), (i % 2) * (width + GAP)
        canvas[:, top : top + BAR, left : left + width] = legend
        top += BAR
        canvas[:, top : top + height, left : left + width] = F.interpolate(panel, size=(height, width))[0].clamp(0, 1)
    return canvas


def _kept(state: State) -> tuple[Tensor, Tensor]:
    """Evidence and what moved, of the output, be it a tensor or an entry, as "::depth"; else of the input."""
    places = sorted((key.removesuffix("/moved") for key in state if key.endswith("/moved")), key=_rank)
    return state[f"{places[0]}/evidence"], state[f"{places[0]}/moved"]


def _rank(place: str) -> int:
    name = place.partition("::")[0]
    return EXPLAINED.index(name) if name in EXPLAINED else len(EXPLAINED)


def _panel(height: int, width: int) -> tuple[int, int]:
    return (height, width) if width <= LARGEST else (math.ceil(height / 2), math.ceil(width / 2))


def _colour(rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1)


def _ramp(evidence: Tensor) -> Tensor:
    """Give evidence (B, 1, h, w) its colours, (B, 3, h, w)."""
    stops = torch.tensor(RAMP)
    at = (evidence[:, 0] / LONGEST).clamp(0, 1) * (len(stops) - 1)
    below = at.long().clamp_max(len(stops) - 2)
    return torch.lerp(stops[below], stops[below + 1], (at - below).unsqueeze(-1)).permute(0, 3, 1, 2)


@lru_cache(maxsize=4)
def _legends(width: int) -> tuple[Tensor, ...]:
    """The captions of the four panels, (3, BAR, width) each."""
    scale: Swatches = tuple(
        (RAMP[i], f"{LONGEST * i / (len(RAMP) - 1):g}" + (" frames that agree" if i == len(RAMP) - 1 else ""))
        for i in range(0, len(RAMP), 2)
    )
    origin: Swatches = ((STATIC, "same place"), (MOVED, "along the motion"), (NOTHING, "nothing"))
    return (
        _legend("result", (), width),
        _legend("evidence:", scale, width),
        _legend("past taken from:", origin, width),
        _legend(f"what was changed, times {AMPLIFIED}", (), width),
    )


def _legend(title: str, swatches: Swatches, width: int) -> Tensor:
    """Draw dark text on white with coloured squares before their names; narrow panels get small letters."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (width, BAR), "white")
    draw = ImageDraw.Draw(picture)
    for size in range(13, 5, -1):
        font = ImageFont.load_default(size)
        lengths = [draw.textlength(text, font) for text in (title, *(name for _, name in swatches))]
        if sum(lengths) + 2 * size * len(swatches) <= width - 8:
            break
    x = 4.0
    draw.text((x, BAR // 2), title, "black", font, anchor="lm")
    x += lengths[0]
    for (colour, name), length in zip(swatches, lengths[1:], strict=True):
        x += 0.7 * size
        square = (x, (BAR - size) // 2 + 1, x + 0.8 * size, (BAR + size) // 2 - 1)
        draw.rectangle(square, tuple(round(255 * value) for value in colour))
        x += 1.1 * size
        draw.text((x, BAR // 2), name, "black", font, anchor="lm")
        x += length
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
