"""Evaluating: against plain loops over the metrics, in one process and in several, and what it refuses."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.corruptions import parse
from unflicker.data.base import Recording
from unflicker.data.synthetic import demo_clip
from unflicker.evaluation import Method, _seed, evaluate
from unflicker.metrics.motion import FlickerStream, WarpingStream
from unflicker.metrics.quality import psnr, ssim
from unflicker.metrics.temporal import instability, temporal_difference_error
from unflicker.model import StabilizedModel, stabilize
from unflicker.results import Evaluation
from unflicker.scores import fitting
from unflicker.sharing import SharedBase
from unflicker.stabilizers import EMA, Aligned, LearnedEMA, Spatial

ALL = fitting("pictures")


class Small(nn.Module):
    """A frame, a little changed; counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.runs = 0
        with torch.no_grad():
            self.conv.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x + self.conv(x)


def video(clip: Tensor, name: str = "clip") -> SimpleNamespace:
    """A video in memory; a tensor's own indexing passes between processes."""
    frames, _, height, width = clip.shape
    return SimpleNamespace(
        name=name, num_frames=frames, height=height, width=width, frame_rate=25.0, read=clip.__getitem__
    )


def broken(name: str = "broken", after: int = 1) -> SimpleNamespace:
    def read(numbers):
        if numbers[0] >= after:
            raise InputError(f"{name} ends at frame {after}.")
        return torch.zeros(1, 3, 24, 40)

    return SimpleNamespace(name=name, num_frames=5, height=24, width=40, frame_rate=25.0, read=read)


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    return [demo_clip(length, 24, 40, seed) for seed, length in enumerate((6, 4, 5))]


@pytest.fixture(scope="module")
def recordings(clips) -> list[Recording]:
    return [Recording(video(clip, f"clip {i}")) for i, clip in enumerate(clips)]


@pytest.fixture
def base() -> Small:
    return Small().eval()


def plain(model, clip: Tensor, strength: float = 1.0) -> Tensor:
    """The loop that everyone writes."""
    state, out = None, []
    with torch.no_grad():
        for frame in clip:
            y, state = model(frame[None], state, strength=strength)
            out.append(y[0].clamp(0, 1))
    return torch.stack(out)


def noisy(clips, text="gaussian_noise:3", seed=0):
    return [parse(text, seed=_seed(seed, 0, number))(clip) for number, clip in enumerate(clips)]


def test_numbers_are_those_of_a_plain_loop(base, clips, recordings):
    ema = stabilize(base, {"": EMA(0.4)}, example=clips[0][:1])
    inside = stabilize(base, {"conv": EMA(0.4)}, example=clips[0][:1])
    found = evaluate(
        base,
        recordings,
        {"ema": ema, "ema, twice": Method(ema, 2.0), "inside": inside, "aligned": Aligned()},
        corruptions=["gaussian_noise:3"],
        metrics=ALL,
    )
    guided = stabilize(base, {"": Aligned()}, example=clips[0][:1])
    spoiled = noisy(clips)
    outputs = {
        "base": [base(clip).clamp(0, 1).detach() for clip in spoiled],
        "ema": [plain(ema, clip) for clip in spoiled],
        "ema, twice": [plain(ema, clip, 2.0) for clip in spoiled],
        "inside": [plain(inside, clip) for clip in spoiled],
        "aligned": [plain(guided, clip) for clip in spoiled],
    }
    assert list(found.overall) == [*outputs, "truth"]
    assert [each.frames for each in found.videos] == [6, 4, 5] and found.frames == 15
    for name, outs in outputs.items():
        pairs = [len(clip) - 1 for clip in clips]
        expected = {
            "psnr": sum(len(c) * psnr(o, c).item() for o, c in zip(outs, clips, strict=True)) / 15,
            "ssim": sum(len(c) * ssim(o, c).item() for o, c in zip(outs, clips, strict=True)) / 15,
            "instability": sum(n * instability(o, normalized=True) for n, o in zip(pairs, outs, strict=True)) / 12,
            "temporal_difference_error": math.sqrt(
                sum(n * temporal_difference_error(o, c) ** 2 for n, o, c in zip(pairs, outs, clips, strict=True)) / 12
            ),
        }
        for metric, value in expected.items():
            assert math.isclose(found.overall[name][metric], value, rel_tol=1e-5), (name, metric)
        for one, out, clip in zip(found.videos, outs, clips, strict=True):
            assert math.isclose(one.numbers[name]["psnr"], psnr(out, clip).item(), rel_tol=1e-5)
    floor = sum(n * instability(c, normalized=True) for n, c in zip(pairs, clips, strict=True)) / 12
    assert math.isclose(found.overall["truth"]["instability"], floor, rel_tol=1e-5)
    assert found.overall["truth"].keys() == {"instability", "warping_error", "flicker"}


