"""The math without memory: plain tensor functions that the stabilizers are made of.

Everything here works on feature maps (B, C, H, W); `strength` and `seen` broadcast against them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = 1.4426950408889634  # exp2 is three times as fast as exp on a CPU


def scale_odds(decay: Tensor, strength: Tensor) -> Tensor:
    """Multiply the odds of the past against the present, decay : (1 - decay), by `strength`.

    0 forgets the past, 1 changes nothing, 2 doubles its odds. `decay` is in [0, 1), `strength` >= 0.

    >>> scale_odds(torch.tensor(0.5), torch.tensor([0.0, 1.0, 2.0])).tolist()
    [0.0, 0.5, 0.6666666865348816]
    """
    odds = decay * strength
    return odds / (1 - decay + odds).clamp_min(torch.finfo(odds.dtype).tiny)  # a decay that has saturated at 1


def finite_pixels(z: Tensor) -> Tensor:
    """Return (B, 1, H, W) bool: the pixels of `z` (B, C, H, W) at which every channel is finite."""
    return torch.isfinite(z).all(dim=1, keepdim=True)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a validity mask (B, 1, H, W) to another size: a pixel stays valid where most of its area was.

    >>> resize_mask(torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]]), (1, 1)).item()
    True
    """
    mask = mask.float()
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size=size, mode="area")
    return mask > 0.5


def spatial_fusion(
    z: Tensor,
    past: Tensor,
    logits: Tensor,
    *,
    kernel_size: int,
    seen: Tensor,
    strength: Tensor,
    paper_exact: bool = False,
) -> Tensor:
    """Blend the present with a K x K window of the past, each pixel with weights of its own.

    Instant Video Models, appendix D.3: a softmax over the K * K logits of the past and one zero logit of the
    present weighs them. The K * K-fold copy of the past (unfold) is never made.

    Args:
        z: the present, (B, C, H, W).
        past: what was returned for the last frame, (B, C, H, W); zero where `seen` is.
        logits: (B, G * K * K, H, W), G dividing C: one kernel per group of C / G channels. Within a group the
            window is enumerated row by row. G = C is the paper's form.
        kernel_size: K, odd.
        seen: (B, 1, H, W), 1 where `past` holds something, else 0.
        strength: multiplies the odds of the past, (B, 1, 1, 1).
        paper_exact: neighbours outside the frame take part with value 0, as in the published code, which darkens
            the borders. Otherwise they, and pixels not seen yet, take no weight.

    >>> z, past = torch.ones(1, 4, 3, 3), torch.ones(1, 4, 3, 3)
    >>> seen, strength = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    >>> out = spatial_fusion(z, past, torch.zeros(1, 9, 3, 3), kernel_size=3, seen=seen, strength=strength)
    >>> torch.allclose(out, z)
    True
    """
    if paper_exact:
        seen = torch.ones_like(seen)
    tracked = torch.is_grad_enabled() and (z.requires_grad or past.requires_grad or logits.requires_grad)
    fuse = _fuse_out_of_place if tracked or torch.compiler.is_compiling() else _fuse_in_place
    return fuse(z, past, logits, seen.to(z.dtype), strength.to(z.dtype), kernel_size, paper_exact)


