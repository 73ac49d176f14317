"""What a network returned for a frame becomes a picture to write: depth in a steady range, labels, names of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError, nearest
from unflicker.functional import luma, resize
from unflicker.video.base import UNSPECIFIED, VideoInfo

# What each style shows.
STYLES = {
    "picture": "frames (B, 3, H, W)",
    "depth": "depth or disparity (B, 1, H, W) or (B, H, W)",
    "grey": "depth or disparity (B, 1, H, W) or (B, H, W)",
    "labels": "logits (B, K, H, W)",
    "index": "logits (B, K, H, W)",
    "classes": "logits (B, K)",
}
LOW, HIGH = 0.02, 0.98  # of the values, in order, lie below what is shown as 0 and 1
FOLLOWS = 1.0  # seconds after which a range has gone 63 % of the way to a new one
LOOKED_AT = 65536  # values of a frame, at most, to find them; every few pixels are enough
COLOURS = 256
METRIC = ("glpn", "zoedepth")  # kinds of networks that return distances without saying so
NAMED = 3  # classes that are written on a frame


class Renderer:
    """Turns what a network returns for the frames of one video into pictures.

    - "picture": as it is. It keeps the network's size where that is larger than the frame's.
    - "depth": colours from black over red to yellow (matplotlib's inferno); what is large, as the disparity of what is
      near, is bright; of `distances` what is small.
    - "grey": the same as grey of 16 bits: all of them in a folder of PNGs, 10 in a video file.
    - "labels": the largest logit's colour, half and half with the luma of the frame.
    - "index": the number of the largest logit as the value of a grey PNG of 8 bits, from 0 on.
    - "classes": the frame, and on it the likeliest classes with their probabilities (softmax).

    The range of depth runs from the 2nd to the 98th percentile of the first frame, follows slowly and begins anew with
    a shot: per-frame minima and maxima would make all of a picture flicker for the sake of a few pixels. It sees what
    the stabilizer has made steady; the scale that a network gives each frame anew is flicker, and is left in. Before
    anything is known of the range, and where all values are one, depth is shown as 0.5; what is not a number as 0,
    infinities as the ends. Logits of another size than the frame are scaled bilinearly before the largest is looked
    for; those of a single class stand against 0.

    Args:
        style: a key of `STYLES`; None takes the one for the shape of the first output: three channels are a picture,
            one is depth, any other number labels, and (B, K) classes.
        value_range: what is shown as 0 and 1 of depth, for all frames; of distances as 1 and 0.
        names: of classes, by number.
        distances: depth is given as distances, as metric networks do, and not as disparity.

    Raises:
        InputError: there is no such style, or the range is none.

    >>> renderer = Renderer()
    >>> frame, disparity = torch.rand(1, 3, 6, 8), torch.linspace(0, 1, 48).view(1, 1, 6, 8)
    >>> renderer.follow(disparity, frame)
    >>> renderer.style, renderer(disparity, frame).shape
    ('depth', torch.Size([1, 3, 6, 8]))
    """

    def __init__(
        self,
        style: str | None = None,
        *,
        value_range: tuple[float, float] | None = None,
        names: Mapping[int, str] | None = None,
        distances: bool = False,
    ) -> None:
        check_style(style, value_range)
        self.style = style
        self.size: tuple[int, int] | None = None
        self._values = SteadyRange()
        self._fixed = value_range is not None
        if value_range is not None:
            self._values.limits = value_range
        self._names = names or {}
        self._distances = distances

    def follow(self, output: Tensor, frame: Tensor, *, seconds: float = 0.0, cut: bool = False) -> None:
        """Look at the next output, before it is rendered: the first one decides on style and size.

        Args:
            output: the tensor that matters of what the network returned for the frame.
            frame: (B, 3, H, W).
            seconds: when the frame is shown.
            cut: whether a new shot begins.

        Raises:
            InputError: the output is nothing that the style can show.
        """
        if self.style is None:
            self.style = style_of(output, frame)
            check_style(self.style, self._values.limits if self._fixed else None)
        if not _fits(self.style, output, frame):
            raise InputError(
                f"--render {self.style} shows {STYLES[self.style]}, but the network returned {tuple(output.shape)}; "
                f'use "{style_of(output, frame)}".'
            )
        if self.style == "index" and output.ndim == 4 and output.shape[1] > COLOURS:
            raise InputError(f'"index" writes numbers up to {COLOURS - 1}, but there are {output.shape[1]} classes.')
        if self.size is None:
            grown = (
                self.style == "picture" and output.shape[-2] > frame.shape[-2] and output.shape[-1] > frame.shape[-1]
            )
            self.size = _size(output if grown else frame)
        if self.style in ("depth", "grey") and not self._fixed:
            self._values.follow(output, seconds, restart=cut)

    def __call__(self, output: Tensor, frame: Tensor) -> Tensor:
        """Render an output that `follow` has seen, or one to compare with it, in the same range.

        Returns:
            (B, 3, H, W), or (B, 1, H, W) for "grey" and "index": float32, pictures as the network gave them and
            everything else in [0, 1], of one size for all frames of the video.
        """
        return self._rendered(str(self.style), output, frame)

    def display(self, output: Tensor, frame: Tensor) -> Tensor:
        """Render so that differences can be seen, (B, 3, H, W): depth as grey, class numbers as colours."""
        style = {"depth": "grey", "index": "labels"}.get(str(self.style), str(self.style))
        return self._rendered(style, output, frame).expand(-1, 3, -1, -1)

    def described(self, info: VideoInfo) -> VideoInfo:
        """Say what the video of the pictures is like, given that of the frames; only after `follow`."""
        assert self.size is not None
        info = replace(info, height=self.size[0], width=self.size[1])
        if self.style == "picture":
            return info
        # Colours that stand for something mean what they say whatever the source's are.
        return replace(info, bit_depth=16 if self.style == "grey" else 8, transfer=UNSPECIFIED)

    def _rendered(self, style: str, output: Tensor, frame: Tensor) -> Tensor:
        assert self.size is not None, "follow() comes first"
        if style == "picture":
            return fitted(output.float(), self.size)
        if style in ("depth", "grey"):
            plane = output.unsqueeze(1) if output.ndim == 3 else output
            values = self._values(plane.float())
            if self._distances:
                values = torch.where(plane.isnan(), values, 1 - values)
            values = fitted(values, self.size)
            return values if style == "grey" else _painted((values[:, 0] * (COLOURS - 1)).round().long(), _heat())
        frame = fitted(frame.float(), self.size).nan_to_num(0.0).clamp(0, 1)
        if style == "classes":
            return torch.stack([_captioned(one, self._lines(each)) for one, each in zip(frame, output, strict=True)])
        labels = _labels(output, self.size)
        if style == "index":
            return labels.unsqueeze(1) / 255
        return 0.5 * luma(frame) + 0.5 * _painted(labels % COLOURS, palette())

    def _lines(self, logits: Tensor) -> list[tuple[float, str]]:
        if len(logits) == 1:
            logits = torch.cat([torch.zeros_like(logits), logits])
        found = logits.float().nan_to_num(0.0).softmax(0).topk(min(NAMED, len(logits)))
        return [
            (share, self._names.get(number, f"class {number}").split(",")[0])
            for share, number in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]


class SteadyRange:
    """A range of values that does not flicker itself: robust, causal, and slow to follow.

    >>> values = SteadyRange()
    >>> values.follow(torch.linspace(0, 100, 101).view(1, 1, 1, -1), 0.0)
    >>> values.limits, values(torch.tensor([2.0, 50.0, 1e9])).tolist()
    ((2.0, 98.0), [0.0, 0.5, 1.0])
    """

    def __init__(self) -> None:
        self.limits: tuple[float, float] | None = None
        self._seconds = 0.0

    def follow(self, values: Tensor, seconds: float, *, restart: bool = False) -> None:
        """Go towards the range of values (..., H, W), as far as the time since the last call allows."""
        rate = 1 - math.exp(-max(0.0, seconds - self._seconds) / FOLLOWS)
        self._seconds = seconds
        if restart:
            self.limits = None
        every = max(1, math.isqrt(values.shape[-2] * values.shape[-1] // LOOKED_AT))
        seen = values[..., ::every, ::every].float().flatten()
        seen = seen[seen.isfinite()].sort().values
        if not len(seen):
            return  # a frame without depth says nothing
        low, high = (float(seen[round(at * (len(seen) - 1))]) for at in (LOW, HIGH))
        if self.limits is not None:
            low, high = (old + rate * (new - old) for old, new in zip(self.limits, (low, high), strict=True))
        if low < high:
            self.limits = low, high

    def __call__(self, values: Tensor) -> Tensor:
        """Bring values to [0, 1]."""
        if self.limits is None:
            return torch.where(values.isnan(), 0.0, 0.5)
        low, high = self.limits
        return ((values - low) / (high - low)).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)


def check_style(style: str | None, value_range: tuple[float, float] | None = None) -> None:
    """See that there is a style of that name, and that the range is one.

    Raises:
        InputError: there is not, or it is not.

    >>> check_style("depht")
    Traceback (most recent call last):
    unflicker.checks.InputError: Nothing can be rendered as 'depht'; did you mean 'depth'?
    """
    if style is not None and style not in STYLES:
        raise InputError(f"Nothing can be rendered as {style!r}; {nearest(style, STYLES)}")
    if value_range is None:
        return
    if style not in (None, "depth", "grey"):
        raise InputError(f'A range of values is for depth, rendered as "depth" or "grey", not as "{style}".')
    if not (math.isfinite(value_range[0]) and math.isfinite(value_range[1]) and value_range[0] < value_range[1]):
        raise InputError(f"A range of values goes from a number to a larger one, got {value_range}.")


def style_of(output: Tensor, frame: Tensor) -> str:
    """Return the style that fits an output by its shape alone.

    Raises:
        InputError: none does.

    >>> style_of(torch.zeros(1, 21, 30, 40), torch.zeros(1, 3, 60, 80))
    'labels'
    """
    for style in ("picture", "depth", "labels", "classes"):
        if _fits(style, output, frame):
            return style
    raise InputError(
        f"The network must return {', '.join(dict.fromkeys(STYLES.values()))} to make a video, got shape "
        f"{tuple(output.shape)} for frames {tuple(frame.shape)}."
    )


def class_names(base: nn.Module) -> dict[int, str]:
    """Return the names of classes that a network of transformers knows, by number; none of any other.

    >>> class_names(nn.Identity())
    {}
    """
    for module in (base, getattr(base, "net", None)):
        found = getattr(getattr(module, "config", None), "id2label", None)
        if isinstance(found, Mapping):
            return {int(number): str(name) for number, name in found.items()}
    return {}


def gives_distances(base: nn.Module) -> bool:
    """Whether a network of transformers says that its depth is in metres, and not the disparity that others return.

    >>> gives_distances(nn.Identity())
    False
    """
    for module in (base, getattr(base, "net", None)):
        config = getattr(module, "config", None)
        if getattr(config, "depth_estimation_type", None) == "metric" or getattr(config, "model_type", "") in METRIC:
            return True
    return False


def fitted(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring pictures (B, C, H, W) to a size: by area where they shrink, else bilinearly.

    >>> fitted(torch.ones(1, 3, 4, 4), (2, 6)).shape
    torch.Size([1, 3, 2, 6])
    """
    if size[0] < picture.shape[-2] or size[1] < picture.shape[-1]:
        return F.interpolate(picture, size=size, mode="area")
    return resize(picture, size)


@lru_cache(maxsize=1)
def palette() -> Tensor:
    """Return the colours of classes, (256, 3): each as far from those before it as can be, so the first differ most.

    Distances are those of CIELAB; dark, pale and grey colours are left out, for they would be lost in a frame.

    >>> palette().shape
    torch.Size([256, 3])
    """
    import cv2

    steps = np.linspace(0, 1, 12, dtype=np.float32)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = cv2.cvtColor(candidates[None], cv2.COLOR_RGB2LAB)[0]
    vivid = (lab[:, 0] > 35) & (lab[:, 0] < 90) & (np.hypot(lab[:, 1], lab[:, 2]) > 40)
    candidates, lab = candidates[vivid], lab[vivid]
    chosen = [int(np.argmin(lab[:, 2]))]  # the bluest
    distance = np.full(len(lab), np.inf)
    while len(chosen) < COLOURS:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(distance)))
    return torch.from_numpy(candidates[chosen])


