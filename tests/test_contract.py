"""The contract of a stabilized model, DESIGN.md: nine points, for every kind of stabilizer."""

from __future__ import annotations

import copy
import gc
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from unflicker import state as states
from unflicker.checks import InputError
from unflicker.controllers import Controller
from unflicker.model import stabilize
from unflicker.stabilizers import EMA, Chain, Controlled, LearnedEMA, Spatial

close = torch.testing.assert_close


def same(a, b):
    """Equal bit for bit, NaN included, in tensors and in states."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            same(a[name], b[name])
    else:
        close(a, b, rtol=0, atol=0, equal_nan=True)


def finite(state):
    return all(torch.isfinite(value).all() for value in state.values())


# 1. State is an argument and a result.


@torch.no_grad()
def test_past_counts(build, exact_net, clip, stream):
    """The other tests mean something only if the past is used."""
    y, _ = stream(build(exact_net, clip[:, 0]), clip)
    base = exact_net(clip[:, -1])
    assert (y[:, -1] - base).abs().mean() > 0.1 * base.abs().mean()


@torch.no_grad()
def test_interleaved_streams_are_separate(build, conv_net, clip, stream):
    model = build(conv_net, clip[:1, 0])
    alone = [stream(model, clip[i : i + 1]) for i in range(2)]
    results, state = [[], []], [None, None]
    for t in range(clip.shape[1]):
        for i in range(2):
            y, state[i] = model(clip[i : i + 1, t], state[i])
            results[i].append(y)
    for i in range(2):
        same(torch.stack(results[i], 1), alone[i][0])
        same(state[i], alone[i][1])


@torch.no_grad()
def test_state_is_flat_and_is_not_changed(build, conv_net, clip):
    model = build(conv_net, clip[:, 0])
    _, state = model(clip[:, 0])
    assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items())
    assert all(value.shape[0] == clip.shape[0] for value in state.values())
    kept = copy.deepcopy(state)
    y, following = model(clip[:, 1], state)
    again, following_again = model(clip[:, 1], state)
    same(state, kept)
    same(y, again)
    same(following, following_again)


@torch.no_grad()
def test_modules_hold_weights_only(build, conv_net, clip):
    model = build(conv_net, clip[:, 0])
    weights, attributes = copy.deepcopy(model.state_dict()), {n: set(vars(m)) for n, m in model.named_modules()}
    model(clip)
    same(model.state_dict(), weights)
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}


@torch.no_grad()
def test_saved_state_goes_on(build, conv_net, clip, stream, tmp_path):
    model = build(conv_net, clip[:, 0])
    whole, _ = stream(model, clip)
    _, state = stream(model, clip[:, :2])
    states.save(state, tmp_path / "stream.safetensors")
    rest, _ = stream(model, clip[:, 2:], states.load(tmp_path / "stream.safetensors"))
    same(rest, whole[:, 2:])


@torch.no_grad()
def test_zero_state_is_a_new_video(build, conv_net, clip, stream):
    model = build(conv_net, clip[:, 0])
    y, state = stream(model, clip)
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    again, state_again = stream(model, clip, zeros)
    same(again, y)
    same(state_again, state)


@torch.no_grad()
def test_select_and_join(build, exact_net, clip, stream, tmp_path):
    model = build(exact_net, clip[:, 0])
    whole, whole_state = stream(model, clip)
    _, state = stream(model, clip[:, :2])
    parts = [states.select(state, [i]) for i in range(2)]
    same(states.join(parts), state)
    same(states.select(state, slice(1, 2)), parts[1])
    states.save(states.select(state, slice(1, 2)), tmp_path / "one")
    same(states.load(tmp_path / "one"), parts[1])
    swapped, _ = stream(model, clip[:, 2:].flip(0), states.join(parts[::-1]))
    close(swapped.flip(0), whole[:, 2:])
    alone, alone_state = stream(model, clip[1:, 2:], parts[1])
    close(alone, whole[1:, 2:])
    close(alone_state, states.select(whole_state, [1]))


@torch.no_grad()
def test_batch_of_streams_is_separate_streams(build, conv_net, exact_net, clip, stream):
    """Evidence adds up what a convolution rounds otherwise for another batch: states are compared without one."""
    for net, looks_at_state in ((conv_net, False), (exact_net, True)):
        model = build(net, clip[:1, 0])
        y, state = stream(model, clip)
        for i in range(2):
            alone, alone_state = stream(model, clip[i : i + 1])
            close(y[i : i + 1], alone, rtol=0, atol=1e-5)
            if looks_at_state:
                close(states.select(state, [i]), alone_state, rtol=0, atol=1e-5)


@torch.no_grad()
def test_reset_restarts_single_streams(build, exact_net, clip, stream):
    model = build(exact_net, clip[:, 0])
    _, state = stream(model, clip[:, :3])
    y, state = model(clip[:, 3], state, reset=torch.tensor([False, True]))
    same(y[1], exact_net(clip[:, 3])[1])
    y, state = model(clip[:, 4], state)
    unbroken, unbroken_state = stream(model, clip)
    fresh, fresh_state = stream(model, clip[:, 3:])
    same(y[0], unbroken[0, -1])
    same(y[1], fresh[1, -1])
    same(state, states.join([states.select(unbroken_state, [0]), states.select(fresh_state, [1])]))


@torch.no_grad()
def test_reset_of_single_frames_in_a_clip(build, exact_net, clip, stream):
    model = build(exact_net, clip[:, 0])
    reset = torch.tensor([[0, 0, 1, 0, 0], [1, 0, 0, 0, 1]]).bool()
    y, state = model(clip, reset=reset)
    one_by_one, state_one_by_one = stream(model, clip, reset=reset)
    same(y, one_by_one)
    same(state, state_one_by_one)
    same(y[0, :2], model(clip[:, :2])[0][0])
    same(y[0, 2:], model(clip[:, 2:])[0][0])
    same(y[1, :4], model(clip[:, :4])[0][1])
    same(y[1, 4], exact_net(clip[:, 4])[1])


@torch.no_grad()
def test_reset_as_a_bool(build, exact_net, clip):
    model = build(exact_net, clip[:, 0])
    _, state = model(clip)
    fresh = model(clip)
    for reset in (True, torch.tensor(True), torch.tensor([True, True])):
        y, following = model(clip, state, reset=reset)
        same(y, fresh[0])
        same(following, fresh[1])
    same(model(clip, state, reset=False), model(clip, state))


def test_doors(conv_net, clip):
    model = stabilize(conv_net, {"": EMA(0.5)}, example=clip[:, 0])
    _, state = model(clip)
    with pytest.raises(InputError, match=r"state holds 2 streams, but x has 1"):
        model(clip[:1], state)
    with pytest.raises(InputError, match=r"x must be frames .* got float32 \(3, 12, 10\)"):
        model(clip[0, 0])
    with pytest.raises(InputError, match=r"x must be frames .* of floats, got uint8"):
        model((clip * 255).to(torch.uint8))
    with pytest.raises(InputError, match=r"x must have 3 channels, as the example had, got float32 \(2, 4, 12, 10\)"):
        model(torch.rand(2, 4, 12, 10))
    with pytest.raises(InputError, match=r"strength must be a scalar, \(2,\) or \(2, 5\), got float32 \(3,\)"):
        model(clip, strength=torch.ones(3))
    with pytest.raises(InputError, match=r"strength must be 0 \(off\) or more, up to 1e\+06, got -1"):
        model(clip, strength=-1)
    with pytest.raises(InputError, match=r"reset must be a scalar, \(2,\) or \(2, 5\), got bool \(5,\)"):
        model(clip, reset=torch.zeros(5, dtype=torch.bool))
    with pytest.raises(InputError, match=r"guide must be shaped as x, \(2, 5, 3, 12, 10\), got float32 \(2, 3"):
        model(clip, guide=clip[:, 0])
    with pytest.raises(InputError, match=r"mask must be \(2, 5, 1, 12, 10\): one channel, else as x; got float32"):
        model(clip, mask=torch.ones(2, 1, 12, 10))


def test_state_of_another_model(conv_net, clip):
    frame = clip[:, 0]
    _, state = stabilize(copy.deepcopy(conv_net), {"": EMA(0.5)}, example=frame)(frame)
    model = stabilize(conv_net, {"encoder": EMA(0.5)}, example=frame)
    with pytest.raises(
        InputError, match="layer 'encoder' does not find its own in the state: it comes from another model"
    ):
        model(frame, state)


def test_state_of_another_kind(exact_net, clip, kind):
    if kind.name in ("ema", "learned_ema"):
        pytest.skip("what an EMA holds is the same for both")
    frame = clip[:, 0]
    _, state = stabilize(exact_net, {"": EMA(0.5)}, example=frame)(frame)
    model = stabilize(exact_net, {"": kind.make()}, example=frame)
    with pytest.raises(InputError, match="comes from another model"):
        model(frame, state)


def test_state_that_is_none_of_ours(exact_net, clip):
    model = stabilize(exact_net, {"": EMA(0.5)}, example=clip[:, 0])
    with pytest.raises(InputError, match="another model"):
        model(clip, {"hidden": torch.zeros(2, 3)})


# 2. A clip, a stream and any chunking give the same numbers.


@torch.no_grad()
def test_clip_is_stream_end_to_end(build, conv_net, clip, stream):
    model = build(conv_net, clip[:, 0])
    y, state = model(clip)
    one_by_one, state_one_by_one = stream(model, clip)
    close(y, one_by_one, rtol=0, atol=1e-5)
    close(state, state_one_by_one, rtol=0, atol=1e-5)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.booleans(), min_size=4, max_size=4))
@torch.no_grad()
def test_any_chunking_is_the_same_bit_for_bit(build, exact_net, clip, stream, cuts):
    """The base here gives the same bits whatever the batch, so that only the stabilizers are compared."""
    model = build(exact_net, clip[:, 0], ("encoder", "decoder", ""))
    chunks = [1]
    for cut in cuts:
        chunks = [*chunks, 1] if cut else [*chunks[:-1], chunks[-1] + 1]
    strength, mask = torch.rand(2, 5) * 2, (torch.rand(2, 5, 1, 12, 10) > 0.2).float()
    guide, reset = torch.rand_like(clip), torch.rand(2, 5) > 0.8
    options = {"strength": strength, "mask": mask, "guide": guide, "reset": reset}
    y, state = stream(model, clip, **options)
    chunked, chunked_state = stream(model, clip, chunks=chunks, **options)
    same(chunked, y)
    same(chunked_state, state)


# 3. Nothing changes until asked.


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("folded", [False, True], ids=["frames", "clips"])
def test_off_is_the_base_bit_for_bit(build, conv_net, clip, channels_last, folded):
    if channels_last:
        conv_net.to(memory_format=torch.channels_last)
        clip = clip.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 5))
    x = clip if folded else clip[:, 0]

    def base(x):
        return conv_net(x.flatten(0, 1)).unflatten(0, (2, 5)) if folded else conv_net(x)

    model = build(conv_net, clip[:, 0])
    _, state = model(x)
    same(model(x, state, strength=0)[0], base(x))
    same(model(x, state, strength=torch.zeros(2))[0], base(x))
    with model.disabled():
        same(model(x, state)[0], base(x))
    if folded:
        same(model(x, reset=torch.ones(2, 5).bool())[0], base(x))
        same(model(x)[0][:, 0], base(x)[:, 0])
    else:
        same(model(x)[0], base(x))
        same(model(x, state, reset=True)[0], base(x))
    assert not torch.equal(model(x.flip(0), state)[0], base(x.flip(0)))


@torch.no_grad()
@pytest.mark.parametrize("net", ["token_net", "vector_net", "plane_net"])
def test_off_is_the_base_in_other_layouts(request, net, clip):
    base = request.getfixturevalue(net)
    layers = {"token_net": ["block", ""], "vector_net": ["hidden", ""], "plane_net": ["conv", ""]}[net]
    model = stabilize(base, {name: EMA(0.5) for name in layers}, example=clip[:, 0])
    expected = base(clip.flatten(0, 1)).unflatten(0, (2, 5))
    same(model(clip, strength=0)[0], expected)
    same(model(clip)[0][:, 0], expected[:, 0])
    same(model(clip[:, 0])[0], base(clip[:, 0]))


@torch.no_grad()
def test_one_channel_in_channels_last(clip):
    base = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1))
    base.to(memory_format=torch.channels_last)
    model = stabilize(base, {"*": EMA(0.5)}, example=clip[:, 0])
    x = clip[:, 0].contiguous(memory_format=torch.channels_last)
    same(model(x)[0], base(x))
    same(model(clip, strength=0)[0].flatten(0, 1), base(clip.flatten(0, 1)))


@torch.no_grad()
def test_strength_of_one_stream_and_one_frame(build, exact_net, clip):
    model = build(exact_net, clip[:, 0])
    base = exact_net(clip.flatten(0, 1)).unflatten(0, (2, 5))
    y, _ = model(clip, strength=torch.tensor([0.0, 1.0]))
    same(y[0], base[0])
    same(y[1], model(clip)[0][1])
    y, _ = model(clip, strength=torch.tensor([1.0, 1, 1, 0, 1]).expand(2, 5))
    same(y[:, 3], base[:, 3])
    assert not torch.equal(y[:, 4], base[:, 4])


@torch.no_grad()
def test_disabled_starts_afresh_and_nests(build, exact_net, clip):
    model = build(exact_net, clip[:, 0])
    base = exact_net(clip[:, 1])
    _, state = model(clip[:, 0])
    with model.disabled():
        with model.disabled():
            pass
        y, state = model(clip[:, 1], state)
        same(y, base)
    same(model(clip[:, 1], state)[0], base)


# 4. The base model is never owned.


@torch.no_grad()
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_base_is_untouched(build, conv_net, clip, memory_format):
    conv_net.to(memory_format=memory_format).eval()
    before, alone = copy.deepcopy(conv_net.state_dict()), conv_net(clip[:, 0])
    model = build(conv_net, clip[:, 0])
    model(clip)
    assert model.base is conv_net
    after = conv_net.state_dict()
    same(after, before)
    assert all(after[name].stride() == before[name].stride() for name in before)
    same(conv_net(clip[:, 0]), alone)
    same(model.remove()(clip[:, 0]), alone)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in conv_net.modules())


@torch.no_grad()
def test_two_models_over_one_base(build, kind, conv_net, clip, make_lively):
    first = build(conv_net, clip[:, 0])
    y, state = first(clip)
    second = make_lively(stabilize(conv_net, {"decoder": Spatial(3, hidden=4), "in:act": EMA(0.5)}, example=clip[:, 0]))
    other, _ = second(clip)
    same(first(clip)[0], y)
    same(first(clip)[1], state)
    copied = copy.deepcopy(first)
    first.remove()
    same(second(clip)[0], other)
    same(copied(clip)[0], y)


@torch.no_grad()
def test_selectors_put_back_what_the_base_returns(entries_net, clip):
    """One entry is stabilized, the others and the container are the base's, at a layer and at the output."""
    base, selector = entries_net
    expected = base(clip[:, 1])
    kept = base(clip[:, 0])
    for place in ("both", ""):
        model = stabilize(base, {f"{place}::{selector}": EMA(0.5)}, example=clip[:, 0])
        _, state = model(clip[:, 0])
        y, _ = model(clip[:, 1], state)
        clips, _ = model(clip)
        assert type(y) is type(expected) is type(clips)
        values, clip_values, base_values, first = (
            list(each.values()) if isinstance(each, dict) else list(each) for each in (y, clips, expected, kept)
        )
        close(values[0], (first[0] + base_values[0]) / 2)
        same(values[1], base_values[1])
        assert len(values) == 2 and (not isinstance(y, dict) or y.keys() == expected.keys())
        close(clip_values[0][:, 1], values[0])
        close(clip_values[1][:, 1], values[1])
        if hasattr(expected, "depth"):
            same(y.depth, values[0])


