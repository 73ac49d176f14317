"""Optical flow against motion that is known, and the masks against the published formulas written out."""

import functools
import importlib.util

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from unflicker.checks import InputError
from unflicker.data.synthetic import demo_clip
from unflicker.flow import consistent, enlarge, fetch, flow, torch_flow, warp
from unflicker.functional import flow_to, resize, sample

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


def texture(height, width, seed=0):
    plane = gaussian_filter(np.random.default_rng(seed).random((height, width)), 2.0)
    plane = (plane - plane.min()) / (plane.max() - plane.min())
    return torch.from_numpy(plane.astype(np.float32)).expand(3, -1, -1)


@pytest.fixture
def shifted():
    """Two frames of a texture that moves by 2 pixels to the right and 1 down."""
    large = texture(80, 96)
    return large[None, :, 8:72, 8:88], large[None, :, 7:71, 6:86]


@pytest.mark.parametrize(
    ("preset", "scale", "within"),
    [("medium", 1.0, 0.3), ("fast", 1.0, 0.3), ("ultrafast", 1.0, 0.3), ("medium", 0.5, 0.5)],
)
def test_dis_finds_a_shift(shifted, preset, scale, within):
    a, b = shifted
    found = flow(a, b, preset=preset, scale=scale)
    assert found.shape == (1, 2, 64, 80) and found.dtype == a.dtype
    error = (found - torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)).norm(dim=1)[:, 8:-8, 8:-8]
    assert error.mean() < within
    assert (a - warp(b, found))[..., 8:-8, 8:-8].abs().mean() < 0.1 * (a - b)[..., 8:-8, 8:-8].abs().mean()


@pytest.mark.parametrize(("x", "y"), [(2, 1), (-1, 0), (0, -3), (7, -5), (-14, 6)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_torch_finds_a_shift(x, y, scale):
    large = texture(200, 260, seed=3)[None]
    a, b = large[..., 30:170, 30:230], large[..., 30 - y : 170 - y, 30 - x : 230 - x]
    found = flow(a, b, method="torch", scale=scale)
    error = (found - torch.tensor([x, y], dtype=a.dtype).view(1, 2, 1, 1)).norm(dim=1)[:, 40:-40, 40:-40]
    assert error.median() < 0.1 / scale
    assert error.mean() < 0.2 / scale


def test_torch_follows_a_zoom_to_a_fraction_of_a_pixel():
    b = texture(96, 160, seed=5)[None]
    y, x = torch.meshgrid(torch.arange(96) - 47.5, torch.arange(160) - 79.5, indexing="ij")
    true = torch.stack([0.03 * x + 0.01 * y, 0.03 * y - 0.01 * x])[None]
    error = (flow(warp(b, true), b, method="torch") - true).norm(dim=1)
    assert error[:, 8:-8, 8:-8].mean() < 0.1


def test_torch_foretells_the_demo_clip_as_well_as_dis():
    clip = demo_clip(46, 96, 160)[36:]
    a, b = clip[1:], clip[:-1]
    found = {name: warp(b, flow(a, b, method=name)) for name in ("none", "dis", "torch")}
    off = {name: (warped - a).abs().clamp_max(0.1).mean() for name, warped in found.items()}
    assert off["torch"] < 1.05 * off["dis"] < 0.5 * off["none"]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (7, 3), (11, 64), (37, 53)])
def test_torch_takes_any_size(size):
    a = torch.rand(2, 3, *size)
    assert flow(a, a.flip(-1), method="torch").isfinite().all()
    assert flow(a, a, method="torch").abs().max() < 1e-3
    flat = torch.full((2, 3, *size), 0.4)
    assert flow(flat, flat, method="torch").abs().max() == 0
    found = flow(flat, flat + 0.2, method="torch", scale=0.5)
    assert found.shape == (2, 2, *size) and found.abs().max() < 1e-3


every_method = pytest.mark.parametrize("method", ["dis", "torch"])


@every_method
def test_frames_of_a_batch_do_not_see_each_other(shifted, method):
    a, b = shifted
    both = flow(torch.cat([a, a]), torch.cat([b, a]), method=method)
    torch.testing.assert_close(both[:1], flow(a, b, method=method), rtol=0, atol=0 if method == "dis" else 1e-4)
    assert both[1].abs().max() < 0.05


