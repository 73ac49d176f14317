"""Evaluating depth, labels and classes: against plain loops and torchmetrics, in every shape that networks return."""

import math
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from unflicker.checks import InputError
from unflicker.data.base import Recording
from unflicker.data.scenes import scenes
from unflicker.data.synthetic import demo_clip
from unflicker.evaluation import evaluate
from unflicker.kinds import output_kinds, target_kinds
from unflicker.metrics.quality import psnr
from unflicker.metrics.temporal import instability, temporal_difference_error
from unflicker.model import stabilize
from unflicker.scores import METRICS, fitting
from unflicker.stabilizers import EMA

SIZE = (16, 24)
CLASSES = 5
DEPTH = ("abs_rel", "delta1", "instability")
LABELS = ("miou", "pixel_accuracy", "instability")


def video(clip: Tensor, name: str = "clip") -> SimpleNamespace:
    """A video in memory, of frames or of a target."""
    height, width = clip.shape[-2:] if clip.ndim > 1 else (1, 1)
    return SimpleNamespace(
        name=name, num_frames=len(clip), height=height, width=width, frame_rate=25.0, read=clip.__getitem__
    )


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    return [demo_clip(length, *SIZE, seed) for seed, length in enumerate((5, 3))]


@pytest.fixture(scope="module")
def depths(clips) -> list[Tensor]:
    """Metres, some of them unknown; in the second clip a whole frame."""
    random = torch.Generator().manual_seed(0)
    found = [1 + 9 * torch.rand(len(clip), 1, *SIZE, generator=random) for clip in clips]
    for depth in found:
        depth[:, :, :3] = torch.nan
        depth[:, :, 3, :4] = 0
    found[1][1] = torch.nan
    return found


@pytest.fixture(scope="module")
def labels(clips) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(-1, CLASSES, (len(clip), *SIZE), generator=random) for clip in clips]


@pytest.fixture
def depth_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 1, 3, padding=1, bias=False)


@pytest.fixture
def label_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, CLASSES, 3, padding=1)


def recorded(clips, **targets) -> list[Recording]:
    return [
        Recording(video(clip, f"clip {i}"), {key: video(each[i]) for key, each in targets.items()})
        for i, clip in enumerate(clips)
    ]


@torch.no_grad()
def outputs(net: nn.Module, clip: Tensor, decay: float = 0.0) -> Tensor:
    """What a network gives, averaged with what it gave before."""
    found = net(clip)
    for t in range(1, len(found)):
        found[t] = decay * found[t - 1] + (1 - decay) * found[t]
    return found