@torch.no_grad()
def test_inputs_can_be_stabilized(exact_net, clip):
    """Averaging before or after a linear map is the same."""
    results = []
    for place in ("in:", "encoder", "in:decoder", "decoder", ""):
        model = stabilize(exact_net, {place: EMA(0.5)}, example=clip[:, 0])
        results.append(model(clip)[0])
        model.remove()
    for result in results[1:]:
        close(result, results[0])


@torch.no_grad()
def test_input_by_keyword(clip):
    class Add(nn.Module):
        def forward(self, x, *, other):
            return x + other

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.add = Add()

        def forward(self, x):
            return self.add(x * 0, other=x)

    base = Net()
    model = stabilize(base, {"in:add::other": EMA(0.5)}, example=clip[:, 0])
    close(model(clip[:, :2])[0][:, 1], clip[:, :2].mean(1))
    with pytest.raises(InputError, match="without an entry 'another'"):
        stabilize(base, {"in:add::another": EMA(0.5)}, example=clip[:, 0])


@pytest.mark.parametrize(
    "plan",
    [
        {"encoder": EMA(0.5), "decodr": EMA(0.5)},
        {"encoder": EMA(0.5), "norm::0": Spatial()},
        {"": Spatial(3, groups=2)},
        {"": EMA(0.1, layout="tokens")},
    ],
)
def test_nothing_changed_after_a_failure(norm_net, clip, plan):
    norm_net.norm.eval()
    norm_net.encoder.weight.requires_grad_(False)
    before = copy.deepcopy(norm_net.state_dict())

    def status():
        return (
            [m.training for m in norm_net.modules()],
            [p.requires_grad for p in norm_net.parameters()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in norm_net.modules()],
        )

    expected = status()
    with pytest.raises(InputError):
        stabilize(norm_net, plan, example=clip[:, 0])
    assert status() == expected
    same(norm_net.state_dict(), before)


