"""Depth in a range that does not flicker, labels, class numbers and names: what a network's output looks like."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.model import stabilize
from unflicker.rendering import (
    COLOURS,
    FOLLOWS,
    Renderer,
    SteadyRange,
    class_names,
    fitted,
    gives_distances,
    palette,
    style_of,
)
from unflicker.run import run_video
from unflicker.stabilizers import EMA, Aligned
from unflicker.video import Frame, VideoInfo, open_reader, open_writer

RATE = Fraction(25)
FRAME = torch.full((1, 3, 48, 64), 0.5)


def ramp(low: float = 1.0, high: float = 3.0) -> Tensor:
    """Disparity that rises along the rows, (1, 1, 48, 64)."""
    return torch.linspace(low, high, 64).expand(1, 1, 48, 64).clone()


def shown(renderer: Renderer, clip: list[Tensor], cuts: tuple[int, ...] = ()) -> Tensor:
    made = []
    for t, output in enumerate(clip):
        renderer.follow(output, FRAME, seconds=t / 25, cut=t in cuts)
        made.append(renderer(output, FRAME))
    return torch.cat(made)


# The range of depth -------------------------------------------------------------------------------------------------


def test_an_outlier_that_flickers_does_not_make_the_rest_flicker():
    still = torch.rand(1, 1, 48, 64) + 2
    clip = [still.clone() for _ in range(50)]
    for frame in clip[1::2]:
        frame[..., :4, :4] = 100.0
    steady = shown(Renderer("grey"), clip)[..., 4:, :]
    by_frame = torch.cat([(f - f.min()) / (f.max() - f.min()) for f in clip])[..., 4:, :]
    assert (steady[1:] - steady[:-1]).abs().max() < 0.1 / 255
    assert (steady - steady[:1]).abs().max() < 1 / 255
    assert (by_frame[1:] - by_frame[:-1]).abs().max() > 0.9


def test_what_is_near_is_bright_whether_told_by_disparity_or_by_distance():
    disparity = ramp()
    distance = 1 / disparity
    distance[..., 0, 0] = math.nan
    near, far = (
        shown(Renderer("grey", distances=each), [v])[0, 0] for each, v in ((False, disparity), (True, distance))
    )
    assert near[5, -1] > near[5, 0] and far[5, -1] > far[5, 0]
    assert far[0, 0] == 0  # what is not a number
    for base, metric in (
        (SimpleNamespace(config=SimpleNamespace(depth_estimation_type="metric")), True),
        (SimpleNamespace(net=SimpleNamespace(config=SimpleNamespace(model_type="zoedepth"))), True),
        (SimpleNamespace(config=SimpleNamespace(depth_estimation_type="relative", model_type="depth_anything")), False),
        (nn.Identity(), False),
    ):
        assert gives_distances(base) is metric


def test_the_first_frames_range_is_that_of_its_percentiles():
    values = torch.rand(1, 1, 101, 101)
    renderer = Renderer("grey")
    renderer.follow(values, torch.zeros(1, 3, 101, 101))
    low, high = np.percentile(values.numpy(), [2, 98], method="nearest")
    expected = ((values - float(low)) / float(high - low)).clamp(0, 1)
    assert torch.allclose(renderer(values, torch.zeros(1, 3, 101, 101)), expected, atol=1e-6)


def test_large_frames_are_looked_at_here_and_there():
    generator = torch.Generator().manual_seed(0)
    values, steady = torch.rand(1, 1, 720, 1280, generator=generator), SteadyRange()
    steady.follow(values, 0.0)
    assert steady.limits == pytest.approx((0.02, 0.98), abs=0.005)


def test_a_slow_change_is_followed_with_its_time_constant():
    steady, at_30 = SteadyRange(), SteadyRange()
    for each, rate in ((steady, 25), (at_30, 60)):
        each.follow(ramp(0, 1), 0.0)
        for t in range(1, rate + 1):
            each.follow(ramp(10, 11), t / rate)
        assert each.limits is not None
    reached = (steady.limits[0] - 0.02) / 10
    assert reached == pytest.approx(1 - math.exp(-1 / FOLLOWS), abs=0.01)
    assert at_30.limits == pytest.approx(steady.limits, abs=1e-3)  # whatever the frame rate
    for t in range(26, 251):
        steady.follow(ramp(10, 11), t / 25)
    assert steady.limits == pytest.approx((10.02, 10.98), abs=0.02)


def test_a_shot_begins_with_a_range_of_its_own():
    clip = [ramp()] * 3 + [ramp(50, 60)] * 3
    made = shown(Renderer("grey"), clip, cuts=(3,))
    assert torch.allclose(made[3], made[0], atol=1e-5)
    assert (shown(Renderer("grey"), clip)[3] == 1).all()


def test_what_is_no_number_does_not_touch_the_range():
    frame = ramp()
    frame[..., 0, :], frame[..., 1, :], frame[..., 2, :] = math.nan, math.inf, -math.inf
    spoiled, clean = (shown(Renderer("grey"), [each]) for each in (frame, ramp()[..., 3:, :]))
    assert torch.allclose(spoiled[..., 3:, :], fitted(clean, (48, 64))[..., 3:, :], atol=1e-5)
    assert spoiled[0, 0, :3, 0].tolist() == [0.0, 1.0, 0.0]


def test_a_frame_of_nothing_but_nan_keeps_the_range_and_a_constant_has_none():
    none = torch.full((1, 1, 48, 64), math.nan)
    made = shown(Renderer("grey"), [ramp(), none, ramp()])
    assert torch.equal(made[2], made[0]) and not made[1].any()
    assert (shown(Renderer("grey"), [none, torch.full_like(none, 7.0)])[1] == 0.5).all()
    assert torch.equal(shown(Renderer("grey"), [none, ramp()])[1], made[0])


def test_a_fixed_range_stays():
    made = shown(Renderer("grey", value_range=(0.0, 4.0)), [ramp(), ramp(50, 60)])
    assert torch.allclose(made[0], ramp()[0] / 4) and (made[1] == 1).all()


def test_both_sides_of_a_comparison_have_one_range():
    renderer = Renderer("grey")
    renderer.follow(ramp(), FRAME)
    twice = (ramp() - 1) / 2 + 1
    assert torch.allclose(renderer(twice, FRAME)[..., 60], renderer(ramp(), FRAME)[..., 30], atol=0.01)


def test_depth_is_the_colours_of_matplotlib():
    import matplotlib

    made = shown(Renderer("depth", value_range=(0.0, 1.0)), [ramp(0, 1)])
    expected = matplotlib.colormaps["inferno"](ramp(0, 1)[0, 0].numpy())[..., :3].transpose(2, 0, 1)
    assert np.abs(made[0].numpy() - expected).max() < 0.02
    brightness = made[0, :, 0].mean(0)
    assert (brightness.diff() > -0.01).all() and brightness[-1] > 0.8


def test_planes_are_depth_too():
    assert torch.equal(shown(Renderer(), [ramp()[:, 0]]), shown(Renderer("depth"), [ramp()]))


# Labels and classes -------------------------------------------------------------------------------------------------


def logits_of(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).permute(0, 3, 1, 2).float() * 5


def test_an_overlay_is_half_colour_and_half_the_frames_luma():
    labels = torch.arange(12).repeat_interleave(4).view(1, 1, 48).expand(1, 64, 48).transpose(1, 2)
    frame = torch.rand(1, 3, 48, 64)
    renderer = Renderer()
    renderer.follow(logits_of(labels, 12), frame)
    made = renderer(logits_of(labels, 12), frame)
    luma = 0.299 * frame[:, 0] + 0.587 * frame[:, 1] + 0.114 * frame[:, 2]
    assert renderer.style == "labels"
    for y, x in ((0, 0), (5, 40), (47, 63)):
        assert torch.allclose(made[0, :, y, x], (palette()[y // 4] + luma[0, y, x]) / 2, atol=1e-6)


def test_colours_differ_and_the_first_most():
    colours = palette()
    assert len(torch.unique(colours, dim=0)) == COLOURS and colours.min() >= 0 and colours.max() <= 1
    distances = torch.cdist(colours, colours).fill_diagonal_(9)
    assert distances[:12, :12].min() > 0.3 > distances.min()


def test_more_classes_than_colours():
    labels = torch.tensor([[3, 3 + COLOURS]]).view(1, 1, 2)
    made = Renderer()
    frame = torch.zeros(1, 3, 1, 2)
    made.follow(logits_of(labels, 300), frame)
    picture = made(logits_of(labels, 300), frame)
    assert torch.equal(picture[..., 0], picture[..., 1])
    with pytest.raises(InputError, match='"index" writes numbers up to 255, but there are 300 classes'):
        Renderer("index").follow(logits_of(labels, 300), frame)


def test_logits_are_scaled_before_the_largest_is_looked_for():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 0], logits[0, 1, 0, 1] = 3.0, 1.0  # the border lies nearer to the weaker one
    frame = torch.zeros(1, 3, 1, 64)
    renderer = Renderer("index")
    renderer.follow(logits, frame)
    numbers = (renderer(logits, frame) * 255).round()[0, 0, 0]
    first = 64 * (0.25 + 0.5 * 3 / 4)
    assert numbers.tolist() == [float(x + 0.5 > first) for x in range(64)]


def test_one_class_stands_against_zero():
    renderer = Renderer("index")
    renderer.follow(ramp(-1, 1), FRAME)
    assert torch.equal((renderer(ramp(-1, 1), FRAME) * 255).round(), (ramp(-1, 1) > 0).float())


def test_the_likeliest_classes_are_written_on_the_frame():
    renderer = Renderer(names={1: "a very long name, also known as", 2: "cat"})
    frame = torch.rand(1, 3, 96, 160)
    renderer.follow(torch.zeros(1, 5), frame)
    first = renderer(torch.tensor([[0.0, 5.0, 3.0, 1.0, 0.0]]), frame)
    again = renderer(torch.tensor([[0.0, 5.0, 3.0, 1.0, 0.0]]), frame)
    other = renderer(torch.tensor([[0.0, 1.0, 3.0, 5.0, 0.0]]), frame)
    assert renderer.style == "classes" and torch.equal(first, again)
    assert torch.equal(first[..., 48:, :], frame[..., 48:, :])
    assert not torch.equal(first[..., :24, :], other[..., :24, :])
    lines = renderer._lines(torch.tensor([0.0, 5.0, 3.0, 1.0, 0.0]))
    assert [name for _, name in lines] == ["a very long name", "cat", "class 3"]
    assert [share for share, _ in lines] == pytest.approx(torch.tensor([0, 5.0, 3, 1, 0]).softmax(0)[1:4].tolist())
    assert renderer._lines(torch.tensor([0.0]))[0][0] == 0.5  # one class against its absence


def test_names_come_from_the_configuration():
    inner = nn.Identity()
    inner.config = SimpleNamespace(id2label={0: "road", "1": "sky"})  # as JSON has them
    outer = nn.Module()
    outer.net = inner
    assert class_names(inner) == class_names(outer) == {0: "road", 1: "sky"}
    assert class_names(nn.Conv2d(3, 1, 1)) == {}


# What fits what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "style"),
    [
        ((1, 3, 48, 64), "picture"),
        ((1, 3, 192, 256), "picture"),
        ((1, 1, 24, 32), "depth"),
        ((1, 48, 64), "depth"),
        ((1, 2, 48, 64), "labels"),
        ((1, 150, 12, 16), "labels"),
        ((1, 1000), "classes"),
    ],
)
def test_the_shape_says_how(shape, style):
    assert style_of(torch.zeros(shape), FRAME) == style


@pytest.mark.parametrize("shape", [(1, 196, 64), (1,), (1, 2, 3, 4, 5)])
def test_what_cannot_be_shown(shape):
    with pytest.raises(InputError, match=r"must return frames \(B, 3, H, W\), depth .* to make a video, got shape"):
        style_of(torch.zeros(shape), FRAME)


@pytest.mark.parametrize(
    ("style", "shape", "words"),
    [
        ("depth", (1, 3, 48, 64), r"depth shows depth .* returned \(1, 3, 48, 64\); use \"picture\""),
        ("picture", (1, 1, 48, 64), r"picture shows frames .* returned \(1, 1, 48, 64\); use \"depth\""),
        ("labels", (1, 10), r"labels shows logits \(B, K, H, W\), .* use \"classes\""),
        ("classes", (1, 5, 48, 64), r"classes shows logits \(B, K\), .* use \"labels\""),
    ],
)
def test_a_style_that_does_not_fit_names_one_that_does(style, shape, words):
    with pytest.raises(InputError, match=words):
        Renderer(style).follow(torch.zeros(shape), FRAME)


def test_what_a_renderer_refuses():
    with pytest.raises(InputError, match="Nothing can be rendered as 'grei'; did you mean 'grey'"):
        Renderer("grei")
    with pytest.raises(InputError, match='A range of values is for depth, rendered as "depth" or "grey", not as "lab'):
        Renderer("labels", value_range=(0, 1))
    for bad in ((1.0, 1.0), (0.0, math.inf)):
        with pytest.raises(InputError, match="from a number to a larger one"):
            Renderer("depth", value_range=bad)


@pytest.mark.parametrize("shape", [(1, 3, 20, 30), (1, 1, 20, 30), (1, 5, 20, 30), (1, 7)])
def test_everything_has_the_size_of_the_first_frame(shape):
    renderer, output = Renderer(), torch.rand(shape)
    renderer.follow(output, FRAME)
    smaller = torch.rand(1, 3, 24, 32)
    renderer.follow(output, smaller)
    for frame in (FRAME, smaller):
        assert renderer(output, frame).shape == renderer.display(output, frame).shape == (1, 3, 48, 64)
        assert renderer(output, frame).isfinite().all()


def test_a_larger_picture_keeps_its_size():
    renderer = Renderer()
    renderer.follow(torch.rand(1, 3, 96, 128), FRAME)
    about = renderer.described(VideoInfo(64, 48, RATE, 1 / RATE, bit_depth=10, transfer=16))
    assert (about.width, about.height, about.bit_depth, about.transfer) == (128, 96, 10, 16)


# Whole videos -------------------------------------------------------------------------------------------------------


class Returns(nn.Module):
    """A network whose output is a function of the frame alone."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x: Tensor):
        return self.make(x)


