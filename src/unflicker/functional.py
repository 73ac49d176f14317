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
    if is_finite(z):
        return torch.ones_like(z[:, :1], dtype=torch.bool)  # the usual case, without looking at each value
    return torch.isfinite(z).all(dim=1, keepdim=True)


def is_finite(z: Tensor) -> bool:
    """Whether all of `z` is known to be finite: one sum, which a program can afford; in a graph nothing is known."""
    return not torch.compiler.is_compiling() and bool(torch.isfinite(z.sum()))


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
        logits = torch.where(torch.cat([seen[window] for window in windows], 1) > 0, logits, -torch.inf)
        peak = logits.detach().amax(1, keepdim=True).clamp_min(0)  # keeps exp() in range, as in any softmax
        weights, present = torch.exp(logits - peak) * strength, torch.exp(-peak)
        weights = torch.cat([weights, present], 1) / (present + weights.sum(1, keepdim=True))
        fused = z * weights[:, k * k :]
        for i, window in enumerate(windows):
            fused = fused + weights[:, i : i + 1] * past[window]
        return fused
    # Many kernels are too large to be held at once: their sum is divided at the end.
    logits, past, z = (v.unflatten(1, (groups, -1)) for v in (logits, past, z))
    # What was not seen takes no part in the peak either: else nothing at all may be left, and the gradient is NaN.
    several = [torch.where(seen[window] > 0, logits[:, :, i], -torch.inf) for i, window in enumerate(windows)]
    peak = torch.zeros_like(several[0])
    for each in several:
        peak = torch.maximum(peak, each.detach())
    total = torch.exp(-peak)
    fused = z * total.unsqueeze(2)
    for each, window in zip(several, windows, strict=True):
        weight = torch.exp(each - peak) * strength
        total = total + weight
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


def luma(frame: Tensor) -> Tensor:
    """Return (B, 1, H, W): the BT.601 luma of RGB, or the mean of any other number of channels.

    >>> luma(torch.ones(1, 3, 1, 1)).item()
    1.0
    """
    if frame.shape[1] != 3:
        return mean_channel(frame)
    red, green, blue = frame.split(1, 1)
    return (red * 0.299).add(green, alpha=0.587).add(blue, alpha=0.114)


def mean_channel(x: Tensor) -> Tensor:
    """Return the mean over the channels, (B, 1, H, W)."""
    if x.shape[1] > 4:
        return x.mean(1, keepdim=True)
    first, *others = x.split(1, 1)  # whole planes vectorize: for a few, half the time on a CPU
    for other in others:
        first = first + other
    return first / x.shape[1] if others else first


def half(x: Tensor) -> Tensor:
    """Average 2 x 2 pixels; an odd edge is averaged by itself.

    >>> half(torch.arange(6.0).view(1, 1, 2, 3)).tolist()
    [[[[2.0, 3.5]]]]
    """
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    rows = x[..., ::2, :] + x[..., 1::2, :]  # several times as fast as avg_pool2d on a CPU
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to another size, bilinear."""
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def doubled(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a mask at half size back to `size`.

    >>> doubled(torch.tensor([True, False]).view(1, 1, 1, 2), (2, 3))[0, 0].tolist()
    [[True, True, False], [True, True, False]]
    """
    return F.interpolate(mask.float(), scale_factor=2.0, mode="nearest")[..., : size[0], : size[1]] > 0