def test_flow_is_shared_and_changes_nothing(base, clips, recordings):
    from functools import partial

    from unflicker.flow import flow

    found = evaluate(base, recordings[:1], {"ema": EMA(0.4)}, metrics=("warping_error", "flicker"))
    out = plain(stabilize(base, {"": EMA(0.4)}, example=clips[0][:1]), clips[0])
    fast = partial(flow, preset="fast")
    for name, stream in (("warping_error", WarpingStream(fast)), ("flicker", FlickerStream(fast))):
        stream.update(out, clips[0])
        assert math.isclose(found.overall["ema"][name], stream.totals()[0].item(), rel_tol=1e-5)


def test_the_truth_is_taken_where_there_is_one(base, clips):
    recording = Recording(video(clips[1]), {"truth": video(clips[1] * 0.5)})
    found = evaluate(base, [recording], {}, metrics=("psnr", "instability"))
    with torch.no_grad():
        expected = psnr(base(clips[1]).clamp(0, 1), clips[1] * 0.5).item()
    assert math.isclose(found.overall["base"]["psnr"], expected, rel_tol=1e-5)
    assert math.isclose(
        found.overall["truth"]["instability"], instability(clips[1] * 0.5, normalized=True), rel_tol=1e-5
    )


def test_size_frames_every_and_bytes(base, clips):
    pixels = (clips[0] * 255).round().byte()
    found = evaluate(base, [Recording(video(pixels))], {}, size=(12, 20), frames=2, every=2)
    small = nn.functional.interpolate(pixels[[0, 2]].float() / 255, size=(12, 20), mode="area")
    (one,) = found.videos
    assert (one.frames, one.height, one.width) == (2, 12, 20)
    with torch.no_grad():
        assert math.isclose(one.numbers["base"]["psnr"], psnr(base(small).clamp(0, 1), small).item(), rel_tol=1e-5)
    assert found.settings == {"corruptions": [], "size": [12, 20], "frames": 2, "every": 2, "seed": 0, "target": None}


def test_the_base_runs_once_a_frame_whoever_asks(base, clips, recordings):
    ema = stabilize(base, {"": EMA(0.4)}, example=clips[0][:1])
    inside = stabilize(base, {"conv": EMA(0.4)}, example=clips[0][:1])
    counted = 1  # for multiply-adds
    for methods, with_base, runs in (
        ({"a": ema, "b": EMA(0.1), "c": Method(Aligned(), 2)}, True, 6 + counted),
        ({"a": ema}, False, 6 + counted),
        ({"inside": inside}, False, 6 + counted + 1),
        ({"inside": inside}, True, 2 * (6 + counted)),
    ):
        base.runs = 0
        found = evaluate(base, recordings[:1], methods, with_base=with_base)
        assert base.runs == runs
        assert ("base" in found.overall) == with_base
        assert (found.costs["base"].milliseconds is None) == (not with_base)


def test_nothing_about_base_or_models_changes(base, clips, recordings):
    base.train()
    base.conv.weight.requires_grad_(True)
    evaluate(base, recordings[:1], {"ema": EMA(0.4)})
    assert base.training and base.conv.weight.requires_grad
    assert not base._forward_hooks and not base.conv._forward_hooks
    model = stabilize(base, {"": EMA(0.4)}, example=clips[0][:1])
    evaluate(base, recordings[:1], {"ema": model})
    assert model.base is base and not isinstance(model.base, SharedBase)


