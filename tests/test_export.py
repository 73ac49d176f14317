"""One step of a stabilized model as a graph with explicit state."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from unflicker.export import fresh_state, to_exported_program, to_onnx
from unflicker.model import stabilize
from unflicker.networks.hdrnet import HDRNet
from unflicker.stabilizers import EMA, Controlled, Gaussian, Spatial

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
# Said by torch itself while it exports.
quiet = [pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.fixture
def frames():
    return torch.rand(5, 1, 3, 8, 8)


STRENGTHS = [1.0, 1.0, 2.0, 0.0, 0.5]


def run_in_torch(model, frames):
    state, results = None, []
    with torch.no_grad():
        for frame, strength in zip(frames, STRENGTHS, strict=True):
            y, state = model(frame, state, strength=torch.tensor([strength]))
            results.append(y)
    return results, state


@torch.no_grad()
def test_exported_program(own_kind, conv_net, frames, make_lively):
    plan = {"encoder": own_kind.at("encoder"), "": own_kind.make()}
    model = make_lively(stabilize(conv_net, plan, example=frames[0]))
    expected, expected_state = run_in_torch(model, frames)
    step = to_exported_program(model, frames[0]).module()
    state = fresh_state(model, frames[0])
    assert not any(value.any() for value in state.values())
    for frame, strength, result in zip(frames, STRENGTHS, expected, strict=True):
        (y,), state = step(frame, torch.tensor([strength]), state)
        close(y, result)
    for name, value in state.items():
        close(value, expected_state[name])


@torch.no_grad()
def test_export_leaves_the_model_as_it_was(conv_net, frames):
    model = stabilize(conv_net, {"encoder": Spatial(3, hidden=4)}, example=frames[0])
    expected, _ = run_in_torch(model, frames)
    model.train()
    to_exported_program(model, frames[0])
    assert model.training and model.stabilizers.training and not conv_net.training
    for y, result in zip(run_in_torch(model, frames)[0], expected, strict=True):
        assert torch.equal(y, result)


@torch.no_grad()
def test_a_window_of_one_frame_exports(frames):
    """The state of such a Gaussian has an entry without elements."""
    model = stabilize(nn.Identity(), {"": Gaussian(window=1)}, example=frames[0])
    step = to_exported_program(model, frames[0]).module()
    (y,), _ = step(frames[0], torch.ones(1), fresh_state(model, frames[0]))
    close(y, frames[0])


def run_in_onnxruntime(path, names, frames, strengths=STRENGTHS):
    """Feed each `next:NAME` back as NAME, starting from zeros, as a user would."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == names["inputs"]
    assert [o.name for o in session.get_outputs()] == names["outputs"]
    state = {i.name: torch.zeros(i.shape).numpy() for i in session.get_inputs() if i.name not in ("frame", "strength")}
    assert {f"next:{name}" for name in state} == {name for name in names["outputs"] if name.startswith("next:")}
    results = []
    for frame, strength in zip(frames, strengths, strict=True):
        feed = {"frame": frame.numpy(), "strength": torch.tensor([strength]).numpy(), **state}
        outputs = dict(zip(names["outputs"], session.run(None, feed), strict=True))
        state = {name: outputs.pop(f"next:{name}") for name in state}
        results.append({name: torch.from_numpy(value) for name, value in outputs.items()})
    return results


@needs_onnx
class TestOnnx:
    pytestmark = quiet

    def test_every_kind(self, own_kind, conv_net, frames, make_lively, tmp_path):
        model = make_lively(stabilize(conv_net, {own_kind.layer: own_kind.make()}, example=frames[0]))
        names = to_onnx(model, tmp_path / "model.onnx", frames[0])
        assert names["inputs"][:2] == ["frame", "strength"] and names["outputs"][0] == "output"
        results = run_in_onnxruntime(tmp_path / "model.onnx", names, frames)
        expected, _ = run_in_torch(model, frames)
        for y, result in zip(results, expected, strict=True):
            close(y["output"], result)
        with torch.no_grad():
            close(results[3]["output"], conv_net(frames[3]))  # strength 0
            assert not torch.allclose(results[4]["output"], conv_net(frames[4]), atol=1e-3)

    def test_a_base_that_returns_a_dict(self, dict_net, frames, tmp_path):
        model = stabilize(dict_net, {"::depth": EMA(0.5)}, example=frames[0])
        names = to_onnx(model, tmp_path / "model.onnx", frames[0])
        assert names["outputs"][:2] == ["output:depth", "output:features"]
        results = run_in_onnxruntime(tmp_path / "model.onnx", names, frames)
        expected, _ = run_in_torch(model, frames)
        for y, result in zip(results, expected, strict=True):
            close(y["output:depth"], result["depth"])
            close(y["output:features"], result["features"])

    def test_a_stabilized_hdrnet(self, make_lively, tmp_path):
        frames = list(torch.rand(5, 1, 3, 24, 40))
        model = make_lively(stabilize(HDRNet(), {"overall.fc*": Controlled(hidden=4), "": EMA(0.5)}, example=frames[0]))
        names = to_onnx(model, tmp_path / "model.onnx", frames[0])
        results = run_in_onnxruntime(tmp_path / "model.onnx", names, frames)
        expected, _ = run_in_torch(model, frames)
        for y, result in zip(results, expected, strict=True):
            close(y["output"], result)
        assert not torch.allclose(results[2]["output"], model.base(frames[2]), atol=1e-3)

    def test_bad_values_in_onnxruntime(self, conv_net, frames, make_lively, tmp_path):
        frames[2, :, :, 3:5] = float("nan")
        model = make_lively(stabilize(conv_net, {"": Controlled(hidden=4)}, example=frames[0]))
        names = to_onnx(model, tmp_path / "model.onnx", frames[0])
        results = run_in_onnxruntime(tmp_path / "model.onnx", names, frames, [1.0] * 5)
        assert all(y["output"].isfinite().all() for y in results)
