"""HDRNet: the slice against a loop and against grid_sample, the published layout against NumPy, and its layers."""

import importlib.util
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unflicker.checks import InputError
from unflicker.model import stabilize
from unflicker.networks import hdrnet
from unflicker.networks.hdrnet import Curves, HDRNet, from_tensorflow, load_published, slice_and_apply
from unflicker.stabilizers import EMA, Aligned, Controlled, Spatial

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
FORMS = [hdrnet._slice_by_strips, hdrnet._slice_by_bins]
forms = pytest.mark.parametrize("form", FORMS, ids=["strips", "bins"])

# batch, outputs, inputs, bins, grid height and width, image height and width
SHAPES = [
    (1, 3, 3, 8, 16, 16, 20, 37),
    (2, 3, 3, 8, 16, 16, 7, 5),  # cells without a pixel
    (1, 3, 3, 2, 4, 4, 64, 48),
    (1, 1, 2, 1, 1, 1, 3, 4),  # one cell
    (1, 3, 3, 3, 2, 1, 5, 6),
    (2, 2, 1, 5, 3, 2, 1, 1),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def given(shape, dtype=torch.float64):
    batch, outputs, inputs, bins, rows, columns, height, width = shape
    grid = torch.randn(batch, outputs, inputs + 1, bins, rows, columns, dtype=dtype)
    guide = torch.rand(batch, 1, height, width, dtype=dtype) * 1.2 - 0.1  # beyond both ends too
    return grid, guide, torch.rand(batch, inputs, height, width, dtype=dtype)


def by_loop(grid, guide, image):
    """The definition, pixel by pixel and corner by corner."""
    batch, outputs, inputs, bins, rows, columns = grid.shape
    height, width = image.shape[-2:]
    result = torch.zeros(batch, outputs, height, width, dtype=grid.dtype)
    for b, y, x in itertools.product(range(batch), range(height), range(width)):
        places = (
            guide[b, 0, y, x].item() * bins - 0.5,
            (y + 0.5) * rows / height - 0.5,
            (x + 0.5) * columns / width - 0.5,
        )
        corners = [(math.floor(place), place - math.floor(place)) for place in places]
        transform = torch.zeros(outputs, inputs, dtype=grid.dtype)
        for steps in itertools.product((0, 1), repeat=3):
            weight, index = 1.0, []
            for (first, share), step, count in zip(corners, steps, (bins, rows, columns), strict=True):
                weight *= share if step else 1 - share
                index.append(min(max(first + step, 0), count - 1))
            transform += weight * grid[b, :, :, index[0], index[1], index[2]]
        result[b, :, y, x] = transform[:, :-1] @ image[b, :, y, x] + transform[:, -1]
    return result


def by_grid_sample(grid, guide, image):
    batch, outputs, inputs = grid.shape[:3]
    height, width = image.shape[-2:]
    x, y = ((2 * torch.arange(n, dtype=grid.dtype) + 1) / n - 1 for n in (width, height))
    at = torch.stack([x.expand_as(guide[:, 0]), y[:, None].expand_as(guide[:, 0]), 2 * guide[:, 0] - 1], -1)
    found = F.grid_sample(grid.flatten(1, 2), at[:, None], padding_mode="border", align_corners=False)
    found = found.view(batch, outputs, inputs, height, width)
    return (found[:, :, :-1] * image[:, None]).sum(2) + found[:, :, -1]


@forms
@shapes
def test_the_slice_is_its_definition(form, shape):
    given_ = given(shape)
    torch.testing.assert_close(form(*given_), by_loop(*given_), rtol=1e-9, atol=1e-11)


@forms
@pytest.mark.parametrize("size", [(72, 128), (37, 301), (200, 16)], ids=str)
def test_the_slice_is_grid_sample_in_single_precision(form, size):
    given_ = given((2, 3, 3, 8, 16, 16, *size), torch.float32)
    torch.testing.assert_close(form(*given_), by_grid_sample(*given_), rtol=0, atol=5e-5)


@forms
def test_bands_make_no_difference(form, monkeypatch):
    given_ = given((1, 3, 3, 8, 16, 16, 50, 64))
    expected = form(*given_)
    monkeypatch.setattr(hdrnet, "IN_CACHE", 700)
    torch.testing.assert_close(form(*given_), expected, rtol=0, atol=1e-13)


@forms
@pytest.mark.parametrize("shape", [(1, 2, 2, 3, 3, 3, 4, 5), (2, 1, 1, 2, 1, 2, 2, 3)], ids=str)
def test_gradients(form, shape):
    grid, guide, image = given(shape)
    leaves = [value.requires_grad_() for value in (grid, guide.clamp(0.02, 0.98).detach(), image)]
    assert torch.autograd.gradcheck(form, leaves)


@forms
def test_corners_take_the_corner_cells(form):
    grid = torch.randn(1, 1, 2, 4, 4, 4, dtype=torch.float64)
    image, guide = torch.ones(1, 1, 16, 16, dtype=torch.float64), torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    assert torch.isclose(form(grid, guide, image)[0, 0, 0, 0], grid[0, 0, :, 0, 0, 0].sum())
    assert torch.isclose(form(grid, guide + 1, image)[0, 0, -1, -1], grid[0, 0, :, -1, -1, -1].sum())


def test_half_precision_is_computed_in_single():
    grid, guide, image = (value.bfloat16() for value in given((1, 3, 3, 8, 16, 16, 20, 37)))
    y = slice_and_apply(grid, guide, image)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, by_grid_sample(grid.float(), guide.float(), image.float()).bfloat16())


