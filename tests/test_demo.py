"""The demo and its report, with a small random network."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from skimage.io import imread

from unflicker import demo
from unflicker.checks import InputError
from unflicker.corruptions import ToneJitter, gaussian_noise
from unflicker.data import demo_clip
from unflicker.demo import FILES, demo_models, run_demo
from unflicker.metrics import psnr
from unflicker.model import stabilize
from unflicker.networks.nafnet import NAFNet
from unflicker.report import flicker_figure, quiet_spots, side_by_side, table
from unflicker.stabilizers import EMA, Aligned
from unflicker.video import open_reader

SMALL = {"frames": 5, "height": 48, "width": 80}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    base = NAFNet(8, (1,), 1, (1,))
    example = torch.zeros(1, 3, 32, 32)
    return {"base": base.eval(), **{f"EMA {d}": stabilize(base, {"": EMA(d)}, example=example) for d in (0.2, 0.5)}}


@pytest.fixture(scope="module")
def demo_run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "notes.txt").write_text("mine")
    (folder / FILES[1]).write_text("old")
    steps = []
    report = run_demo(folder / ".", models=models, progress=lambda *step: steps.append(step), **SMALL)
    return folder, report, steps


def test_demo_leaves_three_files_and_touches_no_other(demo_run):
    folder, _, _ = demo_run
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "notes.txt"])
    assert (folder / "notes.txt").read_text() == "mine"
    assert imread(folder / "flicker.png").std() > 10


def test_demo_tells_how_far_it_is(demo_run):
    steps = demo_run[2]
    assert steps[0] == ("filming", 0, 6) and steps[-1] == ("done", 6, 6)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_report_on_disk_is_what_was_returned(demo_run):
    folder, report, _ = demo_run
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["settings"]["noise"] == {"kind": "gaussian", "sigma": 0.1, "seed": 0}
    assert report["versions"]["torch"] == torch.__version__


def test_rows_hold_the_metrics_of_a_plain_loop(demo_run, models):
    rows = {row["name"]: row for row in demo_run[1]["rows"]}
    assert list(rows) == ["noisy input", *models]
    truth = demo_clip(*SMALL.values())
    noisy = gaussian_noise(truth, 0.1, seed=0)
    with torch.no_grad():
        frames = [models["base"](frame[None])[0] for frame in noisy]
        steady, _ = models["EMA 0.5"](noisy[None])
    assert rows["base"]["psnr"] == pytest.approx(psnr(torch.stack(frames).clamp(0, 1), truth).item(), abs=1e-3)
    assert rows["EMA 0.5"]["psnr"] == pytest.approx(psnr(steady[0].clamp(0, 1), truth).item(), abs=1e-3)
    assert rows["EMA 0.5"]["instability"] < rows["EMA 0.2"]["instability"] < rows["base"]["instability"]
    assert rows["EMA 0.5"]["change"]["instability"] < -10
    assert rows["base"]["change"] is None and rows["noisy input"]["milliseconds"] is None


def test_flicker_rows_hold_what_the_task_none_makes_of_a_flickering_clip(demo_run):
    flickering, steady = demo_run[1]["flicker"]
    assert (flickering["name"], steady["name"]) == ("flickering", "deflickered")
    clip = ToneJitter(severity=3, seed=0)(truth := demo_clip(*SMALL.values()))
    assert flickering["psnr"] == pytest.approx(psnr(clip, truth).item(), abs=1e-3)
    error = "temporal_difference_error"
    assert steady["change"][error] == pytest.approx(100 * (steady[error] / flickering[error] - 1))
    assert steady["milliseconds"] > 0 and flickering["change"] is None


def test_the_demo_shows_the_default_beside_the_simplest_and_the_trained():
    models = demo_models()
    assert list(models) == ["base", "output EMA", "aligned", "aligned-learned", "spatial"]
    assert isinstance(models["aligned"].stabilizers["output"], Aligned)


def test_video_shows_input_base_a_stabilized_model_and_truth(demo_run):
    with open_reader(demo_run[0] / "side_by_side.mp4") as reader:
        frames = [frame.data for frame in reader]
    assert len(frames) == 5 and frames[0].shape == (3, 72, 4 * 80 + 3 * 4)
    truth = demo_clip(*SMALL.values())
    assert psnr(frames[2][None, :, 24:, -80:], truth[2:3]) > 28
    assert frames[0][:, :24].min() < 0.5 < frames[0][:, :24].mean()  # letters on white


def test_table_shows_every_row_and_its_change(demo_run):
    out = io.StringIO()
    Console(file=out, width=120).print(table(demo_run[1]["rows"], demo_run[1]["flicker"]))
    shown = out.getvalue()
    assert all(word in shown for word in ("noisy input", "base", "EMA 0.5", "deflickered", "PSNR (dB)", "%)"))


def test_a_demo_that_fails_leaves_nothing(models, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "flicker_figure", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no ink")))
    with pytest.raises(RuntimeError, match="no ink"):
        run_demo(tmp_path, models=models, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_demo(models, tmp_path):
    with pytest.raises(InputError, match="must hold 'base', the network alone; got EMA"):
        run_demo(tmp_path, models={"EMA": models["EMA 0.2"]})
    with pytest.raises(InputError, match="two frames or more to show flicker, got 1"):
        run_demo(tmp_path, models=models, frames=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be written to"):
        run_demo(tmp_path / "file", models=models)


def test_errors_of_the_report(tmp_path):
    clip = torch.rand(2, 3, 16, 16)
    with pytest.raises(InputError, match=r"one shape are needed, got 'a' \(2, 3, 16, 16\), 'b' \(1, 3, 16, 16\)"):
        side_by_side({"a": clip, "b": clip[:1]}, tmp_path / "x.mp4", 24)
    with pytest.raises(InputError, match="got none"):
        side_by_side({}, tmp_path / "x.mp4", 24)
    with pytest.raises(InputError, match="frame rate must be above 0, got 0"):
        side_by_side({"a": clip}, tmp_path / "x.mp4", 0)
    with pytest.raises(InputError, match="cannot be written"):
        flicker_figure({"a": clip}, clip, tmp_path / "nowhere" / "x.png")


def test_quiet_spots_are_apart_and_inside():
    generator = torch.Generator().manual_seed(0)
    spots = np.array(quiet_spots(torch.rand(9, 3, 48, 80, generator=generator), window=4))
    assert len(spots) == 3 and (spots[:, 2] <= 5).all()
    distances = np.hypot(*(spots[:, None, :2] - spots[None, :, :2]).transpose(2, 0, 1))
    assert distances[~np.eye(3, dtype=bool)].min() >= 80 / 5
