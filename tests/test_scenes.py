"""Scenes: what the camera sees agrees with where things stand, and the motion with both."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.data import ClipDataset
from unflicker.data.base import Recording
from unflicker.data.scenes import CLASSES, SceneVideo, scenes
from unflicker.data.scenes.base import Light, Part, Path, Scene, Textures
from unflicker.data.scenes.sight import cast
from unflicker.flow import warp

SMALL = {"height": 48, "width": 72, "num_frames": 8}
FLOOR, WALL, OVERHEAD, BOX, PILLAR, BALL, PERSON, VEHICLE = range(8)


def points(video: SceneVideo, depth: Tensor, n: int) -> Tensor:
    """Where the pixels of frame n stand in the world, (H, W, 3)."""
    height, width = depth.shape[-2:]
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) / video.focal
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) / video.focal
    rays = torch.stack(torch.broadcast_tensors(x[None], y[:, None], torch.ones((), dtype=torch.float64)), -1)
    pose = video.pose(n)
    return (depth[..., None].double() * rays) @ pose[:3, :3].T + pose[:3, 3]


def project(video: SceneVideo, world: Tensor, n: int) -> Tensor:
    """Where points (H, W, 3) of the world stand in frame n, (2, H, W) in pixels."""
    pose = video.pose(n)
    seen = (world - pose[:3, 3]) @ pose[:3, :3]
    middle = torch.tensor([video.width / 2, video.height / 2], dtype=torch.float64)
    return (seen[..., :2] / seen[..., 2:] * video.focal + middle - 0.5).permute(2, 0, 1)


def grid(height: int, width: int) -> Tensor:
    return torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"))


def alone(*parts: Part) -> Scene:
    grey = Textures([torch.full((3, 4, 4), 0.5)])
    return Scene(list(parts), grey, Light((0.0, 0.0, 100.0)), lambda tau: np.eye(4))


def look(scene: Scene, size: tuple[int, int] = (40, 60), focal: float = 50.0, tau: float = 0.0):
    """Look from the origin along the world's y."""
    view = scene.view(LEVEL, tau)
    return cast(scene, view, size, focal, 1)


LEVEL = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # right, down, forward


@pytest.fixture(scope="module")
def video() -> SceneVideo:
    return SceneVideo(3, num_frames=12, height=96, width=144, kind="room")


@pytest.mark.parametrize("kind", ["room", "street"])
def test_what_comes_out(kind):
    video = SceneVideo(0, kind=kind, **SMALL)
    frames, depth = video.read([0, 7]), video.depth.read([0, 7])
    labels, flow = video.labels.read([0, 7]), video.flow.read([0, 7])
    assert frames.shape == (2, 3, 48, 72) and frames.dtype == torch.float32
    assert frames.min() >= 0 and frames.max() <= 1 and frames.std() > 0.05  # and none is NaN
    assert depth.shape == (2, 1, 48, 72) and depth.dtype == torch.float32
    assert labels.shape == (2, 48, 72) and labels.dtype == torch.int64
    assert labels.min() >= 0 and labels.max() < len(CLASSES)
    assert flow.shape == (2, 2, 48, 72) and flow.dtype == torch.float32 and flow.isfinite().all()
    known = depth[:, 0].isfinite()
    assert (depth[:, 0][known] > 0.2).all()
    assert (labels[~known] == OVERHEAD).all()
    for each in (video, video.depth, video.labels, video.flow):
        assert (each.num_frames, each.height, each.width, each.frame_rate) == (8, 48, 72, 24.0)


def test_bytes_are_the_same_frames():
    floats = SceneVideo(1, **SMALL).read([2])
    assert torch.equal(SceneVideo(1, dtype=torch.uint8, **SMALL).read([2]), floats.mul(255).round().byte())


def test_the_sky_is_unknown_and_a_ceiling_is_not():
    room, street = (SceneVideo(2, kind=kind, **SMALL).depth.read([0]) for kind in ("room", "street"))
    assert room.isfinite().all()
    assert street.isnan().any() and street.isfinite().any()


