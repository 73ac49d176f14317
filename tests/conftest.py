"""Small networks, clips, and every kind of stabilizer with weights that make the past count for about half."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from unflicker.controllers import Controller
from unflicker.model import StabilizedModel, stabilize
from unflicker.stabilizers import EMA, Aligned, Chain, Controlled, Gaussian, LearnedEMA, Merged, Spatial, Stabilizer

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds; runs with UNFLICKER_SLOW=1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("UNFLICKER_SLOW") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; UNFLICKER_SLOW=1 runs it"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Kind(NamedTuple):
    """One stabilizer kind with its settings."""

    name: str
    make: Callable[[], Stabilizer]
    controller: Callable[[], Controller] | None = None
    inside: Callable[[], Stabilizer] | None = None
    """What goes into inner layers, for a kind that is for the network's output alone."""

    def at(self, layer: str) -> Stabilizer:
        return self.inside() if layer and self.inside else self.make()

    @property
    def layer(self) -> str:
        """Where to put one of it."""
        return "" if self.inside else "encoder"


KINDS = [
    Kind("ema", lambda: EMA(0.3)),
    Kind("learned_ema", lambda: LearnedEMA()),
    Kind("gaussian", lambda: Gaussian(window=3)),
    Kind("controlled", lambda: Controlled(hidden=8)),
    Kind("controlled-context", lambda: Controlled(hidden=8, feature_inputs=False)),
    Kind("controlled-papercontroller", lambda: Controlled(hidden=8), lambda: Controller.paper(width=8)),
    Kind("spatial", lambda: Spatial(3, hidden=8)),
    Kind("spatial-shared", lambda: Spatial(3, groups=1, hidden=8)),
    Kind("spatial-paper", lambda: Spatial(3, hidden=8, paper_exact=True)),
    Kind("spatial-papercontroller", lambda: Spatial(3, hidden=8), lambda: Controller.paper(width=8)),
    Kind("aligned", lambda: Aligned()),
    # The test frames are too small for DIS, so this is the flow on tensors; graphs of it take long to make.
    Kind("aligned-output", lambda: Aligned(evidence="output", flow="none")),
    Kind("aligned-depth", lambda: Aligned(signal="depth", flow="none")),
    Kind("aligned-logits", lambda: Aligned(signal="logits", flow="none")),
    Kind("aligned-learned", lambda: Aligned(learned=True, flow="none")),
    Kind("aligned-recover", lambda: Aligned(recover=True, flow="none"), inside=lambda: Aligned(flow="none")),
    Kind(
        "aligned-recover-learned",
        lambda: Aligned(recover=True, learned=True, flow="none"),
        inside=lambda: Aligned(learned=True, flow="none"),
    ),
    Kind("merged", lambda: Merged(flow="none")),
    Kind("chain", lambda: Chain(EMA(0.3), Spatial(3, hidden=8))),
]


@pytest.fixture(params=KINDS, ids=[kind.name for kind in KINDS])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=[k for k in KINDS if k.controller is None], ids=[k.name for k in KINDS if k.controller is None])
def own_kind(request: pytest.FixtureRequest) -> Kind:
    """The kinds once each, where the controller makes no difference and time matters."""
    return request.param


def lively(model: StabilizedModel) -> StabilizedModel:
    """Give the past about half the weight: fresh weights barely use it, and would hide a broken recurrence."""
    with torch.no_grad():
        for module in model.stabilizers.modules():
            if isinstance(module, LearnedEMA):
                module.logit.uniform_(-1, 1)
            elif isinstance(module, Aligned) and module.learned:
                module.head[-1].weight.uniform_(-0.1, 0.1)
                if module.judge is not None:
                    module.judge[-1].weight.uniform_(-0.1, 0.1)
            elif isinstance(module, (Controlled, Spatial)):
                window = module.kernel_size**2 if isinstance(module, Spatial) else 1
                module.head[-1].bias.uniform_(-1, 1).sub_(math.log(window))
    return model


@pytest.fixture
def build(kind: Kind) -> Callable[..., StabilizedModel]:
    """Stabilize the named layers of a network with the kind at hand."""

    def build(base: nn.Module, example: Tensor, layers: tuple[str, ...] = ("encoder", "")) -> StabilizedModel:
        controller = kind.controller() if kind.controller else None
        return lively(stabilize(base, {name: kind.at(name) for name in layers}, controller=controller, example=example))

    return build


@pytest.fixture
def make_lively() -> Callable[[StabilizedModel], StabilizedModel]:
    return lively


