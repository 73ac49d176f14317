"""Aligned evidence: how far a past that was brought to where things are now explains the present. Tensors in and out.

Maps are (B, C, H, W); a number per stream is (B, 1, 1, 1). The rule is this project's own; `docs/aligned.md` tells it
in words, with what each constant buys.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.flow import Flow, fetch
from unflicker.functional import box_mean, flow_to, gaussian_blur, gradient, half, luma, median, resize, sample
from unflicker.state import State

# Found by random search on the training and validation clips of the benchmarks, sigma 0.1; all but the first few
# matter little by themselves (a factor of 1.5 costs less than 0.02 dB).
EDGE = 0.063  # variance of a residual per squared gradient: networks err at edges, flows too
NOISE_AT_EDGES = 1.7  # the more so, the noisier what they were given: EDGE is this times its noise (half size)
RESAMPLING = 0.02  # evidence that interpolation costs, per squared gradient over variance
MOVED = 1.25  # the static hypothesis has no interpolation: it wins unless the moved one is this much better
# How much the noise level may change from frame to frame: it falls fast and rises slowly, so that one odd frame does
# not open the gates.
FALL, RISE = 0.6, 1.035
WINDOW, WIDE = 5, 15  # half-size pixels: over which residuals are averaged, and signed differences
LONGEST = 8.0  # frames; more evidence than that is not believed
UNLIKE_WINDOW, UNLIKE_PIXEL = 0.25, 0.18  # doubt per excess of a window's mean square, and of a pixel's
TINY = 1e-12


def noise_variance(
    residual: Tensor, before: Tensor, floor: Tensor | float, most_at_first: Tensor | float = math.inf
) -> Tensor:
    """Follow the variance of what is not explained; it falls fast and rises slowly.

    Args:
        residual: (B, 1, h, w), squared, as one frame alone would show it.
        before: (B, 1, 1, 1), zero in a new video.
        floor: the least it can be.
        most_at_first: the most it can be at first, when a cut or a motion could be all there is to see.

    >>> noise_variance(torch.ones(1, 1, 4, 4), torch.tensor([[[[0.5]]]]), 1e-6).item()
    0.5174999833106995
    """
    now = median(residual)
    following = torch.minimum(torch.maximum(now, FALL * before), RISE * before)
    return torch.where(before > 0, following, now.clamp_max(most_at_first)).clamp_min(floor)


def consistency(
    squared: Tensor,
    mean: Tensor,
    signed: Tensor | None,
    variance: Tensor,
    *,
    doubt: Tensor | float = 1.0,
    wide: int = WIDE,
    drift: float = 4.0,
) -> Tensor:
    """Return how well a residual agrees with the variance one expects of it, in [0, 1].

    Three tests, for three ways of being wrong: the mean square of a window (a moved edge), a pixel by itself (a small
    thing), and the mean over a wide window (a slow drift that no variance shows).

    Args:
        squared: (B, 1, h, w), squared residual over what evidence lets one expect beyond the variance.
        mean: the same over a window.
        signed: (B, 1, h, w), the residual itself, or None to leave out the third test.
        variance: (B, 1, h, w), expected of `squared`.
        doubt: factor on the excess, in all three.
        wide: window of the third test, in pixels.
        drift: how strict the third test is.

    >>> flat = torch.full((1, 1, 8, 8), 0.01)
    >>> consistency(flat, flat, None, flat).min().item()
    1.0
    >>> consistency(100 * flat, 100 * flat, None, flat).max().item() < 0.001
    True
    """
    excess = UNLIKE_WINDOW * (mean / variance - 1).clamp_min(0)
    excess = excess + UNLIKE_PIXEL * (squared / variance - 1).clamp_min(0)
    agrees = 1 / (1 + (doubt * excess).square())
    if signed is not None:
        agrees = agrees / (1 + (doubt * drift * box_mean(signed, wide).square() / variance - 1).clamp_min(0))
    return agrees.nan_to_num(0, 0, 0)


def counted(odds: Tensor, strength: Tensor, known: Tensor | None) -> Tensor:
    """Return the evidence of a mean of `odds` frames, weighted `strength`-fold, and one more where it is known.

    It is the number of frames whose plain mean would be as good; at strength 1 that is odds + 1.

    Args:
        odds: (B, 1, h, w), of the past against the present.
        strength: (B, 1, 1, 1).
        known: (B, 1, h, w) bool, False where there was no present; None if it was everywhere.

    >>> counted(torch.tensor([0.0, 3.0]), torch.tensor(1.0), None).tolist()
    [1.0, 4.0]
    """
    counted = (odds * strength + 1).square() / (odds * strength.square() + 1)
    if known is not None:
        counted = torch.where(known, counted, odds)
    return counted.clamp_max(LONGEST)


def explained(residual: Tensor, by: Tensor) -> Tensor:
    """Return the trust that is left where the guide's residual shows the same as the output's: 1 none of it, 0 all.

    Grain that is in the input is no flicker of the network. (B, 1, h, w) each; half of it may be chance.

    >>> texture = torch.rand(1, 1, 8, 8) - 0.5
    >>> explained(texture, 3 * texture).max().item() < 1e-3
    True
    """
    products = torch.cat([residual * by, residual.square(), by.square()], 1)
    both, one, other = box_mean(products, WINDOW).split(1, 1)
    return (2 * (1 - both.square() / (one * other).clamp_min(TINY))).nan_to_num(0, 0, 0).clamp(0.0, 1.0)


# --- the low band: jumps of tone that are smooth over the frame -------------------------------------------------------

SPREAD = 0.04  # standard deviation of a local mean, of the frame's longer side
COARSE = 40  # columns, about, of the maps of tone
VISIBLE = 1 / 255  # a jump smaller than one code value of 8 bits (RMS) is not worth correcting
LONGEST_TONE = 16.0  # frames
CHANGE_COSTS = 0.15  # how wrong the predicted change of light may be, as a share of it
GUIDE_WIDE, GUIDE_DRIFT = 9, 25.0  # the third test of the guide, stricter for its light was taken out before
TREND = 0.1  # rate at which the mean change of light follows
ONE_SIDED, SIDE_COSTS = 0.3, 1.0  # rate at which a correction to one side is noticed, and what it costs
SWINGS = 0.06  # rate at which it is learnt whether the guide itself flickers


class Tone(NamedTuple):
    """What the low band says, on coarse maps. Planes come in pairs: a constant, and a slope on the guide's luma."""

    jump: Tensor
    """(B, 2 C, h, w): the smooth part of past - present."""
    hold: Tensor
    """(B, 2 C, h, w): what to add to the present, for the tone to stay what it was."""
    acts: Tensor
    """(B, 1, 1, 1) in [0, 1]: 0 where the whole jump is too small to be seen."""