def video(path, frames=4, width=64, height=48):
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    with open_writer(path, VideoInfo(width, height, RATE, 1 / RATE)) as writer:
        for t in range(frames):
            writer.write(Frame(torch.stack([x, y, 0.5 * x]).roll(t, 2), t, 1 / RATE))
    return path


def stabilized(make, kind=None, at=""):
    return stabilize(Returns(make), {at: kind or EMA(0.3)}, example=torch.zeros(1, 3, 48, 64))


def three_classes(x: Tensor) -> Tensor:
    return torch.cat([x, 1 - x[:, :2]], 1) * 9


def test_index_pngs_hold_the_class_numbers(tmp_path):
    source = video(tmp_path / "in.mp4")
    with open_reader(source) as reader:
        expected = [three_classes(frame.data[None]).argmax(1)[0].numpy() for frame in reader]
    run_video(stabilized(three_classes, EMA(0.0)), source, tmp_path / "out", render="index", scene_cuts=False)
    for path, numbers in zip(sorted((tmp_path / "out").iterdir()), expected, strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "L" and np.array_equal(np.asarray(picture), numbers) and numbers.any()


def test_numbers_up_to_255_come_back_as_they_are(tmp_path):
    def ranked(x: Tensor) -> Tensor:
        labels = torch.arange(256).view(1, 16, 16).expand(len(x), -1, -1)
        return logits_of(labels, 256)

    source = video(tmp_path / "in.mp4", 1, 16, 16)
    model = stabilize(Returns(ranked), {"": EMA(0.0)}, example=torch.zeros(1, 3, 16, 16))
    run_video(model, source, f"{tmp_path}/out/", render="index")
    with Image.open(tmp_path / "out" / "frame_000001.png") as picture:
        assert np.asarray(picture).flatten().tolist() == list(range(256))


def test_a_video_file_is_no_place_for_class_numbers(tmp_path):
    with pytest.raises(InputError, match=r"would not keep the numbers .* a folder for them, as out/, not .*out.mp4"):
        run_video(stabilized(three_classes), video(tmp_path / "in.mp4"), tmp_path / "out.mp4", render="index")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def depth(x: Tensor) -> Tensor:
    return 0.1 + x[:, :1] / 3


def test_grey_depth_has_16_bits_in_a_folder_and_10_in_a_file(tmp_path):
    source = video(tmp_path / "in.mp4", 2, 128, 96)
    model = stabilized(depth)
    run_video(model, source, tmp_path / "out", render="grey", value_range=(0.1, 0.4333))
    with Image.open(tmp_path / "out" / "frame_000001.png") as picture:
        assert picture.mode == "I;16" and len(np.unique(np.asarray(picture))) > 100
    run_video(model, source, tmp_path / "out.mkv", render="grey", value_range=(0.1, 0.4333))
    with open_reader(tmp_path / "out.mkv") as coded, open_reader(tmp_path / "out") as images:
        assert (coded.info.bit_depth, images.info.bit_depth) == (10, 16)
        for one, other in zip(coded, images, strict=True):
            assert (one.data - other.data).abs().mean() < 0.01 and one.data.std() > 0.1


OUTPUTS = {
    "tensor": lambda x: depth(x),
    "plane": lambda x: depth(x)[:, 0],
    "tuple": lambda x: (depth(x), x.mean((2, 3))),
    "dict": lambda x: {"hidden": x.mean((2, 3)), "predicted_depth": depth(x)[:, 0]},
}


@pytest.mark.parametrize("make", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_whatever_it_comes_in(tmp_path, make):
    source = video(tmp_path / "in.mp4")
    example = torch.zeros(1, 3, 48, 64)
    from unflicker.outputs import main_output

    model = stabilize(Returns(make), {main_output(Returns(make), example): Aligned(flow="none")}, example=example)
    run_video(model, source, tmp_path / "out", compare=True, explain=True)
    run_video(stabilized(depth, Aligned(flow="none")), source, tmp_path / "same", compare=True)
    with open_reader(tmp_path / "out") as made, open_reader(tmp_path / "same") as same:
        for one, other in zip(made, same, strict=True):
            assert one.data.shape == (3, 48, 128) and torch.equal(one.data, other.data)
    assert len(list((tmp_path / "out.explain").iterdir())) == 4


def test_a_model_output_of_transformers(tmp_path):
    from transformers.modeling_outputs import SemanticSegmenterOutput

    make = lambda x: SemanticSegmenterOutput(logits=three_classes(x)[:, :, ::4, ::4])  # noqa: E731
    run_video(stabilized(make, at="::logits"), video(tmp_path / "in.mp4"), tmp_path / "out", compare=True)
    with open_reader(tmp_path / "out") as made:
        assert all(frame.data.shape == (3, 48, 128) for frame in made)


def test_classes_of_a_whole_frame_have_nothing_to_explain(tmp_path):
    model = stabilized(lambda x: x.mean((2, 3)), Aligned())
    source = video(tmp_path / "in.mp4")
    with pytest.raises(InputError, match="the network's output has no places, it is one vector for all of the frame"):
        run_video(model, source, tmp_path / "out", explain=True)
    run_video(model, source, tmp_path / "out", compare=True)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_network_that_enlarges_makes_a_larger_video(tmp_path):
    larger = stabilized(lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    result = run_video(larger, video(tmp_path / "in.mp4"), tmp_path / "out.mp4", compare=True)
    with open_reader(tmp_path / "out.mp4") as made:
        assert next(made).data.shape == (3, 96, 256)
    assert result.resized == 0


def test_a_style_that_does_not_fit_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match='use "depth"'):
        run_video(stabilized(depth), video(tmp_path / "in.mp4"), tmp_path / "out.mp4", render="picture")
    with pytest.raises(InputError, match="Nothing can be rendered as 'deep'"):
        run_video(stabilized(depth), tmp_path / "in.mp4", tmp_path / "out.mp4", render="deep")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "RGB"])
