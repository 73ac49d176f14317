"""Which layers a plan means, and the words when it means none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unflicker.checks import InputError, nearest
from unflicker.controllers import Controller
from unflicker.layers import find, freeze, is_glob, map_tensors, match, parse, pick, put
from unflicker.model import stabilize
from unflicker.stabilizers import EMA, Chain, Controlled, Gaussian, LearnedEMA, Spatial

NAMES = ["", "a", "a.0", "a.0.conv", "a.1", "a.10.conv", "b", "b.conv1", "b.conv2", "conv"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a", "b", "conv"]),
        ("**", NAMES[1:]),
        ("a.*", ["a.0", "a.1"]),
        ("a.**", ["a", "a.0", "a.0.conv", "a.1", "a.10.conv"]),
        ("**.conv", ["a.0.conv", "a.10.conv", "conv"]),
        ("*.*.conv", ["a.0.conv", "a.10.conv"]),
        ("a.**.conv", ["a.0.conv", "a.10.conv"]),
        ("a.1*", ["a.1"]),
        ("a.1*.conv", ["a.10.conv"]),
        ("b.conv*", ["b.conv1", "b.conv2"]),
        ("**.conv*", ["a.0.conv", "a.10.conv", "b.conv1", "b.conv2", "conv"]),
        ("*.conv", []),
        ("b.con.1*", []),
    ],
)
def test_globs(pattern, expected):
    assert is_glob(pattern)
    assert match(pattern, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "parts", "key"),
    [
        ("", ("", False, ""), "output"),
        ("::0", ("", False, "0"), "output::0"),
        ("::depth", ("", False, "depth"), "output::depth"),
        ("in:", ("", True, ""), "input"),
        ("a.0", ("a.0", False, ""), "out:a.0"),
        ("a.0::feat", ("a.0", False, "feat"), "out:a.0::feat"),
        ("in:a.0", ("a.0", True, ""), "in:a.0"),
        ("in:a.0::mask", ("a.0", True, "mask"), "in:a.0::mask"),
        ("in:a.*::1", ("a.*", True, "1"), "in:a.*::1"),
    ],
)
def test_addresses_are_read_and_written(text, parts, key):
    address = parse(text)
    assert tuple(address) == parts and address.key == key and str(address) == text
    assert not is_glob(address.layer) or "*" in text


def test_nearest_names():
    assert nearest("decodr", ["encoder", "decoder"]) == "did you mean 'decoder'?"
    assert nearest("xyz", ["encoder", "decoder"]) == "there is 'encoder', 'decoder'."
    assert nearest("xyz", [str(i) for i in range(20)]).endswith("'10', '11', ....")
    assert nearest("xyz", []) == "there are none."


def test_find_suggests_the_nearest_layer(conv_net):
    assert find(conv_net, "encoder") == ["encoder"]
    assert find(conv_net, "*coder") == ["encoder", "decoder"]
    with pytest.raises(InputError, match="no layer 'decodr'; did you mean 'decoder'"):
        find(conv_net, "decodr")
    with pytest.raises(InputError, match=r"no layer 'blocks\.\*'; there is 'encoder', 'act', 'decoder'"):
        find(conv_net, "blocks.*")


def test_pick_and_put(entries_net):
    base, selector = entries_net
    value = base.both.wrap(torch.ones(1), torch.zeros(1))
    kept = copy.copy(value)
    assert pick(value, selector, "It").item() == 1
    changed = put(value, selector, torch.full((1,), 5.0))
    assert type(changed) is type(value) and len(changed) == 2
    assert pick(changed, selector, "It").item() == 5 and pick(value, selector, "It").item() == 1
    assert value == kept


@pytest.mark.parametrize(
    ("value", "selector", "words"),
    [
        ((torch.ones(1), 2, torch.ones(1)), "", r'It is a tuple, not a tensor; say which .* "...::0" or "...::2"'),
        ({"a": torch.ones(1), "b": 3}, "", r'It is a dict, not a tensor; .*as in "...::a"\.'),
        ({"a": torch.ones(1)}, "b", r"It is a dict without an entry 'b', as in \"...::a\""),
        ((torch.ones(1),), "3", "It is a tuple without an entry '3'"),
        ((torch.ones(1),), "depth", "It is a tuple without an entry 'depth'"),
        (torch.ones(1), "depth", "It is a Tensor without an entry 'depth'"),
        ((torch.ones(1), None), "1", "Entry '1' of it is nothing, not a tensor"),
        (({},), "0", "Entry '0' of it is a dict, not a tensor"),
        (None, "", "It is nothing, not a tensor"),
    ],
)
def test_words_of_pick(value, selector, words):
    with pytest.raises(InputError, match=words):
        pick(value, selector, "It")


def test_map_tensors_keeps_containers(entries_net):
    base, _ = entries_net
    value = {"x": [base.both.wrap(torch.ones(1), torch.zeros(1)), None, "text"]}
    mapped = map_tensors(lambda t: t + 1, value)
    entry = mapped["x"][0]
    assert type(entry) is type(value["x"][0]) and mapped["x"][1:] == [None, "text"]
    values = list(entry.values() if isinstance(entry, dict) else entry)
    assert [v.item() for v in values] == [2, 1]
    first = value["x"][0]
    assert [v.item() for v in (first.values() if isinstance(first, dict) else first)] == [1, 0]


def test_freeze(norm_net):
    freeze(norm_net)
    assert not any(m.training for m in norm_net.modules()) and not any(p.requires_grad for p in norm_net.parameters())


# What a plan means.


def kinds(model):
    return {
        str(place.address): type(model.stabilizers[key.replace(".", "/")]).__name__
        for key, place in model.places.items()
    }


def test_a_full_name_beats_a_glob_and_a_later_glob_an_earlier_one(conv_net, clip):
    plan = {"decoder": Gaussian(3), "**": EMA(0.1), "*coder": LearnedEMA(), "act": None}
    assert kinds(stabilize(conv_net, plan, example=clip[:, 0])) == {"encoder": "LearnedEMA", "decoder": "Gaussian"}


def test_each_layer_has_weights_of_its_own(conv_net, clip):
    template = LearnedEMA()
    model = stabilize(conv_net, {"*coder": template, "": template}, example=clip[:, 0])
    model.stabilizers["out:encoder"].logit.data.zero_()
    assert [s.logit.numel() for s in model.stabilizers.values()] == [6, 3, 3]
    assert model.stabilizers["out:decoder"].logit.mean().item() == -4
    assert not hasattr(template, "logit")


def test_sites_are_in_the_order_they_run(conv_net, clip):
    plan = {"": EMA(0.1), "decoder": EMA(0.1), "in:decoder": EMA(0.1), "encoder": EMA(0.1), "in:": EMA(0.1)}
    model = stabilize(conv_net, plan, example=clip[:, 0])
    assert list(kinds(model)) == ["in:", "encoder", "in:decoder", "decoder", ""]


def test_a_layer_that_passes_on_what_another_returned_is_left_out_of_a_glob(clip):
    base = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity()), nn.Dropout(), nn.Conv2d(4, 3, 1))
    assert list(kinds(stabilize(base, {"**": EMA(0.1)}, example=clip[:, 0]))) == ["0.0", "2"]
    assert list(kinds(stabilize(base, {"0": EMA(0.1), "**": EMA(0.2)}, example=clip[:, 0]))) == ["0.0", "0", "2"]


class Odd(nn.Module):
    """Layers that cannot be stabilized, beside some that can."""

    def __init__(self):
        super().__init__()
        self.good = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.never = nn.Conv2d(4, 4, 1)
        self.pair = Pairs()
        self.indices = Indices()
        self.fold = Fold()
        self.count = Count()
        self.many = nn.ModuleList([nn.Conv2d(4, 4, 1)])

    def forward(self, x):
        z = self.twice(self.twice(self.good(x)))
        a, b = self.pair(z)
        self.indices(z), self.fold(z), self.count(z)
        return self.many[0](a + b)


class Pairs(nn.Module):
    def forward(self, z):
        return z, z * 2


class Indices(nn.Module):
    def forward(self, z):
        return z.argmax(1)


class Fold(nn.Module):
    def forward(self, z):
        return z.flatten(0, 1)


class Count(nn.Module):
    def forward(self, z):
        return z.mean()


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("twice", "The output of layer 'twice' runs more than once in a forward pass; stabilize a layer around it"),
        ("in:twice", "The input of layer 'twice' runs more than once in a forward pass"),
        ("never", "The output of layer 'never' never runs when the network is called; take it out of the plan"),
        ("many", "The output of layer 'many' never runs"),
        ("pair", r'The output of layer \'pair\' is a tuple, not a tensor; .*as in "...::0" or "...::1"'),
        ("pair::2", "The output of layer 'pair' is a tuple without an entry '2'"),
        ("indices", r"The output of layer 'indices' gives int64 \(2, 12, 10\); stabilizers take floats \(B, C, H, W\)"),
        ("fold", r"layer 'fold' gives float32 \(8, 12, 10\) for 2 frames: it folds something into the batch"),
        ("count", r"layer 'count' gives float32 \(\); stabilizers take floats"),
        ("::0", "The network's output is a Tensor without an entry"),
        ("::depth", "The network's output is a Tensor without an entry 'depth'"),
        ("gud", "The network has no layer 'gud'; did you mean 'good'"),
        ("zzz.*", r"The network has no layer 'zzz\.\*'; there is 'good', 'twice'"),
    ],
)
def test_words_of_a_layer_named_in_full(layer, words, clip):
    with pytest.raises(InputError, match=words):
        stabilize(Odd(), {layer: EMA(0.1)}, example=clip[:, 0])


def test_a_glob_leaves_out_what_cannot_be_stabilized(clip):
    with pytest.warns(UserWarning, match="Left out of the plan") as caught:
        model = stabilize(Odd(), {"**": EMA(0.1)}, example=clip[:, 0])
    assert list(kinds(model)) == ["good", "many.0"]
    (warning,) = caught
    for name in ("twice", "never", "pair", "indices", "fold", "count"):
        assert f"layer '{name}'" in str(warning.message)
    assert "many" not in str(warning.message)
    assert warning.filename == __file__
    _, state = model(clip[:, 0])
    model(clip[:, 1], state)


def test_a_glob_over_inputs_leaves_out_what_cannot_be_stabilized(clip):
    class Keyword(nn.Module):
        def forward(self, *, z):
            return z

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.keyword = nn.Conv2d(3, 4, 1), Keyword()

        def forward(self, x):
            return self.keyword(z=self.conv(x))

    with pytest.warns(UserWarning, match="Left out of the plan: The input of layer 'keyword'"):
        model = stabilize(Net(), {"in:*": EMA(0.1)}, example=clip[:, 0])
    assert list(kinds(model)) == ["in:conv"]


def test_a_glob_that_finds_nothing_usable(clip):
    base = nn.Sequential(Indices())
    with pytest.raises(InputError, match="layer '0' gives int64"):
        stabilize(base, {"*": EMA(0.1)}, example=clip[:, 0])
    with pytest.raises(InputError, match="matches only containers that never run"):
        stabilize(Odd(), {"man*": EMA(0.1)}, example=clip[:, 0])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({}, r'as \{"": EMA\(0.1\)\} does for the output; got an empty one'),
        (EMA(0.1), "got EMA"),
        ({"": Spatial}, r"The plan gives the class Spatial for ''; write Spatial\(\)"),
        ({"act": 0.5}, "The plan gives float for 'act'; it must be a stabilizer or None"),
        ({"": EMA(0.1, layout="tokens")}, r"float32 \(2, 3, 12, 10\), which is no tokens: that has 3 axes"),
    ],
)
@pytest.mark.parametrize("controller", [None, Controller()], ids=["", "controller"])
def test_words_of_a_wrong_plan(plan, words, controller, conv_net, clip):
    if controller is not None and not (
        isinstance(plan, dict) and any(template in (Spatial, 0.5) for template in plan.values())
    ):
        pytest.skip("the controller is refused first, as tested below")
    with pytest.raises(InputError, match=words):
        stabilize(conv_net, plan, controller=controller, example=clip[:, 0])


def test_a_plan_that_leaves_everything_out(conv_net, clip):
    """Not the words about containers: nothing was matched that could run."""
    with pytest.raises(InputError, match=r"[Pp]lan") as caught:
        stabilize(conv_net, {"": None, "encoder": None}, example=clip[:, 0])
    assert "containers" not in str(caught.value)


def test_a_controller_that_nobody_listens_to(conv_net, clip):
    for plan in ({"": EMA(0.1)}, {"": Chain(EMA(0.1), Gaussian()), "act": None}):
        with pytest.raises(InputError, match="A controller was given, but nothing in the plan listens to one"):
            stabilize(conv_net, plan, controller=Controller(), example=clip[:, 0])


@pytest.mark.parametrize(
    "example", [torch.rand(3, 8, 8), torch.rand(1, 2, 3, 8, 8), torch.zeros(1, 3, 8, 8).byte()], ids=["3", "5", "bytes"]
)
def test_words_of_a_wrong_example(example, conv_net):
    with pytest.raises(InputError, match=r"example must be frames \(B, C, H, W\) of a floating type, got "):
        stabilize(conv_net, {"": EMA(0.1)}, example=example)


def test_a_layer_that_does_not_run_every_time(clip):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.times = nn.Conv2d(3, 3, 1), 1

        def forward(self, x):
            for _ in range(self.times):
                x = self.layer(x)
            return x

    base = Sometimes()
    model = stabilize(base, {"layer": EMA(0.1)}, example=clip[:, 0])
    base.times = 0
    with pytest.raises(InputError, match="The output of layer 'layer' did not run in this forward pass"):
        model(clip)
    base.times = 2
    with pytest.raises(InputError, match="The output of layer 'layer' runs more than once in a forward pass"):
        model(clip)
    base.times = 1
    model(clip)


def test_summary_names_every_layer_and_counts(conv_net, clip):
    plan = {"encoder": Controlled(hidden=4), "": EMA(0.1)}
    model = stabilize(conv_net, plan, controller=Controller(4, depth=1, downscale=1), example=clip[:, 0])
    lines = model.summary().splitlines()
    base = 2 * 9 * 3 * 6 + 6 + 3
    assert lines[0] == f"ConvNet: {base} parameters, {2 * 9 * 3 * 6 * 120 / 1e6:.1f} MMAC at 3 x 12 x 10"
    head = 9 * (4 + 18) * 4 + 4 + 2 * (9 * 16 + 4) + 9 * 4 * 6 + 6
    controller = 9 * 6 * 4 + 4
    assert lines[2].split() == ["encoder", "Controlled(hidden=4)", "6", "x", "12", "x", "10", f"{head:,}"]
    assert lines[3].split() == ['""', "EMA(0.1)", "3", "x", "12", "x", "10", "0"]
    assert lines[4].split()[0] == "controller" and lines[4].split()[-1] == str(controller)
    macs = 120 * (head - 4 - 2 * 4 - 6 + controller - 4)
    share = 100 * (head + controller) / base
    assert lines[5].startswith(f"added: {head + controller:,} parameters ({share:.1f} % of the base), ")
    assert f"{macs / 1e6:.1f} MMAC ({100 * macs / (2 * 9 * 3 * 6 * 120):.1f} % of the base)" in lines[5]
    assert repr(model) == model.summary()


def test_words_of_a_wrong_layout():
    with pytest.raises(InputError, match="There is no layout 'maps'; did you mean 'map'"):
        EMA(0.1, layout="maps")  # type: ignore[arg-type]