def coarseness(height: int, width: int) -> int:
    """Return how many half-size pixels make one of the maps of tone.

    >>> coarseness(96, 160), coarseness(120, 212), coarseness(540, 960), coarseness(8, 8)
    (4, 4, 32, 1)
    """
    return 2 ** max(0, round(math.log2(max(height, width, 1) / COARSE)))


def fresh_tone(plane: Tensor) -> State:
    """Return the state of `follow_tone` before the first frame, for planes at half size like (B, 1, h, w)."""
    one = torch.zeros_like(plane[..., :1, :1])
    coarse = F.avg_pool2d(torch.zeros_like(plane), coarseness(*plane.shape[-2:]), ceil_mode=True)
    both = one.repeat(1, 2, 1, 1)
    return {
        "tone": coarse,
        "flicker": one,
        "guide_noise": one,
        "change": coarse,
        "trend": coarse,
        "side": one,
        "swing": both,
        "age": one,
    }


def follow_tone(
    y: Tensor,
    past: Tensor,
    x: Tensor,
    x_past: Tensor,
    x_moved: Tensor,
    inside: Tensor,
    flow: Tensor,
    clean: Tensor,
    strength: Tensor,
    state: State,
    *,
    light: bool,
    method: str | Flow = "auto",
) -> tuple[Tone, State]:
    """Find the smooth jump between past and present, and how much of it is flicker.

    Where the guide's past, moved, explains the guide's present, the output should have changed only as the guide did.
    A guide whose own tone swings to and fro does not vouch for a change of tone.

    Args:
        y: the output at half size, (B, C, h, w).
        past: the last result, as `y`.
        x: the guide, (B, C', h, w); of as many channels as y, each is compared with its own.
        x_past: the guide of the last frame.
        x_moved: (B, 1, h, w), its luma, moved.
        inside: (B, 1, h, w), 0 where the past left the frame or nothing was seen.
        flow: (B, 2, h, w), half-size pixels, from the present to the past.
        clean: (B, 1, 1, 1), 1 where the guide is the cleaner signal; only then does its texture tell slopes.
        strength: (B, 1, 1, 1), multiplies the odds of the past.
        state: what this returned for the last frame, or zeros.
        light: the output is an image, which changes with the light; depth does not.
        method: what found the flow, see `unflicker.flow.fetch`.
    """
    k = coarseness(*y.shape[-2:])
    sigma = SPREAD * max(y.shape[-2:]) / k
    channels = y.shape[1]
    # Colours are told apart on coarse maps alone, so that they may move on maps half as large.
    now, before = torch.cat([y, x], 1), torch.cat([past, x_past], 1)
    left = k
    if k > 1:
        now, before, left = half(now), half(before), k // 2
    before = fetch(before, flow, method=method)
    level, bright = F.avg_pool2d(now, left, ceil_mode=True).split([channels, x.shape[1]], 1)
    jump, change = F.avg_pool2d(before - now, left, ceil_mode=True).split([channels, x.shape[1]], 1)
    dark, x, alike = luma(bright), luma(x), x.shape == y.shape
    weight = F.avg_pool2d(inside, k, ceil_mode=True)

    # How far the guide's past explains its present, once a smooth change of light is taken out.
    damping = 0.001 + state["guide_noise"]
    constant, slope, _ = local_affine(weight, dark, luma(change), sigma, damping, clean)
    smooth = resize(torch.cat([constant, slope], 1), (x.shape[-2], x.shape[-1]))
    residual = x_moved - x - smooth[:, :1] - smooth[:, 1:] * x
    squared = residual.square()
    mean, edges = box_mean(torch.cat([squared, gradient(x)], 1), WINDOW).split(1, 1)
    noise = noise_variance(mean, state["guide_noise"], 0.003**2)
    trust = consistency(squared, mean, residual, noise + EDGE * edges, wide=GUIDE_WIDE, drift=GUIDE_DRIFT) * inside
    weight = F.avg_pool2d(trust, k, ceil_mode=True)
    share = weight.mean((2, 3), keepdim=True)

    # The guide's change and the output's jump, each an affine function of the guide's luma near every point.
    if not alike:  # each channel of the output changes as that of the guide, or all as its luma
        change, bright = luma(change), dark
    constant, slope, support = local_affine(weight, dark, torch.cat([change, jump], 1), sigma, damping, clean)
    (change_at, jump_at), (change_by, jump_by) = (
        each.split([change.shape[1], channels], 1) for each in (constant, slope)
    )
    trusted = ((support + 0.2 * share) / 0.1).clamp(0.0, 1.0) * (share / 0.1).clamp_max(1)

    # Autocovariance tells flicker (to and fro: negative) from a fade (on and on: positive). No frame counts for much
    # more than those before, so that a single flash is no flicker.
    change_now = (trusted * (change_at + change_by * dark)).mean(1, keepdim=True)
    age = (state["age"] + 1).clamp_max(1 / SWINGS)
    products = torch.cat([change_now.square(), change_now * state["change"]], 1).mean((2, 3), keepdim=True)
    most = (4 * state["swing"][:, :1]).clamp_min(VISIBLE**2)
    products = products * torch.where(age > 3, most / torch.maximum(products[:, :1], most), 1)
    swing = torch.where(age > 1, state["swing"] + (products - state["swing"]) / (age - 1).clamp_min(1), 0)
    swings = (3 * (-2 * swing[:, 1:] / (swing[:, :1] + VISIBLE**2) - 0.3)).clamp(0.0, 1.0)

    # A guide that flickers still tells how the light changes on the whole: by a share of itself, frame by frame.
    there = flow_to(flow, (weight.shape[-2], weight.shape[-1]))
    trend, evidence = sample(torch.cat([state["trend"], state["tone"]], 1), there, "bilinear").chunk(2, 1)
    trend = trend + TREND * (change_now / (dark + 0.02) - trend)

    # What the change of light makes of the output is no flicker.
    if light:
        level, bright = gaussian_blur(torch.cat([level, bright], 1), sigma).split([channels, bright.shape[1]], 1)
        ratio = ((level + 0.01) / (bright + 0.01)).clamp(0.2, 3.0)
        light_at, light_by = (1 - swings) * change_at, (1 - swings) * change_by + swings * trend
        hold_at, hold_by = jump_at - ratio * light_at, jump_by - ratio * light_by
        expected = (ratio * (light_at + light_by * dark)).square().mean(1, keepdim=True)
    else:
        hold_at, hold_by, expected = jump_at, jump_by, torch.zeros_like(share)
    power = (weight * (hold_at + hold_by * dark).square().mean(1, keepdim=True)).mean((2, 3), keepdim=True)
    power = power / share.clamp_min(1e-6)
    flicker = state["flicker"] + (power - state["flicker"]) / age.clamp_max(10)
    # Flicker is on both sides of what is held. Where no guide vouches, what stays on one side is a change of light.
    side = (weight * (hold_at + hold_by * dark).mean(1, keepdim=True)).mean((2, 3), keepdim=True)
    side = side / share.clamp_min(1e-6)
    side = state["side"] + ONE_SIDED * (side - state["side"])
    one_sided = (side.square() / flicker.clamp_min(VISIBLE**2) - 0.4).clamp_min(0)
    cost = CHANGE_COSTS**2 * expected / flicker.clamp_min(1e-6) + swings * SIDE_COSTS * one_sided
    evidence = evidence * trusted
    evidence = evidence / (1 + evidence * cost)
    odds = evidence * strength
    held = odds / (odds + 1) * trusted
    seen = (share > 0).to(y)
    following = {
        "tone": (evidence + 1).clamp_max(LONGEST_TONE),
        "flicker": flicker * seen,
        "guide_noise": noise * seen,
        "change": change_now,
        "trend": trend * seen,
        "side": side * seen,
        "swing": swing,
        "age": age * seen,
    }
    tone = Tone(
        torch.cat([trusted * jump_at, trusted * jump_by], 1),
        torch.cat([held * hold_at, held * hold_by], 1),
        (1 - VISIBLE**2 / power.clamp_min(TINY)).clamp_min(0),
    )
    return Tone(*(each.nan_to_num(0, 0, 0) for each in tone)), {k: v.nan_to_num(0, 0, 0) for k, v in following.items()}