def test_images_of_every_kind_are_rgb_to_the_network(tmp_path, mode):
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    levels = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
    if mode == "I;16":
        picture = Image.fromarray(levels.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(levels).convert(mode)
        if mode in ("LA", "RGBA"):
            picture.putalpha(Image.fromarray(255 - levels))
    (tmp_path / "in").mkdir()
    picture.save(tmp_path / "in" / "1.png")
    model = stabilize(Returns(look), {"": EMA(0.3)}, example=torch.zeros(1, 3, 6, 8))
    seen.clear()
    run_video(model, tmp_path / "in", tmp_path / "out")
    assert torch.equal((seen[0] * 255).round(), torch.from_numpy(levels).float().expand(1, 3, 6, 8))
    with Image.open(tmp_path / "out" / "frame_000001.png") as made:
        assert made.mode == "RGB"


def test_exr_with_alpha_and_exr_of_one_channel_are_rgb(tmp_path):
    import OpenEXR

    plane = np.linspace(0, 4, 48, dtype=np.float32).reshape(6, 8)
    channels = {"rgba": {"RGBA": np.stack([plane, plane, plane, plane / 4], -1)}, "grey": {"Y": plane}}
    for name, each in channels.items():
        (tmp_path / name).mkdir()
        OpenEXR.File({}, each).write(str(tmp_path / name / "1.exr"))
        model = stabilize(nn.Identity(), {"": EMA(0.3)}, example=torch.zeros(1, 3, 6, 8))
        run_video(model, tmp_path / name, tmp_path / f"{name}-out")
        with open_reader(tmp_path / f"{name}-out") as made:
            assert torch.allclose(next(made).data, torch.from_numpy(plane).expand(3, 6, 8), rtol=1e-3, atol=1e-3)