def test_shapes_are_checked():
    grid, guide, image = given(SHAPES[0])
    for wrong in ((grid[0], guide, image), (grid, guide[..., 1:], image), (grid, guide, image[:, :2])):
        with pytest.raises(InputError, match=r"takes a grid \(B, O, I \+ 1, bins, h, w\).*got \("):
            slice_and_apply(*wrong)


def test_curves_are_sums_of_ramps(monkeypatch):
    curves, x = Curves(), torch.rand(2, 3, 9, 11) * 2 - 0.5
    torch.testing.assert_close(curves(x), x.clamp_min(0))  # as they begin
    with torch.no_grad():
        curves.slopes.normal_()
        curves.shifts.uniform_()
    slopes, shifts = (value.view(1, 3, 1, 1, -1) for value in (curves.slopes, curves.shifts))
    expected = (slopes * (x.unsqueeze(-1) - shifts).clamp_min(0)).sum(-1)
    torch.testing.assert_close(curves(x), expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(hdrnet, "_as_planes", lambda x: True)
    torch.testing.assert_close(curves(x), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    return HDRNet().eval()


def runs_of(net, x):
    """How often each layer with weights runs in one pass."""
    count, handles = {}, []
    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            count[name] = 0
            handles.append(layer.register_forward_hook(lambda *_, name=name: count.update({name: count[name] + 1})))
    net(x)
    for handle in handles:
        handle.remove()
    return count


@pytest.mark.parametrize("guide", ["curves", "network"])
def test_the_layers_that_the_paper_stabilizes(guide):
    net = HDRNet(guide=guide)
    count = runs_of(net, torch.rand(1, 3, 9, 12))
    kinds = [type(net.get_submodule(name)) for name in count]
    assert kinds.count(nn.Conv2d) == 11 and kinds.count(nn.Linear) == 3
    assert set(count.values()) == {1}


def test_it_has_0_48_million_weights(net):
    assert sum(weights.numel() for weights in net.parameters()) == 482_080
    doubled = HDRNet(width=2)
    assert doubled(torch.rand(1, 3, 6, 8)).shape == (1, 3, 6, 8)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (90, 120)], ids=str)
