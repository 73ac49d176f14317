"""Tasks: the networks in the package, the network that is none, and the adapters all of them have."""

import pytest
import torch
from torch import nn

from unflicker.checks import InputError
from unflicker.corruptions import ToneJitter
from unflicker.data.synthetic import demo_clip
from unflicker.stabilizers import Aligned
from unflicker.tasks import BUILT_IN, TASKS, WEIGHTS, find_task, load_network, load_task


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_aligned_unless_told_otherwise(name):
    model = load_task(name)
    assert find_task(name).default == ("aligned-learned" if name == "denoise" else "aligned")
    assert set(model.stabilizers) == {"output"} and isinstance(model.stabilizers["output"], Aligned)
    assert set(BUILT_IN) <= set(find_task(name).adapters)


def test_adapters_are_listed_with_the_trained_ones_first_and_none_last():
    assert find_task("denoise").adapters == ("aligned-learned", "spatial", "learned-ema", "aligned", "ema", "none")
    assert find_task("none").adapters == ("aligned", "ema", "none")


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