def test_nothing_changed_when_the_base_itself_fails(norm_net):
    with pytest.raises(RuntimeError):
        stabilize(norm_net, {"": EMA(0.5)}, example=torch.rand(1, 4, 8, 8))
    assert all(m.training and not m._forward_hooks for m in norm_net.modules())
    assert all(p.requires_grad for p in norm_net.parameters())


@torch.no_grad()
def test_a_failed_frame_leaves_the_hooks_idle(build, conv_net, clip):
    model = build(conv_net, clip[:, 0])
    alone = conv_net(clip[:, 0])
    with pytest.raises(RuntimeError):
        model(clip[:, 0].double())
    same(conv_net(clip[:, 0]), alone)
    same(model(clip[:, 0])[0], alone)


@torch.no_grad()
@pytest.mark.parametrize("outer", [EMA(0.5), Chain(EMA(0.5), EMA(0.25))], ids=["ema", "chain"])
def test_a_layer_and_a_layer_inside_it(clip, outer):
    """The states of `body` and `body.0` are kept apart, whatever `body` holds."""
    base = nn.Sequential()
    base.body = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1))
    expected = None
    for plan in ({"body": outer, "body.0": EMA(0.75)}, {"": outer, "body.0": EMA(0.75)}):
        model = stabilize(base, plan, example=clip[:, 0])
        state, results = None, []
        for t in range(clip.shape[1]):
            y, state = model(clip[:, t], state)
            results.append(y)
        expected = results if expected is None else expected
        model.remove()
    same(torch.stack(results), torch.stack(expected))