def local_affine(
    weight: Tensor, x: Tensor, v: Tensor, sigma: float, damping: Tensor, steepest: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit v ~ constant + slope x by weighted least squares near every point; constant, slope, and the mean weight.

    Args:
        weight, x: (B, 1, h, w).
        v: (B, C, h, w).
        sigma: of the Gaussian neighbourhood, in pixels.
        damping: (B, 1, 1, 1), added to the variance of x.
        steepest: (B, 1, 1, 1), the largest slope; at 0 the constant alone is fitted.

    >>> x = torch.rand(1, 1, 16, 16)
    >>> constant, slope, _ = local_affine(torch.ones_like(x), x, 0.5 + 2 * x, 3.0, torch.zeros(1, 1, 1, 1), 9.0)
    >>> round(constant.mean().item(), 3), round(slope.mean().item(), 3)
    (0.5, 2.0)
    """
    raw = torch.cat([weight, weight * x, weight * x * x, weight * v, weight * v * x], 1)
    near, frame = gaussian_blur(raw, sigma), raw.mean((2, 3), keepdim=True)
    support = near[:, :1]
    near = near + 0.02 * frame / frame[:, :1].clamp_min(1e-6)  # where nothing is trusted nearby, as the frame
    near = near[:, 1:] / near[:, :1].clamp_min(1e-6)
    mean, square, level, product = near.split([1, 1, v.shape[1], v.shape[1]], 1)
    slope = (product - level * mean) / ((square - mean.square()).clamp_min(0) + damping).clamp_min(TINY)
    slope = slope.clamp(-steepest, steepest)
    return level - slope * mean, slope, support