@every_method
def test_grey_double_and_values_out_of_range_are_taken(shifted, method):
    a, b = (frame[:, :1].double() for frame in shifted)
    found = flow(a, b, method=method)
    assert found.dtype == torch.float64
    assert (found.median() - 1.5).abs() < 0.6
    assert flow(a.bfloat16(), b.bfloat16(), method=method).dtype == torch.bfloat16
    a = a.clone()
    a[..., 0, 0], a[..., 0, 1] = torch.nan, 9.0
    found = flow(a, b, method=method)
    assert found.isfinite().all()
    a[..., 0, 0], a[..., 0, 1] = 0.0, 1.0
    assert torch.equal(found, flow(a, b, method=method))


def test_auto_takes_dis_where_it_can(shifted, monkeypatch):
    a, b = shifted
    assert torch.equal(flow(a, b, method="auto"), flow(a, b, method="dis"))
    small = (a[..., :8, :8], b[..., :8, :8])
    assert torch.equal(flow(*small, method="auto"), flow(*small, method="torch"))
    assert flow(a.to("meta"), b.to("meta"), method="auto").device.type == "meta"
    monkeypatch.setattr("unflicker.flow.dis._installed", lambda: False)
    assert torch.equal(flow(a, b, method="auto"), flow(a, b, method="torch"))
    with pytest.raises(InputError, match=r'pip install opencv-python-headless; method="torch" needs nothing'):
        flow(a, b, method="dis")


class Search(torch.nn.Module):
    def forward(self, a, b):
        return flow(a, b, method="torch", scale=0.5)


@pytest.fixture(params=[(48, 64), (45, 67)], ids=["even", "odd"])
def pair(request, shifted):
    height, width = request.param
    return tuple(frame[..., :height, :width].contiguous() for frame in shifted)


def test_torch_is_one_graph(pair):
    compiled = torch.compile(Search(), fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(*pair), Search()(*pair), rtol=0, atol=1e-3)


def test_torch_exports(pair):
    program = torch.export.export(Search(), pair)
    torch.testing.assert_close(program.module()(*pair), Search()(*pair), rtol=0, atol=1e-3)


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_torch_runs_in_onnxruntime(shifted, tmp_path):
    import onnxruntime

    pair = tuple(frame[..., :22, :24].contiguous() for frame in shifted)
    torch.onnx.export(Search().eval(), pair, tmp_path / "flow.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "flow.onnx"), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, {name: frame.numpy() for name, frame in zip(names, pair, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), Search()(*pair), rtol=0, atol=1e-2)


def test_dis_refuses_export(shifted):
    class Dis(torch.nn.Module):
        def forward(self, a, b):
            return flow(a, b)

    with pytest.raises(InputError, match=r'cannot be exported; method="torch" can'):
        torch.export.export(Dis(), shifted, strict=False)


def test_a_callable_is_asked_and_none_stands_still(shifted):
    a, b = shifted
    known = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)
    assert torch.equal(flow(a, b, method=lambda a, b: known.expand(1, 2, 64, 80))[0, :, 5, 5], known.flatten())
    assert flow(a, b, method="none").abs().max() == 0
    fast = flow(a, b, method=functools.partial(flow, preset="fast"))
    assert torch.equal(fast, flow(a, b, preset="fast"))


