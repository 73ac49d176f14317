"""Each stabilizer against a plain formulation of what the paper says it is."""

from __future__ import annotations

import copy
import math
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unflicker.checks import InputError
from unflicker.controllers import Controller
from unflicker.functional import finite_pixels, resize_mask, scale_odds, spatial_fusion
from unflicker.model import stabilize
from unflicker.networks.nafnet import NAFNet
from unflicker.stabilizers import (
    EMA,
    Chain,
    Controlled,
    Gaussian,
    LearnedEMA,
    Spatial,
    describe,
    from_description,
    from_map,
    to_map,
)

close = torch.testing.assert_close


# The math without memory.


def fusion_by_unfold(z, past, logits, *, kernel_size, seen, strength, paper_exact=False):
    """Appendix D.3 to the letter: unfold with zero padding, one softmax over the window and the present."""
    (batch, channels, height, width), k = z.shape, kernel_size
    groups = logits.shape[1] // k**2

    def window(x):
        return F.unfold(x, k, padding=k // 2).view(batch, -1, k**2, height, width)

    logits = logits.view(batch, groups, k**2, height, width).repeat_interleave(channels // groups, 1)
    logits = logits + strength.unsqueeze(1).log()
    if not paper_exact:
        logits = logits.masked_fill(window(seen) == 0, -math.inf)
    weights = torch.cat([logits, torch.zeros_like(logits[:, :, :1])], 2).softmax(2)
    return (weights[:, :, :-1] * window(past)).sum(2) + weights[:, :, -1] * z


def fusion_inputs(size, channels, groups, k, dtype=torch.float32):
    z, past = torch.randn(2, 2, channels, *size, dtype=dtype)
    logits = 2 * torch.randn(2, groups * k * k, *size, dtype=dtype)
    seen = (torch.rand(2, 1, *size) > 0.3).to(dtype)
    return z, past * seen, logits, seen, torch.tensor([0.5, 2.0], dtype=dtype).view(2, 1, 1, 1)


@pytest.mark.parametrize("size", [(6, 7), (1, 1), (1, 5), (2, 2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("paper_exact", [False, True], ids=["corrected", "paper"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_both_forms_of_spatial_fusion_are_the_unfold_form(size, groups, k, paper_exact, memory_format):
    z, past, logits, seen, strength = fusion_inputs(size, 4, groups, k)
    options = {"kernel_size": k, "seen": seen, "strength": strength, "paper_exact": paper_exact}
    expected = fusion_by_unfold(z, past, logits, **options)
    z, past, logits = (v.contiguous(memory_format=memory_format) for v in (z, past, logits))
    with torch.no_grad():
        close(spatial_fusion(z, past, logits, **options), expected, rtol=1e-5, atol=1e-5)
    tracked = spatial_fusion(z.requires_grad_(), past, logits, **options)
    assert tracked.requires_grad
    close(tracked.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("paper_exact", [False, True], ids=["corrected", "paper"])
@pytest.mark.parametrize(("k", "groups"), [(1, 4), (3, 1), (3, 2), (3, 4), (5, 2)])
def test_gradients_of_spatial_fusion(k, groups, paper_exact):
    z, past, logits, seen, strength = fusion_inputs((4, 5), 4, groups, k, torch.float64)
    options = {"kernel_size": k, "seen": seen, "paper_exact": paper_exact}
    gradients = []
    for fusion in (spatial_fusion, fusion_by_unfold):
        leaves = [v.clone().requires_grad_() for v in (z, past, logits, strength)]
        fused = fusion(leaves[0], leaves[1] * seen, leaves[2], strength=leaves[3], **options)
        gradients.append(torch.autograd.grad(fused.sin().sum(), leaves))
    close(*gradients)


@torch.no_grad()
def test_many_groups_are_fused_in_parts():
    """More groups than fit in the cache at once."""
    z, past, logits, seen, strength = fusion_inputs((200, 210), 16, 16, 3)
    options = {"kernel_size": 3, "seen": seen, "strength": strength}
    close(spatial_fusion(z, past, logits, **options), fusion_by_unfold(z, past, logits, **options), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tracked", [False, True], ids=["in place", "autograd"])
def test_unseen_neighbours_take_no_weight(tracked):
    """What was not seen holds zeros, as a state does; where no neighbour was seen the present stays as it is."""
    z, past, logits, seen, strength = fusion_inputs((5, 5), 4, 4, 3)
    z.requires_grad_(tracked)
    seen = torch.zeros_like(seen)
    close(spatial_fusion(z, past * seen, logits, kernel_size=3, seen=seen, strength=strength), z)
    seen[:, :, 1, 1] = 1
    fused = spatial_fusion(z, past * seen, logits, kernel_size=3, seen=seen, strength=strength)
    close(fused[..., 3:, :], z[..., 3:, :])
    close(fused[..., :3, 3:], z[..., :3, 3:])
    weight = (logits[:, 4::9, 1, 1].exp() * strength[..., 0, 0]).detach()
    close(fused[..., 1, 1], (weight * past[..., 1, 1] + z[..., 1, 1]) / (weight + 1))


@pytest.mark.parametrize("tracked", [False, True], ids=["in place", "autograd"])
def test_fusion_of_constants_is_constant_but_for_the_papers_borders(tracked):
    ones, logits = torch.ones(1, 4, 5, 6), torch.randn(1, 36, 5, 6)
    ones.requires_grad_(tracked)
    options = {"kernel_size": 3, "seen": torch.ones(1, 1, 5, 6), "strength": torch.ones(1, 1, 1, 1)}
    close(spatial_fusion(ones, ones, logits, **options), ones)
    dark = spatial_fusion(ones, ones, logits, paper_exact=True, **options)
    close(dark[..., 1:-1, 1:-1], ones[..., 1:-1, 1:-1])
    border = torch.ones(5, 6, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (dark[..., border] < 0.999).all()


@torch.no_grad()
def test_huge_logits_do_not_overflow():
    z, past, logits, seen, strength = fusion_inputs((4, 4), 4, 4, 3)
    seen, logits = torch.ones_like(seen), logits * 1000
    options = {"kernel_size": 3, "seen": seen, "strength": strength, "paper_exact": True}
    close(spatial_fusion(z, past, logits, **options), fusion_by_unfold(z, past, logits, **options))
    tracked = spatial_fusion(z.clone().requires_grad_(), past, logits, **options)
    close(tracked, fusion_by_unfold(z, past, logits, **options))


class PeakMemory(TorchDispatchMode):
    """The most bytes held at a time by tensors that were made inside."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {key: (ref, size) for key, (ref, size) in self.storages.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


@torch.no_grad()
def test_memory_of_spatial_fusion():
    """The in-place form needs its result and a little more; unfolding needs nine maps and more."""
    z, past, logits, _, _ = fusion_inputs((160, 160), 32, 32, 3)
    z, past, logits = z[:1], past[:1], logits[:1]
    options = {"kernel_size": 3, "seen": torch.ones(1, 1, 160, 160), "strength": torch.ones(1, 1, 1, 1)}
    one_map = z.numel() * z.element_size()
    peaks = []
    for fusion in (spatial_fusion, fusion_by_unfold):
        with PeakMemory() as memory:
            fusion(z, past, logits, **options)
        peaks.append(memory.peak / one_map)
    assert 1 <= peaks[0] <= 3
    assert peaks[1] >= 9


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0, 1e6])
def test_scale_odds(strength):
    decay = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    scaled = scale_odds(decay, torch.tensor(strength, dtype=torch.float64))
    close(scaled / (1 - scaled), strength * decay / (1 - decay))


def test_finite_pixels_and_masks():
    z = torch.zeros(1, 3, 2, 2)
    z[0, 1, 0, 1], z[0, 2, 1, 0] = float("nan"), float("inf")
    assert finite_pixels(z)[0, 0].tolist() == [[True, False], [False, True]]
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :3] = 1
    mask[..., 2:, 2:] = 1
    assert resize_mask(mask, (4, 4)).equal(mask > 0)
    assert resize_mask(mask, (2, 2))[0, 0].tolist() == [[True, False], [False, True]]
    assert resize_mask(mask.bool(), (8, 8)).equal(mask.repeat_interleave(2, 2).repeat_interleave(2, 3) > 0)


@pytest.mark.parametrize(("layout", "shape"), [("map", (2, 3, 4, 5)), ("plane", (2, 4, 5)), ("tokens", (2, 7, 3))])
def test_layouts_are_views_and_come_back(layout, shape):
    z = torch.randn(shape)
    seen = to_map(z, layout)
    assert seen.ndim == 4 and seen.data_ptr() == z.data_ptr()
    assert from_map(seen, layout).equal(z)
    vector = torch.randn(2, 3)
    assert to_map(vector, "vector").shape == (2, 3, 1, 1) and from_map(to_map(vector, "vector"), "vector").equal(vector)


# Each kind.


def zero_head(model):
    """Leave the biases of the heads alone: what the past weighs at the very start."""
    for module in model.stabilizers.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.zero_()
    return model


def weight_of_the_past(model):
    """A network that returns its input sees 0, then 1; looked at far from the borders."""
    y, _ = model(torch.stack([torch.zeros(1, 3, 9, 9), torch.ones(1, 3, 9, 9)], 1))
    return 1 - y[0, 1, 0, 4, 4].item()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (EMA(0.4), 0.4),
        (LearnedEMA(), 0.018),
        (Controlled(), 0.018),
        (Spatial(3), 0.018),
        (Spatial(5, groups=1), 0.018),
        (Spatial(3, paper_exact=True), 1 - 0.858),
        (Spatial(1, paper_exact=True), 0.018),
    ],
)
@torch.no_grad()
def test_weight_of_the_past_at_the_start(template, expected):
    model = zero_head(stabilize(nn.Identity(), {"": template}, example=torch.rand(1, 3, 9, 9)))
    assert weight_of_the_past(model) == pytest.approx(expected, abs=5e-4)


@torch.no_grad()
def test_exact_initial_weights():
    frame = torch.rand(1, 3, 9, 9, dtype=torch.float64)
    for template, odds in [
        (Controlled(hidden=4), math.exp(-4)),
        (Spatial(3, hidden=4), math.exp(-4)),
        (Spatial(3, hidden=4, paper_exact=True), 9 * math.exp(-4)),
    ]:
        model = zero_head(stabilize(nn.Identity(), {"": template}, example=frame))
        y, _ = model(torch.stack([frame * 0, frame * 0 + 1], 1))
        assert y[0, 1, 0, 4, 4].item() == pytest.approx(1 / (1 + odds), abs=1e-7)


@torch.no_grad()
def test_the_papers_dark_borders():
    """The specification's numbers: a constant 1 converges to 0.950 at the edges and 0.918 in the corners."""
    frame, results = torch.ones(1, 3, 8, 8), {}
    for paper_exact in (False, True):
        template = Spatial(3, hidden=4, paper_exact=paper_exact)
        model = zero_head(stabilize(nn.Identity(), {"": template}, example=frame))
        state = None
        for _ in range(50):
            y, state = model(frame, state)
        results[paper_exact] = y[0, 0]
    close(results[False], torch.ones(8, 8))
    assert results[True][0, 4].item() == pytest.approx(0.950, abs=5e-4)
    assert results[True][4, 0].item() == pytest.approx(0.950, abs=5e-4)
    assert results[True][0, 0].item() == pytest.approx(0.918, abs=5e-4)
    assert results[True][7, 7].item() == pytest.approx(0.918, abs=5e-4)


@torch.no_grad()
def test_learned_ema_has_one_decay_per_channel(clip):
    model = stabilize(nn.Identity(), {"": LearnedEMA(initial_logit=-1.0)}, example=clip[:, 0])
    logit = model.stabilizers["output"].logit
    assert logit.tolist() == [-1.0] * 3
    logit.copy_(torch.tensor([-2.0, 0.0, 1.0]))
    y, _ = model(clip[:, :2])
    for channel, value in enumerate((-2.0, 0.0, 1.0)):
        decay = 1 / (1 + math.exp(-value))
        close(y[:, 1, channel], decay * clip[:, 0, channel] + (1 - decay) * clip[:, 1, channel])


@pytest.mark.parametrize(("window", "sigma"), [(1, 1.0), (2, 0.5), (3, 1.5), (9, 4.0)])
@torch.no_grad()
def test_gaussian_is_a_weighted_mean_over_a_deque(window, sigma):
    clip = torch.rand(1, 7, 3, 4, 4)
    strength = torch.tensor([[1.0, 1, 2, 1, 0.5, 1, 3]])
    model = stabilize(nn.Identity(), {"": Gaussian(window, sigma)}, example=clip[:, 0])
    y, _ = model(clip, strength=strength)
    frames = deque(maxlen=window)
    for t in range(7):
        frames.appendleft(clip[0, t].numpy())
        ages = np.arange(len(frames))
        weights = np.exp(-(ages**2) / (2 * sigma**2)) * np.where(ages > 0, strength[0, t].item(), 1)
        np.testing.assert_allclose(y[0, t].numpy(), np.average(frames, axis=0, weights=weights), rtol=1e-5)


@torch.no_grad()
def test_spatial_with_a_window_of_one_is_controlled(exact_net, clip, make_lively):
    first = make_lively(stabilize(exact_net, {"encoder": Spatial(1, hidden=8)}, example=clip[:, 0]))
    second = stabilize(copy.deepcopy(first).remove(), {"encoder": Controlled(hidden=8)}, example=clip[:, 0])
    second.stabilizers.load_state_dict(first.stabilizers.state_dict())
    second.controllers.load_state_dict(first.controllers.state_dict())
    close(first(clip)[0], second(clip)[0])


@torch.no_grad()
def test_spatial_with_one_group_shares_its_kernel(clip):
    """With one kernel for all channels, equal channels stay equal; the result is the unfold form of its own logits."""
    template = Spatial(3, groups=1, hidden=4)
    template.build(3, "map", (2,))
    template.head[-1].bias.zero_()
    z, context = clip[:, :, :1].expand(2, 5, 3, 12, 10), torch.randn(2, 2, 12, 10)
    state, strength = template.fresh(z[:, 0]), torch.ones(2, 1, 1, 1)
    for t in range(3):
        past = state
        result, state = template(z[:, t], state, strength=strength, contexts=(context,))
        close(result, result[:, :1].expand_as(result))
    logits = template.head(torch.cat([context, z[:, 2], past["past"], past["last"]], 1))
    close(past["last"], z[:, 1])
    expected = fusion_by_unfold(
        z[:, 2], past["past"], logits, kernel_size=3, seen=torch.ones(2, 1, 12, 10), strength=strength
    )
    close(result, expected)


@torch.no_grad()
def test_spatial_follows_motion():
    """A head that picks the left neighbour of the past undoes a shift by one pixel to the right."""
    template = Spatial(3, hidden=4)
    template.build(2, "map", (1,))
    for conv in template.head:
        if isinstance(conv, nn.Conv2d):
            conv.weight.zero_()
    template.head[-1].bias.view(2, 9).copy_(torch.full((2, 9), -60.0).index_fill(1, torch.tensor([3]), 60.0))
    z = torch.rand(1, 2, 4, 6)
    context, strength = torch.zeros(1, 1, 4, 6), torch.ones(1, 1, 1, 1)
    _, state = template(z, template.fresh(z), strength=strength, contexts=(context,))
    result, _ = template(torch.rand_like(z), state, strength=strength, contexts=(context,))
    close(result[..., 1:], z[..., :-1])


@pytest.mark.parametrize("layout", ["tokens", "vector"])
@torch.no_grad()
def test_controlled_on_tokens_is_a_network_of_linear_layers(layout):
    template = Controlled()
    template.build(6, layout, (4,))
    convolutions = [layer for layer in template.head if isinstance(layer, nn.Conv2d)]
    layers = []
    for conv in convolutions:
        linear = nn.Linear(conv.in_channels, conv.out_channels)
        linear.weight.copy_(conv.weight[:, :, 0, 0])
        linear.bias.copy_(conv.bias.uniform_(-1, 1))
        layers += [linear, nn.LeakyReLU(0.01)]
    network = nn.Sequential(*layers[:-1])
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [256, 256, 256, 6]
    shape = (2, 5, 6) if layout == "tokens" else (2, 6)
    context, strength = torch.randn(2, 4, 1, 1), torch.ones(2, 1, 1, 1)
    own = context[:, :, 0, 0].unsqueeze(1).expand(2, 5, 4) if layout == "tokens" else context[:, :, 0, 0]
    past = last = None
    state = template.fresh(to_map(torch.zeros(shape), layout))
    for _ in range(4):
        z = torch.randn(shape)
        result, state = template(to_map(z, layout), state, strength=strength, contexts=(context,))
        if past is None:
            expected = z
        else:
            decay = torch.sigmoid(network(torch.cat([own, z, past, last], -1)))
            expected = decay * past + (1 - decay) * z
        close(from_map(result, layout), expected)
        past, last = expected, z


@torch.no_grad()
def test_chain_is_one_after_the_other(exact_net, clip):
    one = stabilize(exact_net, {"": Chain(EMA(0.3), Gaussian(3), EMA(0.6))}, example=clip[:, 0])
    expected, _ = stabilize(exact_net, {"": EMA(0.3)}, example=clip[:, 0])(clip)
    for template in (Gaussian(3), EMA(0.6)):
        expected, _ = stabilize(nn.Identity(), {"": template}, example=clip[:, 0])(expected)
    close(one(clip)[0], expected)


# The controller.


@torch.no_grad()
def test_the_papers_controller():
    for width in (32, 16):
        controller = Controller.paper(width)
        controller.build(3)
        convolutions = [layer for layer in controller.layers if isinstance(layer, nn.Conv2d)]
        assert len(convolutions) == 7 and len(controller.layers) == 14
        count = sum(p.numel() for p in controller.parameters())
        assert count == (9 * 6 * width + width) + 6 * (9 * width * width + width)
    first, second = torch.rand(2, 1, 3, 7, 9)
    context, state = controller(first, controller.fresh(first))
    assert context.shape == (1, 16, 7, 9)
    close(context, controller.layers(torch.cat([first, first], 1)))
    context, _ = controller(second, state)
    close(context, controller.layers(torch.cat([second, first], 1)))
    resized = controller.context_at(context, (4, 5))
    close(resized, F.interpolate(context, size=(4, 5), mode="bilinear"))
    assert all(layer.negative_slope == 0.01 for layer in controller.layers if isinstance(layer, nn.LeakyReLU))


@torch.no_grad()
def test_the_default_controller_looks_at_a_quarter():
    controller = Controller(width=5, depth=2)
    controller.build(3)
    frame = torch.rand(1, 3, 13, 16)
    context, state = controller(frame, controller.fresh(frame))
    assert context.shape == (1, 5, 4, 4)
    close(state["frame"][..., :3, :], F.avg_pool2d(frame, 4))
    close(state["frame"][..., 3, :], F.avg_pool2d(frame[..., 12:, :], (1, 4))[..., 0, :])
    assert controller.context_at(context, (4, 4)) is context
    close(controller.context_at(context, None), context.mean((2, 3), keepdim=True))
    assert controller.context_at(context, (2, 9)).shape == (1, 5, 2, 9)


@torch.no_grad()
def test_the_controller_leaves_out_what_is_not_valid():
    controller = Controller(width=4, depth=1, downscale=2)
    controller.build(3)
    frame, mask = torch.rand(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    mask[..., 0, 0] = 0  # one of four
    mask[..., 2:, 2:] = 0  # all four
    spoiled = torch.where(mask > 0, frame, float("nan"))
    last = {"frame": torch.full((1, 3, 2, 2), 0.5), "seen": torch.ones(1, 1, 1, 1)}
    context, state = controller(spoiled, last)
    masked_context, masked_state = controller(frame, last, mask)
    close(context, masked_context, rtol=0, atol=0)
    close(state, masked_state, rtol=0, atol=0)
    close(state["frame"][..., 0, 0], frame[..., :2, :2].flatten(2)[..., 1:].mean(2))
    close(state["frame"][..., 1, 1], last["frame"][..., 1, 1])


# Sizes, as section 2 of the specification counts them.


def head_parameters(channels, k, context=32, hidden=64):
    inputs = context + 3 * channels
    return 9 * inputs * hidden + hidden + 2 * (9 * hidden**2 + hidden) + (9 * hidden + 1) * channels * k * k


@pytest.mark.parametrize(("template", "k"), [(Controlled(), 1), (Spatial(1), 1), (Spatial(3), 3), (Spatial(5), 5)])
def test_parameters_of_a_head(template, k):
    template = copy.deepcopy(template)
    template.build(12, "map", (32,))
    assert sum(p.numel() for p in template.parameters()) == head_parameters(12, k)


@pytest.mark.parametrize(("template", "k", "millions"), [(Controlled(), 1, 26.2), (Spatial(3), 3, 71.7)])
def test_parameters_of_the_papers_denoiser(template, k, millions):
    with torch.device("meta"):  # shapes without numbers
        base = NAFNet(width=32, encoder_blocks=(2, 2, 4, 8), middle_blocks=12, decoder_blocks=(2, 2, 2, 2))
        plan = dict.fromkeys(["encoders.*.*", "middle_blks.*", "decoders.*.*", ""], template)
        model = stabilize(base, plan, controller=Controller.paper(), example=torch.rand(1, 3, 32, 32))
    assert sum(p.numel() for p in base.parameters()) == pytest.approx(29.16e6, abs=5e3)
    channels = [32] * 2 + [64] * 2 + [128] * 4 + [256] * 8 + [512] * 12 + [256] * 2 + [128] * 2 + [64] * 2 + [32] * 2
    assert len(model.places) == len(channels) + 1 == 37
    assert [place.channels for place in model.places.values()] == [*channels, 3]
    added = sum(p.numel() for module in (model.stabilizers, model.controllers) for p in module.parameters())
    controller = (9 * 6 * 32 + 32) + 6 * (9 * 32 * 32 + 32)
    assert added == sum(head_parameters(c, k) for c in [*channels, 3]) + controller
    assert round(added / 1e6, 1) == millions


# Tokens, vectors and planes.

ANY_LAYOUT = {
    "ema": EMA(0.5),
    "learned_ema": LearnedEMA(0.0),
    "gaussian": Gaussian(3),
    "controlled": Controlled(hidden=8),
    "chain": Chain(EMA(0.3), Controlled(hidden=8)),
}


@pytest.mark.parametrize("template", ANY_LAYOUT.values(), ids=ANY_LAYOUT.keys())
@pytest.mark.parametrize(
    ("net", "layer", "layout"),
    [
        ("token_net", "", "tokens"),
        ("token_net", "block", "tokens"),
        ("vector_net", "hidden", "vector"),
        ("vector_net", "", "vector"),
        ("plane_net", "", "plane"),
    ],
)
@torch.no_grad()
def test_other_layouts(request, net, layer, layout, template, clip, stream, make_lively):
    base = request.getfixturevalue(net)
    model = make_lively(stabilize(base, {layer: template}, example=clip[:, 0]))
    assert [place.layout for place in model.places.values()] == [layout]
    one_by_one, state = stream(model, clip)
    assert one_by_one.shape == (2, 5, *base(clip[:, 0]).shape[1:])
    assert not torch.allclose(one_by_one[:, -1], base(clip[:, -1]), rtol=1e-3)
    frame = torch.where(torch.rand_like(clip[:, 0]) > 0.9, float("nan"), clip[:, 0])
    y, following = model(frame, state)
    assert y.isfinite().all() and all(value.isfinite().all() for value in following.values())
    y, folded = model(clip)
    close(y, one_by_one, rtol=0, atol=1e-5)
    close(folded, state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("template", [Spatial(3, hidden=8), Spatial(3, hidden=8, paper_exact=True)])
@torch.no_grad()
def test_spatial_on_planes_is_spatial_on_one_channel(plane_net, template, clip, make_lively):
    class OneChannel(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(plane_net)

        def forward(self, x):
            return self.net(x).unsqueeze(1)

    model = make_lively(stabilize(plane_net, {"": template}, example=clip[:, 0]))
    other = stabilize(OneChannel(), {"": template}, example=clip[:, 0])
    other.stabilizers.load_state_dict(model.stabilizers.state_dict())
    other.controllers.load_state_dict(model.controllers.state_dict())
    close(model(clip)[0].unsqueeze(2), other(clip)[0])


@pytest.mark.parametrize(
    ("size", "layout"), [((12, 10), "plane"), ((6, 5), "plane"), ((12, 8), "tokens"), ((5, 12), "tokens")]
)
def test_planes_are_told_from_tokens_by_the_size_of_the_frame(size, layout, clip):
    class Inner(nn.Module):
        def forward(self, x):
            return x[:, 0, : size[0], : size[1]]

    base = nn.Sequential(nn.AdaptiveAvgPool2d((12, 12)), Inner())
    base.append(nn.Identity())
    model = stabilize(base, {"1": EMA(0.5)}, example=clip[:, 0])
    assert model.places["out:1"].layout == layout
    forced = stabilize(base, {"1": EMA(0.5, layout="tokens")}, example=clip[:, 0])
    assert forced.places["out:1"].layout == "tokens"


@torch.no_grad()
def test_a_mask_on_tokens_and_vectors_counts_if_most_of_the_frame_is_bad(vector_net, clip):
    model = stabilize(vector_net, {"": EMA(0.5)}, example=clip[:, 0])
    y, state = model(clip[:, 0])
    mask = torch.ones(2, 1, 12, 10)
    mask[0, ..., :4, :] = 0
    mask[1, ..., :7, :] = 0
    after, _ = model(clip[:, 1], state, mask=mask)
    close(after[0], (y[0] + vector_net(clip[:, 1])[0]) / 2)
    close(after[1], y[1])


# Settings.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EMA(1.0), r"EMA's decay is the weight of the past and lies in \[0, 1\), got 1.0"),
        (lambda: EMA(-0.1), "got -0.1"),
        (lambda: EMA(float("nan")), "got nan"),
        (lambda: Gaussian(window=0), "window of at least 1 and a positive sigma, got window=0, sigma=1.0"),
        (lambda: Gaussian(sigma=0.0), "positive sigma, got window=4, sigma=0.0"),
        (lambda: Controlled(hidden=0), "at least one hidden channel, got hidden=0"),
        (lambda: Spatial(2), "odd kernel_size of at least 1, got 2"),
        (lambda: Spatial(-1), "odd kernel_size of at least 1, got -1"),
        (lambda: Spatial(3, groups=0), "one hidden channel and one group, got hidden=64, groups=0"),
        (lambda: Chain(EMA(0.1)), r"two or more stabilizers, as in Chain\(EMA\(0.1\), Spatial\(3\)\)"),
        (lambda: Chain(EMA(0.1), EMA), "two or more stabilizers"),
        (lambda: Controller(0), "positive settings, got width=0, depth=4, downscale=4"),
        (lambda: from_description({"kind": "spatail"}), "no stabilizer of kind 'spatail'; did you mean 'spatial'"),
        (lambda: from_description({"kind": "ema", "beta": 1}), "of kind 'ema' cannot be made from .*beta"),
        (lambda: from_description({}), "no stabilizer of kind None"),
    ],
)
def test_words_of_wrong_settings(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_descriptions_make_the_same_template(kind):
    template = kind.make()
    description = describe(template)
    again = from_description(description)
    assert type(again) is type(template) and describe(again) == description
    for each in (template, again):
        each.build(3 if kind.inside else 6, "map", (4,))
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in template.named_parameters()}


def test_groups_must_divide_the_channels(conv_net, clip):
    with pytest.raises(InputError, match=r"layer 'encoder': Spatial's groups must divide .* 6 channels, got groups=4"):
        stabilize(conv_net, {"encoder": Spatial(3, groups=4)}, example=clip[:, 0])


@pytest.mark.parametrize(("net", "words"), [("token_net", r"tokens \(B, N, C\)"), ("vector_net", r"vectors \(B, C\)")])
def test_spatial_needs_a_map(request, net, words, clip):
    with pytest.raises(InputError, match=rf"The network's output: Spatial needs a feature map .*{words}; use Control"):
        stabilize(request.getfixturevalue(net), {"": Spatial(3)}, example=clip[:, 0])


@pytest.mark.parametrize("groups", [1, 3])
def test_a_strong_past_that_was_not_seen_leaves_a_gradient(groups):
    """Beside the frame, and in the first frame, logits are of things that do not exist, however large they are."""
    z, past = torch.rand(1, 3, 5, 6), torch.rand(1, 3, 5, 6)
    logits = torch.full((1, groups * 9, 5, 6), 200.0, requires_grad=True)
    strength = torch.ones(1, 1, 1, 1)
    for seen in (torch.zeros(1, 1, 5, 6), torch.ones(1, 1, 5, 6)):
        fused = spatial_fusion(z, past * seen, logits, kernel_size=3, seen=seen, strength=strength)
        assert torch.isfinite(fused).all()
        (gradient,) = torch.autograd.grad(fused.square().sum(), logits)
        assert torch.isfinite(gradient).all()
