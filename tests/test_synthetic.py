"""The demo clip and the noise on it."""

import socket

import pytest
import torch

from unflicker.checks import InputError
from unflicker.corruptions import gaussian_noise
from unflicker.data import synthetic
from unflicker.data.synthetic import SCENES, demo_clip
from unflicker.metrics import psnr


@pytest.fixture(scope="module")
def clip():
    return demo_clip(6, 48, 80)


def test_clip_is_a_plausible_shot(clip):
    assert clip.shape == (6, 3, 48, 80) and clip.dtype == torch.float32
    assert clip.min() >= 0 and clip.max() <= 1 and clip.std() > 0.1
    changes = (clip[1:] - clip[:-1]).square().mean((1, 2, 3)).sqrt()
    assert (changes > 1e-3).all() and (changes < 0.15).all()  # it moves, and nothing cuts


def test_clip_depends_on_its_seed_and_not_on_its_length(clip):
    assert torch.equal(demo_clip(2, 48, 80), clip[:2])
    assert not torch.equal(demo_clip(2, 48, 80, seed=1), clip[:2])


def test_field_of_view_is_the_same_at_every_size(clip):
    large = demo_clip(1, 96, 160)
    assert psnr(torch.nn.functional.avg_pool2d(large, 2), clip[:1]) > 30


@pytest.mark.parametrize("scene", SCENES)
def test_every_scene_is_made_without_a_network(scene, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("no network")

    monkeypatch.setattr(socket, "socket", refuse)
    assert demo_clip(1, 32, 48, scene=scene).std() > 0.05


def test_errors_name_what_is_there():
    with pytest.raises(InputError, match="no scene 'cofee'; did you mean 'coffee'"):
        demo_clip(1, scene="cofee")
    with pytest.raises(InputError, match="of 1 or more, got 0, 192, 320"):
        demo_clip(0)


def render(picture, *, step, shift=0.0, size=16):
    """Look at the middle of a picture (H, W) as the camera does."""
    rows, columns = synthetic._sample_positions(size, size)
    x = (step * columns + picture.shape[1] / 2 + shift).expand(rows.shape[0], -1)
    y = (step * rows + picture.shape[0] / 2).expand(-1, columns.shape[1])
    return synthetic._expose(synthetic._sample(picture.expand(1, 3, -1, -1), x, y))[0, 0]


@pytest.mark.parametrize("step", [1.0, 1.7])
def test_positions_are_exact_to_a_fraction_of_a_pixel(step):
    ramp = torch.arange(100.0).expand(100, 100)
    expected = 50.3 + step * (torch.arange(16) - 7.5)
    torch.testing.assert_close(render(ramp, step=step, shift=0.3), expected.expand(16, 16), atol=1e-4, rtol=0)


def test_detail_finer_than_a_pixel_turns_grey_instead_of_aliasing():
    stripes = (torch.arange(100) % 2.0).expand(100, 100)
    frames = torch.stack([render(stripes, step=1.9, shift=s) for s in (0.0, 0.4, 0.9, 1.3)])
    assert (frames - 0.5).abs().max() < 0.05  # of stripes between 0 and 1


def test_views_between_two_eyes_meet_the_photographs():
    photo = synthetic._photo("motorcycle")
    rows = torch.arange(20.0, photo.height - 20)[:, None]
    columns = torch.arange(60.0, photo.width - 60)[None]
    x, y = columns.expand(len(rows), -1), rows.expand(-1, columns.shape[1])
    inside = (..., slice(20, photo.height - 20), slice(60, photo.width - 60))
    assert torch.allclose(photo.seen_from(0.0, x, y), photo.left[inside], atol=1e-4)
    from_the_right = photo.right[inside]
    assert psnr(photo.seen_from(1.0, x, y), from_the_right) > psnr(photo.left[inside], from_the_right) + 6


def test_noise_is_the_same_whole_in_chunks_and_alone():
    clip = torch.rand(5, 3, 12, 16)
    whole = gaussian_noise(clip, 0.1, seed=3)
    parts = [gaussian_noise(clip[a:b], 0.1, seed=3, start=a) for a, b in ((0, 2), (2, 3), (3, 5))]
    assert torch.equal(torch.cat(parts), whole)
    batch = gaussian_noise(torch.stack([clip, clip]), 0.1, seed=3)
    assert torch.equal(batch[0], whole) and not torch.equal(batch[1], whole)
    assert not torch.equal(gaussian_noise(clip, 0.1, seed=4), whole)


def test_noise_has_the_deviation_it_says_and_is_clipped():
    noise = gaussian_noise(torch.full((8, 3, 64, 64), 0.5), 0.1, seed=0) - 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=0.01) and abs(noise.mean().item()) < 1e-3
    frames = noise.flatten(1)
    assert abs((frames[1:] * frames[:-1]).mean().item()) < 2e-4  # independent from frame to frame
    noisy = gaussian_noise(torch.zeros(2, 3, 8, 8), 0.6, seed=0)
    assert noisy.min() == 0 and noisy.max() <= 1


def test_noise_refuses_what_is_no_clip():
    with pytest.raises(InputError, match=r"floats \(\.\.\., T, C, H, W\), got torch.uint8"):
        gaussian_noise(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.1, seed=0)
    with pytest.raises(InputError, match="0 or more, got -1"):
        gaussian_noise(torch.zeros(2, 3, 8, 8), -1, seed=0)
