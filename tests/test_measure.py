"""Measuring a video: against plain formulas, whatever its length, and what it refuses."""

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.data.synthetic import demo_clip
from unflicker.measure import measure_video
from unflicker.metrics.motion import flicker, warping_error
from unflicker.metrics.quality import psnr
from unflicker.metrics.temporal import instability, temporal_difference_error
from unflicker.page import coloured, write_json, write_page
from unflicker.video import Frame, VideoInfo, open_reader, open_writer

RATE = Fraction(25)


def write(path: Path, clip: Tensor) -> Path:
    info = VideoInfo(clip.shape[3], clip.shape[2], RATE, 1 / RATE, is_folder=True)
    with open_writer(path, info) as writer:
        for t, data in enumerate(clip):
            writer.write(Frame(data, t, 1 / RATE))
    return path


def read(path: Path) -> Tensor:
    with open_reader(path) as reader:
        return torch.stack([frame.data for frame in reader])


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    truth = demo_clip(8, 48, 80)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    return {
        "truth": write(folder / "truth", truth),
        "noisy": write(folder / "noisy", truth + 0.1 * noise),
        "steady": write(folder / "steady", truth + 0.02 * noise),
    }


def test_the_numbers_are_those_of_the_metrics(clips):
    found = measure_video(clips["noisy"], truth=clips["truth"], against=clips["steady"])
    assert [Path(version.name).name for version in found.versions] == ["noisy", "steady", "truth"]
    truth = read(clips["truth"])
    for version in found.versions:
        clip, numbers = read(Path(version.name)), version.numbers
        assert math.isclose(numbers["instability"], instability(clip, normalized=True).item(), rel_tol=1e-5)
        if Path(version.name).name != "truth":
            assert math.isclose(numbers["psnr"], psnr(clip, truth).item(), rel_tol=1e-5)
            expected = temporal_difference_error(clip, truth).item()
            assert math.isclose(numbers["temporal_difference_error"], expected, rel_tol=1e-5)
        fast = _fast_flow()
        assert math.isclose(numbers["flicker"], flicker(clip, truth, flow=fast).item(), rel_tol=1e-4)
        assert math.isclose(numbers["warping_error"], warping_error(clip, truth, flow=fast).item(), rel_tol=1e-4)
    noisy, steady, floor = (version.numbers["flicker"] for version in found.versions)
    assert noisy > steady > floor


def _fast_flow():
    from functools import partial

    from unflicker.flow import flow

    return partial(flow, preset="fast")


def test_curves_have_a_value_for_every_frame(clips):
    found = measure_video(clips["noisy"], truth=clips["truth"])
    for curve in found.versions[0].curves.values():
        assert len(curve) == found.frames == 8
    curves = found.versions[0].curves
    assert curves["instability"][0] is None and curves["flicker"][0] is None and curves["flicker"][-1] is None
    assert None not in curves["psnr"] and None not in curves["flicker"][1:-1]


def test_the_worst_moment_and_place_are_found(tmp_path):
    clip = torch.full((20, 3, 24, 32), 0.5)
    clip[10, :, :8, :8] = 0.9
    version = measure_video(write(tmp_path / "blink", clip)).versions[0]
    assert 10 in [number for number, _, _ in version.worst]
    assert version.heat[:8, :8].min() > 0 and version.heat[16:, 16:].max() < 1e-6


def test_a_constant_video_is_perfectly_steady(tmp_path):
    path = write(tmp_path / "still", torch.full((4, 3, 16, 24), 0.25))
    numbers = measure_video(path, truth=path).versions[0].numbers
    assert numbers["instability"] == numbers["flicker"] == numbers["temporal_difference_error"] == 0
    assert "psnr" not in numbers  # infinite


def test_what_cannot_be_measured(tmp_path, clips):
    one = write(tmp_path / "one", torch.zeros(1, 3, 48, 80))
    with pytest.raises(InputError, match="has one frame: how steady a video is can be said from two frames on"):
        measure_video(one)
    small = write(tmp_path / "small", torch.zeros(8, 3, 24, 40))
    with pytest.raises(InputError, match=r"small has 40x24 pixels, but .*noisy has 80x48"):
        measure_video(clips["noisy"], truth=small)
    short = write(tmp_path / "short", torch.zeros(5, 3, 48, 80))
    with pytest.raises(InputError, match=r"differ in length \(frames: .*noisy 8, .*short 5\); --trim"):
        measure_video(clips["noisy"], truth=short)
    assert measure_video(clips["noisy"], truth=short, trim=True).frames == 5


def test_values_that_are_no_number_or_above_one(tmp_path):
    clip = torch.full((4, 3, 16, 24), 2.0)
    info = VideoInfo(24, 16, RATE, 1 / RATE, bit_depth=32, is_folder=True)
    with open_writer(tmp_path / "hdr", info) as writer:
        for t, data in enumerate(clip):
            writer.write(Frame(data, t, 1 / RATE))
    import numpy as np
    import OpenEXR

    name = str(sorted((tmp_path / "hdr").iterdir())[1])
    channel = np.full((16, 24), 2.0, np.float32)
    channel[3, 3] = np.nan
    OpenEXR.File({}, {c: channel for c in "RGB"}).write(name)
    found = measure_video(tmp_path / "hdr")
    assert found.versions[0].numbers["instability"] == 0  # what is no number is left out
    assert "may go above 1" in found.notes[0]


def test_fault_a_colour_map_shifted_by_twice_the_minimum():
    """The official code normalised with value + minimum instead of value - minimum."""
    values = torch.tensor([[0.5, 0.75, 1.0]])
    shown = coloured(values, 0.5, 1.0)
    assert (shown == coloured(values - 0.5, 0.0, 0.5)).all() and (shown == coloured(2 * values - 1, 0.0, 1.0)).all()
    assert shown[0, 0].sum() < 20  # the least is black


def test_the_page_needs_nothing_else(tmp_path, clips):
    found = measure_video(clips["noisy"], truth=clips["truth"])
    page = write_page(found, tmp_path / "report").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 8
    assert "http" not in page and "<script" not in page
    for words in ("temporal-difference error", "8 frames of 80 x 48 pixels", "Measured with unflicker"):
        assert words in page
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]


def test_json_holds_numbers_and_curves(tmp_path, clips):
    write_json(measure_video(clips["noisy"], with_flow=False), tmp_path / "m.json")
    data = json.loads((tmp_path / "m.json").read_text())
    (version,) = data["versions"].values()
    assert set(version["numbers"]) == {"instability"} and len(version["curves"]["instability"]) == data["frames"] == 8


def test_measure_from_the_command_line(tmp_path, clips):
    arguments = [sys.executable, "-m", "unflicker", "measure", str(clips["noisy"])]
    done = subprocess.run([*arguments, "--no-flow"], capture_output=True, text=True)
    assert done.returncode == 0 and "instability" in done.stdout, done.stderr
    done = subprocess.run([*arguments, "--truth", str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "There is no file" in done.stderr
