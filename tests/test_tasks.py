"""Tasks: the networks in the package, the network that is none, and the adapters all of them have."""

import pytest
import torch
from torch import nn

from unflicker.checks import InputError
from unflicker.controllers import Controller
from unflicker.corruptions import ToneJitter
from unflicker.data.synthetic import demo_clip
from unflicker.model import stabilize
from unflicker.networks.adain import AdaIN
from unflicker.networks.base import Framed
from unflicker.networks.hdrnet import HDRNet
from unflicker.networks.nafnet import NAFNet
from unflicker.networks.unet import UNet
from unflicker.stabilizers import Aligned, Controlled, Merged, Spatial
from unflicker.tasks import BUILT_IN, TASKS, WEIGHTS, add_adapter, find_task, load_network, load_task, paper_plan

HERE = [name for name, task in TASKS.items() if task.weights or name == "none"]


@pytest.mark.parametrize("name", HERE)
def test_every_task_is_aligned_unless_told_otherwise(name):
    model = load_task(name)
    if name == "denoise-heavy":  # but this: what it loses in one frame it has to find in others
        assert set(model.stabilizers) == {"input"} and isinstance(model.stabilizers["input"], Merged)
        return
    assert set(model.stabilizers) == {"output"} and isinstance(model.stabilizers["output"], Aligned)
    assert model.stabilizers["output"].signal == find_task(name).signal
    assert find_task(name).default in ("aligned", "aligned-learned")
    assert set(BUILT_IN) <= set(find_task(name).adapters)


@pytest.mark.parametrize(
    "network",
    [NAFNet(width=8, encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,)), HDRNet(), UNet(1, width=8), AdaIN()],
    ids=lambda network: type(network).__name__,
)
def test_the_papers_layers_can_be_stabilized(network):
    plan = paper_plan(network, Spatial(hidden=4, groups=1))
    model = stabilize(network, plan, controller=Controller(4, depth=1), example=torch.rand(1, 3, 64, 64))
    assert "output" in model.places and len(model.places) >= len(plan)
    assert {type(each) for each in model.stabilizers.values()} <= {Spatial, Controlled}  # vectors are no maps
    model(torch.rand(1, 2, 3, 64, 64))


def test_where_the_papers_name_no_layer():
    with pytest.raises(InputError, match="The papers name no layers of a Conv2d, only of NAFNet, HDRNet"):
        paper_plan(nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="There is no preset 'papre'; did you mean 'paper'"):
        load_task("depth", preset="papre")
    assert len(load_task("depth", preset="paper").places) == 10


def test_a_network_of_yours_is_averaged_in_the_space_of_what_it_returns():
    for channels, signal in ((1, "depth"), (3, "image"), (5, "logits")):
        model = add_adapter(nn.Conv2d(3, channels, 1), "aligned")
        assert model.stabilizers["output"].signal == signal
    vector = add_adapter(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "aligned")
    assert vector.stabilizers["output"].signal == "logits"


def test_a_task_with_published_weights_says_where_they_go():
    with pytest.raises(InputError, match=r"give --model style:PICTURE with --weights FOLDER"):
        load_network("style")


def test_adapters_are_listed_with_the_trained_ones_first_and_none_last():
    assert find_task("denoise").adapters == (
        "aligned-learned",
        "spatial",
        "learned-ema",
        "aligned-recover",
        "merged",
        *BUILT_IN,
    )
    assert find_task("none").adapters == BUILT_IN


def test_weights_are_there_for_every_network_that_has_some():
    assert {path.stem for path in WEIGHTS.glob("*.safetensors")} == {t.name for t in TASKS.values() if t.weights}


def test_the_task_none_has_no_network():
    assert isinstance(load_network("none"), nn.Identity)
    model, frame = load_task("none", "none"), torch.rand(2, 3, 5, 7)
    assert isinstance(model.base, nn.Identity)
    assert torch.equal(model(frame)[0], frame)


def test_the_task_none_takes_flicker_out_of_a_video():
    clean = demo_clip(16, 96, 160)
    flickering = ToneJitter(severity=3, seed=0)(clean)
    with torch.no_grad():
        steady, _ = load_task("none")(flickering[None])

    def flicker(clip):
        return (clip - clean).diff(dim=0).square().mean().sqrt()

    assert flicker(steady[0]) < 0.6 * flicker(flickering)


def test_a_wrong_name_is_told_with_the_nearest():
    with pytest.raises(InputError, match=r"The task 'none' has no adapter 'alinged'.*did you mean 'aligned'"):
        load_task("none", "alinged")
    with pytest.raises(InputError, match="There is no task 'nome'; did you mean 'none'"):
        load_task("nome")


def test_the_papers_layers_of_networks_from_the_hub():
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck")
    network = Framed(transformers.ResNetForImageClassification(config).eval(), entry="logits")
    model = stabilize(network, paper_plan(network, Controlled(hidden=4)), example=torch.rand(1, 3, 64, 64))
    assert len(model.places) == 2


def test_adapters_of_a_task_are_joined_by_name():
    model = load_task("denoise", "learned-ema+learned-ema")
    assert len(model.stabilizers) == 1
    model(torch.rand(1, 2, 3, 32, 48))
