"""`unflicker finetune`: images from folders, what is measured before and after, and what is written."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from unflicker.bases import load_base
from unflicker.checks import InputError
from unflicker.cli import main
from unflicker.data import StillVideo, demo_clip
from unflicker.metrics.quality import psnr
from unflicker.metrics.temporal import instability, smoothness
from unflicker.pairs import ImagePairs, find_pairs
from unflicker.steadying import Comparison, Steadied, compare, steady, write_weights
from unflicker.video import Frame, VideoInfo, open_writer

NET = """
import torch
from torch import nn

class Strided(nn.Module):
    '''Half of the output knows where the grid is: it changes with every shift of the frame.'''
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 12, 4, stride=4)
        self.up = nn.ConvTranspose2d(12, 3, 4, stride=4)
        with torch.no_grad():
            self.up.weight.mul_(6)
    def forward(self, x):
        return (x + torch.tanh(self.up(torch.relu(self.down(x))))) / 2

def net():
    torch.manual_seed(0)
    return Strided()

def cropping():
    return nn.Conv2d(3, 3, 3)

def vector():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

def grey():
    return nn.Conv2d(1, 1, 3, padding=1)

def double():
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))

def none():
    return nn.Identity()
"""


def picture(seed: int, height: int = 96, width: int = 120) -> np.ndarray:
    """Smooth blobs: (H, W, 3) bytes."""
    coarse = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1)
    return (fine.permute(1, 2, 0) * 255).round().byte().numpy()


def save(folder: Path, name: str, pixels: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


@pytest.fixture
def images(tmp_path):
    for number in range(6):
        save(tmp_path / "images", f"{number}.png", picture(number))
    return tmp_path / "images"


@pytest.fixture
def mine(tmp_path, request, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / f"mine_{abs(hash(request.node.name))}.py"  # each test another: modules are kept
    file.write_text(NET)
    return file


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["unflicker", *map(str, words)])
    with torch.random.fork_rng(), pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0, capsys.readouterr()


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_network_becomes_steadier_and_runs_with_what_was_written(tmp_path, images, mine, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (images / "broken.png").write_bytes(b"no picture")
    clip = tmp_path / "clip"
    for t, frame in enumerate(demo_clip(4, 64, 96)):
        save(clip, f"{t}.png", (frame.permute(1, 2, 0) * 255).byte().numpy())
    words = ("finetune", "--model", f"{mine}:net", "--images", images, "--video", clip, "--steps", 40)
    code, said = command(monkeypatch, capsys, *words, "--learning-rate", 0.003)
    assert code == 0, said.err
    out = tmp_path / f"{mine.stem}-steady.safetensors"
    assert f"--weights {out.name}" in said.err
    assert said.err.count("broken.png cannot be read as a picture") == 1
    rows = [line.split() for line in said.out.splitlines() if " after " in line]
    assert len(rows) == 2 and "images in motion" in said.out and "clip" in said.out
    assert all(float(row[-3]) > 1.05 for row in rows), said.out  # smoothness

    before, after = load_base(f"{mine}:net"), load_base(f"{mine}:net", out)
    assert not torch.equal(before.down.weight, after.down.weight)
    weights = load_file(out)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: tuple(value.shape) for name, value in before.state_dict().items()
    }
    assert not list(tmp_path.glob("*.part"))

    code, said = command(monkeypatch, capsys, *words, "--steps", 1)
    assert code == 2 and "exists; pass --overwrite" in said.err
    assert all(torch.equal(value, weights[name]) for name, value in load_file(out).items())
    code, said = command(monkeypatch, capsys, *words, "--steps", 1, "--overwrite")
    assert code == 0 and not torch.equal(load_file(out)["down.weight"], weights["down.weight"])
    code, said = command(monkeypatch, capsys, "run", clip, "out", "--model", f"{mine}:net", "--weights", out)
    assert code == 0 and len(list(Path("out").glob("*.png"))) == 4, said.err


@pytest.mark.parametrize("term", ["transform-invariance", "sparse-jacobian", "stability", "noise"])
def test_every_term_trains(tmp_path, images, mine, term):
    found = steady(load_base(f"{mine}:net"), images, tmp_path / "out.safetensors", term=term, steps=2, batch=2)
    assert found.trained_on == 4 and found.measured_on == 2 and found.held_out and found.psnr is None
    assert [each.name for each in found.moving] == ["images in motion"]


def test_targets_are_what_it_learns(tmp_path, images, mine):
    for file in images.iterdir():  # what should come out: the negative
        save(tmp_path / "targets", file.name, 255 - np.array(Image.open(file)))
    network = load_base(f"{mine}:net")
    found = steady(
        network,
        images,
        tmp_path / "out.safetensors",
        targets=tmp_path / "targets",
        ratio=0.5,
        steps=25,
        learning_rate=0.01,
    )
    assert found.psnr is not None and found.psnr[1] > found.psnr[0] + 1


def test_networks_of_another_size_are_trained_too(tmp_path, images, mine):
    for file in images.iterdir():
        large = Image.open(file).resize((240, 192))
        save(tmp_path / "targets", f"{file.stem}.bmp", np.array(large))
    network = load_base(f"{mine}:double")
    found = steady(network, images, tmp_path / "out.safetensors", targets=tmp_path / "targets", steps=2, batch=2)
    assert found.psnr is not None and len(found.moving) == 1


def test_a_single_image_is_enough_and_told(tmp_path, mine):
    save(tmp_path / "one", "a.png", picture(0))
    found = steady(load_base(f"{mine}:net"), tmp_path / "one", tmp_path / "out.safetensors", steps=1)
    assert not found.held_out and "measured on what it was trained on" in " ".join(found.notes)


def test_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    """The file and the commands of docs/no-video-needed.md, with two steps of training."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "no-video-needed.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not (Path(each) / "mine.py").exists()])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL):
        Path(name).write_text(text)
    for number in range(3):
        save(tmp_path / "my-photos", f"{number}.jpg", picture(number))
    with open_writer("my-clip.mp4", VideoInfo(96, 64, Fraction(24), Fraction(1, 24))) as writer:
        for t, frame in enumerate(demo_clip(4, 64, 96)):
            writer.write(Frame(frame, t, Fraction(1, 24)))
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["finetune", "run"]
    for line in lines:
        words = shlex.split(line)[1:]
        code, said = command(monkeypatch, capsys, *words, *(["--steps", 2] if words[0] == "finetune" else []))
        assert code == 0, said.err
    assert Path("steady.mp4").exists()


