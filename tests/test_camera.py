"""The virtual camera, pairs for colorization, and the data sets on tiny folders in their layout."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from unflicker.checks import InputError
from unflicker.data import camera
from unflicker.data.base import Recording
from unflicker.data.camera import (
    ColourPairs,
    HDRPhotos,
    VirtualCamera,
    celeba,
    colour_recording,
    hdm_hdr,
    hdr_recording,
    places,
    read_hdr,
    to_lab,
    to_rgb,
    without_greys,
    youtube_faces,
)


def landscape(height=96, width=144, seed=0) -> np.ndarray:
    """A picture (H, W, 3) with a range of 10^4 whose highlights all differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    base = 0.02 + 0.1 * np.abs(np.sin(5 * x + seed) * np.cos(7 * y))
    sun = 200 * np.exp(-((x - 0.7) ** 2 + (y - 0.4) ** 2) / 0.02)
    tint = np.array([1.0, 0.8, 0.5])
    return ((base + sun)[..., None] * tint * rng.uniform(0.9, 1.1, (height, width, 3))).astype(np.float32)


def write_exr(path: Path, rgb: np.ndarray) -> Path:
    import OpenEXR

    path.parent.mkdir(parents=True, exist_ok=True)
    with OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION}, {"RGB": np.ascontiguousarray(rgb)}) as file:
        file.write(str(path))
    return path


