"""Layers as they run, what flicker they carry, and the plan that comes of it."""

import io

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

import unflicker.inspecting as inspecting
from unflicker.checks import InputError
from unflicker.inspecting import inspect_layers, plan_as_python, plan_as_yaml, table
from unflicker.model import stabilize
from unflicker.recipes import load_recipe
from unflicker.stabilizers import EMA, Aligned, Controlled

FRAME = torch.rand(1, 3, 32, 48)


def still(frames=4):
    """Smooth pictures that do not move (T, 3, H, W)."""
    return F.interpolate(torch.rand(1, 3, 4, 6), size=(32, 48), mode="bicubic").clamp(0, 1).expand(frames, -1, -1, -1)


def by_name(found):
    return {layer.name: layer for layer in found.layers}


class Odd(nn.Module):
    """A layer that runs twice, one that never does, a list, tuples, and one that folds pixels into the batch."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.unused = nn.Conv2d(3, 3, 1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 8, 2, stride=2), nn.ReLU(inplace=True)), Split()])
        self.fold = Fold()
        self.up = nn.Upsample(scale_factor=2)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        z = self.twice(self.twice(self.head(x)))
        for block in self.blocks:
            z = block(z)
        self.fold(z[1])
        return {"aux": z[0], "out": self.last(self.up(z[1]))}


class Split(nn.Module):
    def forward(self, z):
        return z.mean((2, 3)), z * 0.5


class Fold(nn.Module):
    def forward(self, z):
        return z.flatten(2).transpose(1, 2).flatten(0, 1)


def test_layers_are_listed_in_running_order():
    found = inspect_layers(Odd(), FRAME)
    assert [layer.name for layer in found.layers] == [
        *("in:", "head", "twice", "blocks.0.0", "blocks.0.1", "blocks.0", "blocks.1", "fold", "up", "last", ""),
        "unused",
    ]
    layers = by_name(found)
    assert layers["head"].shape == (4, 32, 48) and layers["head"].type == "Conv2d"
    assert layers["head"].parameters == 3 * 4 * 9 + 4 and layers[""].parameters == sum(
        p.numel() for p in Odd().parameters()
    )
    assert (layers["twice"].runs, layers["twice"].why_not, layers["twice"].address) == (2, "runs more than once", None)
    assert (layers["unused"].runs, layers["unused"].why_not) == (0, "never runs")
    assert layers["blocks.1"].address == "blocks.1::1"  # a picture before a vector
    assert layers["fold"].why_not == "has no row for every frame"
    assert layers["blocks.0.1"].why_not == "the same as blocks.0" and layers["blocks.0"].address == "blocks.0"
    assert layers[""].address == "::out"
    assert layers["head"].noise is None and found.frames == 0
    assert found.plan.keys() == {"::out"}


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inspect_layers(net, FRAME, still())
    assert net.training and all(module.training for module in net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


class Blur(nn.Module):
    """The mean of 8 x 8 pixels: noise is 1/8 of what it was, and smooth pictures stay."""

    def forward(self, x):
        return F.avg_pool2d(x, 8)


def test_noise_that_survives_is_what_arithmetic_says():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Identity(), nn.Conv2d(3, 3, 1), nn.Flatten(1))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(3).view(3, 3, 1, 1) * 7)
        net[1].bias.fill_(100)
    frame = 0.5 + (still(1) - 0.5) * 0.5  # so that no noise is clipped
    layers = by_name(inspect_layers(net, frame, frame, sigma=0.02, repeats=8))
    assert layers["in:"].noise == 1
    assert layers["1"].noise == pytest.approx(1, rel=1e-3)  # neither scale nor bias counts
    assert layers["in:"].video is None  # one frame shows no change
    blurred = by_name(inspect_layers(nn.Sequential(Blur(), nn.Identity()), frame, frame, sigma=0.02, repeats=16))
    ratio = (frame.var((2, 3), correction=0).mean() / F.avg_pool2d(frame, 8).var((2, 3), correction=0).mean()).sqrt()
    assert blurred[""].noise == pytest.approx(ratio.item() / 8, rel=0.1)


def test_a_still_video_does_not_change_and_a_moving_one_does():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    assert by_name(inspect_layers(net, FRAME, still()))[""].video == 0
    picture = still(1)
    moving = [picture.roll(t, -1) for t in range(4)]
    assert by_name(inspect_layers(net, FRAME, moving))[""].video > 0.01
    frames = torch.stack([m[0] for m in moving])
    change = (frames[1:] - frames[:-1]).square().mean() / frames.var((2, 3), correction=0).mean()
    assert by_name(inspect_layers(net, FRAME, frames))["in:"].video == pytest.approx(change.sqrt().item(), rel=1e-4)


class Pyramid(nn.Module):
    """A noisy stage, a calm one, and an output that follows a layer of its own size."""

    def __init__(self):
        super().__init__()
        self.sharp = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.calm = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(8, 16, 1))
        self.last = nn.Conv2d(8, 5, 3, padding=1)
        with torch.no_grad():
            self.sharp[0].weight.sub_(self.sharp[0].weight.mean((2, 3), keepdim=True))  # differences: noise is most

    def forward(self, x):
        z = self.sharp(x)
        z = z * torch.sigmoid(self.pool(z))
        y = self.last(F.interpolate(z, size=x.shape[-2:]))
        return y + self.calm(z).mean()


def test_the_noisy_stage_is_suggested_and_the_plan_fits():
    net = Pyramid()
    found = inspect_layers(net, FRAME, still(), sigma=0.05)
    layers = by_name(found)
    assert layers["sharp"].noise > 2 * layers["calm"].noise
    assert found.suggested == ("sharp", "")
    assert isinstance(found.plan["sharp"], Controlled) and isinstance(found.plan[""], Aligned)
    model = stabilize(net, found.plan, example=FRAME)
    y, state = model(FRAME)
    assert torch.equal(y, net(FRAME))
    model(FRAME, state)


def test_the_plan_as_text(tmp_path):
    found = inspect_layers(Pyramid(), FRAME, still())
    text = plan_as_python(found)
    assert text == 'plan = {\n    "sharp": Controlled(),\n    "": Aligned(),\n}'
    scope = {"Controlled": Controlled, "Aligned": Aligned, "EMA": EMA}
    exec(text, scope)
    stabilize(Pyramid(), scope["plan"], example=FRAME)
    read = yaml.safe_load(plan_as_yaml(found))
    assert read == {"adapter": {"plan": {"sharp": {"kind": "controlled"}, "": {"kind": "aligned"}}}}
    (tmp_path / "recipe.yaml").write_text("about: mine\nlike: denoise-0.1-small\n" + plan_as_yaml(found))
    assert set(load_recipe(str(tmp_path / "recipe.yaml"), ()).adapter.plan) == {"sharp", ""}


def test_tokens_planes_and_vectors(token_net, plane_net, vector_net):
    for net, kinds in ((token_net, EMA), (plane_net, Aligned), (vector_net, EMA)):
        found = inspect_layers(net, FRAME, still())
        assert isinstance(found.plan[""], kinds)
        assert by_name(found)[""].noise > 0
        stabilize(net, found.plan, example=FRAME)(FRAME)
    net = nn.Sequential(token_net, nn.Flatten(1), nn.LazyLinear(4))
    net(FRAME)
    found = inspect_layers(net, FRAME, still())
    assert 'Controlled(layout="tokens")'.replace('"', "'") in plan_as_python(found)
    stabilize(net, found.plan, example=FRAME)(FRAME)


class ByAnotherWay(nn.Module):
    """Returns what is never looked at, beside what is: as encoders of transformers do."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.last = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x):
        return F.interpolate(self.last(self.encoder(x)["all"][0]), size=x.shape[-2:])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Conv2d(3, 4, 2, stride=2)
        self.rest = nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, x):
        z = self.block(x)
        return {"last": self.rest(z).relu(), "all": (z,)}


