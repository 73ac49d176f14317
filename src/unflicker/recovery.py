"""What a denoiser took for noise, given back where the average of its input shows it beyond chance.

A denoiser sees one frame, and takes fine texture, faint edges and slow shades for noise. Along the motion noise
averages out and texture does not: what the average of the input still has more than the result is noise, of a strength
that is known, and what was lost. Each band of detail is weighed as Wiener's filter does, by what it has beyond that
noise. Tensors in and out.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from unflicker.evidence import TINY, WINDOW
from unflicker.flow import Flow, enlarge
from unflicker.functional import LOG2_E, box_mean, half, mean_channel, resize
from unflicker.state import State

LEVELS = 4  # halvings: bands of detail are 2, 4, 8 and 16 pixels wide, and what is wider
BANDS = 2 * LEVELS  # of light, from the finest; then those of colour, which is told from noise at 4 pixels and wider
MARKS = BANDS + 3  # maps that a trained judge sees
LEAST = 0.05  # of its noise: so much of a band is taken to be there
FLATTEST = 0.15  # of the input's response where it is clipped: fainter is nothing to go by
BEYOND, FEW = 1e-3, 1e-4  # an input that goes beyond [0, 1] by so much in more than so few values was not clipped


def clipped(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return what becomes of `mean` when a camera adds Gaussian noise and clips to [0, 1], and the slope of that.

    In the dark noise can only brighten: averages of a noisy video are greyer than it would be without noise.

    >>> mean, slope = clipped(torch.tensor([0.0, 0.5]), torch.tensor(0.01))
    >>> [round(value, 3) for value in mean.tolist()], [round(value, 3) for value in slope.tolist()]
    ([0.04, 0.5], [0.5, 1.0])
    """
    sigma, (_, _, below, above), (at_low, at_high) = _edges(mean, variance)
    slope = 1 - below - above
    return (mean * slope).add(sigma * (at_low - at_high)).add(above), slope


def clipped_variance(mean: Tensor, variance: Tensor) -> Tensor:
    """Return what is left of the variance of noise around `mean` when a camera clips it to [0, 1].

    >>> round(clipped_variance(torch.tensor(0.5), torch.tensor(0.36)).item(), 3)
    0.146
    """
    sigma, (low, high, below, above), (at_low, at_high) = _edges(mean, variance)
    slope = 1 - below - above
    first = mean * slope + sigma * (at_low - at_high) + above
    second = mean.square() * slope + 2 * mean * sigma * (at_low - at_high) + above
    return second + sigma.square() * (slope + low * at_low - high * at_high) - first.square()


