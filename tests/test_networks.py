"""The papers' networks out of other packages: sizes, file formats, the papers' layers. Small, random, no network."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unflicker.checks import InputError
from unflicker.model import stabilize
from unflicker.networks import adain, classifier, deeplab, depth_anything
from unflicker.networks.base import Framed, Sizing, from_hub, needed
from unflicker.stabilizers import EMA


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="needs transformers: pip install transformers")


@pytest.fixture
def depth_net(transformers):
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    return lively(transformers.DepthAnythingForDepthEstimation(config))


@pytest.fixture
def segmentation_net(transformers):
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, output_stride=16, num_labels=5)
    return lively(transformers.MobileNetV2ForSemanticSegmentation(config))


@pytest.fixture
def classifier_net(transformers):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_labels=7
    )
    return lively(transformers.ResNetForImageClassification(config))


def lively(net):
    """Weights large enough for outputs that differ: those of fresh models vanish on the way."""
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.normal_(0, (2 / p[0].numel()) ** 0.5)
    return net.eval()


def plan(sites):
    return {site: EMA(0.3, layout=layout) for site, layout in sites.items()}


def stabilized(network, sites, size=(30, 40)):
    """Stabilize the sites, run three frames, and return the model; the first frame is the base's."""
    clip = torch.rand(1, 3, 3, *size)
    with torch.no_grad():
        alone = network(clip[:, 0])
        model = stabilize(network, plan(sites), example=clip[:, 0])
        y, state = model(clip[:, 0])
        assert torch.equal(y, alone)
        for t in (1, 2):
            y, state = model(clip[:, t], state)
        with model.disabled():
            alone = model(clip[:, 2])[0]
        assert (y - alone).abs().mean() > 1e-3 * alone.std()
    return model


@torch.no_grad()
def test_depth_is_a_map_of_the_frame(depth_net):
    network = depth_anything.DepthAnything(depth_net, size=42)
    frame = torch.rand(2, 3, 30, 41)
    y = network(frame)
    assert y.shape == (2, 1, 30, 41) and y.min() >= 0
    seen = F.interpolate(frame, size=network.sizing(30, 41), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inside = depth_net((seen - mean.view(3, 1, 1)) / std.view(3, 1, 1)).predicted_depth
    expected = F.interpolate(inside.unsqueeze(1), size=(30, 41), mode="bicubic").clamp_min(0)
    torch.testing.assert_close(y, expected)


def test_depth_is_stabilized_where_the_paper_does(depth_net):
    model = stabilized(depth_anything.DepthAnything(depth_net, size=42), depth_anything.PAPER_SITES)
    assert len(model.places) == 9
    assert [place.layout for place in model.places.values()][-1] == "plane"


def test_the_published_size_of_depth_anything(transformers):
    backbone = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, out_indices=[3, 6, 9, 12]
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
    )
    with torch.device("meta"):
        net = transformers.DepthAnythingForDepthEstimation(config)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 24.8