def picture(path: Path, colour=(200, 90, 40), size=(24, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def photo():
    return torch.from_numpy(landscape()).permute(2, 0, 1).contiguous()


QUIET = {"noise": (0.0, 0.0), "hue": 0.0, "saturation": 0.0}


# HDR files


@pytest.mark.parametrize("suffix", [".exr", ".hdr", ".pfm"])
def test_hdr_files_are_read_beyond_1_in_rgb(tmp_path, suffix):
    rgb, path = landscape(), tmp_path / f"sun{suffix}"
    if suffix == ".exr":
        write_exr(path, rgb)
    else:
        assert cv2.imwrite(str(path), rgb[..., ::-1])
    read = read_hdr(path)
    assert read.shape == (3, 96, 144) and read.dtype == torch.float32 and read.is_contiguous()
    # RGBE has 8 bits for the largest of the three
    torch.testing.assert_close(read.permute(1, 2, 0).numpy(), rgb, rtol=2e-2 if suffix == ".hdr" else 1e-6, atol=1e-3)


def test_what_is_not_hdr_is_told_with_its_range(tmp_path):
    with pytest.raises(InputError, match=r"photo\.png is no HDR picture: .* 8 bits, from 40 to 200; .*\.exr, \.hdr"):
        read_hdr(picture(tmp_path / "photo.png"))
    clipped = np.minimum(landscape(), 0.1)
    with pytest.raises(InputError, match=r"clipped\.exr .* from 0\.0\d+ to 0\.1: \d+ % .* at the highest, .* clipped"):
        read_hdr(write_exr(tmp_path / "clipped.exr", clipped))
    eight_bits = (np.rint(255 * np.clip(landscape(), 0, 0.5)) / 255).astype(np.float32)
    eight_bits[0, 0] = 0.6  # nothing is at the highest value but this
    with pytest.raises(InputError, match=r"bytes\.exr .* from 0\.0\d+ to 0\.6: .* \d+ different values.* 8 bits"):
        read_hdr(write_exr(tmp_path / "bytes.exr", eight_bits))
    with pytest.raises(InputError, match=r"flat\.exr .* from 0\.5 to 0\.5"):
        read_hdr(write_exr(tmp_path / "flat.exr", np.full((64, 64, 3), 0.5, np.float32)))


def test_damaged_files_are_told_of(tmp_path):
    broken = landscape()
    broken[3, 4] = np.inf
    with pytest.raises(InputError, match=r"inf\.exr has 3 values that are not finite"):
        read_hdr(write_exr(tmp_path / "inf.exr", broken))
    for name in ("cut.hdr", "cut.exr", "cut.pfm"):
        (tmp_path / name).write_bytes(b"#?RADIANCE\n")
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_hdr(tmp_path / name)
    with pytest.raises(InputError, match=r"There is no file .*nowhere\.exr"):
        read_hdr(tmp_path / "nowhere.exr")
    negative = landscape() - 0.03
    assert read_hdr(write_exr(tmp_path / "negative.exr", negative)).min() == 0


# The virtual camera


@pytest.mark.parametrize("seed", range(8))
def test_the_exposure_leaves_85_to_95_percent(photo, seed):
    shot = VirtualCamera(size=48, **QUIET)(photo, seed)
    assert shot.x.shape == shot.y.shape == (3, 48, 48)
    assert 0.848 <= (shot.y < 1).float().mean() <= 0.952
    assert shot.x.min() >= 0 and shot.x.max() <= 1 and shot.y.min() > 0 and shot.y.max() > 1


def test_the_input_is_the_target_through_curve_and_clip(photo):
    shot = VirtualCamera(size=64, **QUIET, quality=(100, 100))(photo, 3)
    power = shot.y**shot.exponent
    expected = ((1 + shot.knee) * power / (power + shot.knee)).clamp(max=1)
    assert (shot.x - expected).abs().mean() < 0.01  # chroma is coded at half the size
    assert shot.quality == 100


def test_noise_hue_and_saturation_are_in_the_target(photo):
    plain = VirtualCamera(size=48, **QUIET)
    one = plain(photo, 1).y
    noisy = VirtualCamera(size=48, hue=0.0, saturation=0.0, noise=(0.01, 0.01))(photo, 1).y
    dark = (one > 0.05) & (one < 0.9)
    assert 0.008 < (noisy - one)[dark].std() < 0.012
    turned = VirtualCamera(size=48, noise=(0.0, 0.0), saturation=0.0, hue=40.0)(photo, 1).y
    torch.testing.assert_close(turned.amax(0), one.amax(0), rtol=1e-3, atol=1e-4)  # of HSV, V stays
    assert (turned - one).abs().mean() > 0.01
    greyer = VirtualCamera(size=48, noise=(0.0, 0.0), hue=0.0, saturation=0.3)(photo, 1).y
    torch.testing.assert_close(greyer.amax(0), one.amax(0), rtol=1e-3, atol=1e-4)
    assert (greyer - one).abs().mean() > 0.01


def test_every_setting_is_drawn_from_the_seed_within_its_range(photo):
    camera_ = VirtualCamera(size=24)
    shots = [camera_(photo, seed) for seed in range(120)]
    again = camera_(photo, 5)
    assert torch.equal(again.x, shots[5].x) and torch.equal(again.y, shots[5].y)
    assert len({shot.x.numpy().tobytes() for shot in shots}) == 120
    exponents, knees, qualities = (np.array([getattr(s, n) for s in shots]) for n in ("exponent", "knee", "quality"))
    assert abs(exponents.mean() - 0.9) < 0.04 and 0.07 < exponents.std() < 0.13
    assert abs(knees.mean() - 0.6) < 0.04 and 0.07 < knees.std() < 0.13
    assert qualities.min() >= 30 and qualities.max() == 100 and qualities.min() < 40


def test_crops_are_20_to_60_percent_of_the_width_and_flipped_half_the_time():
    """A ramp tells where a crop lies: its brightness is its place."""
    across = torch.linspace(1, 2, 400).expand(3, 300, 400).contiguous()
    camera_ = VirtualCamera(size=16, crop=(0.2, 0.6), unclipped=(0.999, 0.999), **QUIET)
    shares, flipped = [], 0
    for seed in range(60):
        row = camera_(across, seed).y[0, 8]
        flipped += bool(row[0] > row[-1])
        low, high = sorted((row[0].item(), row[-1].item()))
        shares.append((high - low) / high)  # the exposure divides both
    assert 18 < flipped < 42
    assert 0.08 < min(shares) < 0.15 and 0.24 < max(shares) < 0.40


def test_bad_pictures_and_settings_are_refused(photo):
    with pytest.raises(InputError, match=r"picture of 144x96 pixels .* crops of 120x120"):
        VirtualCamera(size=120)(photo, 0)
    with pytest.raises(InputError, match=r"must be \(3, H, W\), float32, got \(1, 96, 144\)"):
        VirtualCamera(size=16)(photo[:1], 0)
    for settings, text in [
        ({"size": 4}, "size must be 8"),
        ({"crop": (0.6, 0.2)}, r"crop must be .*got \(0.6, 0.2\)"),
        ({"unclipped": (0.85, 1.2)}, r"unclipped must be .*got \(0.85, 1.2\)"),
        ({"noise": (-1, 0)}, r"noise must be .*got \(-1, 0\)"),
        ({"quality": (0, 100)}, r"quality must be .*got \(0, 100\)"),
        ({"hue": -1.0}, "hue and saturation must be 0 or more, got -1.0"),
    ]:
        with pytest.raises(InputError, match=text):
            VirtualCamera(**settings)
    with pytest.raises(InputError, match="no light"):
        VirtualCamera(size=16)(torch.zeros(3, 96, 144), 0)


def test_a_data_set_of_hdr_photos(tmp_path):
    files = [write_exr(tmp_path / f"{i}.exr", landscape(seed=i)) for i in range(2)]
    data = HDRPhotos(files, crops=3, camera=VirtualCamera(size=32), seed=4)
    assert len(data) == 6
    x, y = data[4]
    assert x.shape == y.shape == (3, 32, 32) and torch.equal(x, pickle.loads(pickle.dumps(data))[4][0])
    assert not torch.equal(data[0][0], data[1][0]) and len(list(data)) == 6
    with pytest.raises(InputError, match="one file or more, got none"):
        HDRPhotos([])


# Colorization


def test_colours_go_to_lab_and_back():
    rgb = torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    light, ab = to_lab(rgb)
    assert light.shape == (4, 1, 9, 7) and ab.shape == (4, 2, 9, 7)
    assert light.min() >= 0 and light.max() <= 1.0001 and ab.abs().max() < 1.3
    torch.testing.assert_close(to_rgb(light, ab), rgb, atol=1e-3, rtol=0)
    from skimage.color import rgb2lab

    reference = torch.from_numpy(rgb2lab(rgb[0].permute(1, 2, 0).numpy())).permute(2, 0, 1) / 100
    torch.testing.assert_close(torch.cat([light[0], ab[0]]).double(), reference.double(), atol=2e-4, rtol=0)
    assert all(torch.equal(a, b[0]) for a, b in zip(to_lab(rgb[0]), to_lab(rgb[:1]), strict=True))
    grey = to_rgb(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 2, 2, 2))
    assert (grey.amax(1) - grey.amin(1)).max() < 1e-3
    with pytest.raises(InputError, match=r"\(B, 1, H, W\) and .*\(B, 2, H, W\), got"):
        to_rgb(light, ab[:, :1])
    with pytest.raises(InputError, match=r"3 channels, got \(1, 4, 4\)"):
        to_lab(torch.zeros(1, 4, 4))


def test_pairs_for_colorization(tmp_path):
    files = [picture(tmp_path / f"{i}.jpg", (40 * i, 100, 200 - 30 * i), (40, 30)) for i in range(3)]
    data = ColourPairs(files, size=16)
    light, ab = data[1]
    assert len(data) == 3 and light.shape == (1, 16, 16) and ab.shape == (2, 16, 16)
    rgb = to_rgb(light[None], ab[None])[0]
    assert (255 * rgb - torch.tensor([40.0, 100, 170]).view(3, 1, 1)).abs().max() < 4
    with pytest.raises(InputError, match=r"0\.jpg has 40x30 pixels .* too few for 32x32"):
        ColourPairs(files, size=32)[0]
    with pytest.raises(InputError, match="one file or more, got none"):
        ColourPairs([])
    (tmp_path / "0.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"0\.jpg cannot be read as a picture"):
        data[0]


def test_the_middle_of_a_picture_is_taken(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 200
    Image.fromarray(image).save(tmp_path / "middle.png")
    light, _ = ColourPairs([tmp_path / "middle.png"], size=10)[0]
    assert light.min() > 0.7


def test_the_greyest_pictures_are_left_out(tmp_path):
    files = [picture(tmp_path / f"{i}.png", (100 + 10 * i, 100, 100), (300, 20)) for i in (3, 0, 2, 1)]
    assert without_greys(files, share=0.25) == [files[0], files[2], files[3]]
    assert without_greys(files, share=0.5) == [files[0], files[2]]
    assert without_greys(files, share=0.05) == files
    with pytest.raises(InputError, match=r"share must be 0 or more and below 1, got 1"):
        without_greys(files, share=1)


def test_a_video_to_colour(tmp_path):
    for person in ("A_B",):
        for n in (9, 10, 100):
            picture(tmp_path / "frame_images_DB" / person / "2" / f"2.{n}.jpg", (n, 150, 60), (48, 40))
    whole = youtube_faces(tmp_path)[0]
    grey = colour_recording(whole, 16)
    light, ab = grey.frames.read([2, 0]), grey.targets["truth"].read([2, 0])
    assert light.shape == (2, 1, 16, 16) and ab.shape == (2, 2, 16, 16) and light.dtype == torch.float32
    assert (255 * to_rgb(light, ab)[0] - torch.tensor([100.0, 150, 60]).view(3, 1, 1)).abs().max() < 4
    assert (grey.name, grey.frames.num_frames, grey.frames.frame_rate, grey.frames.height) == ("A_B-2", 3, 24, 16)
    assert torch.equal(pickle.loads(pickle.dumps(grey.frames)).read([1]), grey.frames.read([1]))


# The data sets


@pytest.mark.parametrize("read", [celeba, places, youtube_faces, hdm_hdr], ids=lambda read: read.__name__)
def test_an_empty_folder_is_reported_with_what_was_expected_where(read, tmp_path):
    with pytest.raises(InputError, match=r"expects the f\w+ .+, which is missing; .*http"):
        read(tmp_path)
    with pytest.raises(InputError, match="missing"):
        read(tmp_path / "nowhere")
    assert "Page:" in read.__doc__ and "Sources:" in read.__doc__


@pytest.mark.parametrize("parts", [("Img", "Eval"), ("", "")])
def test_celeba(tmp_path, parts):
    images, lists = tmp_path / parts[0] / "img_align_celeba", tmp_path / parts[1]
    for n in range(1, 5):
        picture(images / f"{n:06d}.jpg")
    lists.mkdir(exist_ok=True)
    listed = lists / "list_eval_partition.txt"
    listed.write_text("000001.jpg 0\n000002.jpg 0\n000003.jpg 1\n000004.jpg 2\n")
    assert [path.name for path in celeba(tmp_path)] == ["000001.jpg", "000002.jpg"]
    assert [path.name for path in celeba(tmp_path, "validation")] == ["000003.jpg"]
    assert [path.name for path in celeba(tmp_path, "test")] == ["000004.jpg"]
    with pytest.raises(InputError, match="no split 'valid'; did you mean 'validation'"):
        celeba(tmp_path, "valid")
    (images / "000002.jpg").unlink()
    with pytest.raises(InputError, match=r"expects the file .*000002\.jpg, which is missing"):
        celeba(tmp_path)
    listed.write_text("000001.jpg\n")
    with pytest.raises(InputError, match=r"list_eval_partition\.txt .* line 1 .* '000001\.jpg'"):
        celeba(tmp_path)
    listed.unlink()
    with pytest.raises(InputError, match=r"expects the file .*list_eval_partition\.txt, which is missing"):
        celeba(tmp_path)


def test_places(tmp_path):
    train = [picture(tmp_path / "data_256" / "a" / "airfield" / f"{n:08d}.jpg") for n in (1, 2)]
    train.append(picture(tmp_path / "data_256" / "c" / "church" / "outdoor" / "00000001.jpg"))
    validation = [picture(tmp_path / "val_256" / f"Places365_val_{n:08d}.jpg") for n in (1, 2)]
    assert places(tmp_path) == train and places(tmp_path, "validation") == validation
    with pytest.raises(InputError, match=r"expects the folder .*test_256, which is missing"):
        places(tmp_path, "test")
    (tmp_path / "test_256").mkdir()
    with pytest.raises(InputError, match=r"expects files \*\.jpg in .*test_256"):
        places(tmp_path, "test")


def test_youtube_faces(tmp_path):
    for person, video in (("Al_Gore", 0), ("Al_Gore", 3), ("Zoe", 1)):
        for n in (618, 619, 1000):
            picture(tmp_path / "frame_images_DB" / person / str(video) / f"{video}.{n}.jpg", (n % 250, 0, 0))
            picture(
                tmp_path / "aligned_images_DB" / person / str(video) / f"aligned_detect_{video}.{n}.jpg", size=(8, 8)
            )
    found = youtube_faces(tmp_path)
    assert [r.name for r in found] == ["Al_Gore-0", "Al_Gore-3", "Zoe-1"]
    assert all(isinstance(r, Recording) and not r.targets for r in found)
    frames = found[0].frames
    assert (frames.num_frames, frames.frame_rate, frames.height, frames.width) == (3, 24, 20, 24)
    assert frames.read([2])[0, 0, 0, 0] < 5 and frames.paths[2].name == "0.1000.jpg"
    assert youtube_faces(tmp_path, aligned=True)[0].frames.height == 8
    assert [r.name for r in youtube_faces(tmp_path, only=["Zoe-1"])] == ["Zoe-1"]
    with pytest.raises(InputError, match="has no 'Zoe-2'; did you mean 'Zoe-1'"):
        youtube_faces(tmp_path, only=["Zoe-2"])
    for path in (tmp_path / "frame_images_DB" / "Zoe" / "1").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"expects files \*\.jpg in .*Zoe/1"):
        youtube_faces(tmp_path)


@pytest.mark.parametrize("inside", [True, False])
def test_hdm_hdr(tmp_path, inside):
    folder = tmp_path / "HdM-HDR-2014_Original-HDR-Camera-Footage" if inside else tmp_path
    for n in range(3):
        write_exr(folder / "bistro_01" / f"bistro_01_{295 + n:06d}.exr", landscape(48, 64, n))
        write_exr(folder / "showgirl_02" / f"showgirl_02_{1 + n:06d}.exr", landscape(48, 64, n))
    found = hdm_hdr(tmp_path, frame_rate=25)
    assert [r.name for r in found] == ["bistro_01", "showgirl_02"]
    frames = found[0].frames
    assert (frames.num_frames, frames.frame_rate, frames.height, frames.width) == (3, 25, 48, 64)
    assert frames.read([1]).dtype == torch.float32 and frames.read([1]).max() > 100
    assert [r.name for r in hdm_hdr(tmp_path, only=["showgirl_02"])] == ["showgirl_02"]
    seen = hdr_recording(found[0], unclipped=0.9)
    x, y = seen.frames.read(range(3)), seen.targets["truth"].read(range(3))
    assert x.dtype == torch.uint8 and x.shape == y.shape == (3, 3, 48, 64)
    assert abs((y[0] < 1).float().mean() - 0.9) < 0.02
    assert ((x / 255).square() - y.clamp(max=1)).abs().max() < 2 / 255
    small = hdr_recording(found[0], unclipped=0.9, size=(24, 32)).targets["truth"].read([0])
    assert small.shape == (1, 3, 24, 32)


def test_what_is_heavy_waits():
    source = Path(camera.__file__).read_text(encoding="utf-8")
    assert "\nimport cv2" not in source and "\nfrom kornia" not in source