# --- bad input --------------------------------------------------------------------------------------------------------


def told(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text and text[-1] in ".?"
    return text


def test_what_the_command_refuses(tmp_path, images, mine, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def refused(*words, network="net"):
        code, said = command(
            monkeypatch, capsys, "finetune", "--model", f"{mine}:{network}", "--images", images, "--steps", 1, *words
        )
        assert code == 2 and said.err.count("\n") == 1, said.err
        assert not list(tmp_path.glob("*.safetensors*"))
        return said.err

    assert "makes 126x126 of 128x128" not in (err := refused(network="cropping"))
    assert "makes 94x94 of 96x96 pixels" in err and "not one that is cropped" in err
    assert "makes images (B, C, H, W) of images; this made (1, 2)" in refused(network="vector")
    assert "fails on frames (1, 3, 96, 96)" in refused(network="grey")
    assert "has no weights, so there is nothing to train" in refused(network="none")
    assert "no term 'transform'; did you mean 'transform-invariance'?" in refused("--term", "transform")
    assert "0 or more, got -1" in refused("--ratio", "-1")
    assert "Give 1 step or more" in refused("--steps", "0")
    assert "give it that ending" in refused("--out", "weights.pth")
    assert "its folder must exist" in refused("--out", "nowhere/weights.safetensors")
    assert "There is no file or folder gone.mp4; check the name." in refused("--video", "gone.mp4")
    assert "is not a folder" in refused("--targets", "gone")
    code, said = command(monkeypatch, capsys, "finetune", "--model", "a.onnx", "--images", images)
    assert code == 2 and "ONNX files are run as they are" in said.err


def test_which_images_are_refused_or_left_out(tmp_path, images):
    (tmp_path / "empty").mkdir()
    assert "has no pictures" in told(find_pairs, tmp_path / "empty")
    assert "is not a folder" in told(find_pairs, tmp_path / "gone")
    save(images, "small.png", picture(0, 63, 80))
    (images / "7.jpg").write_bytes(b"\xff\xd8\xff")
    pairs, skipped = find_pairs(images)
    assert len(pairs) == 6 and len(skipped) == 2
    assert "7.jpg cannot be read" in skipped[0]
    assert "small.png has 80x63 pixels, and 64x64 are needed." in skipped[1]
    save(tmp_path / "all-small", "a.png", picture(0, 40, 40))
    assert "None of the 1 pictures" in (said := told(find_pairs, tmp_path / "all-small")) and "40x40" in said


def test_which_targets_are_refused(tmp_path, images):
    targets = tmp_path / "targets"
    targets.mkdir()
    assert "has no targets" in told(find_pairs, images, targets)
    for number in range(6):
        save(targets, f"{number}.png", picture(number))
    assert len(find_pairs(images, targets)[0]) == 6
    save(targets, "5.bmp", picture(5))
    assert "are both the target of 5" in told(find_pairs, images, targets)
    (targets / "5.bmp").rename(targets / "x5.bmp")
    assert "There is no image for" in (said := told(find_pairs, images, targets)) and "x5.bmp" in said
    (targets / "x5.bmp").unlink()
    (targets / "5.png").unlink()
    assert "There is no target for" in (said := told(find_pairs, images, targets)) and "5.png" in said
    save(targets, "5.png", picture(5, 96, 119))
    assert "has 119x96 pixels (width x height), but" in told(find_pairs, images, targets)
    save(targets, "5.png", picture(5, 192, 240))
    assert "or all larger or smaller by one factor" in told(find_pairs, images, targets)


def test_targets_that_are_no_hdr_are_told_with_their_range(tmp_path, images):
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "targets").mkdir()
    for number in range(6):
        light = picture(number).astype(np.float32) / 255
        if number:
            light = (light**4 * 40 + np.random.default_rng(number).random(light.shape) * 0.01).astype(np.float32)
        cv2.imwrite(str(tmp_path / "targets" / f"{number}.hdr"), light)
    pairs, skipped = find_pairs(images, tmp_path / "targets")
    assert len(pairs) == 5 and "0.hdr is no HDR picture: its values run from" in skipped[0]
    x, y = ImagePairs(pairs)[0]
    assert x.max() <= 1 < y.max()


def test_values_that_are_not_finite_are_left_out(tmp_path, images):
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "targets").mkdir()
    for number in range(6):
        light = np.random.default_rng(number).random((96, 120, 3)).astype(np.float32) ** 4 * 30
        light[5, 5] = np.nan if number == 2 else 1
        (tmp_path / "targets" / f"{number}.pfm").write_bytes(cv2.imencode(".pfm", light)[1].tobytes())
    pairs, skipped = find_pairs(images, tmp_path / "targets")
    assert len(pairs) == 5 and "2.pfm has 3 values that are not finite" in skipped[0]


