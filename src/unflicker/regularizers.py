"""Terms that make a network steady on video by still images alone, and the random changes of an image they rest on.

Single-frame Regularization for Temporally Stable CNNs (Eilertsen, Mantiuk, Unger, CVPR 2019). Fine-tune with

    loss = (1 - a) * reconstruction(net(x), y) + a * term(net, x, y)

and the network stays as it is and costs no more; what counts is the ratio r = a / (1 - a), about 4 to 32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.functional import gaussian_blur

Padding = Literal["zeros", "reflection"]
Distance = Callable[[Tensor, Tensor], Tensor]
PADDINGS = {"zeros", "reflection"}
WHOLE = 0.999  # a pixel of a warped image that is made of that much of the image is one of it

# --- changes of an image ----------------------------------------------------------------------------------------------


class Change(ABC):
    """A drawn change of a batch of images: of inputs, outputs and targets alike, whatever their channels."""

    @abstractmethod
    def __call__(self, image: Tensor) -> Tensor:
        """Change images (B, C, h, w), the size of the drawn one's times or divided by a whole number."""

    def valid(self, image: Tensor) -> Tensor:
        """Return (B, 1, h, w), 1 where the changed image shows the image, 0 where it shows what is beyond it."""
        return torch.ones_like(image[:, :1])


class Perturbation(ABC):
    """A family of changes, of which each image of a batch gets its own."""

    @abstractmethod
    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Change:
        """Draw a change for each of the images x (B, C, H, W)."""


@dataclass(frozen=True)
class Warped(Change):
    """Images fetched from other places: `positions` (B, H, W, 2), x and y in pixels, centres of pixels being whole."""

    positions: Tensor
    padding: Padding

    def __call__(self, image: Tensor) -> Tensor:
        if len(image) != len(self.positions) or image.ndim != 4:
            raise InputError(
                f"A change was drawn for {len(self.positions)} images; it takes (B, C, H, W) of as many, got "
                f"{tuple(image.shape)}."
            )
        height, width = self.positions.shape[1:3]
        grid = (2 * self.positions + 1) / self.positions.new_tensor([width, height]) - 1
        if image.shape[-2:] != (height, width):
            check_scale((height, width), (image.shape[-2], image.shape[-1]))
            grid = _resized(grid, (image.shape[-2], image.shape[-1]))
        grid = grid.to(image)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode=self.padding, align_corners=False)

    def valid(self, image: Tensor) -> Tensor:
        outside = Warped(self.positions, "zeros")
        return (outside(torch.ones_like(image[:, :1])) > WHOLE).to(image.dtype)


class RandomWarp(Perturbation):
    """A small random shift, rotation, zoom and shear: what a camera does between two frames.

    Section 3 and Table 1 of the paper, and its code: for output pixel p, an image of W x H, c = (W/2, H/2) and a drawn
    shift t, p_in = c + A (p + t - c), A = z [[1, tan hx], [tan hy, 1]] R(r), with t of up to 2 pixels along each axis,
    rotation r and shears hx, hy of up to 1 degree, zoom z of up to 3 %, all uniform and times `scale`. Bilinear.

    Args:
        scale: of all ranges, above 0, at most 20.
        padding: "zeros" beyond the border, as published; or "reflection".
        steps: so many warps one after the other, for what changes over a longer time.

    >>> x = torch.rand(2, 3, 32, 48)
    >>> change = RandomWarp().draw(x, torch.Generator().manual_seed(0))
    >>> change(x).shape, change(x[:, :1, ::2, ::2]).shape  # a smaller output moves by as much of its width
    (torch.Size([2, 3, 32, 48]), torch.Size([2, 1, 16, 24]))
    """

    def __init__(self, scale: float = 1.0, *, padding: Padding = "zeros", steps: int = 1) -> None:
        if not 0 < scale <= 20 or steps < 1 or padding not in PADDINGS:
            raise InputError(
                "RandomWarp takes a scale above 0 up to 20, steps from 1 and padding zeros or reflection; got "
                f"{scale=}, {steps=}, {padding=}."
            )
        self.scale, self.padding, self.steps = scale, padding, steps

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Change:
        check_images(x)
        count, height, width = len(x), x.shape[-2], x.shape[-1]
        least = 8 * self.scale * self.steps
        if min(height, width) < least:
            told = f"{self.scale:g}" + (f" in {self.steps} steps" if self.steps > 1 else "")
            raise InputError(
                f"Images of {height}x{width} are too small for a warp of scale {told}; take {least:g} pixels or more."
            )
        total: Tensor | None = None
        for _ in range(self.steps):
            drawn = torch.rand(count, 6, generator=generator, dtype=torch.float64) * 2 - 1
            limits = torch.tensor([2.0, 2.0, math.radians(1), 0.03, math.radians(1), math.radians(1)])
            tx, ty, turn, zoom, shear_x, shear_y = (drawn * limits * self.scale).unbind(1)
            matrix = warp_matrix(tx, ty, turn, 1 + zoom, shear_x, shear_y, height=height, width=width)
            total = matrix if total is None else total @ matrix
        assert total is not None
        places = _pixel_places(height, width)  # (H * W, 3)
        positions = places @ total[:, :2].mT  # (B, H * W, 2)
        return Warped(positions.view(count, height, width, 2).to(x.device, torch.float32), self.padding)