@lru_cache(maxsize=1)
def _heat() -> Tensor:
    """Return matplotlib's inferno, (COLOURS, 3): its lightness rises evenly, so that it reads as grey would."""
    import matplotlib

    return torch.from_numpy(matplotlib.colormaps["inferno"](np.linspace(0, 1, COLOURS))[:, :3]).float()


def _painted(numbers: Tensor, colours: Tensor) -> Tensor:
    """Give numbers (B, H, W) their colours (COLOURS, 3): (B, 3, H, W)."""
    return F.embedding(numbers, colours.to(numbers.device)).permute(0, 3, 1, 2)


def _labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the numbers of the largest logits, (B, H, W)."""
    if logits.ndim == 3:
        logits = logits.unsqueeze(1)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return resize(logits.float(), size).max(1).indices  # five times as fast as argmax on a CPU


def _captioned(frame: Tensor, lines: list[tuple[float, str]]) -> Tensor:
    """Write probabilities and names on a darkened strip at the top of a frame (3, H, W), which stays where it is."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = frame.shape[-2:]
    letters = max(6, min(height // 18, width // 20))
    ink = Image.new("L", (width, height))
    draw, font = ImageDraw.Draw(ink), ImageFont.load_default(letters)
    for i, (share, name) in enumerate(lines):
        y = round((0.9 + 1.3 * i) * letters)
        draw.text((3.5 * letters, y), f"{100 * share:.0f} %", 255, font, anchor="rm")
        draw.text((4.2 * letters, y), name, 255, font, anchor="lm")
    written = torch.from_numpy(np.asarray(ink).copy()).to(frame) / 255
    shade = torch.ones_like(written)
    shade[: round((0.5 + 1.3 * len(lines)) * letters)] = 0.35
    return torch.lerp(frame * shade, torch.ones_like(frame), written)


def _fits(style: str, output: Tensor, frame: Tensor) -> bool:
    if style == "classes":
        return output.ndim == 2
    if output.ndim == 3:  # planes have the frame's proportions; tokens (B, N, C) have not
        (h, w), (height, width) = output.shape[-2:], frame.shape[-2:]
        return style != "picture" and 0.9 < h * width / (w * height) < 1.1
    if output.ndim != 4:
        return False
    channels = output.shape[1]
    return {"picture": channels == 3, "depth": channels == 1, "grey": channels == 1}.get(style, True)


def _size(picture: Tensor) -> tuple[int, int]:
    return picture.shape[-2], picture.shape[-1]
