"""A video through a model and out again, and the command as a person would use it."""

import os
import signal
import subprocess
import sys
import time
import warnings
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unflicker import cli
from unflicker.checkpoint import save_adapter
from unflicker.checks import InputError
from unflicker.corruptions import ToneJitter, parse
from unflicker.corruptions.noise import gaussian_noise
from unflicker.data.synthetic import demo_clip
from unflicker.explain import (
    AMPLIFIED,
    BAR,
    GAP,
    MOVED,
    NOTHING,
    RAMP,
    STATIC,
    explain_frame,
    explain_path,
    explain_size,
)
from unflicker.model import stabilize
from unflicker.run import _with_cuts, run_video
from unflicker.stabilizers import EMA, Aligned
from unflicker.tasks import load_task
from unflicker.video import Frame, VideoInfo, open_reader, open_writer
from unflicker.video.ahead import WriteBehind, read_ahead

SHARED = Path(__file__).resolve().parents[2] / "shared"
RATE = Fraction(25)


def picture(t: int, width: int, height: int) -> Tensor:
    """A coloured gradient with a square that moves one pixel a frame."""
    y, x = torch.meshgrid(torch.linspace(0.1, 0.9, height), torch.linspace(0.1, 0.9, width), indexing="ij")
    data = torch.stack([x, y, 1 - x])
    data[:, height // 4 : height // 2, t % width : t % width + width // 4] = 0.5
    return data


def make(path: Path, frames: int = 12, width: int = 64, height: int = 48, scenes: int = 1) -> Path:
    info = VideoInfo(width, height, RATE, 1 / RATE)
    with open_writer(path, info, crf=4) as writer:
        for t in range(frames):
            data = picture(t, width, height)
            writer.write(Frame(data if t * scenes // frames % 2 == 0 else 1 - data.flip(0), t, 1 / RATE))
    return path


def with_sound(path: Path, video: Path) -> Path:
    """The same pictures with a second of tone, written with PyAV alone."""
    with av.open(str(video)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        sound = target.add_stream("aac", rate=44100)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
        tone = (0.3 * np.sin(np.arange(44100) / 16)).astype(np.float32)[None]
        for start in range(0, tone.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            target.mux(sound.encode(frame))
        target.mux(sound.encode())
    return path


def packets(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.dts is not None]


def read(path: Path) -> list[Frame]:
    with open_reader(path) as reader:
        return list(reader)


def averaging(decay: float = 0.5):
    return stabilize(nn.Identity(), {"": EMA(decay)}, example=torch.zeros(1, 3, 8, 8))


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unflicker", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command in this process, which is quicker, and return the one line it says to what it does not take."""

    def refused(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["unflicker", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr().err
        assert left.value.code == 2 and len(said.strip().splitlines()) == 1, said
        return said

    monkeypatch.setattr(cli, "tune_process", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # to be put back
    return refused


def test_the_output_is_the_stream_through_the_model(tmp_path):
    source = make(tmp_path / "in.mp4")
    result = run_video(averaging(), source, tmp_path / "out", scene_cuts=False)
    past = None
    for before, after in zip(read(source), read(tmp_path / "out"), strict=True):
        past = before.data if past is None else torch.lerp(before.data, past, 0.5)
        assert (after.data - past).abs().max() <= 0.5 / 255 + 1e-6
    assert result.frames == 12 and result.damage is None


def test_times_and_sound_are_kept(tmp_path):
    source = with_sound(tmp_path / "in.mp4", make(tmp_path / "silent.mp4"))
    run_video(averaging(), source, tmp_path / "out.mp4")
    assert [f.pts_seconds for f in read(tmp_path / "out.mp4")] == [f.pts_seconds for f in read(source)]
    assert packets(tmp_path / "out.mp4", "audio") == packets(source, "audio") != []


def test_compare_puts_the_base_on_the_left(tmp_path):
    source = make(tmp_path / "in.mp4")
    run_video(averaging(), source, tmp_path / "out", compare=True, scene_cuts=False)
    before, after = read(source), read(tmp_path / "out")
    assert after[5].data.shape == (3, 48, 128)
    assert (after[5].data[..., :64] - before[5].data).abs().max() <= 0.5 / 255 + 1e-6
    assert not torch.equal(after[5].data[..., 64:], after[5].data[..., :64])


def test_comparing_with_a_stabilized_output_runs_the_network_once(tmp_path):
    calls = []

    class Counting(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x)

    model = stabilize(Counting(), {"": EMA(0.5)}, example=torch.zeros(1, 3, 8, 8))
    calls.clear()
    run_video(model, make(tmp_path / "in.mp4"), tmp_path / "out", compare=True)
    assert len(calls) == 12 and not model.base._forward_hooks


def test_a_scene_cut_starts_afresh(tmp_path):
    source = make(tmp_path / "in.mp4", scenes=3)
    result = run_video(averaging(), source, tmp_path / "out")
    assert result.cuts == [4, 8]
    before, after = read(source), read(tmp_path / "out")
    assert (after[4].data - before[4].data).abs().max() <= 0.5 / 255 + 1e-6
    run_video(averaging(), source, tmp_path / "blended", scene_cuts=False)
    assert (read(tmp_path / "blended")[4].data - before[4].data).abs().max() > 0.1


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 33)])
def test_odd_and_tiny_sizes(tmp_path, size):
    width, height = size
    source = make(tmp_path / "in.mp4", 3, width, height)
    run_video(averaging(), source, tmp_path / "out.mp4")
    assert [tuple(f.data.shape) for f in read(tmp_path / "out.mp4")] == [(3, height, width)] * 3


def test_a_change_of_size_is_a_new_video_brought_to_the_first_size(tmp_path):
    folder = tmp_path / "in"
    for i, (width, height) in enumerate([(32, 24), (32, 24), (16, 12)]):
        one = tmp_path / f"one{i}"
        with open_writer(one, VideoInfo(width, height, RATE, 1 / RATE, is_folder=True)) as writer:
            writer.write(Frame(torch.full((3, height, width), 0.2 * (i + 1)), 0, 1 / RATE))
        folder.mkdir(exist_ok=True)
        next(one.iterdir()).rename(folder / f"{i}.png")
    result = run_video(averaging(0.9), folder, tmp_path / "out")
    last = read(tmp_path / "out")[-1].data
    assert result.resized == 1 and last.shape == (3, 24, 32)
    assert (last - 0.6).abs().max() < 1 / 255  # not blended with the frames before


def test_a_pixel_that_is_no_number_is_filled_from_the_past(tmp_path):
    exr = VideoInfo(16, 16, RATE, 1 / RATE, bit_depth=32)
    with open_writer(tmp_path / "in", exr) as writer:
        for t in range(3):
            data = torch.full((3, 16, 16), 0.25)
            if t == 1:
                data[:, 4, 4] = float("nan")
            writer.write(Frame(data, t, 1 / RATE))
    # The writer turns NaN to 0, so put it back in the file itself.
    import OpenEXR

    name = sorted((tmp_path / "in").iterdir())[1]
    with OpenEXR.File(str(name)) as file:
        channels = {c: np.array(v.pixels, dtype=np.float32) for c, v in file.channels().items()}
    for pixels in channels.values():
        pixels[4, 4] = np.nan
    OpenEXR.File({}, channels).write(str(name))
    run_video(averaging(), tmp_path / "in", tmp_path / "out")
    for frame in read(tmp_path / "out"):
        assert torch.equal(frame.data, torch.full((3, 16, 16), 0.25))


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.6])
def test_noise_is_no_scene_cut_and_a_cut_in_noise_is_one(sigma):
    shots = [demo_clip(4, scene=scene) for scene in ("motorcycle", "rocket")]
    noisy = gaussian_noise(torch.cat(shots), sigma, seed=0)
    frames = [Frame(data, t, 1 / RATE) for t, data in enumerate(noisy)]
    assert [cut for _, cut in _with_cuts(frames)] == [False] * 4 + [True] + [False] * 3


def test_a_frame_of_nothing_but_nan_is_no_scene_cut():
    frames = [Frame(torch.full((3, 24, 32), value), t, 1 / RATE) for t, value in enumerate([0.5, float("nan"), 0.5])]
    assert not any(cut for _, cut in _with_cuts(frames))


BLACK = torch.zeros(3, 48, 64)


def stream_of(*pictures: Tensor) -> list[Frame]:
    return [Frame(data, t, 1 / RATE) for t, data in enumerate(pictures)]


def cuts_of(frames: list[Frame]) -> list[int]:
    return [t for t, (_, cut) in enumerate(_with_cuts(frames)) if cut]


def shot(frames: int, start: int = 0) -> list[Tensor]:
    return [picture(start + t, 64, 48) for t in range(frames)]


@pytest.mark.parametrize("dropped", [1, 2, 3])
def test_a_few_black_frames_are_dropped_frames(dropped):
    frames = stream_of(*shot(4), *[BLACK] * dropped, *shot(4, 4))
    seen = list(_with_cuts(frames))
    assert [frame.pts for frame, _ in seen] == list(range(len(frames)))
    assert not any(cut for _, cut in seen)
    unknown = [bool(frame.data.isnan().all()) for frame, _ in seen]
    assert unknown == [False] * 4 + [True] * dropped + [False] * 4
    # A cut is one against what was seen before the dropped frames.
    assert cuts_of([*frames[: 4 + dropped], *stream_of(*(1 - each.flip(0) for each in shot(3)))]) == [4 + dropped]


def test_many_black_frames_are_a_scene():
    assert cuts_of(stream_of(*shot(4), *[BLACK] * 10, *shot(4))) == [4, 14]
    assert cuts_of(stream_of(*shot(4), *[BLACK] * 4, *shot(4))) == [4, 8]


def test_stars_do_not_outlive_the_cut_to_black():
    sky = torch.full_like(BLACK, 0.01)
    sky[:, 20:22, 30:32] = 1  # too little for the detector
    assert cuts_of(stream_of(*[sky] * 4, *[BLACK] * 5, *[sky] * 3)) == [4, 9]


def test_a_fade_is_no_cut():
    fade = [picture(0, 64, 48) * (1 - t / 24) for t in range(24)]
    assert cuts_of(stream_of(*fade, *[BLACK] * 6, *reversed(fade))) == []


def test_black_at_the_ends_is_a_scene():
    assert cuts_of(stream_of(*[BLACK] * 2, *shot(4))) == [2]
    ending = list(_with_cuts(stream_of(*shot(4), *[BLACK] * 2)))
    assert [cut for _, cut in ending] == [False] * 4 + [True, False]
    assert not any(frame.data.any() for frame, _ in ending[4:])
    assert cuts_of(stream_of(*[BLACK] * 3)) == cuts_of([]) == []


def test_a_light_that_flickers_is_no_cut():
    flickering = ToneJitter(severity=4, seed=1)(torch.stack([picture(t, 64, 48) for t in range(16)]))
    assert cuts_of(stream_of(*flickering)) == []
    assert cuts_of(stream_of(*flickering[:8], *flickering[8:].flip(2, 3))) == [8]


def test_animation_on_twos_is_no_cut():
    assert cuts_of(stream_of(*(picture(8 * (t // 2), 64, 48) for t in range(12)))) == []


@pytest.mark.parametrize("adapter", ["aligned", "ema"])
def test_dropped_frames_are_filled_and_black_scenes_are_black(tmp_path, adapter):
    still, info = picture(0, 64, 48), VideoInfo(64, 48, RATE, 1 / RATE, is_folder=True)
    with open_writer(tmp_path / "in", info) as writer:
        for frame in stream_of(*[still] * 4, *[BLACK] * 2, *[still] * 4, *[BLACK] * 10, *[still] * 2, BLACK):
            writer.write(frame)
    result = run_video(load_task("none", adapter), tmp_path / "in", tmp_path / "out")
    after = [frame.data for frame in read(tmp_path / "out")]
    assert result.cuts == [10, 20, 22]
    for t in [*range(10), 20, 21]:
        assert (after[t] - still).abs().max() < 2 / 255, t
    for t in [*range(10, 20), 22]:
        assert not after[t].any(), t


def test_duplicated_frames_pass(tmp_path):
    frames = demo_clip(6, 96, 160).repeat_interleave(2, 0)
    with open_writer(tmp_path / "in", VideoInfo(160, 96, RATE, 1 / RATE, is_folder=True)) as writer:
        for frame in stream_of(*frames):
            writer.write(frame)
    assert run_video(load_task("none"), tmp_path / "in", tmp_path / "out").cuts == []
    for before, after in zip(read(tmp_path / "in"), read(tmp_path / "out"), strict=True):
        assert (after.data - before.data).square().mean().sqrt() < 0.01


def test_an_explanation_says_what_was_trusted_and_what_was_changed():
    result, base = torch.full((1, 3, 8, 12), 0.52), torch.full((1, 3, 8, 12), 0.5)
    evidence, moved = torch.full((1, 1, 4, 6), 8.0), torch.zeros(1, 1, 4, 6)
    evidence[..., :2], moved[..., 4:] = 1.0, 1.0
    drawn = explain_frame(result, base, {"output/evidence": evidence, "output/moved": moved})
    assert tuple(drawn.shape[1:]) == explain_size(8, 12) == (2 * (8 + BAR) + GAP, 24 + GAP)
    middle = BAR + 4
    panels = {
        "result": drawn[:, middle, :12],
        "evidence": drawn[:, middle, 12 + GAP :],
        "origin": drawn[:, middle + 8 + BAR + GAP, :12],
        "change": drawn[:, middle + 8 + BAR + GAP, 12 + GAP :],
    }
    assert torch.equal(panels["result"], result[0, :, 0])
    assert torch.allclose(panels["evidence"][:, -1], torch.tensor(RAMP[-1]))
    assert torch.allclose(panels["change"], torch.tensor(0.5 + AMPLIFIED * 0.02))
    for column, colour in ((0, NOTHING), (6, STATIC), (11, MOVED)):
        assert torch.allclose(panels["origin"][:, column], 0.55 * 0.52 + 0.45 * torch.tensor(colour), atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 33), (5, 641), (721, 1281)])
def test_explanations_of_any_size_are_even(height, width):
    model = stabilize(nn.Identity(), {"": Aligned()}, example=torch.zeros(1, 3, 8, 8))
    frame = torch.rand(1, 3, height, width)
    drawn = explain_frame(frame, frame, model(frame)[1])
    assert tuple(drawn.shape[1:]) == explain_size(height, width)
    assert drawn.shape[1] % 2 == drawn.shape[2] % 2 == 0 and drawn.min() >= 0 and drawn.max() <= 1


def test_the_explanation_is_a_second_video_in_step_with_the_first(tmp_path):
    source = make(tmp_path / "in.mp4", 6)
    result = run_video(load_task("none"), source, tmp_path / "out.mp4", explain=True, compare=True)
    assert result.explanation == explain_path(tmp_path / "out.mp4") == str(tmp_path / "out.explain.mp4")
    made, explained = read(tmp_path / "out.mp4"), read(tmp_path / "out.explain.mp4")
    assert [f.pts_seconds for f in explained] == [f.pts_seconds for f in made] and len(made) == 6
    assert tuple(explained[0].data.shape[1:]) == explain_size(48, 64)
    assert psnr_of(explained[3].data[:, BAR : BAR + 48, :64], made[3].data[..., 64:]) > 30
    run_video(load_task("none"), source, f"{tmp_path}/out.v2/", explain=True)
    assert len(list((tmp_path / "out.v2.explain").glob("*.png"))) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in.mp4", "out.explain.mp4", "out.mp4", "out.v2", "out.v2.explain"
    ]  # fmt: skip


def psnr_of(preds: Tensor, target: Tensor) -> float:
    return float(-10 * (preds - target).square().mean().log10())


def test_what_an_explanation_refuses(tmp_path):
    source = make(tmp_path / "in.mp4", 2)
    with pytest.raises(InputError, match="nothing to explain: this adapter keeps no evidence"):
        run_video(averaging(), source, tmp_path / "out.mp4", explain=True)
    (tmp_path / "out.explain.mp4").write_text("precious")
    with pytest.raises(InputError, match=r"out.explain.mp4 exists; pass --overwrite"):
        run_video(load_task("none"), source, tmp_path / "out.mp4", explain=True)
    assert (tmp_path / "out.explain.mp4").read_text() == "precious"
    run_video(load_task("none"), source, tmp_path / "out.mp4", explain=True, overwrite=True)
    assert len(read(tmp_path / "out.explain.mp4")) == 2
    itself = make(tmp_path / "b.explain.mp4", 2)
    with pytest.raises(InputError, match="Input and output are both"):
        run_video(load_task("none"), itself, tmp_path / "b.mp4", explain=True, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.explain.mp4", "in.mp4", "out.explain.mp4", "out.mp4"]


def test_a_folder_is_not_replaced_by_itself(tmp_path):
    with open_writer(tmp_path / "in", VideoInfo(8, 8, RATE, 1 / RATE, is_folder=True)) as writer:
        writer.write(Frame(torch.zeros(3, 8, 8), 0, 1 / RATE))
    with pytest.raises(InputError, match="Input and output are both"):
        run_video(averaging(), tmp_path / "in", tmp_path / "in", overwrite=True)


# A processed version of the video --------------------------------------------------------------------------------


def processed_by(source: Path, path: Path, frames: int = 99, size: tuple[int, int] | None = None, rate=RATE) -> Path:
    """What a program makes of a video that grades every frame anew: negative, with a tone that jumps."""
    clip = torch.stack([1 - frame.data for frame in read(source)[:frames]])
    clip = ToneJitter(severity=4, seed=1)(clip)
    if size is not None:
        clip = nn.functional.interpolate(clip, size=size, mode="area")
    with open_writer(path, VideoInfo(clip.shape[3], clip.shape[2], rate, 1 / rate), crf=4) as writer:
        for t, data in enumerate(clip):
            writer.write(Frame(data, t, 1 / rate))
    return path


def clip_of(path: Path) -> Tensor:
    return torch.stack([frame.data for frame in read(path)])


def test_a_processed_video_is_the_model_with_the_original_as_guide(tmp_path):
    source = make(tmp_path / "in.mp4", scenes=3)
    processed = processed_by(source, tmp_path / "made")
    result = run_video(load_task("none"), source, tmp_path / "out", processed=processed)
    assert result.cuts == [4, 8] and result.unpaired is None
    model, state = load_task("none"), None
    pairs = zip(clip_of(source), clip_of(processed), clip_of(tmp_path / "out"), strict=True)
    for t, (original, made, after) in enumerate(pairs):
        with torch.inference_mode():
            y, state = model(made[None], state, guide=original[None], reset=t in result.cuts)
        assert (y[0].clamp(0, 1) - after).abs().max() <= 0.5 / 255 + 1e-5


def test_the_original_says_what_is_flicker(tmp_path):
    frames = demo_clip(10, 96, 160)
    with open_writer(tmp_path / "in", VideoInfo(160, 96, RATE, 1 / RATE, is_folder=True)) as writer:
        for frame in stream_of(*frames):
            writer.write(frame)
    processed = processed_by(tmp_path / "in", tmp_path / "made")
    run_video(load_task("none"), tmp_path / "in", tmp_path / "out", processed=processed)
    error = [((clip_of(path) + frames).diff(dim=0)).square().mean().sqrt() for path in (processed, tmp_path / "out")]
    assert error[1] < 0.35 * error[0]


def test_sound_and_times_are_the_originals_and_the_size_that_of_the_processed(tmp_path):
    source = with_sound(tmp_path / "in.mp4", make(tmp_path / "silent.mp4"))
    processed = processed_by(source, tmp_path / "made.mp4", size=(96, 130), rate=Fraction(25025, 1000))
    model = load_task("none")
    run_video(model, source, tmp_path / "out.mp4", processed=processed, compare=True, explain=True)
    after = read(tmp_path / "out.mp4")
    assert [f.pts_seconds for f in after] == [f.pts_seconds for f in read(source)]
    assert packets(tmp_path / "out.mp4", "audio") == packets(source, "audio") != []
    assert after[0].data.shape == (3, 96, 260)
    halves = after[0].data[..., :130], after[0].data[..., 130:]  # the first frame is the program's; the codec is lossy
    assert (halves[0] - halves[1]).abs().mean() < 0.02
    assert tuple(read(tmp_path / "out.explain.mp4")[0].data.shape[1:]) == explain_size(96, 130)


@pytest.mark.parametrize(("original", "other"), [(12, 7), (5, 12)])
def test_the_shorter_video_ends_it_and_that_is_said(tmp_path, original, other):
    long = make(tmp_path / "long.mp4")
    source = make(tmp_path / "in.mp4", original)
    processed = processed_by(long, tmp_path / "made", other)
    done = command("run", source, tmp_path / "out", "--processed", processed)
    assert done.returncode == 0, done.stderr
    count, short, rest = min(original, other), processed, source
    if original < other:
        short, rest = source, processed
    assert len(read(tmp_path / "out")) == count
    told = f"warning: {short} ends after {count} frames; what {rest} has after that is left out."
    assert told in done.stderr


def test_a_dropped_frame_of_either_is_filled(tmp_path):
    still, info = picture(0, 64, 48), VideoInfo(64, 48, RATE, 1 / RATE, is_folder=True)
    made = 1 - still
    for name, shots in (("in", [still] * 3 + [BLACK] + [still] * 5), ("made", [made] * 5 + [BLACK] * 2 + [made] * 2)):
        with open_writer(tmp_path / name, info) as writer:
            for frame in stream_of(*shots):
                writer.write(frame)
    run_video(load_task("none"), tmp_path / "in", tmp_path / "out", processed=tmp_path / "made")
    assert (clip_of(tmp_path / "out") - made).abs().max() < 2 / 255


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processed", "nothing.mp4"], "There is no file or folder nothing.mp4"),
        (["--processed", "TALL"], "TALL is 48x96 and IN 64x48: one cannot be a version of the other"),
        (["--processed", "FAST"], "FAST has 50 frames per second and IN 25, but they are paired one by one"),
        (["--processed", "IN", "--task", "denoise"], "is what a program has made of IN already; leave --task"),
        (["--processed", "OUT"], "Input and output are both"),
        (["--render", "dept"], "Nothing can be rendered as 'dept'; did you mean 'depth'?"),
        (["--render", "depth"], 'but the network returned (1, 3, 48, 64); use "picture"'),
        (["--render", "index"], "A video file would not keep the numbers of classes exactly; name a folder"),
        (["--range", "1", "0"], "A range of values goes from a number to a larger one, got (1.0, 0.0)"),
        (["--range", "1", "2"], "A range of values is for depth"),
    ],
)
def test_what_run_refuses_to_pair_or_render(tmp_path, refused, arguments, words):
    places = {name: str(tmp_path / f"{name}.mp4") for name in ("IN", "TALL", "FAST", "OUT")}
    source = make(Path(places["IN"]), 2)
    processed_by(source, Path(places["TALL"]), size=(96, 48))
    processed_by(source, Path(places["FAST"]), rate=Fraction(50))
    if "OUT" in arguments:
        make(Path(places["OUT"]), 2)
    there = sorted(p.name for p in tmp_path.iterdir())
    said = refused("run", source, places["OUT"], "--adapter", "ema", *(places.get(a, a) for a in arguments))
    for name, path in places.items():
        said = said.replace(path, name)
    assert words in said
    assert sorted(p.name for p in tmp_path.iterdir()) == there


def test_an_error_while_writing_stops_the_run(tmp_path):
    class Full(list):
        def write(self, frame: Frame) -> None:
            raise InputError("no space left")

    frames = [Frame(torch.zeros(3, 8, 8), t, 1 / RATE) for t in range(20)]
    with pytest.raises(InputError, match="no space left"), WriteBehind(Full()) as behind:  # type: ignore[arg-type]
        for frame in frames:
            behind.put(frame)


def test_an_error_while_reading_arrives_in_order():
    def items():
        yield 1
        yield 2
        raise InputError("broken")

    seen = []
    with pytest.raises(InputError, match="broken"):
        for item in read_ahead(items()):
            seen.append(item)
    assert seen == [1, 2]


def test_an_error_leaves_nothing_behind(tmp_path):
    source = make(tmp_path / "in.mp4")
    tokens = stabilize(nn.Flatten(2), {"": EMA(0.1)}, example=torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"must return frames \(B, 3, H, W\), .*got shape \(1, 3, 3072\)"):
        run_video(tokens, source, tmp_path / "out.mp4")
    with pytest.raises(InputError, match="strength must be 0"):
        run_video(averaging(), source, tmp_path / "out.mp4", strength=-1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4"]


def test_memory_does_not_grow_with_length(tmp_path):
    script = (
        "import sys, torch, resource\n"
        "from unflicker.run import run_video\n"
        "from unflicker.model import stabilize\n"
        "from unflicker.stabilizers import EMA\n"
        "torch.set_num_threads(1)\n"
        "model = stabilize(torch.nn.Identity(), {'': EMA(0.5)}, example=torch.zeros(1, 3, 8, 8))\n"
        "run_video(model, sys.argv[1], sys.argv[2], threads=1, preset='ultrafast')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )

    def peak(frames: int) -> int:
        source = make(tmp_path / f"{frames}.mp4", frames, 320, 192)
        arguments = [sys.executable, "-c", script, str(source), str(tmp_path / f"out{frames}.mp4")]
        return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)

    # 150 more frames of 320 x 192 in float32 would be 105 MiB.
    assert peak(200) - peak(50) < 40


# The command --------------------------------------------------------------------------------------------------------


def test_run_from_the_command_line(tmp_path):
    source = with_sound(tmp_path / "in.mp4", make(tmp_path / "silent.mp4"))
    done = command("run", source, tmp_path / "out.mp4", "--task", "denoise", "--compare", "--explain")
    assert done.returncode == 0, done.stderr
    assert "12 frames at" in done.stderr and f"Look at {tmp_path}/out.explain.mp4" in done.stderr and done.stdout == ""
    assert read(tmp_path / "out.mp4")[0].data.shape == (3, 48, 128)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.mp4", "OUT"], "There is no file or folder nothing.mp4"),
        (["IN", "OUT", "--task", "denoize"], "no task 'denoize'; did you mean 'denoise'?"),
        (["IN", "OUT", "--adapter", "spacial"], "no adapter 'spacial', and there is no such folder; did you mean"),
        (["IN", "OUT", "--task", "none", "--adapter", "spatial"], "The task 'none' has no adapter 'spatial'"),
        (["IN", "OUT", "--adapter", "ema", "--explain"], "nothing to explain: this adapter keeps no evidence"),
        (["IN", "OUT", "--device", "cdua"], "The device 'cdua' is not here: take cpu"),
        (["IN", "OUT", "--strength", "much"], "'--strength'"),
        (["IN", "OUT", "--strenght", "1"], "--strength"),
        (["IN", "OUT", "--strength", "-1"], "strength must be 0 (off) or more, up to 1e+06, got -1.0"),
        (["IN"], "Missing argument 'OUT'"),
        (["IN", "nowhere/out.mp4"], "The folder nowhere does not exist"),
        (["IN", "out.gifv"], "out.gifv cannot be written"),
        (["IN", "IN"], "Input and output are both"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, refused, arguments, words):
    places = {"IN": str(make(tmp_path / "in.mp4", 2)), "OUT": str(tmp_path / "out.mp4")}
    assert words in refused("run", *(places.get(a, a) for a in arguments))
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


def test_an_adapter_of_another_base_is_refused(tmp_path):
    model = stabilize(nn.Conv2d(3, 3, 1), {"": EMA(0.1)}, example=torch.zeros(1, 3, 8, 8))
    save_adapter(model, tmp_path / "other")
    done = command("run", make(tmp_path / "in.mp4", 2), tmp_path / "out.mp4", "--adapter", tmp_path / "other")
    assert done.returncode == 2 and "made for another base, a Conv2d: weight is missing" in done.stderr
    assert not (tmp_path / "out.mp4").exists()


def test_an_existing_output_is_kept(tmp_path):
    source, kept = make(tmp_path / "in.mp4", 2), tmp_path / "out.mp4"
    kept.write_text("precious")
    done = command("run", source, kept, "--adapter", "ema")
    assert done.returncode == 2 and "pass --overwrite" in done.stderr and kept.read_text() == "precious"
    assert command("run", source, kept, "--adapter", "ema", "--overwrite").returncode == 0
    assert len(read(kept)) == 2


def test_corrupt_is_the_corruption_of_the_whole_clip(tmp_path):
    source = make(tmp_path / "in.mp4")
    assert command("corrupt", source, tmp_path / "out", "gaussian_noise:2", "--seed", "5").returncode == 0
    clip = torch.stack([frame.data for frame in read(source)])
    expected = parse("gaussian_noise:2", seed=5)(clip)
    made = torch.stack([frame.data for frame in read(tmp_path / "out")])
    assert (made - expected).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("snoww", "no corruption 'snoww'; did you mean 'snow'?"),
        ("snow:7", "severity of snow must be 1, 2, 3, 4 or 5, got 7"),
        ("jpeg:ivmm", "no preset 'ivmm'"),
    ],
)
def test_what_corrupt_refuses(tmp_path, refused, kind, words):
    assert words in refused("corrupt", make(tmp_path / "in.mp4", 2), tmp_path / "out.mp4", kind)


def test_a_slash_at_the_end_means_a_folder(tmp_path):
    assert command("run", make(tmp_path / "in.mp4", 2), f"{tmp_path}/out.v2/", "--adapter", "ema").returncode == 0
    assert len(list((tmp_path / "out.v2").glob("*.png"))) == 2


def test_what_the_system_refuses_is_one_line_too(tmp_path):
    done = command("run", tmp_path / ("x" * 300 + ".mp4"), tmp_path / "out.mp4", "--adapter", "ema")
    assert done.returncode == 2 and "File name too long" in done.stderr and "Traceback" not in done.stderr


def test_files_of_others_with_like_names_are_kept(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "thesis.txt").write_text("mine")
    run_video(averaging(), make(tmp_path / "in.mp4", 2), tmp_path / "out")
    assert (tmp_path / "out.part" / "thesis.txt").read_text() == "mine"


def test_a_file_cut_off_in_the_middle_gives_what_there_is(tmp_path):
    source = make(tmp_path / "in.mkv", 40)
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * 0.6)])
    done = command("run", source, tmp_path / "out.mp4", "--adapter", "ema")
    frames = len(read(tmp_path / "out.mp4"))
    assert done.returncode == 3, done.stderr
    assert "warning" in done.stderr and str(frames) in done.stderr and 0 < frames < 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_that_looks_complete(tmp_path, number):
    source = make(tmp_path / "in.mp4", 200, 320, 192)
    options = ["--task", "none", "--explain"]
    arguments = [sys.executable, "-m", "unflicker", "run", str(source), str(tmp_path / "out.mp4"), *options]
    # What runs these tests may ignore the signals, as a shell does for what is in the background; children inherit it.
    heed = partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out.mp4.*.part")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped" in said and "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


def test_help_answers_without_torch():
    script = (
        "import sys\nfrom unflicker.cli import main\nsys.argv = ['unflicker', '--help']\n"
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'av' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout and "demo" in done.stdout


@pytest.mark.skipif(not SHARED.exists(), reason="needs the clips in ../shared")
def test_a_real_clip(tmp_path):
    frames = read(SHARED / "data" / "clips" / "tos_deck.mp4")[:6]
    info = VideoInfo(frames[0].data.shape[2], frames[0].data.shape[1], Fraction(24), frames[0].time_base)
    with open_writer(tmp_path / "in.mp4", info) as writer:
        for frame in frames:
            writer.write(frame)
    assert run_video(load_task("denoise"), tmp_path / "in.mp4", tmp_path / "out.mp4").frames == 6
    difference = read(tmp_path / "out.mp4")[-1].data - frames[-1].data
    assert difference.square().mean().sqrt() < 0.03  # a clean film stays as it is, but for its compression noise