def flow_to(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a flow (B, 2, H, W) to maps of another size, whose pixels become its unit.

    >>> flow_to(torch.ones(1, 2, 4, 8), (8, 16))[0, :, 0, 0].tolist()
    [2.0, 2.0]
    """
    if flow.shape[-2:] == size:
        return flow
    factors = flow.new_tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]]).view(1, 2, 1, 1)
    return resize(flow, size) * factors


def sample(image: Tensor, flow: Tensor, mode: str = "bicubic") -> Tensor:
    """Fetch each pixel from where it came: out(x) = image(x + flow(x)); outside, the border repeats.

    Where the flow is zero the pixel itself comes back.

    Args:
        image: (B, C, H, W).
        flow: (B, 2, H, W), pixels along x and y.
        mode: "bicubic" keeps detail through many frames, "bilinear" stays within the range of its neighbours.
    """
    return F.grid_sample(image, torch.stack(_places(flow), -1), mode=mode, padding_mode="border", align_corners=False)


def in_frame(flow: Tensor) -> Tensor:
    """Return (B, 1, H, W): 1 where the flow leads to a place within the frame, else 0."""
    (x, y), (height, width) = flow.split(1, 1), flow.shape[-2:]
    column = torch.arange((1 - width) / 2, width / 2, dtype=flow.dtype, device=flow.device)
    row = torch.arange((1 - height) / 2, height / 2, dtype=flow.dtype, device=flow.device).unsqueeze(1)
    return 1 - positive(torch.maximum((x + column).abs() - width / 2, (y + row).abs() - height / 2))


def _places(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel came from, (B, H, W) along x and y, with the frame from -1 to 1."""
    height, width = flow.shape[-2:]
    x = (torch.arange(width, dtype=flow.dtype, device=flow.device) * 2 + 1) / width - 1
    y = (torch.arange(height, dtype=flow.dtype, device=flow.device).unsqueeze(1) * 2 + 1) / height - 1
    return torch.add(x, flow[:, 0], alpha=2 / width), torch.add(y, flow[:, 1], alpha=2 / height)


def positive(x: Tensor) -> Tensor:
    """Return 1 where x > 0, else 0, in the dtype of `x`; NaN is not. Bools take three times as long on a CPU.

    >>> positive(torch.tensor([-2.0, 0.0, 0.5])).tolist()
    [0.0, 0.0, 1.0]
    """
    return x.sign().nan_to_num(0).clamp_min(0)


def box_mean(x: Tensor, size: int) -> Tensor:
    """Average over a square of `size` (odd, at least 3) pixels; outside, the border repeats.

    >>> [round(value, 4) for value in box_mean(torch.arange(4.0).view(1, 1, 1, 4), 3).flatten().tolist()]
    [0.3333, 1.0, 2.0, 2.6667]
    """
    reach, (height, width) = size // 2, x.shape[-2:]
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    # Shifted slices vectorize, where pooling does not: ten times as fast on a CPU.
    for axis, length in ((-2, height), (-1, width)):
        total, done, run = None, 0, 1  # of `run` neighbours at each place, doubled until the square is full
        while done < size:
            if size & run:
                piece = padded.narrow(axis, done, length)
                total, done = piece if total is None else total + piece, done + run
            if done < size:
                here = padded.shape[axis] - run
                padded, run = padded.narrow(axis, 0, here) + padded.narrow(axis, run, here), 2 * run
        assert total is not None
        padded = total
    return padded / size**2


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of standard deviation `sigma` pixels; at the border, over the part of it that is inside.

    >>> round(gaussian_blur(torch.ones(1, 1, 3, 5), 1.0).min().item(), 5)
    1.0
    """
    across, down = (_gaussian_matrix(n, sigma, x) for n in (x.shape[-1], x.shape[-2]))
    return down @ x @ across.T  # on maps as small as ours, matrices beat convolutions


def _gaussian_matrix(n: int, sigma: float, like: Tensor) -> Tensor:
    at = torch.arange(n, dtype=like.dtype, device=like.device)
    return ((at.unsqueeze(1) - at).square() * (-0.5 / max(sigma, 1e-3) ** 2)).softmax(1)


def gradient(x: Tensor) -> Tensor:
    """Return the squared gradient of each channel, (B, C, H, W), by central differences."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return across.square().addcmul(down, down) / 4


def median(x: Tensor) -> Tensor:
    """Return each stream's median, (B, 1, 1, 1), over at most two thousand of its values, evenly taken.

    >>> median(torch.tensor([3.0, 1.0, 2.0]).view(1, 1, 1, 3)).item()
    2.0
    """
    values = x.flatten(1)
    values = values[:, :: max(1, values.shape[1] // 1024)]
    return values.sort(1).values[:, values.shape[1] // 2].view(-1, 1, 1, 1)


def value_range(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return offset and length, (B, 1, 1, 1) each, of the range of two planes (B, 1, H, W): [0, 1] if they fit it.

    >>> [each.item() for each in value_range(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4))]
    [0.0, 1.0]
    """
    zero, one = torch.zeros_like(a[..., :1, :1]), torch.ones_like(a[..., :1, :1])
    if not torch.compiler.is_compiling() and all(
        bool(each.amin() > -0.5) and bool(each.amax() < 1.5) for each in (a, b)
    ):
        return zero, one
    both = torch.stack([a, b], 1).flatten(2)
    both = both[..., :: max(1, both.shape[-1] // 512)].flatten(1).sort(1).values  # outliers are no other range
    low, high = (both[:, round(at * (both.shape[1] - 1))].view(-1, 1, 1, 1) for at in (0.01, 0.99))
    usual = (low > -0.5) & (high < 1.5) | (high <= low)
    return torch.where(usual, zero, low), torch.where(usual, one, high - low)


def noise_level(plane: Tensor) -> Tensor:
    """Return the standard deviation of the noise in one channel (B, 1, H, W), as (B, 1, 1, 1).

    Immerkaer 1996, with a median for the mean so that edges do not count: what a filter leaves that is blind to
    planes and straight edges. A large channel is read at some of its rows.

    >>> noise_level(torch.zeros(1, 1, 8, 8)).item()
    0.0
    """
    if min(plane.shape[-2:]) < 3:
        return torch.zeros_like(plane[..., :1, :1])
    every = max(1, plane[0].numel() // 4096)  # `median` takes no more than half of those
    above, here, below = (plane[..., i : plane.shape[-2] - 2 + i : every, :] for i in range(3))
    down = above - 2 * here + below
    return median((down[..., 2:] - 2 * down[..., 1:-1] + down[..., :-2]).abs()) / (6 * 0.6745)
