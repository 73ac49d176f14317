"""The table and the figure of evaluations: what is in them, and what they refuse."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from unflicker.checks import InputError
from unflicker.data.base import Recording
from unflicker.data.scenes import scenes
from unflicker.evaluation import Method, evaluate
from unflicker.results import Evaluation
from unflicker.stabilizers import EMA
from unflicker.tradeoff import Frontier, Point, figure, frontier, markdown_table


@pytest.fixture(scope="module")
def found() -> Evaluation:
    clip = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    video = SimpleNamespace(name="clip", num_frames=4, height=16, width=24, frame_rate=25.0, read=clip.__getitem__)
    torch.manual_seed(0)
    return evaluate(
        nn.Conv2d(3, 3, 3, padding=1),
        [Recording(video)],
        {"EMA 0.2": EMA(0.2), "EMA 0.4": EMA(0.4), "still": Method(EMA(0.5), 100)},
        corruptions=["gaussian_noise:1"],
        seed=2,
    )


def of(target: str, channels: int, metrics: tuple[str, ...]) -> Evaluation:
    """An evaluation of a network that makes depth or labels."""
    torch.manual_seed(0)
    return evaluate(
        nn.Conv2d(3, channels, 3, padding=1),
        scenes(1, num_frames=4, height=24, width=32),
        {f"EMA {decay}": EMA(decay) for decay in (0.2, 0.4)},
        corruptions=["gaussian_noise:3"],
        metrics=metrics,
        target=target,
    )


@pytest.fixture(scope="module")
def depth() -> Evaluation:
    return of("depth", 1, ("instability", "delta1", "abs_rel"))


@pytest.fixture(scope="module")
def labels() -> Evaluation:
    return of("labels", 12, ("pixel_accuracy", "miou", "instability"))


def rows(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {each[0]: each[1:] for each in cells}


def test_the_table_has_every_number_and_its_change(found):
    table = markdown_table({"noise": found})
    assert table.startswith(
        "### noise\n\n1 video, 4 frames of 24x16; gaussian_noise:1, seed 2. Means over all frames; changes are "
        "against the base.\n\n| method |"
    )
    shown = rows(table)
    assert shown["method"] == [
        "PSNR (dB)",
        "instability",
        "temporal-difference error",
        "ms a frame",
        "state MiB",
        "weights",
        "MMAC",
    ]
    assert {len(row) for row in shown.values()} == {7}
    base, ema = found.overall["base"], found.overall["EMA 0.4"]
    change = 100 * (ema["instability"] / base["instability"] - 1)
    assert shown["EMA 0.4"][0] == f"{ema['psnr']:.2f} ({ema['psnr'] - base['psnr']:+.2f})"
    assert shown["EMA 0.4"][1] == f"{ema['instability']:.4f} ({change:+.1f} %)"
    assert shown["EMA 0.4"][4:] == ["0.0", "+0", "+0"] and shown["base"][4:] == ["", "84", "0"]
    assert shown["base"][0] == f"{base['psnr']:.2f}"
    assert shown["truth"][0] == "" and shown["truth"][1] == f"{found.overall['truth']['instability']:.4f}"
    assert "still (strength 100)" in shown  # and its name does not tell already


def test_several_tables(found):
    table = markdown_table({"one": found, "two": found})
    assert table.count("\n### two\n") == 1 and table.startswith("### one\n") and table.endswith("|\n")
    with pytest.raises(InputError, match="no evaluation to make a table of"):
        markdown_table({})


def test_points_are_the_numbers(found):
    front = frontier(found)
    assert [(point.method, point.setting) for point in front.points[:2]] == [("EMA", "0.2"), ("EMA", "0.4")]
    assert (front.points[2].method, front.points[2].setting) == ("still", "")
    assert front.points[1].instability == found.overall["EMA 0.4"]["instability"]
    assert front.points[1].quality == found.overall["EMA 0.4"]["psnr"]
    assert front.base == (found.overall["base"]["instability"], found.overall["base"]["psnr"])
    assert front.truth == found.overall["truth"]["instability"] and front.quality == "PSNR (dB)"
    with pytest.raises(InputError, match="evaluation has no 'ssim'; there is 'psnr', 'instability'"):
        frontier(found, "ssim")


def test_the_first_quality_that_was_measured_goes_up(depth, labels):
    front = frontier(depth)
    assert (front.quality, front.higher_is_better) == ("AbsRel", False)
    assert front.base == (depth.overall["base"]["instability"], depth.overall["base"]["abs_rel"])
    assert frontier(depth, "delta1").quality == "delta < 1.25"
    front = frontier(labels)
    assert (front.quality, front.higher_is_better) == ("mIoU", True)
    assert front.points[1].quality == labels.overall["EMA 0.4"]["miou"]
    assert front.truth == labels.overall["truth"]["instability"]
    with pytest.raises(InputError, match="has no quality to draw: measure one of psnr, ssim, abs_rel"):
        frontier(dataclasses.replace(depth, metrics={"instability": depth.metrics["instability"]}))


def test_an_error_grows_downwards(tmp_path, monkeypatch, depth, labels):
    from matplotlib.figure import Figure

    limits: list[tuple[float, float]] = []
    save = Figure.savefig

    def note(self, *place, **style):
        limits.extend(axes.get_ylim() for axes in self.axes)
        return save(self, *place, **style)

    monkeypatch.setattr(Figure, "savefig", note)
    figure({"depth": frontier(depth), "labels": frontier(labels)}, tmp_path / "both.png")
    (bottom, top), (low, high) = limits
    assert bottom > top and low < high


def test_tables_of_depth_and_labels(depth, labels):
    table = markdown_table({"depth": depth, "labels": labels})
    assert "gaussian_noise:3, seed 0; held to depth. Means" in table and "held to labels. Means" in table
    first, second = (rows(each) for each in table.split("### labels"))
    assert first["method"][:3] == ["instability", "delta < 1.25", "AbsRel"]
    before, after = (depth.overall[name]["abs_rel"] for name in ("base", "EMA 0.4"))
    assert first["EMA 0.4"][2] == f"{after:.4f} ({100 * (after / before - 1):+.1f} %)"
    assert second["truth"][:2] == ["", ""] and second["truth"][2] == f"{labels.overall['truth']['instability']:.4f}"
    still = dataclasses.replace(labels, overall={**labels.overall, "still": dict.fromkeys(labels.metrics, 0.0)})
    assert rows(markdown_table({"": still}))["still"][0] == "0.0000 (-100.0 %)"
    against = dataclasses.replace(depth, settings={**depth.settings, "target": "base"})
    assert "; held to what the network makes of the clean frame. Means" in markdown_table({"": against})


@pytest.mark.parametrize("name", ["f.png", "f.svg", "f.pdf"])
def test_the_figure_is_drawn(tmp_path, found, name):
    figure(frontier(found), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


def test_the_figure_says_what_it_shows_and_is_the_same_twice(tmp_path, found):
    both = {"noise": frontier(found), "noise, TDE": frontier(found, "temporal_difference_error")}
    assert not both["noise, TDE"].higher_is_better
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure(both, tmp_path / "a.svg")
        figure(both, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    for words in ("EMA", "network alone", "truth's own instability", "PSNR (dB)", "temporal-difference error"):
        assert words in text
    assert text == (tmp_path / "b.svg").read_text()


def written(monkeypatch) -> list[str]:
    """The settings that are written into figures from now on."""
    from matplotlib.axes import Axes

    texts: list[str] = []
    annotate = Axes.annotate

    def note(self, text, *place, **style):
        texts.append(text)
        return annotate(self, text, *place, **style)

    monkeypatch.setattr(Axes, "annotate", note)
    return texts


def test_settings_are_written_beside_their_points(tmp_path, monkeypatch, found):
    texts = written(monkeypatch)
    figure(frontier(found), tmp_path / "f.png")
    assert texts == ["0.2", "0.4"]


def test_what_is_too_bad_is_left_out(tmp_path, monkeypatch):
    points = tuple(Point("EMA", str(i), 0.03 - 0.002 * i, 34.0 - i**2) for i in range(5))
    front = Frontier(points, (0.032, 34.2), 0.02, "PSNR (dB)")
    texts = written(monkeypatch)
    figure(front, tmp_path / "f.svg", worst=29)
    assert texts == ["0", "1", "2"]
    figure(Frontier(points, None, None, "error", higher_is_better=False), tmp_path / "e.png", worst=33)
    with pytest.raises(InputError, match="or leave out worst"):
        figure(front, tmp_path / "f.svg", worst=40)


def test_what_cannot_be_drawn(tmp_path, found):
    with pytest.raises(InputError, match="no points to draw"):
        figure(Frontier((), None, None, "PSNR (dB)"), tmp_path / "f.png")
    front = Frontier((Point("EMA", "", 0.1, 30.0),), None, None, "PSNR (dB)")
    figure(front, tmp_path / "alone.png")
    with pytest.raises(InputError, match=r"f\.gif must end in \.png, \.svg, \.pdf"):
        figure(front, tmp_path / "f.gif")
    with pytest.raises(InputError, match=r"f\.png cannot be written \(No such file"):
        figure(front, tmp_path / "nowhere" / "f.png")