@pytest.mark.parametrize(("name", "decay"), [("base", 0.0), ("ema", 0.4)])
def test_depth_is_that_of_a_loop_over_frames(clips, depths, depth_net, name, decay):
    found = evaluate(depth_net, recorded(clips, depth=depths), {"ema": EMA(0.4)}, metrics=DEPTH, target="depth")
    errors, close, changes, true_changes = [], [], [], []
    for clip, depth in zip(clips, depths, strict=True):
        last = None
        for y, x in zip(outputs(depth_net, clip, decay).double().numpy(), depth.double().numpy(), strict=True):
            known = np.isfinite(x) & (x > 0)
            if not known.any():
                last = None
                continue
            scale, shift = np.polyfit(y[known], 1 / x[known], 1)
            aligned = scale * y + shift
            d = np.where(aligned > 1 / 200, 1 / np.maximum(aligned, 1 / 200), 200)
            errors.append(np.mean(np.abs(d - x)[known] / x[known]))
            close.append(np.mean(np.maximum(d / np.where(known, x, 1), x / d)[known] < 1.25))
            if last is not None:
                both = known & last[1]
                changes.append(np.sqrt(np.mean((aligned - last[0])[both] ** 2)))
                true_changes.append(np.sqrt(np.mean((1 / x[both] - 1 / last[2][both]) ** 2)))
            last = aligned, known, x
    row = found.overall[name]
    assert row["abs_rel"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert row["delta1"] == pytest.approx(np.mean(close), rel=1e-5)
    assert row["instability"] == pytest.approx(np.mean(changes), rel=1e-4)
    assert found.overall["truth"] == {"instability": pytest.approx(np.mean(true_changes), rel=1e-4)}
    assert found.settings["target"] == "depth"


def test_a_true_disparity_is_a_true_depth(clips, depths, depth_net):
    disparities = [1 / depth for depth in depths]  # infinite where the depth is 0
    settings = {"metrics": DEPTH, "methods": {"ema": EMA(0.4)}}
    one = evaluate(depth_net, recorded(clips, depth=depths), target="depth", **settings).overall
    other = evaluate(depth_net, recorded(clips, disparity=disparities), target="disparity", **settings).overall
    for name, row in one.items():
        assert other[name] == pytest.approx(row, rel=1e-4)


def test_labels_of_all_videos_are_one_confusion_matrix(clips, labels, label_net):
    found = evaluate(label_net, recorded(clips, labels=labels), {"ema": EMA(0.4)}, metrics=LABELS, target="labels")
    for name, decay in (("base", 0.0), ("ema", 0.4)):
        iou = MulticlassJaccardIndex(CLASSES, ignore_index=-1)
        right = MulticlassAccuracy(CLASSES, average="micro", ignore_index=-1)
        changes = []
        for i, (clip, truth) in enumerate(zip(clips, labels, strict=True)):
            classes = outputs(label_net, clip, decay).argmax(1)
            iou.update(classes, truth)
            right.update(classes, truth)
            alone = MulticlassJaccardIndex(CLASSES, ignore_index=-1)(classes, truth).item()
            assert found.videos[i].numbers[name]["miou"] == pytest.approx(alone, rel=1e-6)
            for t in range(1, len(clip)):
                known = (truth[t] >= 0) & (truth[t - 1] >= 0)
                changes.append((classes[t] != classes[t - 1])[known].float().mean().item())
        row = found.overall[name]
        assert row["miou"] == pytest.approx(iou.compute().item(), rel=1e-6)
        assert row["pixel_accuracy"] == pytest.approx(right.compute().item(), rel=1e-6)
        assert row["instability"] == pytest.approx(np.mean(changes), rel=1e-6)
        mean = np.mean([each.numbers[name]["miou"] for each in found.videos])
        assert row["miou"] != pytest.approx(mean, rel=1e-6)
    assert found.overall["truth"].keys() == {"instability"} and found.overall["truth"]["instability"] > 0.7


def test_instability_of_labels_is_the_papers_where_all_is_known(clips, label_net):
    from unflicker.metrics.temporal import categorical_instability

    truth = [torch.zeros(len(clip), *SIZE, dtype=torch.int64) for clip in clips]
    found = evaluate(label_net, recorded(clips, labels=truth), {}, metrics=LABELS, target="labels")
    for one, clip in zip(found.videos, clips, strict=True):
        expected = categorical_instability(outputs(label_net, clip)).item()
        assert one.numbers["base"]["instability"] == pytest.approx(expected)
    assert found.overall["truth"]["instability"] == 0


def test_classes_of_frames(clips):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    right = [net(clip).argmax(1) for clip in clips]
    truth = [each.clone() for each in right]
    truth[0][:2] = torch.tensor([-1, (int(right[0][1]) + 1) % 3])  # of 8 one is unknown, and one wrong
    found = evaluate(net, recorded(clips, kind=truth), {"ema": EMA(0.5)}, metrics=("accuracy",), target="kind")
    assert found.overall["base"] == {"accuracy": pytest.approx(6 / 7)}
    small = evaluate(net, recorded(clips, kind=truth), {}, metrics=("accuracy",), target="kind", size=(8, 12))
    classes = [net(nn.functional.interpolate(clip, size=(8, 12), mode="area")).argmax(1) for clip in clips]
    hits = sum(int((a == b).sum()) for a, b in zip(classes, truth, strict=True))
    assert small.overall["base"]["accuracy"] == pytest.approx(hits / 7)
    steady = evaluate(net, recorded(clips), {"ema": EMA(0.5)}, metrics=("accuracy", "instability"), target="base")
    assert steady.overall["base"] == {"accuracy": 1, "instability": steady.overall["truth"]["instability"]}
    changes = [float(a != b) for each in right for a, b in zip(each[1:], each[:-1], strict=True)]
    assert steady.overall["truth"]["instability"] == pytest.approx(np.mean(changes))


def test_against_the_base_labels_are_its_largest_logits(clips, label_net):
    settings = {"metrics": LABELS, "corruptions": ["gaussian_noise:4"]}
    truth = [outputs(label_net, clip).argmax(1) for clip in clips]
    blind = evaluate(label_net, recorded(clips), {"ema": EMA(0.4)}, target="base", **settings)
    seeing = evaluate(label_net, recorded(clips, labels=truth), {"ema": EMA(0.4)}, target="labels", **settings)
    assert blind.overall == seeing.overall and blind.overall["base"]["miou"] < 1
    clean = evaluate(label_net, recorded(clips), {}, metrics=LABELS[:2], target="base")
    assert clean.overall["base"] == {"miou": 1, "pixel_accuracy": 1}


def test_against_the_base_depth_keeps_its_unit_and_its_values(clips, depth_net):
    class Far(nn.Module):
        """Values well outside [0, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.net = depth_net

        def forward(self, x: Tensor) -> Tensor:
            return 20 + 30 * self.net(x)

    net = Far()
    found = evaluate(net, recorded(clips), {"ema": EMA(0.4)}, metrics=DEPTH, target="base")
    assert found.overall["base"]["abs_rel"] == pytest.approx(0, abs=1e-5) and found.overall["base"]["delta1"] == 1
    for name, decay in (("base", 0.0), ("ema", 0.4)):
        outs = [outputs(net, clip, decay) for clip in clips]
        expected = sum((len(o) - 1) * instability(o, normalized=True).item() for o in outs) / 6
        assert found.overall[name]["instability"] == pytest.approx(expected, rel=1e-5)
    assert found.overall["truth"]["instability"] == pytest.approx(found.overall["base"]["instability"])


class Wrapped(nn.Module):
    """A network whose output comes in something."""

    def __init__(self, net: nn.Module, form: str) -> None:
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x: Tensor):
        y = self.net(x)
        if self.form == "tuple":
            return y.new_zeros(len(x), 7), y
        if self.form == "dict":
            return {"loss": None, "logits": y, "hidden": y.mean((2, 3))}
        if self.form == "depth":
            from transformers.modeling_outputs import DepthEstimatorOutput

            return DepthEstimatorOutput(predicted_depth=y[:, 0])
        return OrderedDict(out=y, aux=y * 0)


@pytest.mark.parametrize("form", ["tuple", "dict", "out"])
def test_labels_come_out_of_whatever_a_network_returns(clips, labels, label_net, form):
    recordings = recorded(clips, labels=labels)

    def rows(net: nn.Module, inside: str) -> dict:
        model = stabilize(net, {inside: EMA(0.3)}, example=clips[0][:1])
        return evaluate(net, recordings, {"ema": EMA(0.4), "inside": model}, metrics=LABELS, target="labels").overall

    plain = nn.Sequential(label_net)
    assert rows(Wrapped(plain, form), "net.0") == rows(plain, "0")


def test_depth_comes_without_a_channel(clips, depths, depth_net):
    recordings = recorded(clips, depth=depths)
    model = stabilize(Wrapped(depth_net, "depth"), {"::predicted_depth": EMA(0.4)}, example=clips[0][:1])
    settings = {"metrics": DEPTH, "target": "depth"}
    found = evaluate(model.base, recordings, {"ema": EMA(0.4), "model": model}, **settings).overall
    assert found["ema"] == found["model"]
    plain = evaluate(depth_net, recordings, {"ema": EMA(0.4)}, **settings).overall
    assert found["base"] == plain["base"] and found["ema"] == pytest.approx(plain["ema"])
    blind = evaluate(model.base, recordings, {}, metrics=("instability",), target="base").overall
    assert blind == evaluate(depth_net, recordings, {}, metrics=("instability",), target="base").overall


def test_what_is_unknown_of_pictures_is_left_out(clips):
    net = nn.Identity()
    truth = [clip * 0.9 for clip in clips]
    holes = [clip.clone() for clip in truth]
    for clip in holes:
        clip[:, :, :8] = torch.nan
    names = ("psnr", "instability", "temporal_difference_error")
    found = evaluate(net, recorded(clips, truth=holes), {"ema": EMA(0.4)}, metrics=names).overall
    low = [clip[:, :, 8:] for clip in clips]
    known = evaluate(net, recorded(low, truth=[clip[:, :, 8:] for clip in truth]), {"ema": EMA(0.4)}, metrics=names)
    for name, row in known.overall.items():
        assert found[name] == pytest.approx(row, rel=1e-5)
    assert found["base"]["psnr"] == pytest.approx(sum(len(c) * psnr(c, 0.9 * c).item() for c in low) / 8, rel=1e-5)
    pairs = [(len(c) - 1) * temporal_difference_error(c, 0.9 * c).item() ** 2 for c in low]
    assert found["base"]["temporal_difference_error"] == pytest.approx(math.sqrt(sum(pairs) / 6), rel=1e-5)
    for name in ("ssim", "warping_error", "flicker"):
        with pytest.raises(
            InputError, match="truth is unknown in places, which SSIM and what follows motion have no use"
        ):
            evaluate(net, recorded(clips, truth=holes), {}, metrics=(name,))


def test_nothing_known_is_no_number(clips, depth_net, label_net):
    nowhere = [torch.full((len(clip), 1, *SIZE), torch.nan) for clip in clips]
    found = evaluate(depth_net, recorded(clips, depth=nowhere), {}, metrics=DEPTH, target="depth")
    assert found.overall["base"] == dict.fromkeys(DEPTH)
    nothing = [torch.full((len(clip), *SIZE), -1) for clip in clips]
    found = evaluate(label_net, recorded(clips, labels=nothing), {}, metrics=LABELS, target="labels")
    assert found.overall["base"] == dict.fromkeys(LABELS)


def test_a_network_that_fails_has_no_number(clips, depths, labels):
    class Blind(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels

        def forward(self, x: Tensor) -> Tensor:
            return x.new_full((len(x), self.channels, *x.shape[-2:]), torch.nan)

    found = evaluate(Blind(1), recorded(clips, depth=depths), {}, metrics=("abs_rel", "instability"), target="depth")
    assert found.overall["base"] == {"abs_rel": None, "instability": None}
    found = evaluate(Blind(CLASSES), recorded(clips, labels=labels), {}, metrics=LABELS[:2], target="labels")
    assert found.overall["base"] == {"miou": 0, "pixel_accuracy": 0}  # wrong, not unknown


def test_two_processes_find_the_same_to_the_last_digit(clips, labels):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Conv2d(3, CLASSES, 3, padding=1)
    alone, together = (
        evaluate(
            net,
            recorded(clips, labels=labels),
            {"ema": EMA(0.4)},
            corruptions=["gaussian_noise:2"],
            metrics=LABELS,
            target="labels",
            processes=processes,
        )
        for processes in (1, 2)
    )
    torch.set_num_threads(threads)
    assert (alone.overall, alone.videos) == (together.overall, together.videos)


def test_scenes_have_what_is_needed():
    recordings = scenes(1, num_frames=3, height=24, width=32)
    torch.manual_seed(0)
    net = nn.Conv2d(3, 1, 3, padding=1)
    found = evaluate(net, recordings, {"ema": EMA(0.4)}, metrics=DEPTH, target="depth", size=(12, 16))
    assert 0 < found.overall["base"]["delta1"] < 1 and found.overall["truth"]["instability"] > 0
    net = nn.Conv2d(3, 20, 3, padding=1)
    found = evaluate(net, recordings, {}, metrics=LABELS, target="labels")
    assert 0 <= found.overall["base"]["miou"] < 0.5


def test_every_metric_fits_a_kind_and_every_kind_has_instability():
    kinds = ("pictures", "depth", "own depth", "labels", "classes")
    assert {name for kind in kinds for name in fitting(kind)} == METRICS.keys()
    assert all("instability" in fitting(kind) for kind in kinds)


@pytest.mark.parametrize(
    ("shape", "kinds"),
    [
        ((1, 3, 8, 8), ("pictures", "labels")),
        ((1, 1, 8, 8), ("own depth", "pictures")),
        ((1, 8, 8), ("own depth",)),
        ((1, 19, 8, 8), ("labels",)),
        ((1, 1000), ("classes",)),
    ],
)
def test_kinds_by_shape(shape, kinds):
    assert output_kinds(torch.zeros(shape)) == kinds


def test_kinds_by_target():
    assert target_kinds(torch.zeros(1, 3, 4, 4), "albedo") == ("pictures",)
    assert target_kinds(torch.zeros(1, dtype=torch.int64), "animal") == ("classes",)
    assert target_kinds(torch.zeros(1, 2, 4, 4), "flow") == ()


def test_three_classes_are_told_from_colours_by_the_metrics(clips):
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 3, padding=1)
    assert evaluate(net, recorded(clips), {}, metrics=LABELS[:2], target="base").overall["base"]["miou"] == 1
    assert evaluate(net, recorded(clips), {}, metrics=("psnr",), target="base").overall["base"]["psnr"] == 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"metrics": ("psnr",)},
            "'psnr' does not fit the target 'depth'; those that fit are abs_rel, ",
        ),
        (
            {"metrics": ("abs_rel", "instability"), "target": None},
            "'abs_rel' does not fit the target 'clean'; those that fit are psnr, ssim, inst",
        ),
        (
            {"metrics": ("accuracy",), "target": "labels"},
            "'accuracy' does not fit the target 'labels'; those that fit are miou, pixel_",
        ),
        (
            {"metrics": ("miou",), "target": "base"},
            "'miou' does not fit the target 'base' of a network that makes depth; those that fit are abs_rel",
        ),
        ({"metrics": ("instability",), "target": "flow"}, "No metric compares with the target 'flow'; take another"),
        ({"target": "dept"}, "'clip 0' has no target 'dept'; did you mean 'depth'"),
        ({"target": "labels", "metrics": LABELS}, "has logits for 1 classes, 0 to 0, but the target has the class 4"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_runs(clips, depths, labels, depth_net, change, words):
    flow = [torch.zeros(len(clip), 2, *SIZE) for clip in clips]
    recordings = recorded(clips, depth=depths, labels=labels, flow=flow)
    told: list[int] = []
    arguments = {"metrics": DEPTH, "target": "depth", "on_frame": lambda done, all_: told.append(done), **change}
    with pytest.raises(InputError, match=words):
        evaluate(depth_net, recordings, {}, **arguments)
    assert not told


def test_outputs_of_another_size(clips, depths, labels):
    with pytest.raises(
        InputError, match=r"must return logits \(1, K, 16, 24\), as many as the target has labels, got "
    ):
        evaluate(nn.Conv2d(3, 5, 3, stride=2), recorded(clips, labels=labels), {}, metrics=LABELS, target="labels")
    with pytest.raises(InputError, match=r"what the truth is like, \(1, 1, 16, 24\), got shape \(1, 5, 16, 24\)"):
        evaluate(nn.Conv2d(3, 5, 1), recorded(clips, depth=depths), {}, metrics=DEPTH, target="depth")
    with pytest.raises(InputError, match="must return a tensor of floats"):
        evaluate(Nothing(), recorded(clips, labels=labels), {}, metrics=LABELS, target="labels")


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> dict:
        return {"loss": None}
