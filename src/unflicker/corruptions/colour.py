"""Colour: jitter of brightness, contrast, saturation and hue; exposure and gamma that flicker."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.corruptions.base import Corruption, Draw

LUMA = (0.299, 0.587, 0.114)  # of BT.601, as in Pillow and torchvision


class ColorJitter(Corruption):
    """Change brightness, contrast, saturation and hue by random amounts in a random order, as torchvision does.

    Factors f are uniform in [max(0, 1 - s), 1 + s] for a setting s: brightness f x; contrast f x + (1 - f) m with m the
    frame's mean grey; saturation f x + (1 - f) grey. The hue turns by a part of the circle uniform in [-hue, hue],
    hue <= 0.5. Grey clips have neither saturation nor hue. Preset "ivm": 0.1, 0.1, 0.2, 0.1.

    >>> clip = torch.rand(1, 3, 8, 8)
    >>> same = ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)(clip)
    >>> torch.allclose(same, clip, atol=1e-5)
    True
    """

    name = "color_jitter"
    levels: ClassVar = {
        "brightness": (0.05, 0.1, 0.2, 0.3, 0.5),
        "contrast": (0.05, 0.1, 0.2, 0.3, 0.5),
        "saturation": (0.1, 0.2, 0.3, 0.5, 0.8),
        "hue": (0.02, 0.04, 0.08, 0.12, 0.2),
    }
    presets: ClassVar = {"ivm": {"brightness": 0.1, "contrast": 0.1, "saturation": 0.2, "hue": 0.1}}

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        brightness: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        hue: float | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.brightness: float = self._setting("brightness", brightness)
        self.contrast: float = self._setting("contrast", contrast)
        self.saturation: float = self._setting("saturation", saturation)
        self.hue: float = self._setting("hue", hue, 0, 0.5)

    def _check_frames(self, clip: Tensor) -> None:
        _check_colour(self.name, clip)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        rng = self._rng(stream, t)
        u, order = rng.random(4), rng.permutation(4)
        spans = (self.brightness, self.contrast, self.saturation)
        factors = [max(0.0, 1 - s) + v * (1 + s - max(0.0, 1 - s)) for s, v in zip(spans, u, strict=False)]
        turn = (2 * float(u[3]) - 1) * self.hue
        for step in order:
            frame = _turned(frame, turn) if step == 3 else _adjusted(frame, int(step), factors[step])
        return frame


class Detouch(Corruption):
    """Brightness, contrast and saturation times one fixed factor, in this order: what a retouching network undoes.

    Nothing is drawn: the seed does not matter. Preset "ivm" is 0.7 (ImageDetouch of Instant Video Models' code).

    >>> round(Detouch.preset("ivm")(torch.ones(1, 3, 2, 2)).mean().item(), 3)
    0.7
    """

    name = "detouch"
    levels: ClassVar = {"factor": (0.9, 0.8, 0.7, 0.55, 0.4)}
    presets: ClassVar = {"ivm": {"factor": 0.7}}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", factor: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.factor: float = self._setting("factor", factor)

    def _check_frames(self, clip: Tensor) -> None:
        _check_colour(self.name, clip)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        for step in range(3):
            frame = _adjusted(frame, step, self.factor)
        return frame


class ExposureFlicker(Corruption):
    """x * 2^(stops * N(0, 1)), clipped to [0, 1]: an exposure that changes from frame to frame.

    The gain is applied to the coded values, not to linear light.

    >>> out = ExposureFlicker(severity=5)(torch.full((4, 1, 1, 1), 0.25))
    >>> bool(out.std() > 0.01)
    True
    """

    name = "exposure_flicker"
    levels: ClassVar = {"stops": (0.05, 0.1, 0.2, 0.35, 0.6)}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", stops: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.stops: float = self._setting("stops", stops, 0, 20)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        return (frame * 2 ** (self.stops * self._rng(stream, t).standard_normal())).clamp(0, 1)


class GammaFlicker(Corruption):
    """x^(exp(spread * N(0, 1))): mid-tones that change from frame to frame; black and white stay.

    >>> GammaFlicker(severity=5)(torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)).flatten().tolist()
    [0.0, 1.0]
    """

    name = "gamma_flicker"
    levels: ClassVar = {"spread": (0.05, 0.1, 0.2, 0.35, 0.6)}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", spread: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.spread: float = self._setting("spread", spread, 0, 5)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        return frame.clamp(0, 1) ** float(2.718281828459045 ** (self.spread * self._rng(stream, t).standard_normal()))


def _check_colour(name: str, clip: Tensor) -> None:
    if clip.shape[-3] not in (1, 3):
        raise InputError(f"{name} takes RGB or grey frames, 3 or 1 channels, got {tuple(clip.shape)}.")


def _grey(frame: Tensor) -> Tensor:
    if len(frame) == 1:
        return frame
    return (frame * frame.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)


def _adjusted(frame: Tensor, step: int, factor: float) -> Tensor:
    """Scale brightness (0), contrast (1) or saturation (2)."""
    if step == 0:
        return (frame * factor).clamp(0, 1)
    grey = _grey(frame)
    return torch.lerp((grey.mean() if step == 1 else grey).expand_as(frame), frame, factor).clamp(0, 1)


def _turned(frame: Tensor, turn: float) -> Tensor:
    """Turn the hue by a part of the circle."""
    if len(frame) == 1:
        return frame
    from kornia.color import hsv_to_rgb, rgb_to_hsv

    hue, saturation, value = rgb_to_hsv(frame[None]).unbind(1)  # hue in radians
    return hsv_to_rgb(torch.stack([(hue + turn * 2 * torch.pi) % (2 * torch.pi), saturation, value], 1))[0].clamp(0, 1)
