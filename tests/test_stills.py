"""Clips from stills: exact motion, no aliasing, a pure function of seed and number."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from unflicker.checks import InputError
from unflicker.data.base import Recording
from unflicker.data.cache import cached
from unflicker.data.stills import StillVideo, stills

SIZE = {"num_frames": 12, "height": 64, "width": 80}


@pytest.fixture(scope="module")
def photo():
    from skimage.data import astronaut

    return torch.from_numpy(astronaut()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def other():
    from skimage.data import coffee

    return torch.from_numpy(coffee()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def video(photo, other):
    return StillVideo(photo, seed=3, layers=2, foregrounds=[other], motion=3.0, **SIZE)


def rms(difference, where):
    return difference[where.expand_as(difference)].square().mean().sqrt().item()


def brought_back(after, flow):
    """What the next frames (N, C, H, W) show where the flow leads, by the splines of an independent library."""
    y, x = np.mgrid[: flow.shape[2], : flow.shape[3]]
    frames = [
        [
            map_coordinates(plane.double().numpy(), [y + dy.numpy(), x + dx.numpy()], order=5, mode="nearest")
            for plane in f
        ]
        for f, (dx, dy) in zip(after, flow, strict=True)
    ]
    return torch.from_numpy(np.array(frames)).float()


def test_frames_and_flow_have_the_forms_of_a_video(video):
    frames, flow = video.read([0, 5]), video.flow.read([0, 5])
    assert frames.shape == (2, 3, 64, 80) and frames.dtype == torch.float32
    assert flow.shape == (2, 2, 64, 80) and flow.dtype == torch.float32 and bool(flow.isfinite().all())
    assert video.matches([0, 5]).shape == (2, 1, 64, 80)
    for each in (video, video.flow):
        assert (each.num_frames, each.height, each.width, each.frame_rate) == (12, 64, 80, 24.0)
    assert frames.min() >= 0 and frames.max() <= 1 and frames.std() > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_flow_brings_the_next_frame_back(photo, other, seed):
    video = StillVideo(photo, seed=seed, layers=2, foregrounds=[other], motion=3.0, **SIZE)
    now, after = video.read(range(11)), video.read(range(1, 12))
    flow, where = video.flow.read(range(11)), video.matches(range(11))
    assert where.float().mean() > 0.5
    back = rms(brought_back(after, flow) - now, where)
    assert back < 0.008 and back < rms(after - now, where) / 8  # what is left is the interpolation of sharp edges


def test_a_ramp_is_brought_back_exactly():
    """On a ramp interpolation is exact: what is left is the error of the flow, here under a thousandth of a pixel."""
    x, y = torch.linspace(0.1, 0.4, 300), torch.linspace(0.1, 0.4, 300)
    ramp = torch.stack([x.expand(300, 300), y[:, None].expand(300, 300), (x + y[:, None])])
    video = StillVideo(ramp, seed=1, layers=0, motion=1.0, num_frames=3, height=48, width=48)
    now, after = video.read([0, 1]), video.read([1, 2])
    flow = video.flow.read([0, 1])
    slope = (now[..., 1:] - now[..., :-1]).abs().mean()
    assert slope > 2e-4 and flow.abs().max() > 0.1
    error = (brought_back(after, flow) - now)[..., 8:-8, 8:-8]  # splines ring at the border
    assert error.abs().max() < 1e-3 * slope


def test_what_does_not_match_is_what_cannot_be_brought_back(video):
    """Outside the mask something is covered, uncovered at its rim or has left: there the error is far larger."""
    now, after, flow = video.read(range(11)), video.read(range(1, 12)), video.flow.read(range(11))
    where = video.matches(range(11))
    assert not where.all()
    error = brought_back(after, flow) - now
    assert rms(error, ~where) > 5 * rms(error, where)


def test_a_still_camera_gives_identical_frames(photo, other):
    video = StillVideo(photo, seed=0, motion=0.0, layers=2, foregrounds=[other], **SIZE)
    frames = video.read(range(12))
    assert torch.equal(frames, frames[:1].expand_as(frames))
    assert video.flow.read([0, 7]).abs().max() < 1e-5


@pytest.mark.parametrize(("layers", "bound"), [(0, 1.0), (2, 3.5)])
@pytest.mark.parametrize("motion", [0.5, 4.0])
def test_motion_is_the_speed_that_is_not_exceeded(photo, motion, layers, bound):
    fastest = [
        StillVideo(photo, seed=seed, motion=motion, layers=layers, num_frames=40, height=64, width=64)
        .flow.read(range(0, 40, 2))
        .norm(dim=1)
        .max()
        .item()
        for seed in range(6)
    ]
    assert max(fastest) <= 1.02 * bound * motion and min(fastest) > 0.2 * motion


def test_seeds_reproduce_and_another_differs(photo, video, other):
    again = StillVideo(photo, seed=3, layers=2, foregrounds=[other], motion=3.0, **SIZE)
    another = StillVideo(photo, seed=4, layers=2, foregrounds=[other], motion=3.0, **SIZE)
    assert torch.equal(again.read([2]), video.read([2])) and torch.equal(again.flow.read([2]), video.flow.read([2]))
    assert not torch.equal(another.read([2]), video.read([2]))


def test_frames_are_a_pure_function_of_their_number(photo, video, other):
    whole = video.read(range(12))
    assert torch.equal(video.read([7, 2, 7]), whole[[7, 2, 7]])
    longer = StillVideo(photo, seed=3, layers=2, foregrounds=[other], motion=3.0, num_frames=100, height=64, width=80)
    assert torch.equal(longer.read([11]), whole[11:])


def test_it_travels_to_workers(photo, video):
    copy = pickle.loads(pickle.dumps(video))
    assert torch.equal(copy.read([5]), video.read([5])) and torch.equal(copy.flow.read([5]), video.flow.read([5]))


def test_eight_bits_are_the_same_frames_rounded(photo, video, other):
    rounded = StillVideo(photo, seed=3, layers=2, foregrounds=[other], motion=3.0, dtype=torch.uint8, **SIZE)
    frames = rounded.read([4])
    assert frames.dtype == torch.uint8
    assert (frames / 255 - video.read([4])).abs().max() <= 0.501 / 255


def test_fine_detail_turns_grey_instead_of_aliasing():
    """A chequerboard of single pixels of a photograph that is shown at half its size or less."""
    board = ((torch.arange(600)[:, None] + torch.arange(600)) % 2).float().expand(3, -1, -1)
    for seed in range(4):
        video = StillVideo(board, seed=seed, layers=0, motion=1.0, num_frames=4, height=48, width=48)
        if video.scale > 1.5:
            assert (video.read(range(4)) - 0.5).abs().max() < 0.06


def test_sharpness_does_not_beat_with_the_position(photo):
    """Interpolation that blurs half-way between pixels would flicker: here the detail of a pan keeps its energy."""
    noise = torch.rand(3, 400, 400, generator=torch.Generator().manual_seed(0))
    video = StillVideo(noise, seed=2, layers=0, motion=1.0, num_frames=24, height=96, width=96)
    spread = video.read(range(24)).std((1, 2, 3))
    assert (spread.max() - spread.min()) / spread.mean() < 0.03


def test_occluders_come_from_the_other_pictures():
    black, white = torch.zeros(3, 100, 120), torch.ones(3, 100, 120)
    video = StillVideo(black, seed=0, layers=1, foregrounds=[white], **SIZE)
    frame = video.read([0])
    assert frame.max() > 0.99 and frame.min() < 0.01
    assert ((frame > 0.05) & (frame < 0.95)).any()  # a soft rim
    assert StillVideo(black, seed=0, layers=0, foregrounds=[white], **SIZE).read([0]).max() == 0


def test_occluders_have_no_halo():
    """A white shape before white ground is invisible: its rim brings in nothing dark."""
    white = torch.ones(3, 100, 120)
    assert StillVideo(white, seed=0, layers=2, foregrounds=[white], **SIZE).read([0, 6]).min() > 0.999


def test_a_folder_becomes_recordings(tmp_path, photo):
    for i in range(2):
        Image.fromarray(photo.permute(1, 2, 0).numpy()[i:]).save(tmp_path / f"p{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = stills(tmp_path, num_frames=4, height=32, width=40, seed=5)
    assert [r.name for r in found] == ["p0", "p1"] and all(isinstance(r, Recording) for r in found)
    frames, flow = found[0].frames.read([0, 1]), found[0].targets["flow"].read([0, 1])
    assert frames.shape == (2, 3, 32, 40) and flow.shape == (2, 2, 32, 40)
    again = stills(tmp_path, num_frames=4, height=32, width=40, seed=5)
    assert torch.equal(again[1].frames.read([3]), found[1].frames.read([3]))
    assert not torch.equal(stills(tmp_path, height=32, width=40, seed=6)[1].frames.read([3]), found[1].frames.read([3]))


def test_more_videos_than_pictures_have_names_and_motions_of_their_own(photo):
    found = stills([photo], count=3, num_frames=2, height=32, width=32)
    assert [r.name for r in found] == ["still0", "still0-1", "still0-2"]
    assert not torch.equal(found[0].frames.read([1]), found[1].frames.read([1]))


def test_names_are_unique(tmp_path, photo):
    for name in ("p.jpg", "p.png", "q.png"):
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / name)
    assert [r.name for r in stills(tmp_path, count=4)] == ["p", "p-1", "q", "p-2"]


def test_pictures_with_their_side_up_in_exif(tmp_path, photo):
    picture = Image.fromarray(photo.permute(1, 2, 0).numpy()[:100])  # 512 wide, shown 100 wide
    exif = picture.getexif()
    exif[0x112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert stills(tmp_path, height=120, width=100)[0].frames.read([0]).shape == (1, 3, 120, 100)
    with pytest.raises(InputError, match=r"turned\.jpg has 100x512"):
        stills(tmp_path, height=100, width=120)


def test_grey_of_sixteen_bits_is_not_clipped(tmp_path):
    Image.fromarray(np.full((40, 50), 32768, np.uint16)).save(tmp_path / "grey.png")
    frame = stills(tmp_path, height=24, width=32, layers=0)[0].frames.read([0])
    torch.testing.assert_close(frame, torch.full_like(frame, 32768 / 65535), atol=1e-3, rtol=0)


def test_damaged_pictures_are_named_when_they_are_read(tmp_path, photo):
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:20000])
    with pytest.raises(InputError, match=r"cut\.png cannot be read as a picture; replace it, or leave it out"):
        stills(tmp_path)[0].frames.read([0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 513}, r"The picture has 512x512 pixels \(width x height\), too few for frames of 80x513;"),
        ({"num_frames": 0}, "num_frames, height and width of 1 or more, got 0, 64, 80"),
        ({"motion": -1.0}, "motion must be 0 or more pixels per frame, got -1.0"),
        ({"motion": math.nan}, "motion must be 0 or more pixels per frame, got nan"),
        ({"layers": -1}, "layers must be 0 or more, got -1"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.uint8, got torch.float16"),
    ],
)
def test_settings_that_cannot_be_are_named(photo, change, words):
    with pytest.raises(InputError, match=words):
        StillVideo(photo, seed=0, **{**SIZE, **change}).read([0])


def test_pictures_that_are_none_are_named(photo):
    with pytest.raises(InputError, match=r"\(3, H, W\), uint8 or float32 in \[0, 1\], got \(512, 512\) torch.uint8"):
        StillVideo(photo[0], seed=0, **SIZE)
    with pytest.raises(InputError, match=r"got values from 0 to 2"):
        StillVideo(torch.tensor([0.0, 2.0]).expand(3, 100, 2).repeat(1, 1, 50), seed=0, **SIZE)


def test_numbers_outside_are_refused(video):
    for each in (video, video.flow):
        with pytest.raises(InputError, match="has no frame 12: it has 12, counted from 0"):
            each.read([3, 12])
    with pytest.raises(InputError, match="has no frame -1"):
        video.read([-1])


def test_folders_without_pictures_are_named(tmp_path):
    with pytest.raises(InputError, match="missing is not a folder; give one with pictures"):
        stills(tmp_path / "missing")
    with pytest.raises(InputError, match="has no pictures"):
        stills(tmp_path)
    with pytest.raises(InputError, match="no pictures were given"):
        stills([])
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.png cannot be read as a picture"):
        stills(tmp_path)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "broken.png")
    with pytest.raises(InputError, match=r"broken\.png has 50x40 .* too few for frames of 128x128"):
        stills(tmp_path)
    with pytest.raises(InputError, match="count must be 1 or more, got 0"):
        stills(tmp_path, count=0, height=8, width=8)


def test_copies_of_stills_are_told_apart(tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(picture)
    one, other = (StillVideo(picture, num_frames=3, height=32, width=40, seed=seed) for seed in (0, 1))
    kept = [each.frames for each in cached([Recording(one), Recording(other)], tmp_path / "cache", limit_gib=1)]
    for video, copy in zip((one, other), kept, strict=True):
        assert torch.equal(video.read([2]), copy.read([2]))
    assert not torch.equal(one.read([2]), other.read([2]))