def test_costs(base, clips, recordings):
    torch.manual_seed(0)
    inside = stabilize(base, {"conv": Spatial(3, groups=1, hidden=4)}, example=clips[0][:1])
    found = evaluate(base, recordings, {"ema": EMA(0.4), "inside": inside})
    assert found.costs["base"].weights == 84 and found.costs["base"].multiply_adds == 81 * 24 * 40
    ema, spatial = found.costs["ema"], found.costs["inside"]
    assert (ema.weights, ema.multiply_adds) == (0, 0)
    assert ema.state_mib == pytest.approx(4 * 24 * 40 * 4 / 2**20)  # past and seen
    added = [p for name, p in inside.named_parameters() if not name.startswith("base.")]
    assert spatial.weights == sum(p.numel() for p in added) and spatial.multiply_adds > 81 * 24 * 40
    assert all(each.milliseconds > 0 for each in found.costs.values())
    assert ema.milliseconds > found.costs["base"].milliseconds
    assert found.metric_milliseconds.keys() == {"psnr", "instability", "temporal_difference_error"}


def untimed(found: Evaluation) -> dict:
    return {
        "overall": found.overall,
        "videos": found.videos,
        "skipped": found.skipped,
        "costs": [(c.state_mib, c.weights, c.multiply_adds) for c in found.costs.values()],
    }


def test_several_processes_find_the_same_to_the_last_digit(clips, recordings):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    base = nn.Conv2d(3, 3, 3, padding=1)
    inside = stabilize(base, {"": EMA(0.3)}, example=clips[0][:1])
    told: list[tuple[int, int]] = []
    find = lambda processes, tell=None: evaluate(  # noqa: E731
        base,
        recordings,
        {"aligned": Aligned(), "model": Method(inside, 0.5)},
        corruptions=["gaussian_noise:2", "frame_drop"],
        metrics=("psnr", "instability", "temporal_difference_error", "flicker"),
        processes=processes,
        on_frame=tell,
    )
    alone, together = find(1), find(2, lambda *numbers: told.append(numbers))
    torch.set_num_threads(threads)
    assert untimed(alone) == untimed(together)
    assert told[-1] == (15, 15)


def test_a_video_that_cannot_be_read_is_named(base, recordings):
    told: list[tuple[int, int]] = []
    found = evaluate(
        base, [Recording(broken()), recordings[0]], {"ema": EMA(0.4)}, on_frame=lambda *numbers: told.append(numbers)
    )
    assert [each.name for each in found.videos] == ["clip 0"] and found.frames == 6
    assert [(each.name, each.reason) for each in found.skipped] == [("broken", "broken ends at frame 1.")]
    assert found.overall == evaluate(base, recordings[:1], {"ema": EMA(0.4)}).overall
    with pytest.raises(InputError, match=r"None of the 2 videos could be read; the first, broken: broken ends at"):
        evaluate(base, [Recording(broken()), Recording(broken("other", 0))], {})
    gone = broken("gone")
    gone.read = lambda numbers: Path("/nowhere/gone.mp4").read_bytes()
    assert "No such file" in evaluate(base, [recordings[0], Recording(gone)], {}).skipped[0].reason
    short = Recording(video(torch.zeros(3, 3, 24, 40)), {"truth": video(torch.zeros(2, 3, 24, 40))})
    with pytest.raises(InputError, match="its target 'truth' has 2 frames, but it has 3"):
        evaluate(base, [short], {})


def test_one_frame_and_no_error_have_numbers(recordings, clips):
    found = evaluate(nn.Identity(), [Recording(video(clips[0][:1]))], {})
    assert found.overall["base"] == {"psnr": 100.0, "instability": None, "temporal_difference_error": None}
    blind = evaluate(Nothing(), recordings[:1], {}, metrics=("psnr",))
    assert blind.overall["base"]["psnr"] is None


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.nan


def test_written_and_read_it_is_the_same(tmp_path, base, recordings):
    found = evaluate(base, [*recordings, Recording(broken())], {"ema": EMA(0.4)}, size=(24, 40), seed=3)
    found.write(tmp_path / "new" / "found.json")
    again = Evaluation.read(tmp_path / "new" / "found.json")
    assert again == found
    content = json.loads((tmp_path / "new" / "found.json").read_text())
    assert content["metrics"]["psnr"] == {"heading": "PSNR", "unit": "dB", "higher_is_better": True}
    assert content["videos"][1]["numbers"]["ema"]["psnr"] == found.videos[1].numbers["ema"]["psnr"]