class ElasticWarp(Perturbation):
    """Local motion: every place is shifted by a smooth random field.

    Args:
        amplitude: standard deviation of the shift along each axis, in pixels.
        smoothness: standard deviation of the Gaussian that smooths the field, in pixels.
        padding: as for `RandomWarp`.

    >>> x = torch.rand(1, 3, 32, 48)
    >>> ElasticWarp(1.0).draw(x)(x).shape
    torch.Size([1, 3, 32, 48])
    """

    def __init__(self, amplitude: float = 1.0, *, smoothness: float = 8.0, padding: Padding = "zeros") -> None:
        if not amplitude > 0 or not smoothness > 0 or padding not in PADDINGS:
            raise InputError(
                f"ElasticWarp takes a positive amplitude and smoothness, and padding zeros or reflection; got "
                f"{amplitude=}, {smoothness=}, {padding=}."
            )
        self.amplitude, self.smoothness, self.padding = amplitude, smoothness, padding

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Change:
        check_images(x)
        height, width = x.shape[-2:]
        field = gaussian_blur(torch.randn(len(x), 2, height, width, generator=generator), self.smoothness)
        field = self.amplitude * field / field.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        places = _pixel_places(height, width)[:, :2].view(height, width, 2).float()
        return Warped((places + field.permute(0, 2, 3, 1)).to(x.device), self.padding)


class ExposureChange(Perturbation):
    """Another exposure for each image: values times 2^u, u up to `stops` either way. For linear images.

    >>> x = torch.ones(2, 1, 8, 8)
    >>> bool(((ExposureChange(1.0).draw(x)(x) - 1).abs() <= 1).all())
    True
    """

    def __init__(self, stops: float = 0.25) -> None:
        if not stops > 0:
            raise InputError(f"ExposureChange takes a positive number of stops, got {stops}.")
        self.stops = stops

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Change:
        check_images(x)
        gains = 2 ** (self.stops * (2 * torch.rand(len(x), generator=generator) - 1))
        return _Scaled(gains.to(x).view(-1, 1, 1, 1))


class Together(Perturbation):
    """Several families, one after the other.

    >>> x = torch.rand(1, 3, 32, 48)
    >>> Together(RandomWarp(), ExposureChange()).draw(x)(x).shape
    torch.Size([1, 3, 32, 48])
    """

    def __init__(self, *members: Perturbation) -> None:
        if not members or not all(isinstance(member, Perturbation) for member in members):
            raise InputError(
                f"Together takes perturbations, as Together(RandomWarp(), ExposureChange()); got {members}."
            )
        self.members = members

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Change:
        return _Chained(tuple(member.draw(x, generator) for member in self.members))


@dataclass(frozen=True)
class _Scaled(Change):
    gains: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        return image * self.gains


