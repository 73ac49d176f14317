"""Each data set on a tiny folder made in its published layout, and what is said where something is missing."""

import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unflicker.checks import InputError
from unflicker.data import layouts
from unflicker.data.layouts import (
    CAMVID_CLASSES,
    LAYOUTS,
    NFS_VALIDATION,
    VIPER_CLASSES,
    camvid,
    davis,
    need_for_speed,
    robust_spring,
    sintel,
    spring,
    viper,
    vision_sim,
)

HEIGHT, WIDTH = 6, 8


def picture(path: Path, value=0, *, mode="RGB", size=(WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def indexed(path: Path, numbers) -> Path:
    """A PNG that stores the numbers as indices into a palette of other colours, as VIPER and DAVIS do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("P", np.shape(numbers)[::-1])
    image.putdata(np.asarray(numbers).ravel().tolist())
    image.putpalette([(7 * i + 3) % 256 for i in range(768)])
    image.save(path)
    return path


def middlebury(path: Path, values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, "<f4")
    path.write_bytes(struct.pack("<fii", 202021.25, values.shape[1], values.shape[0]) + values.tobytes())
    return path


def test_all_have_one_shape():
    import inspect

    assert sorted(LAYOUTS) == sorted("need_for_speed davis viper vision_sim spring robust_spring sintel camvid".split())
    for name, read in LAYOUTS.items():
        parameters = inspect.signature(read).parameters
        assert list(parameters)[:4] == ["root", "split", "targets", "only"] and read.__name__ == name
        assert parameters["split"].default == "train" and parameters["only"].default is None
        assert "Page:" in read.__doc__ or "README" in read.__doc__
        assert "Sources:" in read.__doc__


@pytest.mark.parametrize("read", LAYOUTS.values(), ids=LAYOUTS)
def test_an_empty_folder_is_reported_with_what_was_expected_where(read, tmp_path):
    with pytest.raises(InputError, match=r"expects the f\w+ .+, which is missing; "):
        read(tmp_path)
    with pytest.raises(InputError, match="missing"):
        read(tmp_path / "nowhere")


# Need for Speed


@pytest.fixture
def nfs(tmp_path):
    for name in [*NFS_VALIDATION, "cheetah", "yoyo"]:
        for i, rate in enumerate((240, 30)):
            for t in (1, 2, 10)[: 3 - i]:
                picture(tmp_path / name / str(rate) / name / f"{t:05d}.jpg", (100, 20 * t, 0))
    picture(tmp_path / "__MACOSX" / "240" / "__MACOSX" / "00001.jpg")
    return tmp_path


def test_need_for_speed(nfs):
    train, validation = need_for_speed(nfs), need_for_speed(nfs, "validation")
    assert [r.name for r in train] == ["cheetah", "yoyo"]
    assert [r.name for r in validation] == NFS_VALIDATION and len(set(NFS_VALIDATION)) == 20
    frames = train[0].frames
    assert (frames.num_frames, frames.frame_rate, frames.height, frames.width) == (3, 240, HEIGHT, WIDTH)
    last = frames.read([2])
    assert last.dtype == torch.uint8 and last.shape == (1, 3, HEIGHT, WIDTH)
    assert abs(int(last[0, 1, 0, 0]) - 200) < 4 and dict(train[0].targets) == {}
    slow = need_for_speed(nfs, frame_rate=30, only=["yoyo"])
    assert [(r.name, r.frames.num_frames, r.frames.frame_rate) for r in slow] == [("yoyo", 2, 30)]


def test_need_for_speed_says_what_it_lacks(nfs):
    with pytest.raises(InputError, match="frame_rate 240 and 30, and not 60; thin out"):
        need_for_speed(nfs, frame_rate=60)
    with pytest.raises(InputError, match="no split 'valid'; did you mean 'validation'"):
        need_for_speed(nfs, "valid")
    with pytest.raises(InputError, match="no target 'depth' for its split 'train'; there are none"):
        need_for_speed(nfs, targets=["depth"])
    with pytest.raises(InputError, match="has no 'cheeta' in this split; did you mean 'cheetah'"):
        need_for_speed(nfs, only=["cheeta"])
    with pytest.raises(InputError, match=r"only is a list of names, got 'yoyo'; write \['yoyo'\]"):
        need_for_speed(nfs, only="yoyo")
    for path in (nfs / "suv" / "240" / "suv").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"expects files \*\.jpg in .*suv/240/suv, .*there are none"):
        need_for_speed(nfs, "validation")
    (nfs / "suv" / "240" / "suv").rmdir()
    with pytest.raises(InputError, match=r"expects the folder .*/suv/240/suv, which is missing; give the folder .*nfs"):
        need_for_speed(nfs, "validation")


def test_damaged_frames_are_named(nfs):
    (nfs / "cheetah" / "240" / "cheetah" / "00002.jpg").write_bytes(b"nothing")
    frames = need_for_speed(nfs)[0].frames
    with pytest.raises(InputError, match=r"00002\.jpg cannot be read"):
        frames.read([0, 1])


# DAVIS


@pytest.fixture
def davis_folder(tmp_path):
    root = tmp_path / "DAVIS"
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "train.txt").write_text("bear\nboat\n")
    (root / "ImageSets" / "2017" / "val.txt").write_text("camel\n")
    for name in ("bear", "boat", "camel"):
        for t in range(2):
            picture(root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg")
            objects = np.zeros((HEIGHT, WIDTH), int)
            objects[1], objects[2] = t + 1, 255
            indexed(root / "Annotations" / "480p" / name / f"{t:05d}.png", objects)
    return tmp_path


@pytest.mark.parametrize("inside", [False, True])
def test_davis(davis_folder, inside):
    root = davis_folder / "DAVIS" if inside else davis_folder
    assert [r.name for r in davis(root)] == ["bear", "boat"]
    camel = davis(root, "validation", targets=["labels"])[0]
    assert (camel.name, camel.frames.num_frames, camel.frames.frame_rate) == ("camel", 2, 24)
    labels = camel.targets["labels"].read([0, 1])
    assert labels.shape == (2, HEIGHT, WIDTH) and labels.dtype == torch.int64
    assert labels[:, :, 0].tolist() == [[0, 1, -1, 0, 0, 0], [0, 2, -1, 0, 0, 0]]


def test_davis_says_what_it_lacks(davis_folder):
    with pytest.raises(InputError, match="no split 'test'; there is 'train', 'validation'"):
        davis(davis_folder, "test")
    with pytest.raises(InputError, match=r"expects the folder .*Full-Resolution/bear, which is missing"):
        davis(davis_folder, resolution="Full-Resolution")
    (davis_folder / "DAVIS" / "Annotations" / "480p" / "bear" / "00001.png").unlink()
    with pytest.raises(
        InputError, match=r"a file \*\.png with the number 1 in .*/bear, as there is a frame 00001\.jpg"
    ):
        davis(davis_folder, targets=["labels"])
    picture(davis_folder / "DAVIS" / "Annotations" / "480p" / "boat" / "00000.png")
    with pytest.raises(InputError, match="is not indexed"):
        davis(davis_folder, targets=["labels"], only=["boat"])


# VIPER


@pytest.fixture
def viper_folder(tmp_path):
    for split, name in (("train", "001"), ("train", "002"), ("val", "001")):
        for t in (1, 2, 3):
            picture(tmp_path / split / "img" / name / f"{name}_{t:05d}.jpg", (10, 20, 30))
            indexed(tmp_path / split / "cls" / name / f"{name}_{t:05d}.png", np.arange(48).reshape(HEIGHT, WIDTH))
    return tmp_path


def test_viper(viper_folder):
    assert [r.name for r in viper(viper_folder)] == ["001", "002"]
    recording = viper(viper_folder, "validation")[0]
    assert (recording.frames.num_frames, recording.frames.frame_rate) == (3, 15)
    labels = recording.targets["labels"].read([0])[0].flatten()
    expected = [-1, -1, 0, 1, 2, -1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, -1, -1, 18, 19, 20, 21, 22]
    assert labels.tolist() == expected + 20 * [-1] and labels.dtype == torch.int64
    assert len(VIPER_CLASSES) == 23 and VIPER_CLASSES[0] == "sky" and VIPER_CLASSES[22] == "truck"


def test_viper_labels_by_colour(viper_folder):
    path = viper_folder / "train" / "cls" / "001" / "001_00001.png"
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[0], image[1], image[2], image[3] = (70, 130, 180), (0, 80, 100), (0, 100, 100), (1, 2, 3)
    Image.fromarray(image).save(path)
    labels = viper(viper_folder)[0].targets["labels"].read([0])[0, :, 0]
    assert labels.tolist() == [VIPER_CLASSES.index("sky"), VIPER_CLASSES.index("van"), -1, -1, -1, -1]


def test_viper_leaves_out_files_without_bytes(viper_folder):
    (viper_folder / "train" / "img" / "001" / "001_00002.jpg").write_bytes(b"")
    recording = viper(viper_folder)[0]
    assert recording.frames.num_frames == recording.targets["labels"].num_frames == 2
    assert [p.name for p in recording.targets["labels"].paths] == ["001_00001.png", "001_00003.png"]


def test_viper_says_what_it_lacks(viper_folder):
    picture(viper_folder / "test" / "img" / "001" / "001_00001.png")
    assert dict(viper(viper_folder, "test", targets=())[0].targets) == {}
    with pytest.raises(InputError, match="no target 'labels' for its split 'test'"):
        viper(viper_folder, "test")
    with pytest.raises(InputError, match=r"targets is a list of names, got 'labels'; write \('labels',\)"):
        viper(viper_folder, targets="labels")
    picture(viper_folder / "train" / "cls" / "002" / "002_00001.png", mode="L", size=(4, 4))
    with pytest.raises(InputError, match=r"002_00001\.png holds 4x4 pixels .* but the frames of 002 have 8x6"):
        viper(viper_folder)


# VisionSim


def exr(path: Path, channels) -> Path:
    import OpenEXR

    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path))
    return path


@pytest.fixture
def vision_sim_folder(tmp_path):
    depth = np.full((HEIGHT, WIDTH), 2.5, np.float32)
    depth[0], depth[1], depth[2] = 1e10, np.inf, 0
    for scene in [*layouts.VISION_SIM_VALIDATION, "attic"]:
        walk = tmp_path / "renders" / scene / "002-00002-01200"
        for t in range(2):
            picture(walk / "frames" / f"frame_{t:06d}.png")
            exr(walk / "depths" / f"depth_{t:06d}.exr", {"V": depth + t})
    return tmp_path


def test_vision_sim(vision_sim_folder):
    attic = vision_sim(vision_sim_folder)
    assert [r.name for r in attic] == ["attic-002-00002-01200"] and attic[0].frames.frame_rate == 50
    assert len(vision_sim(vision_sim_folder, "validation")) == 10
    depth = attic[0].targets["depth"].read([0, 1])
    assert depth.shape == (2, 1, HEIGHT, WIDTH) and depth.dtype == torch.float32
    assert depth[0, 0, :3].isnan().all() and depth[0, 0, 3:].eq(2.5).all() and depth[1, 0, 3:].eq(3.5).all()


def test_vision_sim_takes_the_channel_that_is_depth(vision_sim_folder):
    path = vision_sim_folder / "renders" / "attic" / "002-00002-01200" / "depths" / "depth_000000.exr"
    plane = np.ones((HEIGHT, WIDTH), np.float32)
    exr(path, {"A": plane, "Z": 4 * plane})
    assert vision_sim(vision_sim_folder)[0].targets["depth"].read([0]).unique().tolist() == [4.0]
    exr(path, {"A": plane, "B": plane})
    with pytest.raises(InputError, match="no single channel, Z or V to read depth from, only A, B"):
        vision_sim(vision_sim_folder)


def test_vision_sim_says_that_a_scene_is_missing(tmp_path):
    (tmp_path / "renders" / "attic").mkdir(parents=True)
    with pytest.raises(InputError, match=r"expects the folder .*renders/kitchen1, which is missing; .*on request"):
        vision_sim(tmp_path, "validation")


# Spring and RobustSpring


class FakeFile(dict):
    """What h5py.File gives, out of an .npz: h5py is no dependency, and the format is only a name and an array."""

    def __init__(self, path, mode):
        with np.load(path) as arrays:
            super().__init__(arrays)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def spring_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=FakeFile))
    for view in ("left", "right"):
        for t in (1, 2, 3):
            scene = tmp_path / "spring" / "train" / "0001"
            picture(scene / f"frame_{view}" / f"frame_{view}_{t:04d}.png")
            picture(tmp_path / "spring" / "test" / "0003" / f"frame_{view}" / f"frame_{view}_{t:04d}.png")
            flow = np.full((2 * HEIGHT, 2 * WIDTH, 2), 9.0, np.float32)
            flow[::2, ::2] = (t, -t)
            flow[0, 0, 0] = np.nan
            disparity = np.full((2 * HEIGHT, 2 * WIDTH), 9.0, np.float32)
            disparity[::2, ::2] = 13.0
            disparity[0] = 0
            for kind, key, suffix, values in (
                ("flow_FW", "flow", "flo5", flow),
                ("disp1", "disparity", "dsp5", disparity),
            ):
                if kind == "disp1" or t < 3:
                    path = scene / f"{kind}_{view}" / f"{kind}_{view}_{t:04d}.{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "wb") as file:
                        np.savez(file, **{key: values})
        (scene / "cam_data").mkdir(exist_ok=True)
        (scene / "cam_data" / "intrinsics.txt").write_text("1000 1000 960 540\n2000 2000 960 540\n3000 3000 960 540\n")
    return tmp_path


@pytest.mark.parametrize("inside", [False, True])
def test_spring(spring_folder, inside):
    found = spring(spring_folder / "spring" if inside else spring_folder, targets=["flow", "disparity", "depth"])
    assert [r.name for r in found] == ["0001-left", "0001-right"]
    flow = found[0].targets["flow"].read([1, 2, 0])
    assert flow.shape == (3, 2, HEIGHT, WIDTH) and flow.dtype == torch.float32
    assert flow[1].isnan().all()  # of the last frame
    assert flow[0, :, 3, 3].tolist() == [2, -2]  # every second value of twice the size, not halved
    assert flow[2, :, 0, 0].isnan().all() and not flow[2, :, 0, 1].isnan().any()
    assert found[0].targets["disparity"].read([0])[0, 0, :2, 0].tolist() == [0, 13]
    depth = found[0].targets["depth"].read([0, 2])
    assert depth[:, 0, 0].isnan().all()  # the sky
    torch.testing.assert_close(depth[:, 0, 1, 0], torch.tensor([5.0, 15.0]))  # fx * 0.065 / 13


def test_spring_test_split_and_views(spring_folder):
    found = spring(spring_folder, "test", targets=(), views=["right"])
    assert [(r.name, dict(r.targets)) for r in found] == [("0003-right", {})]
    with pytest.raises(InputError, match="no target 'flow' for its split 'test'"):
        spring(spring_folder, "test")
    with pytest.raises(InputError, match="no view 'lefT'; did you mean 'left'"):
        spring(spring_folder, views=["lefT"])
    (spring_folder / "spring" / "train" / "0001" / "flow_FW_left" / "flow_FW_left_0002.flo5").unlink()
    with pytest.raises(
        InputError, match=r"\*\.flo5 with the number 2 in .*flow_FW_left, as there is a frame frame_left_0002"
    ):
        spring(spring_folder)
    (spring_folder / "spring" / "train" / "0001" / "cam_data" / "intrinsics.txt").unlink()
    with pytest.raises(InputError, match=r"expects the file .*intrinsics\.txt, which is missing"):
        spring(spring_folder, targets=["depth"])


def test_spring_says_that_h5py_is_missing(spring_folder, monkeypatch):
    assert spring(spring_folder, targets=())  # frames need none
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"flow_FW_left_0001\.flo5 takes the library h5py, .* `pip install h5py`"):
        spring(spring_folder)


def test_spring_in_real_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    scene = tmp_path / "train" / "0001"
    for t in (1, 2):
        picture(scene / "frame_left" / f"frame_left_{t:04d}.png")
    (scene / "flow_FW_left").mkdir()
    with h5py.File(scene / "flow_FW_left" / "flow_FW_left_0001.flo5", "w") as file:
        file.create_dataset("flow", data=np.full((2 * HEIGHT, 2 * WIDTH, 2), 1.5, np.float32), compression="gzip")
    assert spring(tmp_path, views=["left"])[0].targets["flow"].read([0]).unique().tolist() == [1.5]


def test_spring_refuses_another_content(spring_folder):
    path = spring_folder / "spring" / "train" / "0001" / "disp1_left" / "disp1_left_0001.dsp5"
    with open(path, "wb") as file:
        np.savez(file, something=np.zeros(3))
    with pytest.raises(InputError, match=r"has no data set 'disparity', as \.dsp5 files do"):
        spring(spring_folder, targets=["disparity"])


@pytest.fixture
def robust(tmp_path):
    for top, value in (("spring", 10), ("rain", 20), ("snow", 30)):
        for scene in ("0003", "0035", "0046"):
            for view in ("left", "right"):
                for t in (1, 2):
                    picture(
                        tmp_path / top / "test" / scene / f"frame_{view}" / f"frame_{view}_{t:04d}.png", (value, t, 0)
                    )
    return tmp_path


def test_robust_spring(robust):
    assert [r.name for r in robust_spring(robust)] == ["0003-left", "0003-right"]
    found = robust_spring(robust, "validation", corruption="snow", views=["left"])
    assert [r.name for r in found] == ["0035-left", "0046-left"]
    assert found[0].frames.read([1])[0, :, 0, 0].tolist() == [30, 2, 0]
    assert found[0].targets["truth"].read([1])[0, :, 0, 0].tolist() == [10, 2, 0]
    with pytest.raises(InputError, match=r"expects the folder .*snowy/test, which is missing; did you mean 'snow'"):
        robust_spring(robust, corruption="snowy")
    (robust / "spring" / "test" / "0003" / "frame_left" / "frame_left_0002.png").unlink()
    with pytest.raises(InputError, match=r"with the number 2 in .*spring/test/0003/frame_left"):
        robust_spring(robust)


# Sintel


@pytest.fixture
def sintel_folder(tmp_path):
    rng = np.random.default_rng(0)
    for t in (1, 2, 3):
        for render in ("final", "clean"):
            picture(tmp_path / "training" / render / "alley_1" / f"frame_{t:04d}.png")
            picture(tmp_path / "test" / render / "ambush_1" / f"frame_{t:04d}.png")
        mask = picture(tmp_path / "training" / "invalid" / "alley_1" / f"frame_{t:04d}.png", mode="L")
        image = np.zeros((HEIGHT, WIDTH), np.uint8)
        image[0, 1] = 255
        Image.fromarray(image).save(mask)
        if t < 3:
            flow = rng.normal(size=(HEIGHT, WIDTH, 2)).astype(np.float32)
            flow[0, 0], flow[1, 0] = (1e10, 0), (3, -4)
            middlebury(tmp_path / "training" / "flow" / "alley_1" / f"frame_{t:04d}.flo", flow)
        depth = np.full((HEIGHT, WIDTH), 7.5, np.float32)
        depth[0] = (np.inf, np.nan, 0, -1, 1e5, 1, 2, 3)
        middlebury(tmp_path / "training" / "depth" / "alley_1" / f"frame_{t:04d}.dpt", depth)
    return tmp_path


def test_sintel(sintel_folder):
    recording = sintel(sintel_folder, targets=["flow", "depth"])[0]
    assert (recording.name, recording.frames.num_frames, recording.frames.frame_rate) == ("alley_1", 3, 24)
    flow = recording.targets["flow"].read([0, 1, 2])
    assert flow.shape == (3, 2, HEIGHT, WIDTH) and flow[2].isnan().all()
    assert flow[0, :, 0, :2].isnan().all() and int(flow[:2].isnan().sum()) == 8  # no more than these two pixels
    assert flow[0, :, 1, 0].tolist() == [3, -4]
    depth = recording.targets["depth"].read([2])
    assert depth.shape == (1, 1, HEIGHT, WIDTH) and depth[0, 0, 1, 0] == 7.5
    assert depth[0, 0, 0].isnan().tolist() == 4 * [True] + 4 * [False]
    assert [r.name for r in sintel(sintel_folder, "test", targets=(), render="clean")] == ["ambush_1"]
    copy = pickle.loads(pickle.dumps(recording))
    assert torch.equal(copy.targets["depth"].read([2]).nan_to_num(), depth.nan_to_num())


def test_sintel_without_masks_or_a_second_frame(sintel_folder):
    for path in (sintel_folder / "training" / "invalid" / "alley_1").iterdir():
        path.unlink()
    assert int(sintel(sintel_folder)[0].targets["flow"].read([0]).isnan().sum()) == 2
    for t in (2, 3):
        (sintel_folder / "training" / "final" / "alley_1" / f"frame_{t:04d}.png").unlink()
    assert sintel(sintel_folder)[0].targets["flow"].read([0]).isnan().all()


def test_sintel_says_what_it_lacks(sintel_folder):
    with pytest.raises(InputError, match="no split 'validation'; there is 'train', 'test'"):
        sintel(sintel_folder, "validation")
    with pytest.raises(InputError, match="no render 'finale'; did you mean 'final'"):
        sintel(sintel_folder, render="finale")
    with pytest.raises(InputError, match="no target 'flw' for its split 'train'; did you mean 'flow'"):
        sintel(sintel_folder, targets=["flw"])
    flow = sintel_folder / "training" / "flow" / "alley_1" / "frame_0001.flo"
    flow.write_bytes(flow.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"frame_0001\.flo should hold 8x6 pixels in 396 bytes, but has 392"):
        sintel(sintel_folder)
    flow.write_bytes(b"PIEX" + bytes(20))
    with pytest.raises(InputError, match=r"does not begin with the float 202021\.25, as \.flo files do"):
        sintel(sintel_folder)
    middlebury(sintel_folder / "training" / "depth" / "alley_1" / "frame_0001.dpt", np.ones((2, 3), np.float32))
    with pytest.raises(InputError, match=r"frame_0001\.dpt holds 3x2 pixels .* have 8x6; the two are not of one"):
        sintel(sintel_folder, targets=["depth"])
    with pytest.raises(
        InputError, match=r"expects the folder .*training/final, which is missing; .*training/ and test/"
    ):
        sintel(sintel_folder / "training")


# CamVid


@pytest.fixture
def camvid_folder(tmp_path):
    names = ["0001TP_006690", "0001TP_006720", "0001TP_008550", "0006R0_f00930", "Seq05VD_f00000", "Seq05VD_f00030"]
    names += ["0016E5_00870", "0016E5_00901", "0016E5_00930", "0016E5_00960", "0016E5_07959", "0016E5_07961"]
    for name in names:
        picture(tmp_path / "701_StillsRaw_full" / f"{name}.png")
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[0], image[1], image[2] = (64, 128, 64), (64, 192, 0), (1, 1, 1)
        path = tmp_path / "LabeledApproved_full" / f"{name}_L.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path


def test_camvid(camvid_folder):
    def told(split):
        return [(r.name, r.frames.num_frames, r.frames.frame_rate) for r in camvid(camvid_folder, split)]

    assert told("train") == [("0001TP", 2, 1.0), ("0006R0", 1, 0), ("0016E5", 4, 1.0)]
    assert told("validation") == [("0016E5", 2, 15.0)]
    assert told("test") == [("0001TP", 1, 0), ("Seq05VD", 2, 1.0)]
    labels = camvid(camvid_folder)[0].targets["labels"].read([1])
    assert labels.dtype == torch.int64 and labels.shape == (1, HEIGHT, WIDTH)
    assert labels[0, :, 0].tolist() == [CAMVID_CLASSES.index("Animal"), CAMVID_CLASSES.index("Wall"), -1, -1, -1, -1]
    assert len(CAMVID_CLASSES) == len(set(CAMVID_CLASSES)) == 31 and "Void" not in CAMVID_CLASSES


def test_camvid_says_what_it_lacks(camvid_folder):
    (camvid_folder / "LabeledApproved_full" / "0001TP_006720_L.png").unlink()
    with pytest.raises(
        InputError, match=r"expects the file .*LabeledApproved_full/0001TP_006720_L\.png, which is missing"
    ):
        camvid(camvid_folder)
    assert len(camvid(camvid_folder, targets=())) == 3
    assert [r.name for r in camvid(camvid_folder, only=["0006R0"])] == ["0006R0"]


def test_published_colours_are_told_apart():
    """Colours are looked up as numbers: no two classes share one, but VIPER's train and van."""
    for table, count in ((layouts._CAMVID, 31), (layouts._VIPER, 31)):
        assert len(np.unique(layouts._by_colour(table))) == count + 1
