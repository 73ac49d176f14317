"""The study of Single-frame Regularization (figures 4 and 5): what makes a network steady by still images alone.

    python benchmarks/single_frame.py hdr-small --out FOLDER
    python benchmarks/single_frame.py color-small data.root=CLIPS --out FOLDER

The baseline is trained once and kept; from it each term, at each ratio and with each seed, is fine-tuned and measured
on videos. What is finished is kept, the command goes on where it was stopped, and two at a time share the work.
`--rates` measures on validation pictures instead, for a choice of the learning rate without a term.
`benchmarks/single_frame_report.py` makes the page of what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fcntl
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.data.base import Recording
from unflicker.data.camera import ColourPairs, celeba, colour_recording, to_lab, youtube_faces
from unflicker.data.hdr import BRIGHTEST, TRAINING_SEEDS, HDRImages, hdr_sequences
from unflicker.finetuning import finetune, shuffled
from unflicker.metrics import psnr
from unflicker.metrics.temporal import SmoothnessStream
from unflicker.networks.colorization import ColorizationAutoencoder
from unflicker.networks.hdr_autoencoder import HDRAutoencoder
from unflicker.networks.hdrcnn import log_light, saturation_mask
from unflicker.recipes import load_recipe
from unflicker.recipes.single_frame import SingleFrame, list_single_frame, load_single_frame
from unflicker.regularizers import (
    NoiseStability,
    RandomWarp,
    Regularizer,
    SparseJacobian,
    Stability,
    TransformInvariance,
)
from unflicker.sets import open_sets

CLIPS = Path(__file__).with_name("clips.yaml")
BLACK_AND_WHITE = "mdn_friday_bw"  # a film of 1940: nothing to learn from
PLAIN, AUGMENTED = "no term", "augmentation"
ORDER = (0, 8, 32, 128, 2, 0.5, 512)  # of the ratios, for the time may not do for all
MAIN = ORDER[:5]
Sequence = tuple[str, Tensor, Tensor, float]  # name, inputs and targets (T, C, H, W), frames a second


@dataclass(frozen=True)
class Application:
    """What a network is for: how it learns, and how its videos are measured."""

    network: Callable[[], nn.Module]
    reconstruction: Callable[[Tensor, Tensor], Tensor]
    domain: Callable[[Tensor], Tensor]
    """From targets to what the network makes of them."""
    counted: Callable[[Tensor], Tensor] | None
    """From inputs to the pixels that are measured, (T, 1, H, W)."""
    peak: float

    def term(self, name: str) -> Regularizer:
        """Beyond the border there is no truth to hold to: what a logarithm makes of its zeros is light of 1."""
        if name == "noise stability":
            return NoiseStability()
        if name == "sparse Jacobian":
            return SparseJacobian(domain=self.domain, valid_only=True)
        return {"warp stability": Stability, "transform invariance": TransformInvariance}[name](valid_only=True)

    def measured(self, preds: Tensor, sequence: Sequence) -> dict[str, float]:
        """PSNR over what counts in a sequence, and the smoothness with its two energies."""
        _, x, y, frame_rate = sequence
        counted = None if self.counted is None else self.counted(x)
        stream = SmoothnessStream(frame_rate, "identity", 0.15, 4.0, 1 / 255)
        stream.update(preds, self.domain(y), counted)
        smooth, _, energy, own = stream.totals().tolist()
        return {"psnr": self.psnr(preds, x, y), "smoothness": smooth, "truth energy": energy, "energy": own}

    def psnr(self, preds: Tensor, x: Tensor, y: Tensor) -> float:
        """Over all that counts in some frames together, channel by channel."""
        truth, ratios = self.domain(y), []
        chosen = torch.ones_like(x) > 0 if self.counted is None else self.counted(x) > 0
        for c in range(preds.shape[1]):
            ours, theirs = (each[:, c : c + 1][chosen].view(1, 1, 1, -1) for each in (preds, truth))
            ratios.append(psnr(ours, theirs, data_range=self.peak).item())
        return sum(ratios) / len(ratios)


APPLICATIONS = {
    "hdr": Application(
        functools.partial(HDRAutoencoder, input_skip=True),
        lambda preds, y: F.mse_loss(preds, log_light(y)),
        log_light,
        lambda x: (saturation_mask(x) >= 0.5).float(),
        float(torch.log(torch.tensor(BRIGHTEST))),  # what a clipped pixel can be: 1 to 100, in logarithms
    ),
    "color": Application(ColorizationAutoencoder, F.mse_loss, lambda y: y, None, 1.0),  # a, b / 100
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help=f"{', '.join(list_single_frame())}, or a file")
    parser.add_argument("changes", nargs="*", help="KEY=VALUE, as data.root=FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--first", type=int, help="only so many fine-tunings, those that tell most")
    parser.add_argument("--rates", type=float, nargs="+", help="only compare learning rates on validation pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a second thread costs more than it gives
    recipe = load_single_frame(arguments.recipe, arguments.changes)
    study = Study(recipe, arguments.out)
    if arguments.rates:
        study.compare_rates(arguments.rates)
    else:
        study.run(arguments.first)


class Study:
    """A recipe, and a folder for what came of it."""

    def __init__(self, recipe: SingleFrame, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.application = APPLICATIONS[recipe.application]
        for each in ("runs", "weights", "locks"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        told = recipe.text()
        kept = folder / "recipe.yaml"
        if not kept.exists():
            write(kept, told)
        elif kept.read_text(encoding="utf-8") != told:
            raise InputError(f"{folder} is of another recipe: see {kept}, and take another folder.")

    @functools.cached_property
    def pictures(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """To train on, and to choose by; small sets stay in memory."""
        return training_pictures(self.recipe)

    @functools.cached_property
    def sequences(self) -> list[Sequence]:
        return test_sequences(self.recipe)

    def run(self, first: int | None = None) -> None:
        baseline = self.baseline()
        for term, ratio, seed in itertools.islice(self.grid(), first):
            name = f"{term} {ratio:g} {seed}".replace(" ", "-")
            file = self.folder / "runs" / f"{name}.json"
            with claimed(self.folder / "locks" / name) as mine:
                if not mine or file.exists():
                    continue
                network = copy.deepcopy(baseline)
                seconds = self.trained(network, term, ratio, seed)
                if seed == 0:
                    keep(network, self.folder / "weights" / f"{name}.safetensors")
                row = {"term": term, "ratio": ratio, "seed": seed, "seconds": seconds, **self.measure(network)}
                write(file, json.dumps(row))
                print(f"{name}: {summary(row)}, {seconds:.0f} s of training", flush=True)

    def grid(self) -> Iterator[tuple[str, float, int]]:
        """What is to be done, the most telling first: two seeds of the middle ratios, then all ratios, then all."""
        grid = self.recipe.grid
        ratios = [r for r in ORDER if r in (0, *grid.ratios)] + [r for r in grid.ratios if r not in ORDER]
        first = range(min(2, grid.seeds))
        others = [ratio for ratio in ratios if ratio not in MAIN]
        blocks = [(first, [r for r in ratios if r in MAIN]), (first, others), (range(2, grid.seeds), ratios)]
        for seeds, some in blocks:
            for seed in seeds:
                for ratio in some:
                    for term in grid.terms if ratio else (PLAIN, AUGMENTED):
                        yield term, ratio, seed

    def baseline(self) -> nn.Module:
        """The network before fine-tuning, trained and measured once."""
        torch.manual_seed(0)
        network = self.application.network().to(memory_format=torch.channels_last)
        file, numbers = self.folder / "weights" / "baseline.safetensors", self.folder / "baseline.json"
        with claimed(self.folder / "locks" / "baseline", wait=True):
            if not file.exists():
                told = self.recipe.pretraining
                finetune(
                    network,
                    shuffled(self.pictures[0], batch=told.batch, seed=0),
                    steps=told.steps,
                    reconstruction=self.application.reconstruction,
                    learning_rate=told.learning_rate,
                    schedule=told.schedule,
                    statistics=told.statistics,
                    on_step=progress,
                )
                keep(network, file)
            network.load_state_dict(load_file(file))
            if not numbers.exists():
                row = {"validation": self.validation(network), **self.measure(network)}
                write(numbers, json.dumps(row))
                print(f"baseline: {summary(row)}, validation {row['validation']:.2f} dB", flush=True)
        return network

    def trained(
        self, network: nn.Module, term: str, ratio: float, seed: int, learning_rate: float | None = None
    ) -> float:
        """Fine-tune a copy of the baseline; return the seconds."""
        told, pictures = self.recipe.finetuning, self.pictures[0]
        if self.recipe.grid.moves == "light" and term != "noise stability":  # noise is the picture's
            network, pictures = nn.Sequential(Camera(), network), Light(pictures)
        start = time.time()
        finetune(
            network,
            shuffled(pictures, batch=told.batch, seed=1 + seed),
            steps=told.steps,
            term=self.application.term(term) if ratio else None,
            ratio=ratio,
            reconstruction=self.application.reconstruction,
            augment=RandomWarp() if term == AUGMENTED else None,
            learning_rate=learning_rate or told.learning_rate,
            schedule=told.schedule,
            statistics=told.statistics,
            seed=1 + seed,
        )
        return time.time() - start

    def measure(self, network: nn.Module) -> dict[str, dict[str, float]]:
        """The numbers of every test sequence, by its name."""
        network.eval()
        return {
            "sequences": {each[0]: self.application.measured(video(network, each[1]), each) for each in self.sequences}
        }

    def validation(self, network: nn.Module) -> float:
        """PSNR over what counts in the validation pictures."""
        network.eval()
        pictures = self.pictures[1]
        pairs = [pictures[i] for i in range(len(pictures))]  # type: ignore[arg-type]
        x, y = (torch.stack(each) for each in zip(*pairs, strict=True))
        return self.application.psnr(video(network, x), x, y)

    def compare_rates(self, rates: list[float]) -> None:
        baseline = self.baseline()
        found = {}
        for rate in rates:
            network = copy.deepcopy(baseline)
            self.trained(network, PLAIN, 0, 0, learning_rate=rate)
            found[f"{rate:g}"] = self.validation(network)
            print(f"learning rate {rate:g}: {found[f'{rate:g}']:.3f} dB", flush=True)
        write(self.folder / "rates.json", json.dumps({"baseline": self.validation(baseline), **found}))


def progress(step: int, told: dict[str, float]) -> None:
    if step % 100 == 0:
        print(f"step {step}: {told['reconstruction']:.5f}", flush=True)


def summary(row: dict[str, Any]) -> str:
    numbers = list(row["sequences"].values())
    psnrs, smooth = (torch.tensor([each[name] for each in numbers]) for name in ("psnr", "smoothness"))
    return f"{psnrs.mean():.2f} dB, smoothness {smooth.mean():.3f} (median {smooth.median():.3f})"


@torch.no_grad()
def video(network: nn.Module, x: Tensor) -> Tensor:
    """Run the frames (T, C, H, W) through a network, a few at a time."""
    return torch.cat([network(part) for part in x.split(20)])


# --- data -------------------------------------------------------------------------------------------------------------


def training_pictures(recipe: SingleFrame) -> tuple[Dataset[Any], Dataset[Any]]:
    data = recipe.data
    if data.source == "procedural":
        held = TRAINING_SEEDS.stop - data.validation
        if data.images > held:
            raise InputError(f"There are {held} procedural pictures beside those of the validation; take fewer.")
        parts = (HDRImages(data.images, size=data.size), HDRImages(data.validation, size=data.size, first_seed=held))
        return TensorDataset(*parts[0].tensors()), TensorDataset(*parts[1].tensors())
    root = needed(data.root, "data.root", data.source)
    if data.source == "celeba":
        return (
            ColourPairs(celeba(root)[: data.images], size=data.size),
            ColourPairs(celeba(root, "validation")[: data.validation], size=data.size),
        )
    sets = open_sets(load_recipe(str(CLIPS), [f"data.root={root}"]))
    train = [each for each in sets.train if each.frames.name != BLACK_AND_WHITE]
    return crops(train, data.images, data.size, 0), crops(sets.validation, data.validation, data.size, 1)


def crops(recordings: list[Recording], count: int, size: int, seed: int) -> TensorDataset:
    """Squares of frames, of 60 % to all of their shorter side, mirrored half of the time, averaged down.

    Each recording gives as many as the others, from all of its length; one is read from the front to the back.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = []
    for i, recording in enumerate(recordings):
        clip = recording.frames
        many = len(range(i, count, len(recordings)))
        for k in range(many):
            share, top, left, mirrored = torch.rand(4, generator=generator).tolist()
            frame = clip.read([k * clip.num_frames // many])[0]
            side = max(size, round((0.6 + 0.4 * share) * min(clip.height, clip.width)))
            row, column = int(top * (clip.height - side + 1)), int(left * (clip.width - side + 1))
            square = frame[:, row : row + side, column : column + side].float() / 255
            square = F.interpolate(square[None], size=(size, size), mode="area")[0]
            pictures.append(square.flip(-1) if mirrored < 0.5 else square)
    light, colour = to_lab(torch.stack(pictures))
    return TensorDataset(light, colour)


class Camera(nn.Module):
    """What a camera gives of light (B, 1, H, W): its square root, clipped, in 8 bits."""

    def forward(self, light: Tensor) -> Tensor:
        return (light.clamp(0, 1).sqrt() * 255).round() / 255


class Light(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of a picture and its light, with the light in place of the picture."""

    def __init__(self, pictures: Dataset[Any]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        light = self.pictures[index][1]
        return light, light


def test_sequences(recipe: SingleFrame) -> list[Sequence]:
    data = recipe.data
    if data.source == "procedural":
        recordings = hdr_sequences(data.sequences, num_frames=data.frames, size=data.size)
    else:
        if data.source == "celeba":
            found = youtube_faces(needed(data.videos, "data.videos", data.source))
        else:
            root = needed(data.root, "data.root", data.source)
            found = open_sets(load_recipe(str(CLIPS), [f"data.root={root}"])).test
        recordings = [colour_recording(each, data.size) for each in found[: data.sequences]]
    result = []
    for each in recordings:
        numbers = range(min(data.frames, each.frames.num_frames))
        x, y = each.frames.read(numbers), each.targets["truth"].read(numbers)
        result.append((each.frames.name, x.float() / 255 if x.dtype == torch.uint8 else x, y, each.frames.frame_rate))
    return result


def needed(folder: Path | None, key: str, source: str) -> Path:
    if folder is None:
        raise InputError(f"The recipe takes its pictures from {source}: add {key}=FOLDER.")
    return folder


# --- what is kept -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a piece of work, so that no other process does it too; False if one does. It ends with the process."""
    with open(file, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def write(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def keep(network: nn.Module, file: Path) -> None:
    part = file.with_name(f"{file.name}.part")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, part)
    os.replace(part, file)


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