@pytest.mark.parametrize("seed", range(4))
def test_floor_pixels_stand_on_the_floor(seed):
    video = SceneVideo(seed, kind="room", **SMALL)
    for n in (0, 5):
        world = points(video, video.depth.read([n])[0, 0], n)
        on_floor = video.labels.read([n])[0] == FLOOR
        assert on_floor.any()
        assert world[..., 2][on_floor].abs().max() < 1e-4


def test_walls_and_ceiling_are_planes(video):
    world = points(video, video.depth.read([0])[0, 0], 0)
    labels = video.labels.read([0])[0]
    heights = world[..., 2][labels == OVERHEAD]
    assert heights.std() < 1e-4 and heights.mean() > 2
    walls = world[labels == WALL]
    on_one = torch.zeros(len(walls), dtype=torch.bool)
    for axis in (0, 1):
        for end in (walls[:, axis].min(), walls[:, axis].max()):
            on_one |= (walls[:, axis] - end).abs() < 0.02  # posters are thinner
    assert on_one.float().mean() > 0.999


def test_a_wall_in_front_has_one_depth():
    depth, surface = look(alone(Part("box", (50, 0.5, 50), Path((0, 4.5, 0)), labels=(WALL,) * 6)))
    torch.testing.assert_close(depth, torch.full_like(depth, 4.0))
    assert len(surface.unique()) == 1


def test_the_nearest_thing_is_seen_with_its_label():
    scene = alone(
        Part("ball", (0.5, 0.5, 0.5), Path((0, 3, 0)), labels=(BALL,) * 6),
        Part("cylinder", (0.3, 0.3, 2), Path((1.5, 5, 0)), labels=(PILLAR,) * 6),
        Part("box", (50, 0.5, 50), Path((0, 8.5, 0)), labels=(WALL,) * 6),
    )
    depth, surface = look(scene, (41, 61))
    labels = scene.labels[surface]
    assert labels[20, 30] == BALL and depth[20, 30] == pytest.approx(2.5)
    column = 30 + round(1.5 / 4.71 * 50)
    assert labels[20, column] == PILLAR and depth[20, column] == pytest.approx(4.71, abs=0.01)
    assert labels[0, 0] == WALL and depth[0, 0] == pytest.approx(8)
    radius = 50 * 0.5 / (3**2 - 0.5**2) ** 0.5  # of the outline, seen along the axis
    assert (labels == BALL).sum() == pytest.approx(torch.pi * radius**2, rel=0.03)
    assert set(labels.unique().tolist()) == {WALL, PILLAR, BALL}


@pytest.mark.parametrize("kind", ["shell", "box", "cylinder", "ball"])
def test_rays_along_an_axis_divide_by_nothing(kind):
    """The middle of a frame of odd size looks exactly forwards, along the faces of what is not turned."""
    place = (0.0, 1.0, 0.0) if kind == "shell" else (0.25, 6.0, 0.25)
    depth, _ = look(alone(Part(kind, (2, 4, 2), Path(place), (WALL,) * 6)), (41, 61))
    assert depth[20, 30] == pytest.approx(5.0 if kind == "shell" else 2.0, abs=0.1)
    assert not depth.isnan().any() and (depth > 0).all()


def test_past_everything_there_is_sky():
    scene = alone(Part("ball", (0.5, 0.5, 0.5), Path((0, 3, 0)), labels=(BALL,) * 6))
    depth, surface = look(scene)
    assert depth[0, 0] == torch.inf and scene.labels[surface[0, 0]] == OVERHEAD
    behind = alone(Part("ball", (0.5, 0.5, 0.5), Path((0, -3, 0)), labels=(BALL,) * 6))
    assert look(behind)[0].isinf().all()