@pytest.fixture
def stream() -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """Run a clip (B, T, ...) frame by frame, or in chunks; keyword tensors (B, T, ...) are cut along."""

    def stream(
        model: StabilizedModel, clip: Tensor, state: Any = None, *, chunks: list[int] | None = None, **per_frame: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        results, start = [], 0
        if chunks is None:
            for t in range(clip.shape[1]):
                y, state = model(clip[:, t], state, **{name: value[:, t] for name, value in per_frame.items()})
                results.append(y.unsqueeze(1))
            return torch.cat(results, 1), state
        for length in chunks:
            part = slice(start, start + length)
            y, state = model(clip[:, part], state, **{name: value[:, part] for name, value in per_frame.items()})
            results.append(y)
            start += length
        return torch.cat(results, 1), state

    return stream


@pytest.fixture
def clip() -> Tensor:
    """Two streams of five frames (2, 5, 3, 12, 10)."""
    return torch.rand(2, 5, 3, 12, 10)


class ConvNet(nn.Module):
    """An in-place ReLU follows the layer that is stabilized."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.decoder = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.act(self.encoder(x)))


class Spread(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x * -0.5], 1)


class ExactNet(nn.Module):
    """Pointwise products and sums alone: the same bits whatever the batch size, and no pixel sees another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Spread()
        self.decoder = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        z = self.decoder(self.encoder(x))
        return z[:, :3] * 0.75 - z[:, 3:]


class NormNet(nn.Module):
    """BatchNorm and Dropout, which behave otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.decoder = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.drop(self.norm(self.encoder(x))))


class TokenNet(nn.Module):
    """Frames to tokens (B, N, C); `merge` needs them contiguous, as many transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.Linear(8, 8)
        self.merge = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.block(self.embed(x).flatten(2).transpose(1, 2))
        return self.merge(tokens.view(-1, 8)).view(*tokens.shape)


class VectorNet(nn.Module):
    """Frames to vectors (B, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.hidden = nn.Linear(8, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.conv(x).mean((2, 3))))


class PlaneNet(nn.Module):
    """Frames to planes (B, H, W), as depth networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).squeeze(1)


class ModelOutput(OrderedDict):
    """A dict with attributes that also counts its entries, as the outputs of Hugging Face's models do."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Pair(NamedTuple):
    depth: Tensor
    features: Tensor


class EntriesNet(nn.Module):
    """Returns a picture and its features in the container `wrap` makes, from a layer and as the network."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.both = Both(wrap)

    def forward(self, x: Tensor) -> Any:
        return self.both(self.conv(x))


class Both(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, z: Tensor) -> Any:
        return self.wrap(z[:, :1] * 2, z * 1)


def as_tuple(depth: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return depth, features


def as_list(depth: Tensor, features: Tensor) -> list[Tensor]:
    return [depth, features]


def as_dict(depth: Tensor, features: Tensor) -> dict[str, Tensor]:
    return {"depth": depth, "features": features}


def as_pyramid(depth: Tensor, features: Tensor) -> dict[str, Tensor]:
    """Feature pyramids name their levels "0", "1", ..."""
    return OrderedDict({"0": depth, "1": features})


def as_output(depth: Tensor, features: Tensor) -> ModelOutput:
    return ModelOutput(depth=depth, features=features)


def net_fixture(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return pytest.fixture(lambda seed: make())


conv_net = net_fixture(ConvNet)
exact_net = net_fixture(ExactNet)
norm_net = net_fixture(NormNet)
token_net = net_fixture(TokenNet)
vector_net = net_fixture(VectorNet)
plane_net = net_fixture(PlaneNet)
dict_net = net_fixture(lambda: EntriesNet(as_dict))
output_net = net_fixture(lambda: EntriesNet(as_output))
tuple_net = net_fixture(lambda: EntriesNet(as_tuple))

CONTAINERS = {
    "tuple": (as_tuple, "0"),
    "list": (as_list, "0"),
    "namedtuple": (Pair, "0"),
    "dict": (as_dict, "depth"),
    "pyramid": (as_pyramid, "0"),
    "output": (as_output, "depth"),
    "output by number": (as_output, "0"),
}


@pytest.fixture(params=CONTAINERS.values(), ids=CONTAINERS.keys())
def entries_net(request: pytest.FixtureRequest, seed: None) -> tuple[nn.Module, str]:
    """A network that returns a container, and the selector of its first entry."""
    wrap, selector = request.param
    return EntriesNet(wrap), selector