def test_warp_is_scipys_bilinear_interpolation():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 9, 11, generator=generator, dtype=torch.float64)
    shift = torch.randn(2, 2, 9, 11, generator=generator, dtype=torch.float64) * 3
    found = warp(image, shift)
    y, x = np.mgrid[:9, :11]
    for i in range(2):
        at = [y + shift[i, 1].numpy(), x + shift[i, 0].numpy()]
        for c in range(3):
            expected = map_coordinates(image[i, c].numpy(), at, order=1, mode="nearest")
            np.testing.assert_allclose(found[i, c].numpy(), expected, atol=1e-10)
    assert torch.allclose(warp(image, torch.zeros_like(shift)), image)


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [(24, 32), (31, 47)])
def test_opencv_fetches_what_tensors_fetch(channels, size):
    """At 1/32 of a pixel and its multiples, the finest steps of OpenCV 4; between them it is a step off at most."""
    image = torch.rand(2, channels, *size)
    steps = torch.randint(-100, 100, (2, 2, *size)) / 32
    torch.testing.assert_close(fetch(image, steps), sample(image, steps), rtol=0, atol=1e-4)
    torch.testing.assert_close(fetch(image, steps, method="torch"), sample(image, steps), rtol=0, atol=0)
    smooth = gaussian_filter(image.numpy(), (0, 0, 2, 2))
    image, half_size = torch.from_numpy(smooth), 3 * torch.randn(2, 2, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(fetch(image, half_size), sample(image, flow_to(half_size, size)), rtol=0, atol=5e-3)
    torch.testing.assert_close(enlarge(half_size, size), resize(half_size, size), rtol=0, atol=1e-4)


def test_fetching_takes_every_layout_and_passes_gradients():
    image = torch.rand(1, 3, 24, 32).contiguous(memory_format=torch.channels_last)
    steps = torch.randint(-100, 100, (1, 2, 24, 32)) / 32
    torch.testing.assert_close(fetch(image, steps), sample(image, steps), rtol=0, atol=1e-4)
    torch.testing.assert_close(fetch(image.double(), steps.double()), sample(image.double(), steps.double()))
    image.requires_grad_()
    fetch(image, steps).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    with torch.no_grad():
        assert not fetch(image, steps).requires_grad
    weight = torch.rand(1, 1, 12, 16, requires_grad=True)
    assert enlarge(weight, (24, 32)).requires_grad


def test_consistent_is_the_published_formula_pixel_by_pixel():
    generator = torch.Generator().manual_seed(1)
    forward = torch.randn(1, 2, 12, 14, generator=generator) * 0.12 + 2
    backward = -warp(forward, -forward) + 0.4 * torch.randn(1, 2, 12, 14, generator=generator)
    found = consistent(forward, backward)[0, 0]
    back = warp(backward, forward)[0].double().numpy()
    w = forward[0].double().numpy()
    for y in range(12):
        for x in range(14):
            inside = 0 <= x + w[0, y, x] <= 13 and 0 <= y + w[1, y, x] <= 11
            total = ((w[:, y, x] + back[:, y, x]) ** 2).sum()
            length = (w[:, y, x] ** 2).sum()
            occluded = total > 0.01 * (length + (back[:, y, x] ** 2).sum()) + 0.5
            gradient = sum(
                (w[:, min(y + dy, 11), min(x + dx, 13)] - w[:, y, x]).astype(np.float64)
                @ (w[:, min(y + dy, 11), min(x + dx, 13)] - w[:, y, x])
                for dy, dx in ((0, 1), (1, 0))
            )
            boundary = gradient > 0.01 * length + 0.002
            assert bool(found[y, x]) == (inside and not occluded and not boundary), (y, x)
    assert 0 < found.float().mean() < 1
    assert consistent(forward, backward, boundary=None).sum() > found.sum()


def test_errors_say_what_came(shifted):
    a, b = shifted
    with pytest.raises(InputError, match=r"two frames alike.*got \(1, 3, 64, 80\) and \(1, 3, 64, 79\)"):
        flow(a, b[..., 1:])
    with pytest.raises(InputError, match=r"no flow 'dsi'; did you mean 'dis'\?"):
        flow(a, b, method="dsi")
    with pytest.raises(InputError, match=r"no preset 'fats'; did you mean 'fast'\?"):
        flow(a, b, preset="fats")
    with pytest.raises(InputError, match=r"12 pixels a side, got 6 x 8 \(height x width\) at scale 0.1"):
        flow(a, b, scale=0.1)
    with pytest.raises(InputError, match="at most 1, got 2"):
        flow(a, b, scale=2)
    with pytest.raises(InputError, match="above 0 and at most 1, got 0"):
        torch_flow(a, b, scale=0)
    with pytest.raises(InputError, match=r"must return a tensor \(1, 2, 64, 80\), got \(1, 3, 64, 80\)"):
        flow(a, b, method=lambda a, b: a)
    with pytest.raises(InputError, match=r"must return a tensor \(1, 2, 64, 80\), got NoneType"):
        flow(a, b, method=lambda a, b: None)
    with pytest.raises(InputError, match=r"warp needs.*got \(1, 3, 64, 80\) and \(1, 2, 64, 79\)"):
        warp(a, torch.zeros(1, 2, 64, 79))
    with pytest.raises(InputError, match=r"Flows must be alike.*\(1, 2, 4, 4\) and \(1, 2, 4, 5\)"):
        consistent(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))
