"""A small network for depth and classes: any size, no batch in the statistics, each layer once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from unflicker.checks import InputError
from unflicker.networks.unet import UNet


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 48), (33, 50)])
def test_it_takes_any_size(size):
    net = UNet(8, width=8, depth=3)
    assert net(torch.rand(2, 3, *size)).shape == (2, 8, *size)


def test_it_is_small():
    assert sum(p.numel() for p in UNet(1).parameters()) < 6e5


def test_frames_of_a_batch_do_not_see_each_other():
    net, x = UNet(1, width=8, depth=2), torch.rand(3, 3, 16, 24)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
    torch.testing.assert_close(net.train()(x), net.eval()(x))


def test_each_layer_runs_once():
    net, runs = UNet(1, width=8, depth=3), Counter()
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: runs.update([name]))
    net(torch.rand(1, 3, 16, 16))
    layers = {name for name, module in net.named_modules() if not isinstance(module, torch.nn.ModuleList)}
    assert runs == dict.fromkeys(layers, 1)


def test_padding_is_cropped_away():
    """A frame is the same inside whatever is padded on: far from the border the padding does not show."""
    net, x = UNet(2, width=8, depth=1, norm=False), torch.rand(1, 3, 40, 41)
    torch.testing.assert_close(net(x)[..., :30, :30], net(F.pad(x, (0, 1, 0, 0), mode="replicate"))[..., :30, :30])


def test_it_learns_a_picture():
    net, x = UNet(1, width=8, depth=2), torch.rand(1, 3, 16, 16)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = (net(x) - x.mean(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in net.parameters())
    assert loss < 0.005


def test_it_exports():
    net = UNet(1, width=8, depth=2).eval()
    x = torch.rand(1, 3, 16, 24)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out_channels": 0}, "in_channels, out_channels, width and depth of 1 or more, got 3, 0, 16, 4"),
        ({"depth": 0}, "in_channels, out_channels, width and depth of 1 or more, got 3, 1, 16, 0"),
        ({"width": 12}, "width must be a multiple of 8, one group of the norms, got 12"),
    ],
)
def test_settings_that_cannot_be_are_named(change, words):
    with pytest.raises(InputError, match=words):
        UNet(**{"out_channels": 1, **change})


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 16, 16), (1, 3, 0, 16)])
def test_frames_that_are_none_are_named(shape):
    with pytest.raises(InputError, match=r"UNet takes frames \(B, 3, H, W\), got"):
        UNet(1, width=8, depth=1)(torch.zeros(shape))
