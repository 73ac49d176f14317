"""Recipes of single-frame regularization: the published study, its small twins, and the study itself, tiny."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from unflicker.checks import InputError
from unflicker.recipes import list_recipes
from unflicker.recipes.single_frame import SingleFrame, list_single_frame, load_single_frame

ROOT = Path(__file__).parents[1]


def benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study():
    return benchmark("single_frame")


@pytest.mark.parametrize("name", list_single_frame())
def test_every_recipe_is_sound(name):
    recipe = load_single_frame(name)
    assert recipe.about
    assert SingleFrame.model_validate(yaml.safe_load(recipe.text())) == recipe


def test_they_stand_apart_from_the_recipes_of_video():
    assert set(list_single_frame()) == {"hdr", "hdr-small", "color", "color-small"}
    assert not set(list_single_frame()) & set(list_recipes())


@pytest.mark.parametrize(("name", "images", "videos"), [("hdr", 10_000, (50, 200)), ("color", 20_000, (72, 200))])
def test_the_published_settings(name, images, videos):
    """Section 4 and Table 2: 50 epochs, and 260 fine-tunings."""
    recipe = load_single_frame(name)
    data, grid = recipe.data, recipe.grid
    assert abs(data.images - images) <= data.validation and (data.sequences, data.frames) == videos
    assert recipe.finetuning.steps * recipe.finetuning.batch == pytest.approx(50 * images, rel=0.01)
    assert grid.ratios == tuple(0.5 * 4**k for k in range(6)) and data.size == 128
    assert (len(grid.terms) * len(grid.ratios) + 2) * grid.seeds == 260


@pytest.mark.parametrize("name", ["hdr", "color"])
def test_the_small_twins_change_amounts_alone(name):
    big, small = load_single_frame(name), load_single_frame(f"{name}-small")
    assert (small.application, small.grid.terms, small.grid.ratios) == (
        big.application,
        big.grid.terms,
        big.grid.ratios,
    )
    assert small.grid.seeds >= 2


def test_mistakes_are_told_with_their_place(tmp_path):
    with pytest.raises(
        InputError, match=r"The option grid.seed=3: there is no setting grid.seed; did you mean 'seeds'"
    ):
        load_single_frame("hdr", ["grid.seed=3"])
    mine = tmp_path / "mine.yaml"
    mine.write_text("like: hdr\ngrid:\n  terms: [noise]\n")
    with pytest.raises(InputError, match=r"mine.yaml, line 3: grid.terms.0 cannot be 'noise'"):
        load_single_frame(mine)
    with pytest.raises(InputError, match=r"no recipe 'hdr-smal' .* did you mean 'hdr-small'"):
        load_single_frame("hdr-smal")
    mine.write_text("- 1\n")
    with pytest.raises(InputError, match="it must have keys such as application, data and pretraining"):
        load_single_frame(mine)


TINY = ["data.images=4", "data.validation=2", "data.size=32", "data.sequences=2", "data.frames=6"]
TINY += ["pretraining.steps=2", "pretraining.batch=2", "finetuning.steps=1", "finetuning.batch=2"]
TINY += ["grid.ratios=[8]", "grid.seeds=1", "grid.terms=[sparse Jacobian]"]


def test_the_study_keeps_what_is_finished_and_goes_on(study, tmp_path, capsys):
    recipe = load_single_frame("hdr-small", TINY)
    study.Study(recipe, tmp_path).run()
    files = sorted((tmp_path / "runs").glob("*.json"))
    assert [file.stem for file in files] == ["augmentation-0-0", "no-term-0-0", "sparse-Jacobian-8-0"]
    row = json.loads(files[2].read_text())
    assert row["term"] == "sparse Jacobian" and list(row["sequences"]) == ["hdr10000", "hdr10001"]
    files[1].unlink()
    before = files[2].stat().st_mtime_ns
    capsys.readouterr()
    study.Study(recipe, tmp_path).run()
    assert files[1].exists() and files[2].stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("\n") == 1  # the baseline was not trained again either
    with pytest.raises(InputError, match="is of another recipe"):
        study.Study(load_single_frame("hdr-small"), tmp_path)


def test_what_another_process_does_is_left_to_it(study, tmp_path):
    with study.claimed(tmp_path / "a") as mine, study.claimed(tmp_path / "a") as theirs:
        assert mine and not theirs
    with study.claimed(tmp_path / "a") as mine:
        assert mine


def test_the_most_telling_runs_come_first(study, tmp_path):
    runs = list(study.Study(load_single_frame("hdr"), tmp_path).grid())
    assert len(runs) == len(set(runs)) == 260
    assert runs[:2] == [("no term", 0, 0), ("augmentation", 0, 0)] and {r for _, r, _ in runs[2:6]} == {8}
    assert [seed for _, _, seed in runs[:36]] == [0] * 18 + [1] * 18
    assert {r for _, r, _ in runs[:36]} == {0, 8, 32, 128, 2}


def test_hdr_is_measured_where_it_was_clipped(study):
    """PSNR by the plain formula; what was not clipped plays no part."""
    application = study.APPLICATIONS["hdr"]
    x = torch.rand(8, 1, 6, 6) * 0.9
    x[:, :, :3] = 1
    y = torch.where(x == 1, 1 + 9 * torch.rand(x.shape), x.square())
    truth = torch.log(y + 1 / 255)
    preds = truth + 0.1 * torch.randn(x.shape)
    preds[:, :, 3:] = 77
    found = application.measured(preds, ("a", x, y, 30.0))
    error = (preds - truth)[:, :, :3].square().mean()
    assert found["psnr"] == pytest.approx(
        (20 * torch.log10(torch.log(torch.tensor(100.0)) / error.sqrt())).item(), rel=1e-5
    )
    assert 0.5 < found["smoothness"] < 1.5


def test_colour_is_measured_channel_by_channel(study):
    y = torch.rand(5, 2, 4, 4) - 0.5
    preds = y + torch.tensor([0.1, 0.01]).view(2, 1, 1)
    found = study.APPLICATIONS["color"].measured(preds, ("a", torch.rand(5, 1, 4, 4), y, 25.0))
    assert found["psnr"] == pytest.approx(30, rel=1e-4) and found["smoothness"] == pytest.approx(1, rel=1e-4)


def test_the_camera_of_the_study_is_that_of_the_pictures(study):
    x, y = study.HDRImages(2, size=32)[1]
    assert torch.equal(study.Camera()(y[None])[0], x)
    light = study.Light(study.HDRImages(2, size=32))
    assert len(light) == 2 and torch.equal(light[1][0], y) and torch.equal(light[1][1], y)


def test_the_page_is_that_of_the_committed_numbers():
    report = benchmark("single_frame_report")
    assert report.block(report.read()) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