@pytest.mark.parametrize("size", [(720, 1280), (480, 640), (1280, 720), (240, 320), (518, 518), (100, 1000), (37, 53)])
def test_depth_looks_at_what_the_image_processor_gives(transformers, size):
    processor = transformers.DPTImageProcessorPil(
        size={"height": 518, "width": 518},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    # Smooth, so that the processor's rounding to bytes is all that differs.
    frame = F.interpolate(torch.rand(1, 3, 6, 6), size=size, mode="bilinear")
    bytes_ = (frame * 255).round().to(torch.uint8)
    expected = processor(bytes_[0].permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x)
            return {"predicted_depth": x[:, 0]}

    seen = []
    y = depth_anything.DepthAnything(Look())(bytes_ / 255)
    assert y.shape == (1, 1, *size)
    assert seen[0].shape == expected.shape
    # Half of a byte, normalised, and what the two bicubic kernels' arithmetic adds.
    assert (seen[0] - expected).abs().max() < 1.5 / 255 / 0.224


@torch.no_grad()
def test_logits_are_a_map_of_the_frame(segmentation_net):
    frame = torch.rand(1, 3, 50, 67)
    own = deeplab.DeepLab(segmentation_net, size=None)(frame)
    assert own.shape == (1, 5, 50, 67)
    inside = segmentation_net((frame - 0.5) / 0.5).logits
    assert inside.shape[-2:] == (4, 5)  # 1/16, rounded up
    torch.testing.assert_close(own, F.interpolate(inside, size=(50, 67), mode="bilinear"))
    assert deeplab.DeepLab(segmentation_net, size=64)(frame).shape == (1, 5, 50, 67)
    assert deeplab.DeepLab(segmentation_net, size=64, reduction=4)(frame).shape == (1, 5, 13, 17)


def test_logits_are_stabilized_where_the_paper_does(segmentation_net):
    model = stabilized(deeplab.DeepLab(segmentation_net, size=64), deeplab.PAPER_SITES, (64, 80))
    assert len(model.places) == 1 + 17 + 3


def test_a_resnet_encoder_is_stabilized_at_the_same_places():
    importing("segmentation_models_pytorch")
    network = deeplab.on_resnet("resnet18", classes=4).eval()
    model = stabilized(network, deeplab.RESNET_SITES, (36, 50))
    assert len(model.places) == 1 + 8 + 3
    assert network(torch.rand(1, 3, 36, 50)).shape == (1, 4, 36, 50)


def importing(name):
    """Skip where a package is missing, or torchvision was built for another torch and takes it along."""
    try:
        return pytest.importorskip(name, reason=f"needs {name}: pip install {name.replace('_', '-')}")
    except RuntimeError as error:
        pytest.skip(f"{name} cannot be imported here: {error}")


@torch.no_grad()
def test_the_classifier_gives_classes(classifier_net):
    network = classifier.Classifier(classifier_net, size=64)
    assert network(torch.rand(2, 3, 30, 41)).shape == (2, 7)
    model = stabilized(network, classifier.PAPER_SITES)
    assert len(model.places) == 5


def test_the_published_classifier_is_a_resnet_50(transformers):
    net = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
    assert sum(p.numel() for p in net.parameters()) == 25_557_032
    from unflicker.layers import find

    assert len(find(classifier.Classifier(net), *classifier.PAPER_SITES)) == 3 + 4 + 6 + 3


def test_networks_load_from_a_folder_without_a_network(depth_net, segmentation_net, classifier_net, tmp_path):
    frame = torch.rand(1, 3, 32, 32)
    for room, net, wrap in (
        (depth_anything, depth_net, depth_anything.DepthAnything),
        (deeplab, segmentation_net, deeplab.DeepLab),
        (classifier, classifier_net, classifier.Classifier),
    ):
        folder = tmp_path / room.__name__
        net.save_pretrained(folder)
        with torch.no_grad():
            loaded, expected = room.load(folder, size=42).eval()(frame), wrap(net, size=42)(frame)
        torch.testing.assert_close(loaded, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_loaded(transformers, tmp_path, monkeypatch):
    def refuse(source):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    for source, said in (
        (tmp_path, "holds no model that transformers can load: OSError: We couldn't connect to the hub."),
        ("./gone", "There is no folder ./gone; hf: takes a folder, as ./NAME, or OWNER/NAME."),
        ("someone/net", "someone/net could not be fetched from the hub (no network, or no such name); without network"),
    ):
        with pytest.raises(InputError) as caught:
            from_hub("AutoConfig", source)
        assert said in str(caught.value)
    with pytest.raises(InputError, match="Depth needs no-such-package, which is not installed: pip install no-such-pa"):
        needed("no_such_package", "Depth")


def test_a_broken_package_is_told(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "needs_other.py").write_text("import not_there_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"cannot be imported \(RuntimeError: operator torchvision::nms does not exi"):
        needed("half_there", "timm:x")
    with pytest.raises(InputError, match=r"No module named 'not_there_either'"):
        needed("needs_other", "timm:x")


def test_grey_and_rgba_frames_are_refused(depth_net):
    network = depth_anything.DepthAnything(depth_net, size=42)
    for shape, fix in (
        ((1, 1, 8, 8), "repeat grey ones"),
        ((1, 4, 8, 8), "take the alpha channel off"),
        ((3, 8, 8), ""),
    ):
        with pytest.raises(InputError, match=r"takes RGB frames \(B, 3, H, W\), got ") as caught:
            network(torch.rand(shape))
        assert fix in str(caught.value)


# AdaIN


def published(folder):
    """Write files as they were published: all of VGG-19 without its classifier, and the decoder, numbered."""
    convs = {0: (3, 3, 1), 2: (3, 64, 3), 5: (64, 64, 3), 9: (64, 128, 3), 12: (128, 128, 3), 16: (128, 256, 3)}
    convs |= {i: (256, 256, 3) for i in (19, 22, 25)} | {29: (256, 512, 3)}
    convs |= {i: (512, 512, 3) for i in (32, 35, 38, 42, 45, 48, 51)}
    decoder = {1: (512, 256, 3), 5: (256, 256, 3), 8: (256, 256, 3), 11: (256, 256, 3), 14: (256, 128, 3)}
    decoder |= {18: (128, 128, 3), 21: (128, 64, 3), 25: (64, 64, 3), 28: (64, 3, 3)}
    files = []
    for name, layers in (("vgg_normalised", convs), ("decoder", decoder)):
        weights = {}
        for i, (inputs, outputs, k) in layers.items():
            weights[f"{i}.weight"] = torch.randn(outputs, inputs, k, k) * (2 / (inputs * k * k)) ** 0.5
            weights[f"{i}.bias"] = torch.randn(outputs) * 0.1
        files.append(folder / f"{name}.pth")
        torch.save(weights, files[-1])
    return files


def by_hand(files, content, style):
    """The network from the files' numbers alone: a convolution at each, ReLUs, halving and doubling where they are."""
    vgg, decoder = (torch.load(file, weights_only=True) for file in files)

    def conv(x, weights, i):
        w = weights[f"{i}.weight"]
        return F.conv2d(F.pad(x, (w.shape[-1] // 2,) * 4, mode="reflect"), w, weights[f"{i}.bias"])

    def encode(x):
        x = conv(x, vgg, 0)
        for i in (2, 5, "pool", 9, 12, "pool", 16, 19, 22, 25, "pool", 29):
            x = F.max_pool2d(x, 2, ceil_mode=True) if i == "pool" else F.relu(conv(x, vgg, i))
        return x

    a, b = encode(content), encode(style)
    z = a.flatten(2)
    s = b.flatten(2)
    z = (z - z.mean(2, keepdim=True)) / (z.var(2, keepdim=True) + 1e-5).sqrt()
    x = (z * (s.var(2, keepdim=True) + 1e-5).sqrt() + s.mean(2, keepdim=True)).view_as(a)
    for i in (1, "up", 5, 8, 11, 14, "up", 18, 21, "up", 25):
        x = F.interpolate(x, scale_factor=2) if i == "up" else F.relu(conv(x, decoder, i))
    return conv(x, decoder, 28)


@torch.no_grad()
def test_adain_is_its_definition_on_files_of_the_published_layout(tmp_path):
    files = published(tmp_path)
    content, style = torch.rand(2, 3, 24, 40), torch.rand(1, 3, 32, 24)
    network = adain.load(*files, style[0])
    torch.testing.assert_close(network(content), by_hand(files, content, style), rtol=1e-3, atol=1e-3)
    assert network(content[..., :21, :37]).shape == (2, 3, 21, 37)
    # Its own statistics are a style that changes nothing.
    plain = adain.load(*files)
    own = adain.load(*files, content[:1])
    torch.testing.assert_close(own(content[:1]), plain(content[:1]), rtol=1e-3, atol=1e-3)
    # amount is a blend of features.
    assert torch.equal(adain.load(*files, style, amount=0)(content), plain(content))
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(content), network(content))


@torch.no_grad()
def test_the_style_follows_the_weights(tmp_path):
    files, style = published(tmp_path), torch.rand(3, 24, 24)
    loaded = adain.load(*files, style)
    network = adain.AdaIN(style)
    network.load_state_dict(loaded.state_dict())
    assert torch.equal(network.mix.mean, loaded.mix.mean) and torch.equal(network.mix.std, loaded.mix.std)


def test_adain_is_stabilized_at_its_scales(tmp_path):
    model = stabilized(adain.load(*published(tmp_path), torch.rand(3, 16, 16)), adain.SITES, (16, 24))
    assert {place.shape for place in model.places.values()} == {
        (512, 2, 3), (256, 2, 3), (128, 4, 6), (64, 8, 12), (3, 16, 24)
    }  # fmt: skip


def test_what_adain_refuses(tmp_path):
    files = published(tmp_path)
    with pytest.raises(InputError, match=r"decoder.pth is no encoder of AdaIN: it lacks 0.weight"):
        adain.load(files[1], files[0])
    with pytest.raises(InputError, match=r"There is no file gone\.pth"):
        adain.load("gone.pth", files[1])
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(InputError, match=r"text\.pth cannot be read"):
        adain.load(tmp_path / "text.pth", files[1])
    with pytest.raises(InputError, match=r"A style is one RGB picture \(3, h, w\) of 16 x 16 or more, got \(1, 8, 8\)"):
        adain.AdaIN(torch.rand(1, 8, 8))
    with pytest.raises(InputError, match="amount is the share of the style, between 0 and 1, got 2"):
        adain.AdaIN(amount=2)


# Framed and Sizing


@pytest.mark.parametrize("height, width", [(1, 1), (7, 100), (64, 64), (33, 65)])
def test_padding_is_cut_off_again(height, width):
    network = Framed(nn.Identity(), mean=(0, 0, 0), std=(1, 1, 1), sizing=Sizing(multiple=32))
    frame = torch.rand(1, 3, height, width)
    assert torch.equal(network(frame), frame)
    doubled = Framed(nn.Upsample(scale_factor=2), mean=(0, 0, 0), std=(1, 1, 1), sizing=Sizing(multiple=32), back=None)
    assert torch.equal(doubled(frame), F.interpolate(frame, scale_factor=2))


def test_a_framed_network_has_the_weights_of_its_network_alone():
    network = Framed(nn.Conv2d(3, 4, 1))
    assert set(network.state_dict()) == {"net.weight", "net.bias"}
    exported = torch.export.export(network.eval(), (torch.rand(1, 3, 8, 8),))
    frame = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(exported.module()(frame), network(frame))