def _edges(mean: Tensor, variance: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Sigma; where 0 and 1 lie in it, and how much of the noise is beyond them; and its density there."""
    sigma = variance.clamp_min(1e-8).sqrt()
    low, high = (-mean / sigma).clamp(-9, 9), ((1 - mean) / sigma).clamp(-9, 9)  # beyond, numbers are slow on a CPU
    below, above = torch.special.ndtr(low), torch.special.ndtr(-high)
    density = tuple(torch.exp2((-LOG2_E / 2) * each.square()) / math.sqrt(2 * math.pi) for each in (low, high))
    return sigma, (low, high, below, above), density


def fresh_recovery(one: Tensor) -> State:
    """Return the state of `recover` before the first frame, for a number per stream (B, 1, 1, 1).

    `variance` is that of the input's noise before clipping, at most 1; `power` is what of it lies in each band.
    """
    return {"variance": torch.zeros_like(one), "power": one.new_zeros(one.shape[0], BANDS, 1, 1)}


def recover(
    steady: Tensor,
    average: Tensor,
    frame: Tensor,
    evidence: Tensor,
    state: State,
    *,
    clips: Tensor | None = None,
    judge: nn.Module | None = None,
    known: Tensor | None = None,
    method: str | Flow = "auto",
) -> tuple[Tensor, State]:
    """Return the detail (B, 3, H, W) that `steady` lacks, and the state for the next frame.

    Args:
        steady: the result without it, (B, 3, H, W) in [0, 1].
        average: of the input along the motion, alike.
        frame: the input now, alike.
        evidence: (B, 1, H/2, W/2), by how many frames the noise of the average is less than that of the input; 0
            where there is no average.
        state: what this returned for the last frame, or zeros.
        clips: (B, 1, 1, 1), above 0 where [0, 1] is a range at which inputs are clipped, if they do not go beyond it;
            None if it is for all.
        judge: a trained network that takes `MARKS` maps at a quarter of the size and returns `BANDS`: the logarithms
            by which to correct the noise of each band. At 0 it changes nothing.
        known: (B, 1, H, W) bool, False where the input did not arrive; None if all of it did.
        method: what found the flow, see `unflicker.flow.fetch`.

    >>> truth = 0.4 + 0.2 * torch.rand(1, 1, 32, 48).expand(1, 3, -1, -1)
    >>> inputs = truth + 0.1 * torch.randn(9, *truth.shape)
    >>> smooth, evidence = torch.full_like(truth, 0.5), torch.full((1, 1, 16, 24), 9.0)
    >>> detail, _ = recover(smooth, inputs.mean(0), inputs[-1], evidence, fresh_recovery(torch.zeros(1, 1, 1, 1)))
    >>> bool((smooth + detail - truth).square().mean() < 0.5 * (smooth - truth).square().mean())
    True
    """
    m, some, share = half(steady), _some_rows(frame) - _some_rows(steady), steady.new_ones(len(frame), 1, 1, 1)
    if known is not None:
        arrived = known.to(steady)
        some, share = (frame - steady) * arrived, arrived.mean((2, 3), keepdim=True)
    usual, share = share > 0.5, share.clamp_min(0.5)
    outside = (_some_rows(frame) - 0.5).abs() > 0.5 + BEYOND
    fits = outside.to(steady).mean((1, 2, 3), keepdim=True) <= FEW
    if clips is not None:
        fits = fits & (clips > 0)

    # What differs within 2 x 2 pixels is noise, most of it: three quarters of its power, if it is white.
    seen = (4 / 3 * _power_within(some) / share).detach()
    variance = torch.where(state["variance"] > 0, state["variance"], seen)
    left = clipped_variance(_some_rows(m), variance).mean((1, 2, 3), keepdim=True).detach()
    following = torch.where(fits, variance * (seen / left.clamp_min(TINY)).clamp(0.25, 4.0), seen)
    following = torch.where(usual, following, state["variance"]).clamp(0.0, 1.0)

    # What the average leads by, and beside it the frame, which tells the noise of it: with a little of what was lost,
    # but too much noise is on the safe side.
    expected, slope = clipped(m, variance)
    expected, slope = torch.where(fits, expected, m), torch.where(fits, slope.clamp_min(FLATTEST), 1)
    leads = torch.stack([half(average) - expected, half(frame) - expected], 1)
    if known is not None:
        leads = leads * torch.stack([(evidence > 0).to(leads), half(arrived)], 1)
        evidence = evidence.clamp_min(1)
    grey = mean_channel(average - steady)
    finest = grey - enlarge(half(grey), _size(grey), method=method)
    coarser = _taken_apart(leads, slope)
    power = torch.cat([_power_within(mean_channel(some)), *(each for _, each in coarser)], 1) / share
    power = torch.where(usual | (state["power"] <= 0), power, state["power"]).detach().clamp_min(TINY)
    bands = [band for band, _ in coarser]
    squares = [half(finest.square()), *(mean_channel(band.square()) for band in bands)]
    rest = [1 / evidence]  # of the noise's power, in the average
    for _ in range(LEVELS - 1):
        rest.append(half(rest[-1]))
    rest = [rest[0], *rest, *rest[1:]]
    ratios = [
        box_mean(square, WINDOW) / (of * noise).clamp_min(TINY)
        for square, of, noise in zip(squares, rest, power.split(1, 1), strict=True)
    ]
    doubts: list[Tensor | float] = [1.0] * BANDS
    if judge is not None:
        doubts = _judged(judge, ratios, evidence, steady, m)
    more = [(ratio - 1).clamp_min(LEAST) for ratio in ratios]
    weights = [each / (each + doubt) for each, doubt in zip(more, doubts, strict=True)]

    light, colour = _joined(weights[1 : LEVELS + 1], bands[:LEVELS]), _joined(weights[LEVELS + 1 :], bands[LEVELS:])
    detail = enlarge(light + resize(colour, _size(light)), _size(steady), method=method)
    weight = enlarge(weights[0] / slope.mean(1, keepdim=True), _size(steady), method=method)
    return torch.addcmul(detail, weight, finest), {"variance": following, "power": power}


Band = tuple[Tensor, Tensor]  # of the average, (B, 1 or 3, h, w), and the power of the frame's, (B, 1, 1, 1)


def _taken_apart(leads: Tensor, slope: Tensor) -> list[Band]:
    """Take leads (B, 2, 3, h, w) at half size apart: bands of light, then those of colour."""
    slope = slope.unsqueeze(1)
    light = (leads * slope).sum(2) / slope.square().sum(2)
    colour = half((leads / slope - light.unsqueeze(2)).flatten(1, 2))
    return [*_bands(light, LEVELS), *_bands(colour, LEVELS - 1)]


def _bands(maps: Tensor, levels: int) -> list[Band]:
    """Take apart by scale, the finest first: the first half of the channels is the average's, the rest the frame's."""
    own, pyramid = maps.shape[1] // 2, [maps]
    for _ in range(levels - 1):
        pyramid.append(half(pyramid[-1]))
    found = []
    for fine, coarse in itertools.pairwise(pyramid):
        found.append((fine[:, :own] - resize(coarse[:, :own], _size(fine)), _power_within(fine[:, own:])))
    return [*found, (pyramid[-1][:, :own], _power(pyramid[-1][:, own:]))]


def _joined(weights: list[Tensor], bands: list[Tensor]) -> Tensor:
    """Put weighed bands together again, of which the coarsest is the last."""
    total = weights[-1] * bands[-1]
    for weight, band in zip(weights[-2::-1], bands[-2::-1], strict=True):
        total = torch.addcmul(resize(total, _size(band)), weight, band)
    return total


def _judged(
    judge: nn.Module, ratios: list[Tensor], evidence: Tensor, steady: Tensor, m: Tensor
) -> list[Tensor | float]:
    """What a trained judge makes of the noise of each band: factors, in the size of each ratio."""
    size = _size(half(evidence))
    texture = mean_channel((half(steady.square()) - m.square()).clamp_min(0))
    marks = [(_to(each, size) + LEAST).log() / 2 for each in ratios]
    marks += [_to(evidence / 8, size), _to(mean_channel(m), size)]
    marks += [_to((box_mean(texture, WINDOW) + 1e-6).log() / 8 + 1, size)]
    corrections = judge(torch.cat(marks, 1).to(next(judge.parameters()))).to(m).clamp(-5, 5).exp().split(1, 1)
    return [resize(each, _size(there)) for each, there in zip(corrections, ratios, strict=True)]


def _power(x: Tensor) -> Tensor:
    """The mean square, (B, 1, 1, 1)."""
    return x.square().mean((1, 2, 3), keepdim=True)


def _power_within(x: Tensor) -> Tensor:
    """The mean square, (B, 1, 1, 1), of what differs within 2 x 2 pixels; an odd edge is left out."""
    height, width = _size(x)
    x = x[..., : max(1, height // 2 * 2), : max(1, width // 2 * 2)]
    return (_power(x) - _power(half(x))).clamp_min(0)


def _some_rows(x: Tensor) -> Tensor:
    """Two rows of every eight of a large map: enough to read a power from."""
    height = x.shape[-2] // 8 * 8
    return x if height < 64 else x[..., :height, :].unflatten(-2, (-1, 8))[..., :2, :].flatten(-3, -2)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map to another size, halving it where it is larger."""
    return half(x) if x.shape[-2] > size[0] or x.shape[-1] > size[1] else resize(x, size)