@dataclass(frozen=True)
class _Chained(Change):
    changes: tuple[Change, ...]

    def __call__(self, image: Tensor) -> Tensor:
        for change in self.changes:
            image = change(image)
        return image

    def valid(self, image: Tensor) -> Tensor:
        valid = torch.ones_like(image[:, :1])
        for change in self.changes:
            valid = (change(valid) > WHOLE).to(image.dtype) if isinstance(change, Warped) else valid
        return valid


# --- the terms --------------------------------------------------------------------------------------------------------


class Regularizer(ABC):
    """A term of the loss: call it as `term(net, x, y)`, or with `preds=net(x)` if that is there already.

    Args:
        perturbation: how the second image of each pair comes about; a `RandomWarp` unless given.
        distance: from images twice to one number, or one for each image; the mean squared difference unless given.
            `torch.nn.functional.l1_loss` does, and so does a perceptual loss.
        valid_only: leave out what is beyond the border of a warped image, and divide by what remains. The published
            code does not.
    """

    needs_target = False

    def __init__(
        self,
        perturbation: Perturbation | None = None,
        *,
        distance: Distance = F.mse_loss,
        valid_only: bool = False,
    ) -> None:
        self.perturbation = RandomWarp() if perturbation is None else perturbation
        self.distance = distance
        self.valid_only = valid_only

    def __call__(
        self,
        net: Callable[[Tensor], Tensor] | nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        preds: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the term for a batch.

        Args:
            net: from images (B, C, H, W) to images (B, C', h, w), h and w being H and W times or divided by a whole
                number. It is called once, or twice without `preds`; gradients flow through both.
            x: inputs.
            y: targets, as preds; needed by `SparseJacobian` and `Augmentation` alone.
            preds: net(x), if it has been computed: two passes a step are enough.
            mask: (B, 1, h, w) or (B, C', h, w), how much each place counts, as the saturated pixels of HDR.
            generator: of the random numbers, on the CPU.

        Raises:
            InputError: no image comes in or out, sizes do not belong together, or a target is missing.
        """
        check_images(x)
        change = self.perturbation.draw(x, generator)
        moved = net(change(x))
        if not isinstance(moved, Tensor) or moved.ndim != 4:
            what = tuple(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
            raise InputError(
                f"A regularizer needs a network that makes images (B, C, H, W) of images; this made {what}."
            )
        check_scale((x.shape[-2], x.shape[-1]), (moved.shape[-2], moved.shape[-1]))
        if preds is None and self.compares_preds:
            preds = net(x)
        if self.needs_target and y is None:
            raise InputError(f"{type(self).__name__} needs the target: term(net, x, y).")
        for name, other in (("target", y), ("preds", preds)):
            if other is not None and other.shape != moved.shape:
                raise InputError(
                    f"The {name} must be as the network's output, {tuple(moved.shape)}, got {tuple(other.shape)}."
                )
        left, right = self.compare(change, moved, preds, y)
        weight = self.weigh(change, mask) if mask is not None else None
        if self.valid_only:
            valid = change.valid(moved)
            weight = valid if weight is None else weight * valid
        if weight is not None:
            left, right = left * weight, right * weight
        term = self.distance(left, right).mean()
        return term / valid.mean().clamp_min(1e-6) if self.valid_only else term

    compares_preds = True

    @abstractmethod
    def compare(self, change: Change, moved: Tensor, preds: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the two images that should be equal."""

    def weigh(self, change: Change, mask: Tensor) -> Tensor:
        """Bring the mask to where the two images are compared."""
        return mask


class Stability(Regularizer):
    """f(x) should be f(T(x)) (Zheng et al. 2016; equation 2 of the paper).

    With a warp it asks a moved input to give an unmoved output, which is wrong for images, and is here to compare with:
    `NoiseStability` is the one in use.

    >>> net = nn.Conv2d(3, 3, 3, padding=1)
    >>> Stability()(net, torch.rand(2, 3, 32, 32)).shape
    torch.Size([])
    """

    def compare(self, change: Change, moved: Tensor, preds: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor]:
        assert preds is not None
        return preds, moved


class NoiseStability(Stability):
    """f(x) should be f(x + d), d Gaussian noise whose strength is drawn for each image (Zheng et al. 2016).

    Args:
        least, most: the range of the noise's standard deviation; 0.01 to 0.04 in the paper.
        distance: see `Regularizer`.

    >>> net = nn.Conv2d(3, 3, 3, padding=1)
    >>> NoiseStability()(net, torch.rand(2, 3, 32, 32)).shape
    torch.Size([])
    """

    def __init__(self, least: float = 0.01, most: float = 0.04, *, distance: Distance = F.mse_loss) -> None:
        super().__init__(_Noise(least, most), distance=distance)


class TransformInvariance(Regularizer):
    """f(T(x)) should be T(f(x)): what moves in, moves out, and nothing else changes (equation 4 of the paper).

    It needs no target, so any image will do.

    >>> net, x, y = nn.Conv2d(3, 3, 3, padding=1), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    >>> term, a, preds = TransformInvariance(), weight_of(4), net(x)
    >>> loss = (1 - a) * F.mse_loss(preds, y) + a * term(net, x, preds=preds)
    >>> loss.requires_grad
    True
    """

    def compare(self, change: Change, moved: Tensor, preds: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor]:
        assert preds is not None
        return moved, change(preds)

    def weigh(self, change: Change, mask: Tensor) -> Tensor:
        return change(mask)


class SparseJacobian(Regularizer):
    """f(T(x)) - f(x) should be T(y) - y: the output changes as the truth does (equations 7 and 8 of the paper).

    Args:
        perturbation, distance, valid_only: see `Regularizer`.
        domain: what the network's outputs are of a target, as the logarithm of linear light: the target is changed
            first and taken there then.

    >>> net, x = nn.Conv2d(3, 3, 3, padding=1), torch.rand(2, 3, 32, 32)
    >>> SparseJacobian()(net, x, x).shape
    torch.Size([])
    """

    needs_target = True

    def __init__(
        self,
        perturbation: Perturbation | None = None,
        *,
        distance: Distance = F.mse_loss,
        valid_only: bool = False,
        domain: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(perturbation, distance=distance, valid_only=valid_only)
        self.domain = domain or (lambda target: target)

    def compare(self, change: Change, moved: Tensor, preds: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor]:
        assert preds is not None and y is not None
        return moved - preds, self.domain(change(y)) - self.domain(y)

    def weigh(self, change: Change, mask: Tensor) -> Tensor:
        return torch.maximum(mask, change(mask))


class Augmentation(Regularizer):
    """f(T(x)) should be T(y) (equation 5 of the paper): no regularizer, but what one is compared with.

    Its loss stands alone: loss = Augmentation()(net, x, y).

    >>> net, x = nn.Conv2d(3, 3, 3, padding=1), torch.rand(2, 3, 32, 32)
    >>> Augmentation()(net, x, x).shape
    torch.Size([])
    """

    needs_target = True
    compares_preds = False

    def compare(self, change: Change, moved: Tensor, preds: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor]:
        assert y is not None
        return moved, change(y)

    def weigh(self, change: Change, mask: Tensor) -> Tensor:
        return change(mask)


# --- a and r ----------------------------------------------------------------------------------------------------------


def weight_of(ratio: float) -> float:
    """Return the weight a of a regularizer in (1 - a) * reconstruction + a * term, for the ratio r = a / (1 - a).

    >>> weight_of(4)
    0.8
    """
    if not 0 <= ratio < math.inf:
        raise InputError(f"The ratio of the regularizer to the reconstruction is 0 or more, got {ratio}.")
    return ratio / (1 + ratio)


def ratio_of(weight: float) -> float:
    """Return r = a / (1 - a) for a weight a from 0 to below 1.

    >>> round(ratio_of(0.8), 6)
    4.0
    """
    if not 0 <= weight < 1:
        raise InputError(f"The weight a of a regularizer is from 0 to below 1, got {weight}.")
    return weight / (1 - weight)


# --- the warp's own arithmetic ----------------------------------------------------------------------------------------


def warp_matrix(
    tx: Tensor,
    ty: Tensor,
    turn: Tensor,
    zoom: Tensor,
    shear_x: Tensor,
    shear_y: Tensor,
    *,
    height: int,
    width: int,
) -> Tensor:
    """Return matrices (B, 3, 3) from a pixel of the warped image, (x, y, 1), to where it is fetched.

    Shift, then about (width / 2, height / 2) rotate, zoom and shear; all arguments (B,), pixels, radians and a factor.

    >>> one = torch.zeros(1, dtype=torch.float64)
    >>> warp_matrix(one + 2, one, one, one + 1, one, one, height=4, width=6)[0, 0].tolist()  # fetched 2 pixels further
    [1.0, 0.0, 2.0]
    """
    a11 = zoom * torch.cos(shear_x - turn) / torch.cos(shear_x)
    a12 = zoom * torch.sin(shear_x - turn) / torch.cos(shear_x)
    a21 = zoom * torch.sin(shear_y + turn) / torch.cos(shear_y)
    a22 = zoom * torch.cos(shear_y + turn) / torch.cos(shear_y)
    x, y = tx - width / 2, ty - height / 2
    zero, one = torch.zeros_like(tx), torch.ones_like(tx)
    rows = ((a11, a12, width / 2 + a11 * x + a12 * y), (a21, a22, height / 2 + a21 * x + a22 * y), (zero, zero, one))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def check_images(x: Tensor) -> None:
    """Raise unless x is finite images (B, C, H, W)."""
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"A regularizer takes images (B, C, H, W) of floats, got {what}.")
    if not torch.isfinite(x).all():
        raise InputError("The images have values that are not finite; replace them first.")


def check_scale(size: tuple[int, int], other: tuple[int, int]) -> None:
    """Raise unless one size is the other times a whole number.

    >>> check_scale((128, 128), (120, 120))
    Traceback (most recent call last):
    unflicker.checks.InputError: The network makes 120x120 of 128x128 pixels: a warp can follow a size that is a whole \
number of times larger or smaller, but not one that is cropped; pad inside the network.
    """
    factors = {Fraction(b, a) for a, b in zip(size, other, strict=True)}
    factor = factors.pop()
    if factors or 1 not in (factor.numerator, factor.denominator):
        raise InputError(
            f"The network makes {other[0]}x{other[1]} of {size[0]}x{size[1]} pixels: a warp can follow a size that is "
            "a whole number of times larger or smaller, but not one that is cropped; pad inside the network."
        )


@dataclass(frozen=True)
class _Noise(Perturbation):
    least: float
    most: float

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise InputError(f"The noise must have a range from 0 on, got {self.least} to {self.most}.")

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Change:
        strength = self.least + (self.most - self.least) * torch.rand(len(x), 1, 1, 1, generator=generator)
        noise = strength * torch.randn(x.shape, generator=generator)
        return _Added(noise.to(x))


@dataclass(frozen=True)
class _Added(Change):
    """Noise, which is the input's alone."""

    noise: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        return image + self.noise


def _pixel_places(height: int, width: int) -> Tensor:
    """(H * W, 3): x, y and 1 of each pixel."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)


def _resized(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map of positions (B, H, W, 2), in halves of the image, to another size.

    Positions of an affine warp are linear, and so is the interpolation, except at the border, where there is nothing to
    interpolate with: there the map is continued.
    """
    planes = grid.permute(0, 3, 1, 2)
    height, width = planes.shape[-2:]
    if size[0] > height:
        planes = torch.cat(
            [2 * planes[:, :, :1] - planes[:, :, 1:2], planes, 2 * planes[:, :, -1:] - planes[:, :, -2:-1]], 2
        )
        planes = torch.cat(
            [2 * planes[..., :1] - planes[..., 1:2], planes, 2 * planes[..., -1:] - planes[..., -2:-1]], 3
        )
        factor_y, factor_x = size[0] // height, size[1] // width
        planes = F.interpolate(planes, scale_factor=(factor_y, factor_x), mode="bilinear", align_corners=False)
        planes = planes[:, :, factor_y : factor_y + size[0], factor_x : factor_x + size[1]]
    else:
        planes = F.avg_pool2d(planes, (height // size[0], width // size[1]))
    return planes.permute(0, 2, 3, 1)