# 5. One dial.


def weight_of_the_past(model, strength):
    """A network that returns its input sees a small step, which nothing takes for a change: what is missing of it."""
    before, step = torch.zeros(2, 3, 12, 10, dtype=torch.float64), 0.0005
    frames = torch.stack([before, before + step], 1)
    with torch.no_grad():
        y, _ = model(frames, strength=strength, guide=torch.stack([before, before], 1))
    return 1 - (y[:, 1] - before) / step


def test_strength_multiplies_the_odds(build, kind):
    model = build(nn.Identity(), torch.rand(1, 3, 12, 10, dtype=torch.float64), ("",))
    one = weight_of_the_past(model, 1.0)
    assert 0.2 < one.mean() < 0.8
    assert weight_of_the_past(model, 0.0).count_nonzero() == 0
    weights = [weight_of_the_past(model, s) for s in (0.25, 0.5, 1.0, 2.0, 8.0)]
    assert all((low < high).all() for low, high in pairwise(weights))
    if kind.name != "chain" and "learned" not in kind.name and "recover" not in kind.name:  # the past is not all
        for strength in (0.25, 2.0, 8.0):
            odds = strength * one / (1 - one)
            close(weight_of_the_past(model, strength), odds / (1 + odds))


@torch.no_grad()
def test_ema_in_closed_form(clip):
    strength = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])
    model = stabilize(nn.Identity(), {"": EMA(0.3)}, example=clip[:, 0])
    y, _ = model(clip, strength=strength.expand(2, 5))
    past = clip[:, 0]
    for t in range(1, 5):
        decay = 0.3 * strength[t] / (0.7 + 0.3 * strength[t])
        past = decay * past + (1 - decay) * clip[:, t]
        close(y[:, t], past)