def test_any_size_and_memory_format(net, size):
    x = torch.rand(2, 3, *size)
    y = net(x)
    assert y.shape == x.shape and y.isfinite().all()
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(x[1:]), y[1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_autocast_and_half_precision_stay_close(net):
    x = torch.rand(1, 3, 40, 60)
    y = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(x)
    assert mixed.dtype == torch.float32
    assert (mixed - y).abs().mean() < 0.02 * y.abs().mean()
    half = HDRNet().eval()
    half.load_state_dict(net.state_dict())
    assert (half.bfloat16()(x.bfloat16()).float() - y).abs().mean() < 0.03 * y.abs().mean()


def test_every_weight_gets_a_gradient():
    for guide in ("curves", "network"):
        net = HDRNet(low_size=32, grid_size=4, guide=guide)
        with torch.no_grad():
            if guide == "curves":
                net.guide.curves.slopes.uniform_(0, 0.1)
        net(torch.rand(2, 3, 30, 40)).square().mean().backward()
        for name, weights in net.named_parameters():
            assert weights.grad is not None and weights.grad.isfinite().all() and weights.grad.any(), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grid_size": 6}, "multiple of 4"),
        ({"low_size": 200}, "low_size=200"),
        ({"low_size": 16}, "2, 4, 8"),
        ({"bins": 0}, "bins=0"),
        ({"guide": "curve"}, "'curves', 'network', not 'curve'"),
    ],
    ids=str,
)
def test_settings_are_checked(settings, words):
    with pytest.raises(InputError, match=words):
        HDRNet(**settings)


@torch.no_grad()
def test_the_output_can_be_stabilized(net):
    clip = torch.rand(1, 3, 3, 40, 56)
    model = stabilize(net, {"": Aligned()}, example=clip[:, 0])
    y, state = model(clip[:, 0])
    assert torch.equal(y, net(clip[:, 0]))
    y, state = model(clip[:, 1], state)
    assert y.shape == clip[:, 1].shape and y.isfinite().all()


@torch.no_grad()
def test_a_plan_on_its_layers(net):
    clip = torch.rand(1, 3, 3, 24, 40)
    plan = {
        "splat.conv*": Spatial(3, hidden=4),
        "local.conv*": EMA(0.3),
        "overall.fc*": Controlled(hidden=8),
        "guide.colour": EMA(0.2),
        "prediction": EMA(0.3),
        "": EMA(0.1),
    }
    model = stabilize(net, plan, example=clip[:, 0])
    whole, _ = model(clip)
    state, frames = None, []
    for t in range(3):
        y, state = model(clip[:, t], state)
        frames.append(y)
    torch.testing.assert_close(torch.stack(frames, 1), whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(clip[:, 0])[0], net(clip[:, 0]))


# The authors' graph in NumPy, channels last, with the names of their variables.