def _fuse_out_of_place(
    z: Tensor, past: Tensor, logits: Tensor, seen: Tensor, strength: Tensor, k: int, paper_exact: bool
) -> Tensor:
    """The form for autograd and for graphs: a sum over shifted views."""
    height, width = z.shape[-2:]
    groups = logits.shape[1] // (k * k)
    windows = [(..., slice(i // k, i // k + height), slice(i % k, i % k + width)) for i in range(k * k)]
    seen = F.pad(seen, (k // 2,) * 4, value=float(paper_exact))
    past = F.pad(past, (k // 2,) * 4)
    if groups == 1:  # a compiler would work out a shared kernel again for each channel, so it is made beforehand
        peak = logits.amax(1, keepdim=True).clamp_min(0)  # keeps exp() in range, as in any softmax
        weights, present = torch.exp(logits - peak) * strength, torch.exp(-peak)
        counted = torch.cat([seen[window] for window in windows], 1)
        weights = torch.cat([weights, present], 1) / (present + (weights * counted).sum(1, keepdim=True))
        fused = z * weights[:, k * k :]
        for i, window in enumerate(windows):
            fused = fused + weights[:, i : i + 1] * past[window]
        return fused
    # Many kernels are too large to be held at once: their sum is divided at the end.
    logits, past, z = (v.unflatten(1, (groups, -1)) for v in (logits, past, z))
    peak = logits.amax(2).clamp_min(0)
    total = torch.exp(-peak)
    fused = z * total.unsqueeze(2)
    for i, window in enumerate(windows):
        weight = torch.exp(logits[:, :, i] - peak) * strength
        total = total + weight * seen[window]
        fused = fused + weight.unsqueeze(2) * past[window]
    return (fused / total.unsqueeze(2)).flatten(1, 2)


def _fuse_in_place(
    z: Tensor, past: Tensor, logits: Tensor, seen: Tensor, strength: Tensor, k: int, paper_exact: bool
) -> Tensor:
    """The form for inference: the same sums into one buffer, a few planes at a time so that they stay in cache."""
    height, width = z.shape[-2:]
    groups = logits.shape[1] // (k * k)
    if groups > 1:  # in channels-last every kernel's logits are scattered
        z, past, logits = z.contiguous(), past.contiguous(), logits.contiguous()
    planes = max(1, 2**18 // (height * width))
    some_channels = planes if z.is_contiguous() else z.shape[1]  # channels-last has a pixel's channels together
    some_groups = max(1, min(planes, groups // (2 * k * k)))  # which bounds the memory for their weights
    out = torch.empty_like(z)
    out, z, past, logits = (v.unflatten(1, (groups, -1)) for v in (out, z, past, logits))
    seen = seen.unsqueeze(2)
    shared = z.shape[2] > k * k  # then it is less work to divide the weights than the result
    windows: list[tuple[tuple, tuple] | None] = []  # where each neighbour is inside the frame, and what it meets there
    for i in range(k * k):
        dy, dx = i // k - k // 2, i % k - k // 2
        here = (..., slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
        there = (..., slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx)))
        windows.append((here, there) if abs(dy) < height and abs(dx) < width else None)
    strength = torch.log2(strength).unsqueeze(2)
    for group in range(0, groups, some_groups):
        part = slice(group, group + some_groups)
        shift = logits[:, part].amax(2, keepdim=True).clamp_min_(0).mul_(-LOG2_E)  # keeps exp2() in range
        total = torch.exp2(shift)
        present = total.clone()
        weights = torch.empty_like(logits[:, part] if shared else shift)
        shift += strength
        fused = out[:, part]
        if not shared:
            torch.mul(z[:, part], present, out=fused)
        for i, window in enumerate(windows):
            weight = weights[:, :, i : i + 1] if shared else weights  # one plane that stays in cache
            torch.add(shift, logits[:, part, i : i + 1], alpha=LOG2_E, out=weight).exp2_()
            if paper_exact:
                total += weight
            if window is not None:
                here, there = window
                if not paper_exact:
                    total[here].addcmul_(weight[here], seen[there])
                if not shared:
                    fused[here].addcmul_(weight[here], past[:, part][there])
        if not shared:
            fused /= total
            continue
        present /= total
        weights /= total
        for channel in range(0, z.shape[2], some_channels):
            where = (slice(None), part, slice(channel, channel + some_channels))
            torch.mul(z[where], present, out=out[where])
            for i, window in enumerate(windows):
                if window is not None:
                    here, there = window
                    out[where][here].addcmul_(weights[:, :, i : i + 1][here], past[where][there])
    return out.flatten(1, 2)
