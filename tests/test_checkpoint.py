"""Adapters on disk: what is written, what is refused, and in which words."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unflicker.checkpoint import adapter_state_dict, compose_adapters, load_adapter, save_adapter
from unflicker.checks import InputError
from unflicker.controllers import Controller
from unflicker.model import stabilize
from unflicker.stabilizers import EMA, Chain, Controlled, Gaussian, LearnedEMA, Spatial


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def adapter(conv_net, clip, make_lively, tmp_path):
    """A saved adapter, its folder and the base it was made for."""
    plan = {"encoder": Spatial(3, hidden=4), "": LearnedEMA()}
    model = make_lively(stabilize(copy.deepcopy(conv_net), plan, example=clip[:, 0]))
    save_adapter(model, tmp_path / "adapter", notes="Trained on nothing.")
    return model, tmp_path / "adapter", conv_net


@torch.no_grad()
def test_round_trip_bit_for_bit(build, conv_net, clip, tmp_path):
    untouched = copy.deepcopy(conv_net)
    model = build(conv_net, clip[:, 0], ("in:encoder", "encoder", ""))
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(untouched, tmp_path / "adapter")
    same(adapter_state_dict(loaded), adapter_state_dict(model))
    (y, state), (expected, expected_state) = loaded(clip), model(clip)
    assert torch.equal(y, expected)
    same(state, expected_state)
    assert loaded.summary() == model.summary()
    assert not any(m.training for m in untouched.modules()) and not any(p.requires_grad for p in untouched.parameters())
    save_adapter(loaded, tmp_path / "again")
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_round_trip_in_other_precisions(build, conv_net, clip, dtype, tmp_path):
    conv_net, clip = conv_net.to(dtype), clip.to(dtype)
    untouched = copy.deepcopy(conv_net)
    model = build(conv_net, clip[:, 0])
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(untouched, tmp_path / "adapter")
    same(adapter_state_dict(loaded), adapter_state_dict(model))
    assert torch.equal(loaded(clip)[0], model(clip)[0])


@torch.no_grad()
def test_round_trip_of_every_setting(dict_net, clip, make_lively, tmp_path):
    plan = {
        "conv": Chain(Controlled(hidden=4, feature_inputs=False), Spatial(5, groups=2, hidden=4, paper_exact=True)),
        "both::features": Gaussian(window=4, sigma=2.5),
        "::depth": LearnedEMA(-1.0, layout="map"),
        "in:": EMA(0.05),
    }
    controllers = (Controller(4, depth=2, downscale=2, antialias=False), Controller.paper(5))
    untouched = copy.deepcopy(dict_net)
    model = make_lively(stabilize(dict_net, plan, controller=controllers, example=clip[:, 0]))
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(untouched, tmp_path / "adapter")
    assert [c.settings() for c in loaded.controllers] == [c.settings() for c in model.controllers]
    assert list(loaded.places.values()) == list(model.places.values())
    same(loaded(clip)[0], model(clip)[0])


def test_only_what_was_added_is_written(adapter):
    model, folder, base = adapter
    assert files(folder) == ["README.md", "adapter.json", "adapter.safetensors"]
    weights = load_file(folder / "adapter.safetensors")
    assert all(name.startswith(("stabilizers.", "controllers.")) for name in weights)
    added = sum(p.numel() for module in (model.stabilizers, model.controllers) for p in module.parameters())
    assert sum(value.numel() for value in weights.values()) == added
    bits = {value.data_ptr() for value in base.state_dict().values()}
    assert not bits & {value.data_ptr() for value in adapter_state_dict(model).values()}


def test_the_card_and_the_settings_can_be_read(adapter):
    model, folder, _ = adapter
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Trained on nothing." in card and 'load_adapter(network, "adapter")' in card and "ConvNet" in card
    assert model.summary() in card
    settings = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    assert settings["base"]["shapes"]["encoder.weight"] == [6, 3, 3, 3]
    assert settings["plan"]["encoder"]["stabilizer"]["kernel_size"] == 3 and list(settings["plan"]) == ["encoder", ""]


def test_nothing_is_pickled(adapter):
    """No file begins as a pickle or as the zip archive around one."""
    _, folder, _ = adapter
    for path in folder.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def untouched(base):
    return all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in base.modules()) and all(
        p.requires_grad for p in base.parameters()
    )


def test_a_wrong_base_is_refused_with_the_differences(adapter):
    _, folder, base = adapter
    base.encoder = nn.Conv2d(3, 8, 3)
    base.extra = nn.Linear(2, 2, bias=False)
    del base.decoder
    words = (
        r"The adapter .*adapter was made for another base, a ConvNet: "
        r"decoder.weight is missing; decoder.bias is missing; "
        r"extra.weight is not in the adapter's base; encoder.weight is \(8, 3, 3, 3\) where \(6, 3, 3, 3\) was expected"
    )
    with pytest.raises(InputError, match=words):
        load_adapter(base, folder)
    assert untouched(base)
    with pytest.raises(InputError, match=r"extra.* is not in the adapter's base; and 3 more$"):
        base.extra = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(7))
        load_adapter(base, folder)


def test_a_base_of_the_same_shapes_without_the_layer(conv_net, clip, tmp_path):
    """The layer has no weights, so that the shapes cannot tell."""
    other = copy.deepcopy(conv_net)
    save_adapter(stabilize(conv_net, {"act": EMA(0.5)}, example=clip[:, 0]), tmp_path / "adapter")
    del other.act
    with pytest.raises(InputError, match="no layer 'act'"):
        load_adapter(other, tmp_path / "adapter")
    assert untouched(other)


def test_missing_files(adapter, tmp_path):
    _, folder, base = adapter
    with pytest.raises(InputError, match=r"nowhere is no adapter: it has no adapter.json"):
        load_adapter(base, tmp_path / "nowhere")
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapter.safetensors cannot be read: "):
        load_adapter(base, folder)
    assert untouched(base)


@pytest.mark.parametrize("kept", [0, 4, 200, -4])
def test_truncated_weights(adapter, kept):
    _, folder, base = adapter
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"adapter.safetensors cannot be read: "):
        load_adapter(base, folder)
    assert untouched(base)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"format": 1}', '{"format": 1, "base": 3}', '{"format": 1, "base": {}}']
)
def test_damaged_settings(adapter, text):
    _, folder, base = adapter
    (folder / "adapter.json").write_text(text)
    with pytest.raises(InputError, match=r"adapter\.json is damaged"):
        load_adapter(base, folder)
    assert untouched(base)


def edit(folder, change):
    settings = json.loads((folder / "adapter.json").read_text())
    change(settings)
    (folder / "adapter.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("part", ["plan", "controllers", "frame_shape"])
def test_settings_with_a_part_missing(adapter, part):
    _, folder, base = adapter
    edit(folder, lambda settings: settings.pop(part))
    with pytest.raises(InputError, match=f"adapter.json is damaged: KeyError\\('{part}'\\)"):
        load_adapter(base, folder)
    assert untouched(base)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["plan"]["encoder"]["stabilizer"].update(kind="spatail"), "kind 'spatail'; did you mean 'spatial'"),
        (lambda s: s["plan"]["encoder"]["stabilizer"].update(kernel_size=2), "odd kernel_size of at least 1, got 2"),
        (lambda s: s["plan"]["encoder"]["stabilizer"].update(windo=2), "cannot be made from"),
        (lambda s: s["plan"]["encoder"].pop("stabilizer"), "adapter.json is damaged: KeyError"),
        (lambda s: s["controllers"][0].update(wdth=2), "adapter.json is damaged: TypeError"),
        (lambda s: s["controllers"][0].update(width=2), r"does not fit its own settings: .* where .* was expected"),
        (lambda s: s["plan"].pop(""), r"does not fit its own settings: .*stabilizers.output.logit"),
        (lambda s: s["plan"].update(extra=s["plan"].pop("encoder")), "no layer 'extra'"),
    ],
)
def test_settings_that_were_changed(adapter, change, words):
    _, folder, base = adapter
    edit(folder, change)
    with pytest.raises(InputError, match=words):
        load_adapter(base, folder)
    assert untouched(base)


def test_a_format_from_the_future(adapter):
    _, folder, base = adapter
    edit(folder, lambda settings: settings.update(format=2, base="something new"))
    with pytest.raises(InputError, match=r"has format 2, this version of unflicker reads 1: update unflicker"):
        load_adapter(base, folder)
    assert untouched(base)


def test_a_folder_with_other_things_is_refused(adapter, tmp_path):
    model, _, _ = adapter
    other = tmp_path / "photographs"
    other.mkdir()
    (other / "cat.png").write_bytes(b"miaow")
    for place in (other, other / "cat.png"):
        with pytest.raises(InputError, match=f"{place.name} exists and is not an adapter; choose another folder"):
            save_adapter(model, place)
    assert files(other) == ["cat.png"] and (other / "cat.png").read_bytes() == b"miaow"


def test_an_adapter_is_replaced_as_a_whole(adapter, clip):
    _, folder, base = adapter
    second = stabilize(copy.deepcopy(base), {"": EMA(0.25)}, example=clip[:, 0])
    save_adapter(second, folder)
    loaded = load_adapter(base, folder)
    assert [s.decay for s in loaded.stabilizers.values()] == [0.25] and not loaded.controllers
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter"]


def test_new_and_empty_folders(adapter, tmp_path):
    model, _, base = adapter
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b" / "c", f"{tmp_path}/slash/"):
        save_adapter(model, place)
        load_adapter(copy.deepcopy(base), place)


class Interrupt:
    """Notes that are interrupted while they are written."""

    def __format__(self, spec):
        raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["fresh", "adapter"])
def test_an_interrupted_save_leaves_what_was_there(adapter, clip, tmp_path, place):
    _, folder, base = adapter
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    second = stabilize(base, {"": EMA(0.25)}, example=clip[:, 0])
    with pytest.raises(KeyboardInterrupt):
        save_adapter(second, tmp_path / place, notes=Interrupt())
    assert not (tmp_path / "fresh").exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_adapter(second, tmp_path / place)  # what the interruption left does not stand in the way
    assert files(tmp_path / place) == ["README.md", "adapter.json", "adapter.safetensors"]


interrupt_after: list[int] = []


def interrupt(event, args):
    """An audit hook: files are about to be opened, renamed or removed; stop before the chosen one."""
    if interrupt_after and (event == "open" or event.startswith(("os.", "shutil."))):
        interrupt_after[0] -= 1
        if interrupt_after[0] < 0:
            interrupt_after.clear()
            raise KeyboardInterrupt


def test_a_save_interrupted_at_any_step(adapter, clip):
    """Whatever has the final name is whole: the old adapter or the new one."""
    model, folder, base = adapter
    second = stabilize(copy.deepcopy(base), {"": EMA(0.25)}, example=clip[:, 0])
    sys.addaudithook(interrupt)
    found, step, finished = [], 0, False
    while not finished:
        save_adapter(model, folder)
        interrupt_after[:] = [step]
        try:
            save_adapter(second, folder)
            finished = True
        except KeyboardInterrupt:
            step += 1
        interrupt_after.clear()
        if folder.exists():
            assert files(folder) == ["README.md", "adapter.json", "adapter.safetensors"], f"interrupted at step {step}"
            found.append(len(load_adapter(copy.deepcopy(base), folder).places))
    assert step > 5 and set(found) == {2, 1} and found == sorted(found, reverse=True)


def test_saving_changes_nothing(norm_net, clip, tmp_path):
    model = stabilize(norm_net, {"": LearnedEMA()}, example=clip[:, 0])
    model.unfreeze()
    before = copy.deepcopy(norm_net.state_dict())
    save_adapter(model, tmp_path / "adapter")
    same(norm_net.state_dict(), before)


def test_composed_adapters_are_a_chain_of_both(tmp_path):
    """The same as one after the other by hand, each with its own controller."""
    clip = torch.rand(1, 5, 3, 12, 12)
    models = []
    for i in range(2):
        torch.manual_seed(i)
        base = nn.Identity()
        model = stabilize(base, {"": Controlled(hidden=4, feature_inputs=False)}, example=clip[:, 0])
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p)
        save_adapter(model, tmp_path / str(i))
        models.append(model)
    composed = compose_adapters(nn.Identity(), [tmp_path / "0", tmp_path / "1"])
    expected = models[1](models[0](clip)[0], guide=clip)[0]
    assert torch.allclose(composed(clip)[0], expected, atol=1e-6)
    assert not torch.allclose(expected, models[0](clip)[0], atol=1e-3)
    save_adapter(composed, tmp_path / "both")
    assert torch.equal(load_adapter(nn.Identity(), tmp_path / "both")(clip)[0], composed(clip)[0])


def test_adapters_of_other_plans_are_not_composed(tmp_path):
    frame = torch.rand(1, 3, 8, 8)
    save_adapter(stabilize(nn.Identity(), {"": EMA(0.1)}, example=frame), tmp_path / "a")
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    save_adapter(stabilize(net, {"0": EMA(0.1)}, example=frame), tmp_path / "b")
    save_adapter(stabilize(net, {"1": EMA(0.1)}, example=frame), tmp_path / "c")
    with pytest.raises(InputError, match="have different plans, and cannot be composed"):
        compose_adapters(net, [tmp_path / "b", tmp_path / "c"])
    with pytest.raises(InputError, match="composed from two on; got 1"):
        compose_adapters(net, [tmp_path / "b"])