def test_nothing_is_left_where_a_file_cannot_be_written(tmp_path):
    (tmp_path / "out.safetensors").mkdir()
    said = told(write_weights, nn.Conv2d(3, 3, 1), tmp_path / "out.safetensors")
    assert "out.safetensors cannot be written" in said and "What was begun is removed" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_what_was_paid_is_told():
    def notes(psnr, kept, smoothness):
        moving = [Comparison("clip", kept, smoothness, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))]
        return " ".join(Steadied(Path("a"), 4, 1, True, psnr=psnr, moving=moving).notes)

    assert notes(None, 35.0, 1.2) == notes((20.0, 19.6), 20.0, 1.2) == ""
    assert "is 20.0 dB from what it made before: look whether it blurs" in notes(None, 20.0, 1.2)
    assert "It is 1.5 dB farther from the targets than before" in notes((20.0, 18.5), 20.0, 1.2)
    assert "did not become smoother on clip" in notes(None, 35.0, 0.9)


# --- crops and measures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2])
def test_crops_of_targets_lie_where_those_of_the_images_do(tmp_path, factor):
    rows, columns = np.mgrid[:100, :150]
    pixels = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)  # each pixel tells its place
    save(tmp_path / "x", "a.png", pixels)
    save(tmp_path / "y", "a.png", pixels[::factor, ::factor])
    crops = ImagePairs(find_pairs(tmp_path / "x", tmp_path / "y")[0], seed=1)
    assert crops.size == 96 and len(crops) == 64
    places = set()
    for index in range(8):
        x, y = crops[index]
        assert x.shape == (3, 96, 96) and torch.equal(x[:, ::factor, ::factor], y)
        places.add(tuple((x[:2, 0, 0] * 255).round().tolist()))
    assert len(places) > 4
    assert ImagePairs(crops.pairs, channels=1)[0][1].shape[0] == 1


