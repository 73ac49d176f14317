"""Deterministic flicker: what networks that judge every frame anew, and lamps, do to a video that is steady itself."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.corruptions.base import Corruption, Draw, field


class ToneJitter(Corruption):
    """exp(gain z + balance z_c) * x^exp(gamma z'), clipped: gain, gamma and white balance that change with every frame.

    What frame-wise enhancement and white-balance networks do, and lamps. z, z' and one z_c per channel are N(0, 1), so
    that the settings are relative standard deviations: at severity 3 of 8 %, 8 % and 4 %. Grey clips have no white
    balance.

    >>> import torch
    >>> clip = torch.full((4, 3, 1, 1), 0.5)
    >>> out = ToneJitter(gain=0.1, gamma=0.0, balance=0.0)(clip)
    >>> bool(out.std() > 0.01), bool((out[:, 0] == out[:, 1]).all())
    (True, True)
    """

    name = "tone_jitter"
    levels: ClassVar = {
        "gain": (0.02, 0.04, 0.08, 0.14, 0.22),
        "gamma": (0.02, 0.04, 0.08, 0.14, 0.22),
        "balance": (0.01, 0.02, 0.04, 0.07, 0.11),
    }

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        gain: float | None = None,
        gamma: float | None = None,
        balance: float | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.gain: float = self._setting("gain", gain, 0, 5)
        self.gamma: float = self._setting("gamma", gamma, 0, 5)
        self.balance: float = self._setting("balance", balance, 0, 5)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        z = self._rng(stream, t).standard_normal(2 + len(frame))
        balance = self.balance * z[2:] if len(frame) > 1 else np.zeros(1)
        gains = field(np.exp(self.gain * z[0] + balance), frame)[:, None, None]
        return (gains * frame.clamp(0, 1) ** math.exp(self.gamma * z[1])).clamp(0, 1)


class FieldJitter(Corruption):
    """x times a smooth random field that is new with every frame: patches that brighten, darken and change colour.

    What colorization and dehazing networks do. The field is exp(amplitude n + colour n_c), with N(0, 1) drawn at the
    nodes of a coarse grid, once for all channels (n) and once for each (n_c), and bicubic in between. So the settings
    are relative standard deviations at the nodes: at severity 3 of 8 % and 4 %. Grey clips have no colour.

    Args:
        amplitude: of the field that all channels share.
        colour: of the field that each channel has of its own.
        cells: nodes of the grid along the frame's short edge; the long edge has more, in proportion.

    >>> import torch
    >>> out = FieldJitter(severity=5, colour=0.0)(torch.full((2, 3, 48, 64), 0.5))
    >>> bool(out.std() > 0.01), bool(torch.allclose(out[:, 0], out[:, 1]))
    (True, True)
    """

    name = "field_jitter"
    levels: ClassVar = {
        "amplitude": (0.02, 0.04, 0.08, 0.14, 0.22),
        "colour": (0.01, 0.02, 0.04, 0.07, 0.11),
        "cells": (3, 3, 3, 3, 3),
    }

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        amplitude: float | None = None,
        colour: float | None = None,
        cells: int | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.amplitude: float = self._setting("amplitude", amplitude, 0, 5)
        self.colour: float = self._setting("colour", colour, 0, 5)
        self.cells = self._whole("cells", cells, 1, 64)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        channels, *size = frame.shape
        nodes = [min(round(self.cells * edge / min(size)), edge) for edge in size]
        noise = self._rng(stream, t).standard_normal((1 + channels, *nodes))
        own = self.colour * noise[1:] if channels > 1 else 0.0
        coarse = field(self.amplitude * noise[:1] + own, frame)
        smooth = F.interpolate(coarse[None], size=size, mode="bicubic", align_corners=True)[0]
        return (frame * smooth.exp()).clamp(0, 1)


class ClaheFlicker(Corruption):
    """Contrast-limited adaptive equalisation of the luma (OpenCV's CLAHE), as strong and as fine as each frame draws.

    What local enhancement networks do: the contrast of every region goes its own way. Each frame draws its clip limit
    and the tiles along its height and along its width, uniformly. The change of the 8-bit luma (BT.601) is added to all
    channels, so that the colour differences stay. Even a limit of 1 equalises a little, so the steady version is not
    the clip itself but one limit for all frames, as `ClaheFlicker(limit=(2, 2), tiles=(4, 4))`. Small frames have fewer
    tiles than are drawn, of 32 pixels or more along an edge: OpenCV cannot limit the contrast in smaller ones.

    Args:
        limit: the least and the largest clip limit.
        tiles: the least and the largest number of tiles along an edge, whole numbers up to 64.

    >>> import torch
    >>> clip = torch.linspace(0.3, 0.6, 64).expand(3, 3, 48, 64)
    >>> bool(ClaheFlicker()(clip).std(0).max() > 0.01)
    True
    """

    name = "clahe_flicker"
    levels: ClassVar = {
        "limit": ((1.0, 1.3), (1.0, 1.7), (1.0, 2.5), (1.0, 4.0), (1.0, 7.0)),
        "tiles": ((3, 6),) * 5,
    }

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        limit: tuple[float, float] | None = None,
        tiles: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.limit = self._pair("limit", limit, 1)
        least, most = self._pair("tiles", tiles, 1)
        if least != int(least) or most != int(most) or most > 64:
            raise InputError(f"{self.name}: tiles must be whole numbers from 1 to 64, got {(least, most)}.")
        self.tiles = int(least), int(most)

    def _check_frames(self, clip: Tensor) -> None:
        if clip.shape[-3] not in (1, 3):
            raise InputError(f"{self.name} takes RGB or grey frames, 3 or 1 channels, got {tuple(clip.shape)}.")

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        import cv2

        rng = self._rng(stream, t)
        limit = float(rng.uniform(*self.limit))
        tiles = rng.integers(self.tiles[0], self.tiles[1] + 1, 2)
        rows, columns = (min(int(n), max(1, edge // 32)) for n, edge in zip(tiles, frame.shape[1:], strict=True))
        planes = frame.detach().cpu().clamp(0, 1).numpy()
        red, green, blue = planes if len(planes) == 3 else (planes[0],) * 3
        luma = np.ascontiguousarray(0.299 * red + 0.587 * green + 0.114 * blue)
        before = (luma * 255).round().astype(np.uint8)
        after = cv2.createCLAHE(limit, (columns, rows)).apply(before)
        change = (after.astype(np.float64) - before) / 255
        return (frame + field(change, frame)).clamp(0, 1)
