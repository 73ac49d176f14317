"""Networks by name or from a file of the user's, and weights that do or do not fit."""

import copy
import pickle
import re
import sys
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unflicker.bases import load_base
from unflicker.checks import InputError
from unflicker.model import stabilize
from unflicker.networks import hub
from unflicker.networks.base import Sizing
from unflicker.outputs import main_output
from unflicker.stabilizers import EMA
from unflicker.video import Frame, VideoInfo, open_writer

NET = """
from torch import nn
import beside_it

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1))

def make_list():
    return [1]

def make_error():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def net(tmp_path, request, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_it.py").write_text("x = 1\n")
    file = tmp_path / f"net_{abs(hash(request.node.name))}.py"  # each test another: modules are kept
    file.write_text(NET)
    return file


def test_a_function_of_a_file_makes_the_network(net):
    network = load_base(f"{net}:make")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "ending, wrap", [(".safetensors", None), (".pth", None), (".pt", "params"), (".pth", "module")]
)
def test_weights_come_from_the_usual_files(net, tmp_path, ending, wrap):
    other = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1))
    file, weights = tmp_path / f"w{ending}", other.state_dict()
    if ending == ".safetensors":
        save_file(weights, file)
    elif wrap == "module":
        torch.save({f"module.{name}": value for name, value in weights.items()}, file)
    else:
        torch.save({wrap: weights} if wrap else weights, file)
    frame = torch.rand(1, 3, 8, 8)
    assert torch.equal(load_base(f"{net}:make", file)(frame), other(frame))


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_what_cannot_be_a_network_or_weights(net, tmp_path, capfd):
    def told(name, weights=None):
        with pytest.raises(InputError) as caught:
            load_base(name, weights)
        return str(caught.value)

    assert "There is no network 'denoize'; did you mean 'denoise'?" in told("denoize")
    assert "There is no file gone.py to take 'make' from" in told("gone.py:make")
    assert "has no function 'mak'; did you mean 'make'?" in told(f"{net}:mak")
    assert "must return a torch.nn.Module, but gave list" in told(f"{net}:make_list")
    assert "make_error() of" in (said := told(f"{net}:make_error")) and "RuntimeError: no luck" in said
    (tmp_path / "torch.py").write_text("def make(): pass")
    assert "cannot be imported as 'torch', which is taken" in told(f"{tmp_path / 'torch.py'}:make")
    (tmp_path / "broken_net.py").write_text("def make(:")
    assert "cannot be imported: SyntaxError" in told(f"{tmp_path / 'broken_net.py'}:make")
    assert "There is no file gone.pth with weights" in told("denoise", "gone.pth")
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    assert "holds more than tensors" in told("denoise", tmp_path / "evil.pth")
    assert "unpickled" not in capfd.readouterr().out
    torch.save([1], tmp_path / "list.pth")
    assert "holds no weights by name" in told("denoise", tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    assert "cannot be read" in told("denoise", tmp_path / "cut.safetensors")
    save_file({"0.weight": torch.zeros(4, 3, 1, 1), "x": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert re.search(
        r"do not fit Sequential: it lacks 3 \(0.bias, 1.weight, 1.bias\); it has too many: 1 \(x\); "
        r"of another size: 1 \(0.weight \(4, 3, 1, 1\), not \(4, 3, 3, 3\)\)",
        told(f"{net}:make", tmp_path / "w.safetensors"),
    )


# Networks of other packages


def importing(name):
    """Skip where a package is missing, or torchvision was built for another torch and takes it along."""
    try:
        return pytest.importorskip(name, reason=f"needs {name}: pip install {name.replace('_', '-')}")
    except RuntimeError as error:
        pytest.skip(f"{name} cannot be imported here: {error}")


def said(name, weights=None):
    with pytest.raises(InputError) as caught:
        load_base(name, weights)
    text = str(caught.value)
    assert "\n" not in text and text[-1] in ".?"
    return text


FRAME = torch.rand(1, 3, 40, 56)


def check_stabilizes(network, layer):
    """The network runs on frames and is stabilized inside and at its main output."""
    address = main_output(network, FRAME)
    model = stabilize(network, {layer: EMA(0.5), address: EMA(0.5)}, example=FRAME)
    with torch.no_grad():
        y, state = model(FRAME)
        model(FRAME.flip(-1), state)
    return y


def test_timm_by_name(tmp_path):
    timm = importing("timm")
    network = load_base("timm:resnet10t", "random")
    assert check_stabilizes(network, "net.layer2").shape == (1, 1000)
    assert network.sizing == Sizing("short", 201)
    other = timm.create_model("resnet10t", num_classes=7)
    save_file(other.state_dict(), tmp_path / "seven.safetensors")
    tuned = load_base("timm:resnet10t", tmp_path / "seven.safetensors")
    assert tuned(FRAME).shape == (1, 7)
    save_file(tuned.state_dict(), tmp_path / "around.safetensors")  # as `load_base` returns it
    torch.testing.assert_close(load_base("timm:resnet10t", tmp_path / "around.safetensors")(FRAME), tuned(FRAME))
    assert load_base("timm:vit_tiny_patch16_224", "random")(FRAME).shape == (1, 1000)  # of one size only
    assert "timm has no model 'resnet10'; did you mean 'resnet" in said("timm:resnet10", "random")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert re.search(r"do not fit ResNet: it lacks \d+ \(conv1", said("timm:resnet10t", tmp_path / "w.safetensors"))


def test_timm_without_a_network(monkeypatch):
    timm = importing("timm")

    def refuse(name, pretrained):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", refuse)
    assert "bring its model.safetensors here and give it with --weights" in said("timm:resnet18")


def test_smp_by_name(tmp_path):
    smp = importing("segmentation_models_pytorch")
    assert check_stabilizes(load_base("smp:unet:resnet18", "random"), "net.decoder").shape == (1, 1, 40, 56)
    torch.save(smp.Unet("resnet18", encoder_weights=None, classes=4).state_dict(), tmp_path / "four.pth")
    assert load_base("smp:unet:resnet18", tmp_path / "four.pth")(FRAME).shape == (1, 4, 40, 56)
    assert "has no trained decoder of its own: give your weights" in said("smp:unet:resnet18")
    assert "names no encoder; write smp:ARCHITECTURE:ENCODER" in said("smp:unet")
    assert "smp:unot:resnet18 cannot be made: " in said("smp:unot:resnet18", "random")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="needs transformers: pip install transformers")


def test_hf_takes_folders(transformers, tmp_path, capfd):
    segmenter = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    )
    upscaler = transformers.Swin2SRConfig(embed_dim=12, depths=[1], num_heads=[2], window_size=4, upscale=2)
    classes = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1] * 4, num_labels=6)
    for name, net, layer, shape in (
        ("seg", transformers.SegformerForSemanticSegmentation(segmenter), "net.decode_head", (3, 40, 56)),
        ("up", transformers.Swin2SRForImageSuperResolution(upscaler), "net.swin2sr.conv_after_body", (3, 80, 112)),
        ("class", transformers.ResNetForImageClassification(classes), "net.resnet.encoder.stages.1", (6,)),
    ):
        folder = tmp_path / name
        net.save_pretrained(folder)
        capfd.readouterr()
        network = load_base(f"hf:{folder}")
        assert capfd.readouterr().err == ""
        assert check_stabilizes(network, layer).shape == (1, *shape)
        again = load_base(f"hf:{folder}", folder / "model.safetensors")
        torch.testing.assert_close(again(FRAME), load_base(f"hf:{folder}")(FRAME))
        weights = load_file(folder / "model.safetensors")
        lost = sorted(weights)[-1]
        weights["extra"] = weights.pop(lost)
        save_file(weights, tmp_path / "w.safetensors")
        assert re.search(
            r"do not fit \w+: it lacks 1 \(.*\); it has too many: 1 \(extra\)\.",
            said(f"hf:{folder}", tmp_path / "w.safetensors"),
        )
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert re.search(r"The weights of hf:.* do not fit \w+: it lacks 1 \(.*\)\.", said(f"hf:{folder}"))
        (folder / "model.safetensors").unlink()
        assert load_base(f"hf:{folder}", "random")(FRAME).shape == (1, *shape)
        assert f"The folder {folder} holds no model that transformers can load" in said(f"hf:{folder}")


def test_hf_looks_at_frames_as_the_folder_says(transformers, tmp_path):
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1] * 4, num_labels=6)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.5, '
        '"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 3}'
    )
    network = load_base(f"hf:{tmp_path}")
    assert network.sizing == Sizing("short", 128) and network.mode == "bicubic"
    assert network.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    (tmp_path / "preprocessor_config.json").write_text("{")
    assert load_base(f"hf:{tmp_path}").sizing == Sizing(multiple=32)


@pytest.mark.parametrize(
    "settings, sizing",
    [
        ({}, Sizing(multiple=32)),
        ({"do_resize": False, "size_divisor": 16, "size": 9}, Sizing(multiple=16)),
        ({"size": 512}, Sizing("exact", 512, 512)),
        ({"size": {"height": 6, "width": 8}}, Sizing("exact", 6, 8)),
        ({"size": {"shortest_edge": 513}}, Sizing("short", 513)),
        ({"size": {"longest_edge": 1333}}, Sizing(multiple=32)),
    ],
)
def test_sizes_are_read_from_image_processors(settings, sizing):
    assert hub.sizing(settings) == sizing


def test_hf_refuses_other_networks(transformers, tmp_path):
    transformers.ResNetConfig(architectures=["ResNetBackbone"]).save_pretrained(tmp_path)
    assert "is ResNetBackbone; networks for depth, semantic segmentation" in said(f"hf:{tmp_path}")
    assert "There is no folder ./gone; hf: takes a folder" in said("hf:./gone")


def test_a_missing_package_is_named(monkeypatch):
    for package in ("timm", "transformers", "segmentation_models_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    assert "timm:x needs timm, which is not installed: pip install timm." in said("timm:x")
    assert "hf:./x needs transformers, which is not installed: pip install transformers." in said("hf:./x")
    assert "pip install segmentation-models-pytorch." in said("smp:unet:resnet18")


def test_an_unknown_kind_lists_what_there_is():
    assert "timm:NAME, hf:OWNER/NAME, hf:./FOLDER or smp:ARCHITECTURE:ENCODER." in said("tim:resnet18")


# ONNX


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install onnxruntime")
    return lambda nodes, inputs, outputs: _write(tmp_path_factory.mktemp("onnx") / "net.onnx", nodes, inputs, outputs)


def _write(file, nodes, inputs, outputs):
    """A network by hand: nodes (operator, inputs, outputs), inputs (name, type, shape), outputs the same."""
    import onnx
    from onnx import TensorProto, helper

    def values(each):
        return [helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape) for name, kind, shape in each]

    graph = helper.make_graph([helper.make_node(*node) for node in nodes], "net", values(inputs), values(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(file))
    return file


FREE = ["N", 3, "H", "W"]
TWICE = [("Add", ["x", "x"], ["y"])]


def test_an_onnx_file_is_a_network(onnx_file, tmp_path):
    file = onnx_file(TWICE, [("x", "FLOAT", FREE)], [("y", "FLOAT", FREE)])
    network = load_base(str(file))
    clip = torch.rand(2, 4, 3, 8, 10)
    assert torch.equal(network(clip[:, 0]), clip[:, 0] * 2)
    assert main_output(network, FRAME) == ""
    model = stabilize(network, {"in:": EMA(0.2), "": EMA(0.5)}, example=FRAME)
    y, _ = model(clip)
    expected = stabilize(load_base(str(file)), {"": EMA(0.5)}, example=FRAME)(clip[:, :1])[0]
    assert torch.equal(y[:, :1], expected)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(FRAME), FRAME * 2)
    with pytest.raises(InputError, match=r"OnnxNetwork has no layers inside: only its output"):
        stabilize(network, {"decoder.0": EMA(0.5)}, example=FRAME)


def test_an_onnx_file_of_one_size_and_batch(onnx_file):
    shape = [1, 3, 8, 10]
    network = load_base(str(onnx_file(TWICE, [("x", "FLOAT", shape)], [("y", "FLOAT", shape)])))
    frames = torch.rand(3, 3, 8, 10)
    assert torch.equal(network(frames), frames * 2)
    with pytest.raises(InputError, match=r"takes frames \(1, 3, 8, 10\), got \(1, 3, 9, 10\): scale the video"):
        network(torch.rand(1, 3, 9, 10))
    grey = load_base(str(onnx_file(TWICE, [("x", "FLOAT", FREE)], [("y", "FLOAT", FREE)])))
    with pytest.raises(InputError, match=r"takes frames \(N, 3, H, W\), got \(1, 4, 8, 8\)"):
        grey(torch.rand(1, 4, 8, 8))


def test_an_onnx_file_of_several_outputs_and_of_halves(onnx_file):
    nodes = [*TWICE, ("ReduceMax", ["x"], ["top"])]
    outputs = [("top", "FLOAT16", [1, 1, 1, 1]), ("y", "FLOAT16", FREE)]
    network = load_base(str(onnx_file(nodes, [("x", "FLOAT16", FREE)], outputs)))
    y = network(FRAME)
    assert set(y) == {"top", "y"} and y["y"].dtype == torch.float32
    torch.testing.assert_close(y["y"], FRAME * 2, rtol=1e-3, atol=1e-3)
    assert main_output(network, FRAME) == "::y"
    model = stabilize(network, {"::y": EMA(0.5)}, example=FRAME)
    assert set(model(FRAME)[0]) == {"top", "y"}


def test_what_is_no_onnx_network(onnx_file, tmp_path):
    two = [("x", "FLOAT", FREE), ("z", "FLOAT", FREE)]
    file = onnx_file([("Add", ["x", "z"], ["y"])], two, [("y", "FLOAT", FREE)])
    assert "must have one input, frames of floats (N, C, H, W), but has x tensor(float) (N, 3, H, W), z te" in said(
        str(file)
    )
    file = onnx_file(TWICE, [("x", "INT64", FREE)], [("y", "INT64", FREE)])
    assert "but has x tensor(int64) (N, 3, H, W); export it again" in said(str(file))
    file = onnx_file(TWICE, [("x", "FLOAT", ["N", 3])], [("y", "FLOAT", ["N", 3])])
    assert "but has x tensor(float) (N, 3)" in said(str(file))
    (tmp_path / "broken.onnx").write_bytes(b"123")
    assert "broken.onnx cannot be read as an ONNX network: " in said(str(tmp_path / "broken.onnx"))
    assert "There is no file gone.onnx; check the name." in said("gone.onnx")
    assert "has its weights inside; leave w.pth out." in said(str(file), "w.pth")


# What a network returns


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    "make, address",
    [
        (lambda x: x, ""),
        (lambda x: (x.mean((2, 3)), x[:, :1]), "::1"),
        (lambda x: [x, x], "::0"),
        (lambda x: {"aux": x, "out": x}, "::out"),
        (lambda x: {"features": x.flatten(1), "depth": x[:, 0]}, "::depth"),
        (lambda x: {"logits": x.mean((2, 3)), "features": x}, "::logits"),
        (lambda x: {0: x}, "::0"),
        (lambda x: (x.mean((2, 3)), x.long()), "::0"),
        (lambda x: (None, (x,), x.flatten(1)), "::2"),
    ],
)
def test_the_main_output_is_found_and_can_be_stabilized(make, address):
    network = Returns(make)
    assert main_output(network, FRAME) == address
    stabilize(network, {address: EMA(0.5)}, example=FRAME)(FRAME)


def test_the_main_output_of_a_model_output(output_net):
    assert main_output(output_net, FRAME) == "::depth"


@pytest.mark.parametrize(
    "make", [lambda x: None, lambda x: (), lambda x: {"a": 1}, lambda x: ((x,),), lambda x: [x[0]]]
)
def test_no_output_to_stabilize(make):
    with pytest.raises(InputError, match="The network must return a tensor of floats with a row for every frame, or a"):
        main_output(Returns(make), FRAME)


def test_a_network_that_fails_on_the_example():
    grey = nn.Conv2d(1, 1, 3)
    with pytest.raises(InputError, match=r"Conv2d fails on frames \(1, 3, 40, 56\): RuntimeError: Given groups=1"):
        main_output(grey, FRAME)
    with pytest.raises(InputError, match=r"frames \(1, 4, 8, 8\): .* It may want RGB frames, with three channels."):
        main_output(nn.Conv2d(3, 1, 3), torch.rand(1, 4, 8, 8))


# AdaIN


def test_the_style_of_a_picture(tmp_path):
    picture = tmp_path / "style.png"
    with open_writer(tmp_path / "pictures", VideoInfo(24, 20, Fraction(1), Fraction(1))) as writer:
        writer.write(Frame(torch.rand(3, 20, 24), 0, Fraction(1)))
    next((tmp_path / "pictures").iterdir()).rename(picture)
    network = load_base(f"style:{picture}", "random")
    assert network.style.shape == (1, 3, 20, 24) and network(FRAME).shape == FRAME.shape
    files = {"vgg_normalised.pth": network.encoder, "decoder.pth": network.decoder}
    for name, part in files.items():
        torch.save(part.state_dict(), tmp_path / name)
    loaded = load_base(f"style:{picture}", tmp_path)
    assert torch.allclose(loaded(FRAME), network(FRAME), atol=1e-5)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert "give --weights FOLDER, which holds vgg_normalised.pth and decoder.pth" in said(f"style:{picture}")
    assert "There is no picture 'stile.png' to take the style from" in said("style:stile.png")
    assert "There is no file" in said(f"style:{picture}", tmp_path / "nowhere")