def test_a_layer_that_nobody_looks_at_is_not_suggested():
    net = ByAnotherWay()
    found = inspect_layers(net, FRAME, still())
    layers = by_name(found)
    assert layers["encoder"].address == "encoder::last" and layers["encoder"].noise > 0
    assert found.suggested == ("encoder.block", "")


class Unet(nn.Module):
    """Blocks that widen inside, at two sizes; the last layer has the channels of the output."""

    def __init__(self):
        super().__init__()
        self.intro = nn.Conv2d(3, 8, 3, padding=1)
        self.encoder = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.down = nn.Conv2d(8, 16, 2, stride=2)
        self.middle = nn.Sequential(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()), nn.Conv2d(16, 16, 1))
        self.up = nn.Sequential(nn.Conv2d(16, 32, 1), nn.PixelShuffle(2))
        self.ending = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        z = self.encoder(self.intro(x))
        return x + self.ending(z + self.up(self.middle(self.down(z))))


class Attention(nn.Module):
    """A block of a vision transformer whose keys are (B, heads, N, C / heads)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, stride=8)
        self.norm = nn.LayerNorm(8)
        self.keys = nn.Identity()
        self.weights = nn.Softmax(-1)
        self.block = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        keys = self.keys(tokens.unflatten(2, (2, 4)).transpose(1, 2) * 1)
        mixed = self.weights(keys @ keys.transpose(2, 3)) @ keys
        return self.head(self.block(mixed.transpose(1, 2).flatten(2)).mean(1))


def test_heads_of_attention_are_no_maps(monkeypatch):
    monkeypatch.setattr(inspecting, "ENOUGH", 0.0)
    found = inspect_layers(Attention(), FRAME, still())
    assert by_name(found)["keys"].shape == (2, 24, 4)
    assert found.suggested == ("block", "")  # the map of patches and their tokens are one stage
    assert by_name(found)["keys"].noise > 0


class ChannelsLast(nn.Module):
    """Keeps maps as (B, H, W, C), which no stabilizer takes for what they are."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.GELU())
        self.tokens = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        z = self.block(self.embed(x).permute(0, 2, 3, 1))
        return self.head(self.tokens(z.flatten(1, 2)).mean(1))


