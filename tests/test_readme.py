"""Every Python block of the README and of the documents runs, in order, as a reader would type it."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


def test_the_first_python_comes_early():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.index("```python") < 12


def test_train_your_own_does_what_it_says(tmp_path, monkeypatch, capsys):
    """The files and commands of docs/train-your-own.md, on small clips and with three steps of training."""
    from fractions import Fraction

    import torch

    from unflicker.cli import main
    from unflicker.data import demo_clip
    from unflicker.video import Frame, VideoInfo, open_writer

    page = (ROOT / "docs" / "train-your-own.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL):
        Path(name).write_text(text)
    Path("my-clips").mkdir(), Path("my-photos").mkdir()
    for number in range(3):
        clip = demo_clip(10, 80, 128, seed=number)
        with open_writer(f"my-clips/clip{number}.mp4", VideoInfo(128, 80, Fraction(24), Fraction(1, 24))) as writer:
            for t, frame in enumerate(clip):
                writer.write(Frame(frame, t, Fraction(1, 24)))
        with open_writer(f"my-photos/{number}", VideoInfo(128, 80, Fraction(24), Fraction(1, 24))) as writer:
            writer.write(Frame(clip[0], 0, Fraction(1, 24)))
        next(Path(f"my-photos/{number}").iterdir()).rename(f"my-photos/{number}.png")
        Path(f"my-photos/{number}").rmdir()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert [line.split()[1] for line in commands] == ["train", "evaluate", "run", "sweep", "train"]
    for line in commands:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            words += ["training.steps=3", "training.validate_every=2"]
            words += ["data.options={height: 64, width: 64, num_frames: 8}"] if "data.layout=stills" in words else []
        monkeypatch.setattr(sys, "argv", ["unflicker", *words])
        with torch.random.fork_rng(), pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code, f"{line}: {capsys.readouterr().err}"
    for made in ("runs/mine/adapter", "runs/mine/evaluation/tradeoff.png", "steady.mp4", "runs/from-stills/adapter"):
        assert Path(made).exists(), made
    assert "recommended" in capsys.readouterr().out


STUDIES = ["study_report", "robustness_report", "composition_report", "adversarial_report"]


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_in_the_results_are_those_of_the_committed_numbers(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    assert report.block(report.read()) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
