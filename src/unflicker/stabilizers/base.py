"""What every stabilizer is: a rule that blends a layer's present with its past, wrapped so that it can do no harm."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unflicker.checks import InputError, nearest
from unflicker.functional import finite_pixels, is_finite, resize_mask
from unflicker.guide import Guide
from unflicker.state import State

Layout = Literal["auto", "map", "plane", "tokens", "vector"]


class Stabilizer(nn.Module):
    """Base of the stabilizers. A new kind is one subclass with a `rule`.

    An instance in a plan is a template without weights; `stabilize` copies it for each layer and calls `build`.
    Whatever the layer returns is seen as (B, C, H, W): tokens (B, N, C) as (B, C, N, 1), vectors (B, C) as
    (B, C, 1, 1), channel-less maps (B, H, W) as (B, 1, H, W).

    Args:
        layout: what the layer returns: "map" (B, C, H, W), "plane" (B, H, W), "tokens" (B, N, C), "vector" (B, C).
            "auto" decides by the number of axes, and between plane and tokens by the size of the frame.
    """

    kind: str
    """The name in `adapter.json`."""
    uses_controller = False
    uses_guide = False
    """Whether `forward` is given the `Guide` of the frame."""
    guided_by_frame = False
    """At the network's input: whether that guide is the frame itself, though another vouches for the output."""
    needs_noise = False
    """Elsewhere: whether it must be the frame as it came, though a stabilizer at the network's input changed it."""

    def __init__(self, layout: Layout = "auto") -> None:
        super().__init__()
        if layout not in get_args(Layout):
            raise InputError(f"There is no layout {layout!r}; {nearest(str(layout), get_args(Layout))}")
        self.layout = layout

    def build(self, channels: int, layout: Layout, context_channels: tuple[int, ...]) -> None:
        """Create the weights for a layer with `channels`, given what each controller hands out."""
        self.layout = layout

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, enough to make the same template again."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        """Show the first setting, and what else differs from the defaults."""
        told: list[str] = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name)
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not told:
                told.append(repr(value))
            elif name != "layout" and value != parameter.default:
                told.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(told)})"

    def fresh(self, z: Tensor) -> State:
        """Return the state before the first frame, all zero, for a layer that returns `z` (B, C, H, W).

        `past` is the last result; `seen` (B, 1, H, W) is 1 where there is one.
        """
        return {"past": torch.zeros_like(z), "seen": torch.zeros_like(z[:, :1])}

    def rule(
        self, z: Tensor, known: Tensor, state: State, strength: Tensor, contexts: tuple[Tensor, ...]
    ) -> tuple[Tensor, State]:
        """Blend `z` with the past: the result, and whatever the state holds beyond `past` and `seen`.

        `z` is finite; `known` (B, 1, H, W) is 1 where it holds its own value or the past's, 0 where it holds
        nothing. Where nothing was seen, or `strength` (B, 1, 1, 1) is zero, the result is not used. `contexts` are
        the controllers' features: (B, context_channels, H, W), or with H = W = 1 for tokens and vectors.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rule")

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
        """Take one frame (B, C, H, W) through the rule.

        Pixels that are not finite, or that `mask` (B, 1, H', W') calls invalid, are replaced by the past where there
        is one and never enter the state. The first frame, and every frame at strength 0, comes out bit for bit.
        """
        seen, strength = state["seen"] > 0, strength.to(z.dtype)
        valid = finite_pixels(z)
        if mask is not None:
            valid = valid & resize_mask(mask, self._mask_size(z))
        active = seen & (strength > 0)
        known = (seen | valid).to(z.dtype)
        present = torch.where(valid, z, state["past"])
        blended, more = self.rule(present, known, state, strength, contexts)
        # A rule can overflow on values near the end of the range; the present itself is always finite.
        result = torch.where(active & torch.isfinite(blended), blended, present)
        return torch.where(valid | active, result, z), {"past": result, "seen": known, **more}

    def _mask_size(self, z: Tensor) -> tuple[int, int]:
        """Tokens and vectors have no place in the frame: they are valid if most of it is."""
        return (z.shape[-2], z.shape[-1]) if self.layout in ("map", "plane") else (1, 1)


class Head(nn.Sequential):
    """The small network that turns a controller's context and a layer's features into logits of the past.

    Instant Video Models, section 4 and appendix D: `depth` convolutions (linear layers for tokens and vectors, which
    on a (B, C, N, 1) view are 1x1 convolutions), LeakyReLU(0.01) between them, Xavier-uniform weights, and a last
    bias that makes the past count for little at first.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, kernel_size: int, bias: float, depth: int = 4
    ) -> None:
        layers: list[nn.Module] = []
        for i in range(depth):
            last = i == depth - 1
            conv = nn.Conv2d(inputs, outputs if last else hidden, kernel_size, padding=kernel_size // 2)
            nn.init.xavier_uniform_(conv.weight, nn.init.calculate_gain("leaky_relu", 0.01))
            nn.init.constant_(conv.get_parameter("bias"), bias if last else 0.0)
            layers += [conv] if last else [conv, nn.LeakyReLU(0.01)]
            inputs = hidden
        super().__init__(*layers)


def believed(z: Tensor, guide: Guide | None, mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """Which pixels of a layer's output to believe, (B, 1, *size); None where a program finds that it is all of them.

    Args:
        z: (B, C, H, W).
        guide: of the frame, which knows what did not arrive.
        mask: (B, 1, H', W'), 0 where the input is not valid.
        size: that of z, or (1, 1) for what has no place in the frame.
    """
    if mask is None and (guide is None or guide.whole) and is_finite(z):
        return None
    valid = finite_pixels(z)
    if mask is not None:
        valid = valid & resize_mask(mask, size)
    if guide is not None and not guide.whole:
        valid = valid & resize_mask(guide.valid, size)
    return None if not torch.compiler.is_compiling() and bool(valid.all()) else valid


def to_map(z: Tensor, layout: Layout) -> Tensor:
    """See a layer's output as (B, C, H, W), without copying.

    >>> to_map(torch.zeros(2, 196, 64), "tokens").shape
    torch.Size([2, 64, 196, 1])
    """
    if layout == "map":
        return z
    if layout == "plane":
        return z.unsqueeze(1)
    return z.transpose(1, 2).unsqueeze(-1) if layout == "tokens" else z[..., None, None]


def from_map(z: Tensor, layout: Layout) -> Tensor:
    """Undo `to_map`.

    >>> from_map(torch.zeros(2, 64, 196, 1), "tokens").shape
    torch.Size([2, 196, 64])
    """
    if layout == "map":
        return z
    if layout == "plane":
        return z.squeeze(1)
    return z.squeeze(-1).transpose(1, 2) if layout == "tokens" else z[..., 0, 0]