def same(x, kernel, stride):
    """TensorFlow's "SAME" padding and a convolution: (H, W, C), kernel (k, k, C, D)."""
    k = kernel.shape[0]
    size = [-(-n // stride) for n in x.shape[:2]]
    total = [max(0, (m - 1) * stride + k - n) for m, n in zip(size, x.shape[:2], strict=True)]
    x = np.pad(x, [*((t // 2, t - t // 2) for t in total), (0, 0)])
    out = np.zeros((*size, kernel.shape[3]))
    for i, j in itertools.product(range(size[0]), range(size[1])):
        window = x[i * stride : i * stride + k, j * stride : j * stride + k]
        out[i, j] = np.tensordot(window, kernel, 3)
    return out


def layer(v, name, x, *, stride=1, act=True):
    weights = v[f"{name}/weights"]
    y = same(x, weights, stride) if weights.ndim == 4 else x @ weights
    if f"{name}/BatchNorm/beta" in v:
        mean, variance = v[f"{name}/BatchNorm/moving_mean"], v[f"{name}/BatchNorm/moving_variance"]
        y = (y - mean) / np.sqrt(variance + 1e-3) + v[f"{name}/BatchNorm/beta"]
    elif f"{name}/biases" in v:
        y = y + v[f"{name}/biases"]
    return np.maximum(y, 0) if act else y


def authors_graph(v, low, full, bins):
    """The coefficients (h, w, bins, 3, 4) and the guide (H, W)."""
    v = {name.removeprefix("inference/"): value.astype(np.float64) for name, value in v.items()}
    x, i = low, 1
    while f"coefficients/splat/conv{i}/weights" in v:
        x, i = layer(v, f"coefficients/splat/conv{i}", x, stride=2), i + 1
    overall = layer(v, "coefficients/global/conv1", x, stride=2)
    overall = layer(v, "coefficients/global/conv2", overall, stride=2).reshape(-1)
    overall = layer(v, "coefficients/global/fc2", layer(v, "coefficients/global/fc1", overall))
    overall = layer(v, "coefficients/global/fc3", overall, act=False)
    local = layer(v, "coefficients/local/conv2", layer(v, "coefficients/local/conv1", x), act=False)
    packed = layer(v, "coefficients/prediction/conv1", np.maximum(local + overall, 0), act=False)
    twelve = np.stack(np.split(packed, 12, axis=2), axis=3)  # (h, w, bins, 12)
    coefficients = np.stack(np.split(twelve, 4, axis=3), axis=4)  # (h, w, bins, 3, 4)
    if "guide/ccm" in v:
        guide = full @ v["guide/ccm"] + v["guide/ccm_bias"]
        ramps = np.maximum(guide[..., None] - v["guide/shifts"], 0)
        guide = np.clip(layer(v, "guide/channel_mixing", (v["guide/slopes"][0] * ramps).sum(-1), act=False), 0, 1)
    else:
        guide = layer(v, "guide/conv2", layer(v, "guide/conv1", full), act=False)
        guide = 1 / (1 + np.exp(-guide))
    return coefficients, guide[..., 0]


def published(*, bins=8, width=1, low_size=256, grid_size=16, norm=False, guide="curves"):
    """A randomly filled file in the layout of the authors' checkpoints."""
    rng = np.random.default_rng(3)
    v = {}

    def fill(name, *shape, scale=1.0):
        v[f"inference/{name}"] = (scale * rng.standard_normal(shape)).astype(np.float32)

    def put(name, *shape, biases=True, normed=False):
        fill(f"{name}/weights", *shape, scale=math.sqrt(2 / math.prod(shape[:-1])))
        if normed:
            fill(f"{name}/BatchNorm/beta", shape[-1], scale=0.1)
            fill(f"{name}/BatchNorm/moving_mean", shape[-1], scale=0.1)
            v[f"inference/{name}/BatchNorm/moving_variance"] = rng.uniform(0.5, 2, shape[-1]).astype(np.float32)
        elif biases:
            fill(f"{name}/biases", shape[-1], scale=0.1)

    inputs = 3
    for i in range(int(math.log2(low_size / grid_size))):
        put(f"coefficients/splat/conv{i + 1}", 3, 3, inputs, width * bins * 2**i, normed=norm and i > 0)
        inputs = width * bins * 2**i
    c = 8 * width * bins
    put("coefficients/global/conv1", 3, 3, inputs, c, normed=norm)
    put("coefficients/global/conv2", 3, 3, c, c, normed=norm)
    put("coefficients/global/fc1", c * (grid_size // 4) ** 2, 4 * c, normed=norm)
    put("coefficients/global/fc2", 4 * c, 2 * c, normed=norm)
    put("coefficients/global/fc3", 2 * c, c)
    put("coefficients/local/conv1", 3, 3, inputs, c, normed=norm)
    put("coefficients/local/conv2", 3, 3, c, c, biases=False)
    put("coefficients/prediction/conv1", 1, 1, c, 12 * bins)
    if guide == "curves":
        v["inference/guide/ccm"] = (np.eye(3) + 0.1 * rng.standard_normal((3, 3))).astype(np.float32)
        fill("guide/ccm_bias", 3, scale=0.1)
        v["inference/guide/shifts"] = rng.uniform(0, 1, (1, 1, 3, 16)).astype(np.float32)
        fill("guide/slopes", 1, 1, 1, 3, 16, scale=0.3)
        put("guide/channel_mixing", 1, 1, 3, 1)
    else:
        put("guide/conv1", 1, 1, 3, 16, normed=True)
        put("guide/conv2", 1, 1, 16, 1)
    return v


SMALL = {"bins": 2, "low_size": 32, "grid_size": 8}


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("guide", ["curves", "network"])
def test_a_published_file_computes_what_the_authors_graph_does(tmp_path, norm, guide):
    variables = published(**SMALL, norm=norm, guide=guide)
    np.savez(tmp_path / "hdrnet.npz", **variables)
    net = load_published(tmp_path / "hdrnet.npz")
    frame = torch.rand(1, 3, 32, 32)  # of the size of the network's own copy
    pixels = frame[0].permute(1, 2, 0).double().numpy()
    coefficients, place = authors_graph(variables, pixels, pixels, 2)
    grid = torch.from_numpy(coefficients).permute(3, 4, 2, 0, 1)[None]
    expected = by_grid_sample(grid, torch.from_numpy(place)[None, None], frame.double())
    torch.testing.assert_close(net(frame).double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    torch.testing.assert_close(net.guide(frame)[0, 0].double(), torch.from_numpy(place), rtol=0, atol=1e-5)


def test_the_full_layout_loads_by_either_name(tmp_path):
    variables = published()
    assert sum(value.size for value in variables.values()) == 482_080
    net = HDRNet()
    net.load_state_dict(from_tensorflow(variables))
    extra = {f"{name}:0": value for name, value in variables.items()}
    extra |= {
        "global_step:0": np.int64(3),
        "train/optimizer/inference/guide/ccm/Adam:0": variables["inference/guide/ccm"],
    }
    for name, value in from_tensorflow(extra).items():
        assert torch.equal(value, net.state_dict()[name])
    assert torch.equal(net.guide.colour.weight[:, :, 0, 0], torch.from_numpy(variables["inference/guide/ccm"].T))


def test_wrong_files_are_told(tmp_path):
    variables = published(**SMALL)
    without = {name: value for name, value in variables.items() if not name.endswith("local/conv1/weights")}
    with pytest.raises(InputError, match="must have the variable 'coefficients/local/conv1/weights'"):
        from_tensorflow(without)
    with pytest.raises(InputError, match="float array of 2 dimensions, got float32"):
        from_tensorflow(variables | {"inference/guide/ccm": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"weights of overall\.fc2.*\(32, 60\).*\(32, 64\)"):
        from_tensorflow(variables | {"inference/coefficients/global/fc2/weights": np.zeros((60, 32), np.float32)})
    with pytest.raises(InputError, match="three scales"):
        from_tensorflow({"inference/guide/level_0/conv1/weights": np.zeros((1, 1, 3, 16), np.float32)})
    with pytest.raises(InputError, match="must have the variable"):
        from_tensorflow({})
    (tmp_path / "no.npz").write_bytes(b"no archive")
    for file in ("no.npz", "missing.npz"):
        with pytest.raises(InputError, match="cannot be read as an archive"):
            load_published(tmp_path / file)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match="cannot be read as an archive"):
        load_published(tmp_path / "one.npy")


@torch.no_grad()
def test_it_becomes_a_graph(net):
    x = torch.rand(1, 3, 24, 40)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_onnx(net, tmp_path):
    import onnxruntime

    x = torch.rand(1, 3, 24, 40)
    file = str(tmp_path / "hdrnet.onnx")
    torch.onnx.export(net, (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), net(x), rtol=1e-4, atol=1e-4)