@pytest.mark.parametrize("kind", ["room", "street"])
@pytest.mark.parametrize("seed", range(3))
def test_flow_is_depth_and_camera_motion(kind, seed):
    video = SceneVideo(seed, kind=kind, object_speed=0.0, **SMALL)
    for n in (0, 6):
        depth, flow = video.depth.read([n])[0, 0], video.flow.read([n])[0]
        expected = project(video, points(video, depth, n), n + 1) - grid(48, 72)
        known = depth.isfinite()
        assert (flow - expected)[:, known].abs().max() < 1e-3
        # The sky is infinitely far: any far point moves like it.
        far = project(video, points(video, torch.full_like(depth, 1e9), n), n + 1) - grid(48, 72)
        assert known.all() or (flow - far)[:, ~known].abs().max() < 1e-3


def test_with_the_camera_at_rest_only_movers_move():
    moved = set()
    for seed in range(4):
        video = SceneVideo(seed, camera_speed=0.0, **SMALL)
        flow, labels = video.flow.read([3])[0], video.labels.read([3])[0]
        assert flow[:, labels <= PILLAR].abs().max() < 1e-4
        moved |= set(labels[flow.norm(dim=0) > 0.05].tolist())
    assert moved and moved <= {BALL, PERSON, VEHICLE}


def test_a_ball_moves_as_it_is_seen_to():
    path = Path((0, 3, 0), heading=0.0, reach=(1.0, 0.0), period=40.0)
    scene = alone(Part("ball", (0.5, 0.5, 0.5), path, labels=(BALL,) * 6))
    for tau in (0.0, 3.0):
        x = np.sin(2 * np.pi * tau / 40)
        _, surface = look(scene, (81, 121), tau=tau)
        columns = torch.arange(121.0) - 60
        centre = (columns * (scene.labels[surface] == BALL)).sum() / (scene.labels[surface] == BALL).sum()
        assert centre == pytest.approx(x / 3 * 50, abs=0.7)


def test_parts_are_carried_along():
    path = Path((1, 2, 0), heading=np.pi / 2)
    turn, place = Part("box", (1, 1, 1), path, (BOX,) * 6, at=(2.0, 0, 0.5)).pose(0.0)
    np.testing.assert_allclose(place, [1, 4, 0.5], atol=1e-12)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_flow_brings_the_next_frame_back(seed):
    video = SceneVideo(seed, num_frames=8, height=96, width=144)
    now, after, flow = video.read([2]), video.read([3]), video.flow.read([2])
    labels = F.one_hot(torch.cat([video.labels.read([2]), video.labels.read([3])]), len(CLASSES))
    depth = torch.nan_to_num(1 / video.depth.read([2, 3]), nan=0.0)
    same = (warp(labels[1:].permute(0, 3, 1, 2).float(), flow) * labels[:1].permute(0, 3, 1, 2)).sum(1) > 0.999
    near = (warp(depth[1:], flow) - depth[:1]).abs()[:, 0] < 0.02 * depth[:1, 0] + 0.003
    rim = -F.max_pool2d(-(same & near).float()[:, None], 3, 1, 1) > 0
    assert rim.float().mean() > 0.5
    keep = rim.expand_as(now)
    left = (warp(after, flow) - now)[keep].square().mean().sqrt()
    assert left < 0.02
    wrong = (warp(after, -flow) - now)[keep].square().mean().sqrt()
    assert left < wrong / 2


def test_a_camera_that_stands_still_gives_identical_frames():
    video = SceneVideo(0, camera_speed=0.0, object_speed=0.0, **SMALL)
    frames = video.read(range(8))
    assert torch.equal(frames, frames[:1].expand_as(frames))
    assert torch.equal(video.labels.read([0]), video.labels.read([7]))
    assert video.flow.read([0, 7]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["room", "street"])
