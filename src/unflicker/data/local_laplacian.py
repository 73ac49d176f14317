"""Local Laplacian filtering: the detail enhancement that Instant Video Models trains HDRNet to imitate.

Paris, Hasinoff & Kautz (SIGGRAPH 2011) define each coefficient of the result's Laplacian pyramid by a remapped copy of
the whole image, bent around the pixel's own value. Aubry et al. (TOG 2014) make few copies and interpolate between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.data.base import Video
from unflicker.functional import luma

COLOURS = ("luminance", "separate")
SAMPLES = 24
AT_ONCE = 2**19  # numbers: as many copies are made together as have room in a cache
DARK = 1 / 255  # below this, a change of brightness is rather added than multiplied


class Preset(TypedDict):
    """The two settings of a strength of the effect."""

    sigma: float
    alpha: float


MODERATE = Preset(sigma=0.4, alpha=0.5)
STRONG = Preset(sigma=0.4, alpha=0.25)


class EnhancedVideo(Video):
    """A video whose details are brought out, frame by frame, when they are asked for: the truth for an enhancer.

    Args:
        video: RGB, in bytes or floats in [0, 1].
        settings: of `local_laplacian`, such as `STRONG`.

    >>> from types import SimpleNamespace
    >>> about = {"name": "a", "num_frames": 2, "height": 16, "width": 24, "frame_rate": 24.0, "paths": ()}
    >>> frames = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    >>> EnhancedVideo(SimpleNamespace(read=lambda numbers: frames[numbers], **about), STRONG).read([1]).shape
    torch.Size([1, 3, 16, 24])
    """

    def __init__(self, video: Video, settings: Preset) -> None:
        self.video, self.settings = video, settings
        self.name, self.num_frames, self.frame_rate = video.name, video.num_frames, video.frame_rate
        self.height, self.width, self.paths = video.height, video.width, video.paths

    def read(self, numbers: Sequence[int]) -> Tensor:
        frames = self.video.read(numbers)
        if frames.dtype != torch.uint8:
            return local_laplacian(frames, **self.settings).clamp(0, 1)
        enhanced = local_laplacian(frames.float() / 255, **self.settings)
        return enhanced.clamp(0, 1).mul(255).round().byte()


def local_laplacian(
    image: Tensor,
    *,
    sigma: float = 0.4,
    alpha: float = 0.5,
    beta: float = 1.0,
    colour: str = "luminance",
    levels: int | None = None,
    samples: int = SAMPLES,
    noise: float = 0.01,
) -> Tensor:
    """Enhance or smooth the details of images without halos: (..., 3, H, W) or (..., 1, H, W) to the same shape.

    The parameters mean what they mean in MATLAB's `locallapfilt(A, sigma, alpha, beta)`, by its documentation.
    `MODERATE` and `STRONG` are those of Instant Video Models: `local_laplacian(frames, **STRONG)`. The sampled levels
    of brightness are fixed in [0, 1], so that a thing in a video is not filtered otherwise when another comes in.

    How near this is to MATLAB's numbers is not known: how many samples it takes on its own, how it brings the colour
    back and whether it spares noise is not documented.

    Args:
        image: RGB or grey in [0, 1]; values outside are clipped.
        sigma: differences up to this, of the range of 1, are details; above it they are edges. In (0, 1].
        alpha: the power that details are raised to: below 1 enhances them, above 1 smooths, 1 leaves them.
        beta: the factor on edges: below 1 compresses the range of brightness, above 1 expands it.
        colour: "luminance" filters the brightness and keeps the ratios of the colours, "separate" each channel.
        levels: of the pyramid, with the residual, which is left as it is; None goes on until the shorter side is one
            pixel.
        samples: levels of brightness for which a copy is made; time grows with it. With 24 the error against the
            exact filter is 5 to 15 % of the change it makes, with 128 it is 1 to 3 %.
        noise: details below this are not enhanced, those above twice as much fully (the 2011 paper, section 5.2);
            0 enhances all.

    Returns:
        The images, clipped to [0, 1], in the type given; half precision is computed in float32. A pixel that is not
        finite comes back as it was, and counts as black for the others.

    Raises:
        InputError: another shape or type, or a setting out of its range.

    >>> image = torch.rand(3, 8, 8)
    >>> torch.equal(local_laplacian(image, alpha=1.0), image)
    True
    >>> bool(local_laplacian(image, **STRONG).std() > image.std())
    True
    """
    _check(image, sigma, alpha, beta, colour, levels, samples, noise)
    finite = torch.isfinite(image).all(-3, keepdim=True)
    given = image.to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    clean = torch.where(finite, given, 0).clamp(0, 1)
    frames = clean.reshape(-1, *image.shape[-3:])
    plane = luma(frames) if colour == "luminance" else frames
    change = torch.empty_like(plane)
    for i in range(plane.shape[0]):
        for c in range(plane.shape[1]):
            change[i, c] = _change(plane[i, c], sigma, alpha, beta, levels, samples, noise)
    if colour == "luminance" and frames.shape[1] == 3:
        change = change * ((frames + DARK) / (plane + DARK))
    result = (frames + change).clamp_(0, 1).view(image.shape).to(image.dtype)
    return torch.where(finite, result, image)


def _check(
    image: Tensor,
    sigma: float,
    alpha: float,
    beta: float,
    colour: str,
    levels: int | None,
    samples: int,
    noise: float,
) -> None:
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise InputError(
            "local_laplacian takes a tensor of floats in [0, 1], got "
            f"{image.dtype if isinstance(image, Tensor) else type(image).__name__}; divide bytes by 255."
        )
    if image.ndim < 3 or image.shape[-3] not in (1, 3) or 0 in image.shape[-2:]:
        raise InputError(
            f"local_laplacian takes images (..., 3, H, W) or (..., 1, H, W), got {tuple(image.shape)}; "
            "select or permute the channels."
        )
    if not 0 < sigma <= 1:
        raise InputError(f"sigma must be above 0 and at most 1, the range of the values, got {sigma}.")
    if not 0 < alpha < float("inf"):
        raise InputError(f"alpha must be above 0 (below 1 enhances details), got {alpha}.")
    if not 0 <= beta < float("inf"):
        raise InputError(f"beta must be 0 or more (1 leaves edges as they are), got {beta}.")
    if colour not in COLOURS:
        raise InputError(f"colour must be one of {', '.join(map(repr, COLOURS))}, got {colour!r}.")
    if levels is not None and levels < 1:
        raise InputError(f"levels must be 1 or more, or None, got {levels}.")
    if samples < 2:
        raise InputError(f"samples must be 2 or more, got {samples}.")
    if not 0 <= noise < 1:
        raise InputError(f"noise must be in [0, 1), got {noise}.")


def _change(
    plane: Tensor, sigma: float, alpha: float, beta: float, levels: int | None, samples: int, noise: float
) -> Tensor:
    """Return what the filter adds to a plane (H, W).

    Pyramids are linear, so that only the remapping's departure from the identity need be taken apart.
    """
    most = min(plane.shape).bit_length()
    levels = most if levels is None else min(levels, most)
    if levels < 2 or (alpha == 1 and beta == 1):
        return torch.zeros_like(plane)
    guides = [plane[None]]
    for _ in range(levels - 2):
        guides.append(_down(guides[-1]))
    changes = [torch.zeros_like(guide) for guide in guides]
    own = torch.zeros_like(guides[0])
    references = torch.linspace(0, 1, samples, dtype=plane.dtype, device=plane.device).view(-1, 1, 1)
    for some in references.split(max(1, AT_ONCE // plane.numel())):
        detail = _departure(plane - some, sigma, alpha, beta, noise)
        for guide, total in zip(guides, changes, strict=True):
            coarse = _down(detail)
            # Linear between neighbouring samples.
            weight = (guide - some).abs_().mul_(1 - samples).add_(1).clamp_min_(0)
            if guide is guides[0]:
                own += (detail * weight).sum(0, keepdim=True)
            total += (detail - _up(coarse, detail.shape[-2:])).mul_(weight).sum(0, keepdim=True)
            detail = coarse
    # A pixel departs from its own value by nothing, but between two samples by much where the remapping is steep. With
    # that taken off every copy the error is a half to a third.
    for total in changes:
        coarse = _down(own)
        total -= own - _up(coarse, own.shape[-2:])
        own = coarse
    result = changes.pop()
    while changes:
        finer = changes.pop()
        result = finer + _up(result, finer.shape[-2:])
    return result[0]


def _departure(difference: Tensor, sigma: float, alpha: float, beta: float, noise: float) -> Tensor:
    """Return f(d) - d of the remapping f, an odd function (the 2011 paper's equations 2 and 3)."""
    size = difference.abs()
    inside = size.clamp_max(sigma)
    power = inside.sqrt().sqrt_() if alpha == 0.25 else inside.pow(alpha)  # a third of the time
    bent = power.mul_(sigma ** (1 - alpha)).sub_(inside)
    if alpha < 1 and noise:
        step = (size / noise).sub_(1).clamp_(0, 1)
        bent *= step.square().mul_(step.mul_(-2).add_(3))
    if beta != 1:
        bent += (size - inside).mul_(beta - 1)
    return bent.mul_(difference.sign())


def _down(x: Tensor) -> Tensor:
    """Blur (N, H, W) with a binomial of five pixels and keep every other; the border repeats."""
    for axis in (1, 2):
        length = x.shape[axis]
        reached = 2 * ((length + 1) // 2) - 1
        padded = F.pad(x, (2, 2, 0, 0) if axis == 2 else (0, 0, 2, 2), mode="replicate")
        first, second, middle, fourth, last = (
            padded[:, i : i + reached : 2] if axis == 1 else padded[:, :, i : i + reached : 2] for i in range(5)
        )
        x = (middle * 0.375).add_(second, alpha=0.25).add_(fourth, alpha=0.25)
        x = x.add_(first, alpha=0.0625).add_(last, alpha=0.0625)
    return x


def _up(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bring (N, h, w) to twice the size, with the same binomial; `size` says which of two sizes it was."""
    for axis in (2, 1):
        length = x.shape[axis]
        padded = F.pad(x, (1, 1, 0, 0) if axis == 2 else (0, 0, 1, 1), mode="replicate")
        before, here, after = (padded.narrow(axis, i, length) for i in range(3))
        even = (here * 0.75).add_(before, alpha=0.125).add_(after, alpha=0.125)
        odd = (here + after).mul_(0.5)
        x = torch.stack([even, odd], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, size[axis - 1])
    return x