@torch.no_grad()
def test_strength_can_change_on_every_frame(build, exact_net, clip, stream):
    model = build(exact_net, clip[:, 0])
    strength = torch.tensor([[1.0, 2, 0, 1, 4], [1, 0.5, 1, 3, 0]])
    y, _ = model(clip, strength=strength)
    state = None
    for t in range(5):
        frame, state = model(clip[:, t], state, strength=strength[:, t])
        same(frame, y[:, t])
    scalar, _ = model(clip[:, :2], strength=2.0)
    tensor, _ = model(clip[:, :2], strength=torch.tensor(2))
    same(scalar, tensor)
    close(scalar[:, 1], model(clip[:, :2], strength=torch.tensor([[1.0, 2], [1, 2]]))[0][:, 1])


# 6. A bad frame cannot poison a stream.

BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])


@BAD
@torch.no_grad()
def test_bad_pixels_at_the_start(build, exact_net, clip, bad):
    model = build(exact_net, clip[:, 0])
    clip[:, 0, 1, 2:5, 3:6] = bad
    y, state = model(clip[:, 0])
    same(y, exact_net(clip[:, 0]))
    assert finite(state)
    y, state = model(clip[:, 1], state)
    base = exact_net(clip[:, 1])
    same(y[..., 2:5, 3:6], base[..., 2:5, 3:6])  # first seen now
    assert not torch.equal(y, base) and torch.isfinite(y).all() and finite(state)
    y, state = model(clip[:, 2], state)
    assert torch.isfinite(y).all() and not torch.equal(y[..., 2:5, 3:6], exact_net(clip[:, 2])[..., 2:5, 3:6])


@BAD
@torch.no_grad()
def test_whole_bad_frames_at_the_start(build, conv_net, clip, bad):
    model = build(conv_net, clip[:, 0])
    clip[1, :2] = bad
    y, state = model(clip[:, :2])
    same(y[1], conv_net(clip[:, :2].flatten(0, 1)).unflatten(0, (2, 2))[1])
    assert finite(state)
    y, state = model(clip[:, 2], state)
    same(y[1], conv_net(clip[:, 2])[1])
    y, state = model(clip[:, 3], state)
    assert torch.isfinite(y).all() and finite(state)


@BAD
@torch.no_grad()
def test_bad_values_later_are_stood_in_for(build, conv_net, clip, bad):
    model = build(conv_net, clip[:, 0])
    clip[0, 1, :, 4:6] = bad  # spreads to neighbours in the convolutions
    clip[1, 2:4] = bad
    state = None
    for t in range(5):
        y, state = model(clip[:, t], state)
        assert torch.isfinite(y).all() and finite(state)
    folded, folded_state = model(clip)
    assert torch.isfinite(folded).all() and finite(folded_state)