def test_files_that_are_no_evaluations(tmp_path, base, recordings):
    path = tmp_path / "e.json"
    with pytest.raises(InputError, match=r"e\.json cannot be read \(No such file"):
        Evaluation.read(path)
    path.write_text("no")
    with pytest.raises(InputError, match=r"e\.json is no JSON .*Evaluation\.write"):
        Evaluation.read(path)
    path.write_text('{"format": 9}')
    with pytest.raises(InputError, match="is no evaluation of this version"):
        Evaluation.read(path)
    path.write_text('{"format": 1, "unflicker": "0"}')
    with pytest.raises(InputError, match=r"e\.json is damaged"):
        Evaluation.read(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        evaluate(base, recordings[:1], {}).write(tmp_path / "file" / "e.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recordings": []}, "no video to evaluate on"),
        ({"methods": {}, "with_base": False}, "nothing to evaluate"),
        ({"metrics": ["pnsr"]}, "no metric 'pnsr'; did you mean 'psnr'"),
        ({"metrics": []}, "metrics must name one or more, each once, got none"),
        ({"metrics": ["psnr", "psnr"]}, "each once, got psnr, psnr"),
        ({"methods": {"base": EMA(0.1)}}, "'base' is the name of a row that is there anyway"),
        ({"methods": {"ema": nn.Identity()}}, "'ema' must be a StabilizedModel or a Stabilizer, got Identity"),
        ({"methods": {"ema": Method(EMA(0.1), -1)}}, "strength of 'ema' must be 0"),
        ({"methods": {"learned": LearnedEMA()}}, "'learned' is a LearnedEMA whose weights are not trained"),
        ({"corruptions": ["snwo"]}, "no corruption 'snwo'; did you mean 'snow'"),
        ({"corruptions": ["snow"], "seed": -1}, "seed must be an integer, 0 or more, got -1"),
        ({"frames": 0}, "frames must be 1 or more, got 0"),
        ({"every": 0}, "every must be 1 or more, got 0"),
        ({"processes": 0}, "processes must be 1 or more, got 0"),
        ({"size": (0, 4)}, r"size must be \(height, width\) in pixels, got \(0, 4\)"),
    ],
)
def test_what_cannot_be_evaluated(base, recordings, change, words):
    arguments = {"recordings": recordings, "methods": {"ema": EMA(0.4)}, **change}
    with pytest.raises(InputError, match=words):
        evaluate(base, **arguments)


def test_an_output_unlike_the_truth(recordings):
    with pytest.raises(InputError, match=r"must return what the truth is like, \(1, 3, 24, 40\), got shape \(1, 5, 24"):
        evaluate(nn.Conv2d(3, 5, 1), recordings[:1], {})


SCRIPT = """
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import nn
from unflicker.data.base import Recording
from unflicker.evaluation import evaluate

def read(numbers):
    return torch.rand(1, 3, 16, 16)

if __name__ == "__main__":
    videos = [
        SimpleNamespace(name=str(i), num_frames=10**7, height=16, width=16, frame_rate=25.0, read=read)
        for i in range(3)
    ]
    evaluate(nn.Identity(), [Recording(v) for v in videos], {}, processes=2, on_frame=lambda a, b: print(a, flush=True))
"""


def test_ctrl_c_ends_the_processes(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as running:
        for line in running.stdout:
            if int(line) > 0:
                break
        group = os.getpgid(running.pid)
        os.killpg(group, signal.SIGINT)  # as a terminal does
        _, errors = running.communicate(timeout=60)
    assert errors.strip().endswith("KeyboardInterrupt")
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process is left")


def test_shared_base_is_no_part_of_what_is_built_on_it(base, clips):
    once = SharedBase(base)
    assert not list(once.parameters())
    model = stabilize(once, {"": EMA(0.5)}, example=clips[0][:1])
    assert isinstance(model, StabilizedModel) and once.computed == 1
