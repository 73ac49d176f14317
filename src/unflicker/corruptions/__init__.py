"""Corruptions: what sensors, weather, codecs and cables do to a clip, with a seed so that it can be done again.

`CORRUPTIONS` maps a name to the class of the kind, made with `severity=` and `seed=`; `parse` makes one from a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.corruptions.adversarial import IFGSM
from unflicker.corruptions.base import Corruption, Draw, check_seed
from unflicker.corruptions.colour import ColorJitter, Detouch, ExposureFlicker, GammaFlicker
from unflicker.corruptions.compression import H264, JPEG, Pixelate
from unflicker.corruptions.flicker import ClaheFlicker, FieldJitter, ToneJitter
from unflicker.corruptions.geometry import CameraShake, Elastic
from unflicker.corruptions.noise import GaussianNoise, ImpulseNoise, ShotNoise, SpeckleNoise, gaussian_noise
from unflicker.corruptions.occlusion import DuplicatedFrames, FrameDrop, FrozenFrames, PatchDrop, RemovedRectangles
from unflicker.corruptions.optics import DefocusBlur, GaussianBlur, MotionBlur
from unflicker.corruptions.weather import Fog, Rain, RandomSnow, Snow

_KINDS: tuple[type[Corruption], ...] = (
    GaussianNoise,
    ShotNoise,
    ImpulseNoise,
    SpeckleNoise,
    JPEG,
    H264,
    Pixelate,
    PatchDrop,
    RemovedRectangles,
    FrameDrop,
    FrozenFrames,
    DuplicatedFrames,
    Elastic,
    CameraShake,
    DefocusBlur,
    MotionBlur,
    GaussianBlur,
    ColorJitter,
    Detouch,
    ExposureFlicker,
    GammaFlicker,
    ToneJitter,
    FieldJitter,
    ClaheFlicker,
    Rain,
    Snow,
    RandomSnow,
    Fog,
)
CORRUPTIONS: dict[str, type[Corruption]] = {kind.name: kind for kind in _KINDS}


class Compose:
    """Several corruptions, one after the other; each keeps its own seed.

    Two of one kind with one seed draw the same numbers: give them different seeds.

    >>> import torch
    >>> both = Compose([GaussianNoise(sigma=0.1), FrameDrop(p=0.5, seed=1)])  # a dropped frame is exact zeros
    >>> both(torch.rand(1, 4, 3, 8, 8)).shape
    torch.Size([1, 4, 3, 8, 8])
    """

    def __init__(self, corruptions: Sequence[Corruption | Compose | IFGSM]) -> None:
        for each in corruptions:
            if not callable(each) or isinstance(each, type):
                raise InputError(f"Compose takes corruptions that are made, such as Snow(severity=2), got {each!r}.")
        self.corruptions = tuple(corruptions)

    def __call__(self, clip: Tensor, *, start: int = 0) -> Tensor:
        """Corrupt a clip; see `Corruption`."""
        for corruption in self.corruptions:
            clip = corruption(clip, start=start)
        return clip

    def __repr__(self) -> str:
        return f"Compose({list(self.corruptions)!r})"


def parse(text: str, *, seed: int = 0, draw: Draw = "per_frame") -> Corruption:
    """Make a corruption from KIND, KIND:SEVERITY or KIND:PRESET; the severity is 3 unless given.

    Of several, joined by |, the seed draws one: training draws a seed for each clip, and so trains on all of them.

    Raises:
        InputError: an unknown kind or preset (the nearest is named), a severity outside 1 to 5, a seed that is no
            integer.

    >>> parse("snow:4").severity, parse("gaussian_noise:ivm-moderate", seed=7).sigma
    (4, 0.1)
    >>> {parse("snow | rain", seed=n).name for n in range(9)} == {"snow", "rain"}
    True
    """
    if "|" in text:
        choices = [parse(each, seed=seed, draw=draw) for each in text.split("|")]
        return choices[int(np.random.default_rng([check_seed(seed), len(choices)]).integers(len(choices)))]
    name, colon, level = text.strip().partition(":")
    if name not in CORRUPTIONS:
        raise InputError(f"There is no corruption {name!r}; {nearest(name, CORRUPTIONS)}")
    kind = CORRUPTIONS[name]
    if not colon:
        return kind(seed=seed, draw=draw)
    try:
        severity = float(level)
    except ValueError:
        if level in kind.presets:
            return kind.preset(level, seed=seed, draw=draw)
        presets = nearest(level, kind.presets) if kind.presets else "it has no presets."
        raise InputError(f"{name} has no preset {level!r}; {presets} A severity is a number from 1 to 5.") from None
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"The severity of {name} must be 1, 2, 3, 4 or 5, got {level}.")
    return kind(severity=int(severity), seed=seed, draw=draw)


__all__ = [
    "CORRUPTIONS",
    "H264",
    "IFGSM",
    "JPEG",
    "CameraShake",
    "ClaheFlicker",
    "ColorJitter",
    "Compose",
    "Corruption",
    "DefocusBlur",
    "Detouch",
    "DuplicatedFrames",
    "Elastic",
    "ExposureFlicker",
    "FieldJitter",
    "Fog",
    "FrameDrop",
    "FrozenFrames",
    "GammaFlicker",
    "GaussianBlur",
    "GaussianNoise",
    "ImpulseNoise",
    "MotionBlur",
    "PatchDrop",
    "Pixelate",
    "Rain",
    "RandomSnow",
    "RemovedRectangles",
    "ShotNoise",
    "Snow",
    "SpeckleNoise",
    "ToneJitter",
    "gaussian_noise",
    "parse",
]