@torch.no_grad()
def test_bad_values_do_not_reach_other_streams(build, exact_net, clip):
    model = build(exact_net, clip[:, 0])
    expected, _ = model(clip)
    clip[1, 1:] = float("nan")
    same(model(clip)[0][0], expected[0])


@torch.no_grad()
def test_a_bad_layer_output(build, exact_net, clip):
    """The input is fine, a layer overflows."""
    model = build(exact_net, clip[:, 0])
    overflow = torch.zeros(2, 6, 12, 10)
    handle = exact_net.decoder.register_forward_hook(lambda m, args, z: z / overflow[..., : z.shape[-1]])
    overflow[:] = 1
    _, state = model(clip[:, 0])
    overflow[..., 3:] = 0
    y, state = model(clip[:, 1], state)
    assert torch.isfinite(y).all() and finite(state)
    handle.remove()


@torch.no_grad()
def test_strength_zero_passes_on_what_the_base_gives(build, exact_net, clip):
    model = build(exact_net, clip[:, 0])
    _, state = model(clip[:, 0])
    clip[0, 1, :, 3:5] = float("nan")
    y, following = model(clip[:, 1], state, strength=0)
    same(y, exact_net(clip[:, 1]))
    assert finite(following)


@torch.no_grad()
def test_mask(build, exact_net, clip):
    """What lies under the mask makes no difference; at the start it is passed on and not remembered."""
    model = build(exact_net, clip[:, 0])
    mask = torch.ones(2, 5, 1, 12, 10)
    mask[0, 2:4, :, 3:9, 2:8] = 0
    garbage = torch.where(mask > 0, clip, 7.0)
    y, state = model(clip, mask=mask)
    other, other_state = model(garbage, mask=mask)
    same(y, other)
    same(state, other_state)
    same(y[1], model(clip)[0][1])
    assert not torch.equal(y[0, 2], model(clip)[0][0, 2])
    y, state = model(clip[:, 2], mask=mask[:, 2].bool())
    same(y, exact_net(clip[:, 2]))
    y, _ = model(clip[:, 4], state)
    hole = (0, slice(None), slice(3, 9), slice(2, 8))
    same(y[hole], exact_net(clip[:, 4])[hole])


@torch.no_grad()
def test_guide_replaces_the_frames(build, kind, exact_net, clip):
    """It replaces them for the controllers and for what is aligned, and for nothing else."""
    model = build(exact_net, clip[:, 0])
    y, _ = model(clip)
    same(model(clip, guide=clip)[0], y)
    guided, _ = model(clip, guide=clip.flip(4) * 3)
    # What is merged asks it for nothing but what did not arrive.
    looks = any(each.uses_guide and each.kind != "merged" for each in model.stabilizers.values())
    listens = bool(model.controllers) or looks
    assert torch.equal(guided, y) == (not listens)


@torch.no_grad()
def test_change_of_size_is_a_new_video(build, conv_net, clip):
    model = build(conv_net, clip[:, 0])
    _, state = model(clip)
    for smaller in (clip[..., :8, :], clip.transpose(3, 4)):
        y, following = model(smaller, state)
        fresh, fresh_following = model(smaller)
        same(y, fresh)
        same(following, fresh_following)


@torch.no_grad()
@pytest.mark.parametrize("value", [1e38, 3.4e38])
def test_values_at_the_end_of_the_range(build, clip, value):
    model = build(nn.Identity(), clip[:, 0], ("",))
    clip[:, 1:3] = value
    clip[:, 2, :, ::2] *= -1
    state = None
    for t in range(5):
        y, state = model(clip[:, t], state)
        assert torch.isfinite(y).all() and finite(state)


# 7. Only the stabilizers and their controller train.


def test_gradients_reach_every_added_weight(build, conv_net, clip):
    model = build(conv_net, clip[:, 0]).train()
    y, _ = model(clip[:, :4])
    added = [*model.stabilizers.named_parameters(), *model.controllers.named_parameters()]
    if not added:
        assert not y.requires_grad
        return
    y.square().mean().backward()
    for name, parameter in added:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert all(p.grad is None for p in conv_net.parameters())