def test_a_file_that_turns_out_damaged_gives_way_to_the_next(images):
    (images / "0.png").unlink()
    whole = save(images, "0.jpg", picture(0)).read_bytes()
    (images / "0.jpg").write_bytes(whole[: len(whole) // 2])  # its header is whole
    pairs, skipped = find_pairs(images)
    assert len(pairs) == 6 and not skipped
    crops = ImagePairs(pairs)
    for index in range(len(crops)):
        assert crops[index].shape == (3, 96, 96)
    assert list(crops.damaged) == pairs[:1] and "0.jpg cannot be read" in crops.damaged[pairs[0]]
    alone = ImagePairs(pairs[:1])
    assert "None of 1 pictures can be read" in told(lambda: alone[0])


def test_the_comparison_is_that_of_the_metrics():
    frames = demo_clip(6, 48, 64)
    before, after = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 5, padding=2)

    def still(t, one, two):
        return torch.zeros(1, 2, 48, 64), torch.ones(1, 1, 48, 64, dtype=torch.bool)

    found = compare("clip", before, after, [(frames.split(1), still)], frame_rate=24)
    with torch.no_grad():
        old, new = before(frames), after(frames)
    assert found.kept == pytest.approx(psnr(new, old).item(), rel=1e-4)
    assert found.smoothness == pytest.approx(smoothness(new, old, frame_rate=24).item(), rel=1e-4)
    expected = [instability(each, normalized=True).item() for each in (frames, old, new)]
    assert found.instability == pytest.approx(expected, rel=1e-4)
    plain = [each.diff(dim=0).square().mean().sqrt().item() for each in (frames, old, new)]
    assert found.warping_error == pytest.approx(plain, rel=1e-4)


def test_motion_that_is_known_is_no_change_along_it():
    video = StillVideo(torch.from_numpy(picture(3)).permute(2, 0, 1), num_frames=5, height=48, width=64, seed=0)

    def motion(t, *_):
        return video.flow.read([t]), video.matches([t])

    same = nn.Identity()
    found = compare("clip", same, same, [((video.read([t]) for t in range(5)), motion)])
    assert found.warping_error[0] < 0.2 * found.instability[0]
    assert found.smoothness == 1 and found.kept == 100


# --- the benchmark's own arithmetic -----------------------------------------------------------------------------------


def benchmark(name):
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_clips_of_blind_consistency_hold_still_along_their_motion(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    blind = benchmark("blind_consistency")
    video = StillVideo(torch.from_numpy(picture(3)).permute(2, 0, 1), num_frames=5, height=64, width=80, seed=2)
    frames, numbers = video.read(range(5)), range(4)
    played = blind.played_backwards(frames, frames, video.flow.read(numbers), video.matches(numbers))
    assert torch.equal(played.frames, frames.flip(0))
    for t in range(1, 5):
        now, before, first = (played.frames[i : i + 1] for i in (t, t - 1, 0))
        for motion, earlier in ((played.short, before), (played.long, first)):
            still = torch.cat([torch.zeros(1, 2, 64, 80), motion[t - 1 : t, 2:]], 1)
            along = blind.temporal_loss(now, earlier, motion[t - 1 : t])
            assert along < 0.25 * blind.temporal_loss(now, earlier, still)
        assert played.long[t - 1, 2].mean() > 0.3
    light = torch.linspace(-5.4, 4.5, 12).view(1, 1, 3, 4)
    assert torch.allclose(blind.rgb_to_log_light(blind.log_light_to_rgb(light)), light, atol=1e-5)