def test_channels_last_is_no_map(monkeypatch):
    monkeypatch.setattr(inspecting, "ENOUGH", 0.0)
    found = inspect_layers(ChannelsLast(), FRAME, still())
    assert by_name(found)["block"].shape == (8, 12, 16)
    assert found.suggested == ("tokens", "")


class Depth(nn.Module):
    """Works at a size of its own and gives planes (B, h, w), as depth networks do."""

    def __init__(self):
        super().__init__()
        self.net = DepthInside()

    def forward(self, x):
        plane = self.net(F.interpolate(x, size=(21, 35)))["depth"]
        return F.interpolate(plane.unsqueeze(1), size=x.shape[-2:])


class DepthInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.ReLU())
        self.last = nn.Conv2d(6, 1, 1)

    def forward(self, x):
        z = F.interpolate(self.block(x), size=x.shape[-2:])
        return {"depth": self.last(z).squeeze(1)}


def test_a_plane_of_its_own_size_is_told_from_tokens():
    found = inspect_layers(Depth(), FRAME, still())
    assert by_name(found)["net"].shape == (21, 35)
    assert found.suggested == ("net.block", "")
    planes = inspecting._planes(found.layers)
    assert planes == {(21, 35)}
    picture = torch.rand(1, 21, 35)
    assert inspecting._variance(picture, planes) == pytest.approx(picture.var(correction=0).item())