def test_only_what_was_added_trains(build, norm_net, clip):
    model = build(norm_net, clip[:, 0]).train()
    assert not any(p.requires_grad for p in norm_net.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == sum(1 for module in (model.stabilizers, model.controllers) for _ in module.parameters())
    if not trained:
        return
    base, before = copy.deepcopy(norm_net.state_dict()), [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    model(clip)[0].square().mean().backward()
    optimizer.step()
    same(norm_net.state_dict(), base)
    assert all(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))


def test_train_keeps_the_base_in_evaluation(build, norm_net, clip):
    model = build(norm_net, clip[:, 0])
    assert model.train() is model
    assert model.training and model.stabilizers.training and not any(m.training for m in norm_net.modules())
    same(model(clip[:, 0])[0], model(clip[:, 0])[0])  # no dropout
    model.unfreeze()
    assert all(m.training for m in norm_net.modules()) and all(p.requires_grad for p in norm_net.parameters())
    model.eval()
    assert not any(m.training for m in model.modules())
    model.train()
    assert norm_net.drop.training


def test_a_summary_changes_nothing(norm_net, clip):
    model = stabilize(norm_net, {"": LearnedEMA()}, example=clip[:, 0])
    model.unfreeze()
    before = copy.deepcopy(norm_net.state_dict())
    assert "NormNet" in model.summary()
    same(norm_net.state_dict(), before)
    assert norm_net.training


def test_in_place_operations_after_a_layer(build, conv_net, clip):
    """An in-place ReLU follows `encoder`: neither the state nor the gradients may see it."""
    out_of_place = copy.deepcopy(conv_net)
    out_of_place.act.inplace = False
    model, reference = build(conv_net, clip[:, 0]), build(out_of_place, clip[:, 0])
    reference.load_state_dict(model.state_dict())
    (y, state), (expected, expected_state) = model(clip), reference(clip)
    same(y.detach(), expected.detach())
    same(states.detach(state), states.detach(expected_state))
    if y.requires_grad:
        y.square().sum().backward()
        expected.square().sum().backward()
        gradients, references = ([p.grad for p in m.parameters() if p.requires_grad] for m in (model, reference))
        close(gradients, references)


def test_a_bad_frame_does_not_poison_the_gradients(build, conv_net, clip):
    model = build(conv_net, clip[:, 0]).train()
    clip[0, 2, :, 4:6] = float("nan")
    clip[1, 3] = float("inf")
    y, _ = model(clip)
    if y.requires_grad:
        y.square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_truncated_backpropagation(build, conv_net, clip):
    model = build(conv_net, clip[:, 0])
    _, state = model(clip[:, :2])
    y, following = model(clip[:, 2:], states.detach(state))
    assert not any(value.requires_grad for value in states.detach(following).values())
    if y.requires_grad:
        y.sum().backward()
        y, _ = model(clip[:, 2:], states.detach(following))
        y.sum().backward()


# 8. Copies, pickles, graphs.


@torch.no_grad()
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_are_independent(build, clip, way):
    base = nn.Sequential()
    base.encoder, base.act, base.decoder = nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 3, 3)
    model = build(base, clip[:, 0], ("encoder", "in:decoder", ""))
    y, state = model(clip)
    other = way(model)
    same(other(clip)[0], y)
    same(other(clip)[1], state)
    for parameter in other.parameters():
        parameter.zero_()
    other(clip)
    same(model(clip)[0], y)
    assert other.base is not base and not set(map(id, other.parameters())) & set(map(id, model.parameters()))
    del model
    assert not other(clip[:, 0])[0].any()  # its hooks work on itself: all its weights are zero


@torch.no_grad()
def test_compiles_to_one_graph(own_kind, conv_net, clip, make_lively, stream):
    torch._dynamo.reset()
    clip = clip[:1, :3]
    model = make_lively(stabilize(conv_net, {own_kind.layer: own_kind.make()}, example=clip[:, 0]))
    expected, expected_state = stream(model, clip)
    _, state = model(clip[:, 0])
    fresh = {name: torch.zeros_like(value) for name, value in state.items()}
    y, following = stream(torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False), clip, fresh)
    close(y, expected, rtol=0, atol=1e-5)
    close(following, expected_state, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_with_inductor(conv_net, clip, make_lively, stream):
    torch._dynamo.reset()
    plan = {"encoder": Spatial(3, hidden=8), "": Controlled(hidden=8)}
    model = make_lively(stabilize(conv_net, plan, example=clip[:, 0]))
    expected, _ = stream(model, clip)
    y, _ = stream(torch.compile(model, fullgraph=True), clip)
    close(y, expected, rtol=0, atol=1e-5)


# 9. Memory does not grow with the length of the video.


@torch.no_grad()
def test_memory_does_not_grow(build, conv_net):
    frame = torch.rand(1, 3, 6, 6)
    model = build(conv_net, frame)
    gc.freeze()  # what exists already is not looked at again

    def alive():
        gc.collect()
        return sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))

    state, sizes, tensors = None, [], {}
    for t in range(50):
        _, state = model(frame * (t % 3), state)
        sizes.append(sum(value.numel() * value.element_size() for value in state.values()))
        if t in (10, 40):
            tensors[t] = alive()
    gc.unfreeze()
    assert len(set(sizes)) == 1
    assert tensors[10] == tensors[40]


