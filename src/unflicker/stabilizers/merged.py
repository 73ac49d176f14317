"""Merging: the noisy frames that go into a network are averaged along the motion, and the network sees the average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.evidence import FALL, LONGEST, RISE, TINY, counted
from unflicker.flow import METHODS, PRESETS, Flow, enlarge, fetch, flow
from unflicker.functional import (
    box_mean,
    doubled,
    half,
    in_frame,
    is_finite,
    luma,
    mean_channel,
    noise_level,
    positive,
    value_range,
)
from unflicker.guide import Guide
from unflicker.stabilizers.base import Layout, Stabilizer, believed
from unflicker.state import State

NEAR = 3  # half-size pixels: what is compared is averaged over such a square, for noise hides differences
WINDOW = 9  # half-size pixels, over which squared differences are averaged
MOVED = 1.1  # the static hypothesis has no interpolation: it wins unless the moved one is this much better
DISTRUST = 15.0  # a denoiser takes out most of the noise and none of a displacement: that weighs so much more
UNLIKE = 0.2  # doubt per squared excess over what noise leaves: many times as much is no chance
FLOOR = 0.002  # the least noise of a frame, as a standard deviation: half a code value of 8 bits


class Merged(Stabilizer):
    """A recursive mean of noisy frames along their motion, for a network's input ("in:"). It has no weights.

    Of n frames averaged a denoiser has an n-th of the noise to take out, and keeps what it would have taken for noise
    in one. The last average is carried along the optical flow, or stays in place where that explains the frame better.
    Each pixel counts the frames in it: its evidence n. What a frame differs by beyond its noise, b squared, is not for
    averaging: with noise of variance v the past weighs as n / (1 + 15 n b^2 / v) frames, less where b is beyond doubt.

    It is for denoisers that take averages of frames as well as frames: one that was trained for noise of a single
    strength blurs what is cleaner than that.

    Args:
        flow, preset: as of `Aligned`.
        layout: see `Stabilizer`; frames are maps.

    Raises:
        InputError: a name is not known, or the layer has no place in the frame.

    >>> import torch
    >>> from unflicker.model import stabilize
    >>> model = stabilize(torch.nn.Identity(), {"in:": Merged()}, example=torch.zeros(1, 3, 32, 48))
    >>> y, state = model(0.5 + 0.1 * torch.randn(1, 8, 3, 32, 48))
    >>> bool((y[:, -1] - 0.5).std() < 0.07)
    True
    """

    kind = "merged"
    uses_guide = True
    guided_by_frame = True

    def __init__(self, *, flow: str | Flow = "auto", preset: str = "medium", layout: Layout = "auto") -> None:
        super().__init__(layout)
        for name, value, known in (
            ("preset", preset, PRESETS),
            *(() if callable(flow) else (("flow", flow, METHODS),)),
        ):
            if value not in known:
                raise InputError(f"Merged has no {name} {value!r}; {nearest(str(value), known)}")
        self.flow, self.preset = flow, preset

    def build(self, channels: int, layout: Layout, context_channels: tuple[int, ...]) -> None:
        super().build(channels, layout, context_channels)
        if layout not in ("map", "plane"):
            raise InputError(f'Merged is for frames, which are maps, and not for {layout}; put it at "in:".')

    def settings(self) -> dict[str, Any]:
        if callable(self.flow):
            raise InputError(f"Merged with a flow of one's own cannot be saved; name one: {', '.join(METHODS)}.")
        return super().settings()

    def fresh(self, z: Tensor) -> State:
        plane = half(torch.zeros_like(z[:, :1], dtype=torch.promote_types(z.dtype, torch.float32)))
        noise, moved = plane[..., :1, :1].clone(), plane.clone()  # nothing depends on what moved; `--explain` shows it
        return {"past": torch.zeros_like(z), "evidence": plane, "noise": noise, "moved": moved}

    def forward(
        self,
        z: Tensor,
        state: State,
        *,
        strength: Tensor,
        contexts: tuple[Tensor, ...] = (),
        guide: Guide | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Take one frame (B, C, H, W) on; see `Stabilizer.forward`.

        What is missing, for `mask`, the guide or for not being finite, is filled from the past along the motion.
        """
        dtype = torch.promote_types(z.dtype, torch.float32)
        own = {name: value.to(dtype) for name, value in state.items()}
        valid = believed(z, guide, mask, (z.shape[-2], z.shape[-1]))
        present = z.to(dtype) if valid is None else torch.where(valid, z.to(dtype), own["past"])
        merged, seen, following = self._merge(present, valid, own, strength.to(dtype))
        if not is_finite(torch.stack([value.sum() for value in following.values()])):
            following = {name: value.nan_to_num(0, 0, 0) for name, value in following.items()}
        active = seen & (strength > 0)
        result = torch.where(active & torch.isfinite(merged), merged, present).to(z.dtype)
        passed = result if valid is None else torch.where(valid | active, result, z)
        return passed.clone(), {"past": result, **following}  # what follows may work in place

    def _merge(self, x: Tensor, valid: Tensor | None, own: State, strength: Tensor) -> tuple[Tensor, Tensor, State]:
        past, n, size = own["past"], own["evidence"], (x.shape[-2], x.shape[-1])
        small, small_past = half(x), half(past)
        light, light_past = luma(small), luma(small_past)
        offset, unit = value_range(light, light_past)
        motion = flow((light - offset) / unit, (light_past - offset) / unit, method=self.flow, preset=self.preset)
        motion = motion * positive(n)

        # Which hypothesis explains the frame: nothing moved, or it moved along the flow?
        near, near_past = box_mean(small, NEAR), box_mean(small_past, NEAR)
        n_moved, near_moved = fetch(torch.cat([n, near_past], 1), motion, method=self.flow).split([1, x.shape[1]], 1)
        n_moved = n_moved.clamp(0.0, LONGEST) * in_frame(motion)
        errors = [mean_channel((there - near).square()) for there in (near_past, near_moved)]
        static, moved = box_mean(torch.cat(errors, 1), WINDOW).split(1, 1)
        floor, before = FLOOR**2 * unit.square(), own["noise"]
        known = None if valid is None else half(valid.to(x)) == 1
        seen = noise_level(x[:, x.shape[1] // 2].unsqueeze(1)).square()  # with texture; 0 if most of it is flat
        if known is not None:
            seen = torch.where(known.to(x).mean((2, 3), keepdim=True) > 0.5, seen, 0)
        noise = torch.where(before > 0, before, seen)
        noise = torch.where(seen > 0, torch.minimum(noise, 2 * seen), noise).clamp_min(floor)
        fell = torch.where(before > noise, noise / before, 1)  # the past is as noisy as frames were then
        n, n_moved = n * fell, n_moved * fell
        usual = noise / (4 * NEAR**2)  # of what is compared, in one frame
        leads = torch.where(n > 0, static - MOVED * moved, 1)
        goes = positive(torch.minimum(leads, n_moved))
        count = torch.lerp(n, n_moved, goes)

        # How much it differs beyond the noise of both, and what the past weighs for that.
        beyond = (torch.lerp(static, moved, goes) - usual * (1 + 1 / count.clamp_min(0.5))).clamp_min(0)
        odds = count / (1 + count * (DISTRUST * beyond / noise + UNLIKE * (beyond / usual).square()))
        if known is not None:
            odds = torch.where(known, odds, count)
        reference = fetch(past, motion * goes, method=self.flow)
        weight = odds * strength / (odds * strength + 1)
        merged = torch.lerp(x, reference, enlarge(weight, size, method=self.flow))
        if valid is not None:
            merged = torch.where(valid, merged, reference)

        # What differs within 2 x 2 pixels is noise, three quarters of its power, if it is white.
        difference = x - reference
        within = mean_channel(half(difference.square()) - half(difference).square()) * (4 / 3)
        now = _typical(within * (count / (count + 1)) * (1 if known is None else known.to(x)))
        most = torch.maximum(RISE * before, torch.minimum(now, seen))  # texture alone is no reason to rise
        found = torch.where(before > 0, torch.minimum(torch.maximum(now, FALL * before), most), now).clamp_min(floor)
        found = torch.where(now > 0, found, before)
        have = n.amax((2, 3), keepdim=True) > 0
        return (
            merged,
            doubled(count > 0, size),
            {"evidence": counted(odds, strength, known), "noise": found * have, "moved": goes},
        )


def _typical(power: Tensor) -> Tensor:
    """The median of what is not zero, (B, 1, 1, 1), for bars do not change; 0 if that is less than a quarter of it."""
    values = power.flatten(1)
    values = values[:, :: max(1, values.shape[1] // 1024)].clamp_min(0).sort(1).values
    some = (values > TINY).sum(1, keepdim=True)
    at = values.shape[1] - 1 - some // 2
    return torch.where(4 * some >= values.shape[1], values.gather(1, at), 0).view(-1, 1, 1, 1)