class Passing(nn.Module):
    """An identity behind a block, and a layer that works in place."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
        self.pause = nn.Dropout()
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.act(self.pause(self.block(x))))


def test_who_owns_a_tensor():
    layers = by_name(inspect_layers(Passing(), FRAME))
    assert layers["block.0"].why_not == "the same as block"
    assert layers["block"].why_not == "the same as act"  # which worked on it in place
    assert layers["pause"].why_not == "passes block on"
    assert layers["act"].address == "act" and layers["last"].why_not == "the same as the output"


def test_blocks_stand_for_stages(monkeypatch):
    monkeypatch.setattr(inspecting, "ENOUGH", 0.0)
    assert inspect_layers(Unet(), FRAME, still()).suggested == ("encoder", "middle", "")


class Growing(nn.Module):
    """Gives one row more with every frame."""

    def __init__(self):
        super().__init__()
        self.grow = Grow()

    def forward(self, x):
        return x + self.grow(x).mean()


class Grow(nn.Module):
    rows = 4

    def forward(self, x):
        self.rows += 1
        return x[..., : self.rows, :]


def test_a_layer_that_changes_its_shape_is_told_of():
    found = by_name(inspect_layers(Growing(), FRAME, still()))
    assert found["grow"].why_not == "changes its shape from frame to frame" and found["grow"].address is None


def test_a_video_of_two_sizes_goes_on():
    net = nn.Conv2d(3, 4, 3, padding=1)
    frames = [*still(2), *still(2)[..., :16, :24]]
    assert by_name(inspect_layers(net, FRAME, frames))[""].video == 0


def test_what_cannot_be_inspected():
    net = nn.Conv2d(3, 4, 3)
    with pytest.raises(InputError, match=r"The video has no frames to measure\."):
        inspect_layers(net, FRAME, [])
    with pytest.raises(InputError, match=r"one frame \(C, H, W\) after the other, got shape \(2, 3, 8, 8\)."):
        inspect_layers(net, FRAME, [torch.rand(2, 3, 8, 8)])
    with pytest.raises(InputError, match=r"Noise is seen between two frames or more, and above 0; got repeats=1"):
        inspect_layers(net, FRAME, still(), repeats=1)
    with pytest.raises(InputError, match=r"Conv2d fails on frames \(1, 4, 8, 8\)"):
        inspect_layers(net, torch.rand(1, 4, 8, 8))
    assert not net._forward_hooks


def test_the_table_shows_what_was_found():
    from rich.console import Console

    found = inspect_layers(Odd(), FRAME, still())
    console = Console(file=io.StringIO(), width=160)
    console.print(table(found))
    text = console.file.getvalue()
    for part in ("Odd on frames 3 x 32 x 48", "blocks.0", "runs more than once", "never runs", "100 %", '"" (output)'):
        assert part in text
    console = Console(file=io.StringIO(), width=160)
    console.print(table(inspect_layers(Odd(), FRAME), depth=1))
    text = console.file.getvalue()
    assert "blocks.0" not in text and "Give a video" in text and "noise left" not in text


def test_memory_does_not_grow_with_the_video():
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU())
    streams = inspecting._Streams(FRAME.shape[-2:])
    with torch.no_grad(), inspecting._watching(net, ["0", "1"], streams):
        for _ in range(3):
            streams.take(net, FRAME)
            kept = sum(stream.last.numel() for stream in streams.streams.values())
            assert kept <= len(streams.streams) * inspecting.SAMPLE


def test_a_timm_network_is_inspected():
    try:
        timm = pytest.importorskip("timm", reason="needs timm: pip install timm")
    except RuntimeError as error:
        pytest.skip(f"timm cannot be imported here: {error}")
    net = timm.create_model("convnext_atto", num_classes=5)
    found = inspect_layers(net, torch.rand(1, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert len(found.layers) > 50 and len(found.suggested) > 1
    stabilize(net, found.plan, example=torch.rand(1, 3, 64, 64))(torch.rand(1, 3, 64, 64))