# Beside the nine points.


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_other_precisions(build, conv_net, clip, dtype, stream):
    conv_net, clip = conv_net.to(dtype), clip.to(dtype)
    model = build(conv_net, clip[:, 0])
    y, state = stream(model, clip)
    # Evidence and the guide are counted in float32 at least; all else is as the layer.
    counts = any(name.endswith("/evidence") for name in state)
    counted = torch.promote_types(dtype, torch.float32) if counts else dtype
    assert y.dtype == dtype
    for name, value in state.items():
        of_the_layer = name == "size" or (name.endswith("/past") and name != "guide/past")
        assert value.dtype == (dtype if of_the_layer else counted), name
    same(y[:, 0], conv_net(clip[:, 0]))
    single = copy.deepcopy(model).float()
    tolerance = 1e-5 if dtype == torch.float64 else 0.05
    close(y.float(), stream(single, clip.float())[0], rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_chain_members_listen_to_their_own_controllers(exact_net, clip, make_lively):
    plan = {"": Chain(Controlled(hidden=4, feature_inputs=False), Controlled(hidden=4, feature_inputs=False))}
    controllers = (Controller(4, depth=1), Controller(6, depth=2, downscale=2))
    model = make_lively(stabilize(exact_net, plan, controller=controllers, example=clip[:, 0]))
    assert [member.head[0].in_channels for member in model.stabilizers["output"].members] == [4, 6]
    y, _ = model(clip)
    model.controllers[0].layers[0].bias.add_(1)
    first, _ = model(clip)
    model.controllers[0].layers[0].bias.sub_(1)
    model.controllers[1].layers[0].bias.add_(1)
    second, _ = model(clip)
    assert not torch.equal(y, first) and not torch.equal(y, second)
    rows = [line.split()[-1] for line in model.summary().splitlines() if line.lstrip().startswith("controller")]
    assert rows == [f"{sum(p.numel() for p in each.parameters()):,}" for each in model.controllers]


# What a fresh reading of the code found.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"reset": [False, False]}, "reset must be a bool or a tensor of them, got list"),
        ({"strength": [1.0, 2.0]}, "strength must be a number or a tensor, got list"),
        ({"strength": torch.tensor(float("inf"))}, r"strength must be 0 \(off\) or more, up to 1e\+06, got inf"),
        ({"strength": float("nan")}, r"strength must be 0 \(off\) or more, up to 1e\+06, got nan"),
    ],
)
def test_words_of_wrong_arguments(conv_net, clip, arguments, words):
    model = stabilize(conv_net, {"": EMA(0.5)}, example=clip[:, 0])
    with pytest.raises(InputError, match=words):
        model(clip, **arguments)


def test_a_saturated_decay_has_a_gradient():
    model = stabilize(nn.Identity(), {"": LearnedEMA(60.0)}, example=torch.zeros(1, 3, 4, 4))
    y, _ = model(torch.rand(1, 3, 3, 4, 4), strength=0.0)
    y.sum().backward()
    assert torch.isfinite(model.stabilizers["output"].logit.grad).all()


def test_as_many_controllers_as_a_chain_has_members(conv_net, clip):
    two = (Controller(4), Controller(4))
    chain = Chain(Spatial(3, hidden=4, feature_inputs=False), Spatial(3, hidden=4, feature_inputs=False))
    model = stabilize(conv_net, {"": chain}, controller=two, example=clip[:, 0])
    y, _ = model(clip)
    y.sum().backward()
    assert all(p.grad is not None for controller in model.controllers for p in controller.parameters())
    with pytest.raises(InputError, match=r"2 controllers are for Chains of 2 members, one each; .* Spatial as well"):
        stabilize(conv_net, {"": Spatial(3)}, controller=two, example=clip[:, 0])


def test_printing_runs_the_network_once_at_most(conv_net, clip):
    model = stabilize(conv_net, {"": EMA(0.5)}, example=clip[:, 0])
    text, calls = str(model), []
    conv_net.register_forward_hook(lambda *_: calls.append(1))
    assert str(model) == text and not calls


def test_a_dict_output_compiles_whole(dict_net, clip):
    torch._dynamo.reset()
    model = stabilize(dict_net, {"::depth": EMA(0.5)}, example=clip[:, 0])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(clip[:, 0])[0]["depth"], model(clip[:, 0])[0]["depth"])


def test_one_forward_pass_at_a_time(clip):
    class Reentrant(nn.Module):
        def forward(self, x):
            model(x)
            return x

    net = nn.Sequential(nn.Identity())
    model = stabilize(net, {"": EMA(0.5)}, example=clip[:, 0])
    net[0] = Reentrant()
    with pytest.raises(InputError, match=r"in a forward pass already; give every thread a copy.deepcopy"):
        model(clip)
    with pytest.raises(InputError, match=r"x must be a tensor .* got list"):
        model([1.0])