def test_nothing_aliases(kind):
    """A frame is what a camera of nine times as many pixels sees, averaged."""
    for seed in (0, 5):
        one = SceneVideo(seed, kind=kind, **SMALL).read([1])
        fine = SceneVideo(seed, kind=kind, num_frames=8, height=144, width=216).read([1])
        error = F.avg_pool2d(fine, 3) - one
        assert error.square().mean().sqrt() < 0.035
        assert error.mean().abs() < 0.005


def test_a_frame_depends_on_seed_settings_and_number_alone():
    video = SceneVideo(4, **SMALL)
    frame = video.read([5])
    assert torch.equal(SceneVideo(4, **{**SMALL, "num_frames": 30}).read([9, 5])[1:], frame)
    assert torch.equal(pickle.loads(pickle.dumps(video)).read([5]), frame)
    assert not torch.equal(SceneVideo(5, **SMALL).read([5]), frame)
    assert not torch.equal(video.read([6]), frame)


def test_every_class_occurs_and_no_scene_is_like_another():
    seen, means = set(), []
    for seed in range(10):
        video = SceneVideo(seed, **SMALL)
        seen |= set(video.labels.read([0, 7]).unique().tolist())
        means.append(video.read([0]).mean((0, 2, 3)))
    assert seen == set(range(len(CLASSES)))
    assert torch.stack(means).std(0).min() > 0.03


def test_the_camera_never_enters_a_thing():
    nearest = [
        SceneVideo(seed, **{**SMALL, "num_frames": 400}).depth.read(range(0, 400, 40)).nan_to_num(9).min().item()
        for seed in range(8)
    ]
    assert min(nearest) > 0.2


def test_photographs_are_hung_when_asked_for():
    plain, hung = (SceneVideo(3, kind="room", photographs=p, **SMALL) for p in (False, True))
    assert not torch.equal(plain.read([0]), hung.read([0]))
    assert torch.equal(plain.depth.read([0]), hung.depth.read([0]))


def test_scenes_are_recordings():
    found = scenes(3, seed=1, **SMALL)
    assert [r.name for r in found] == ["scene0", "scene1", "scene2"]
    assert all(isinstance(r, Recording) and list(r.targets) == ["depth", "labels", "flow"] for r in found)
    again = scenes(2, seed=1, **SMALL)
    assert torch.equal(again[1].frames.read([3]), found[1].frames.read([3]))
    assert not torch.equal(scenes(1, seed=2, **SMALL)[0].frames.read([3]), found[0].frames.read([3]))


@pytest.mark.parametrize(("target", "shape"), [("depth", (4, 1, 32, 40)), ("labels", (4, 32, 40))])
def test_clips_are_cut_from_scenes(target, shape):
    clip = ClipDataset(scenes(2, **SMALL), length=4, crop=(32, 40), target=target, corruptions=["gaussian_noise:2"])
    drawn = clip[0]
    assert drawn["input"].shape == (4, 3, 32, 40) and drawn["target"].shape == shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_frames": 0}, "num_frames, height and width of 1 or more, got 0, 48, 72"),
        ({"camera_speed": -1.0}, "camera_speed must be 0 or more, 1 is a walk, got -1.0"),
        ({"object_speed": float("nan")}, "object_speed must be 0 or more, 1 is a walk, got nan"),
        ({"seed": -1}, "seed must be an integer, 0 or more, got -1"),
        ({"kind": "rom"}, "There is no kind of scene 'rom'; did you mean 'room'"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.uint8, got torch.float16"),
    ],
)
def test_settings_that_cannot_be_are_named(change, words):
    with pytest.raises(InputError, match=words):
        SceneVideo(**{"seed": 0, **SMALL, **change})


def test_counts_and_numbers_outside_are_refused():
    with pytest.raises(InputError, match="count must be 1 or more, got 0"):
        scenes(0)
    video = SceneVideo(0, **SMALL)
    for each in (video, video.depth, video.labels, video.flow):
        with pytest.raises(InputError, match="has no frame 8: it has 8, counted from 0"):
            each.read([3, 8])
