"""Stabilizers against an attack that does not know them (Instant Video Models, section 5, I-FGSM), small.

    python benchmarks/adversarial.py --out FOLDER

A small ResNet of bottleneck blocks tells persons from other things, on squares that follow them through synthetic
scenes. It is attacked frame by frame, and stabilizers in its blocks are trained on attacked sequences. Learning rates
are chosen on the validation scenes; the numbers are of scenes that nothing was trained or chosen on. Each part is kept
when it is finished, and the command goes on where it was stopped. `benchmarks/adversarial_report.py` makes the page of
what is there.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unflicker.checkpoint import load_adapter, save_adapter
from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.controllers import Controller
from unflicker.corruptions.adversarial import IFGSM
from unflicker.data import Recording, read_frames
from unflicker.data.base import Video
from unflicker.data.scenes import CLASSES
from unflicker.evaluation import Method, evaluate
from unflicker.losses import cross_entropy, unified_loss
from unflicker.model import StabilizedModel, stabilize
from unflicker.networks.base import scaled
from unflicker.networks.classifier import Classifier
from unflicker.recipes import load_recipe
from unflicker.sets import open_sets
from unflicker.stabilizers import EMA, Aligned, Controlled, Spatial
from unflicker.tasks import paper_plan

OTHERS = ("box", "pillar", "ball", "vehicle")
LENGTH, SIDE = 8, 64  # frames of a sequence, pixels of a square
SMALLEST, LEAST = 150, 0.5  # pixels of a thing in its first frame, and the share of them that stays in sight
COUNTS = {"train": 48, "validation": 16, "test": 64}  # sequences that are attacked, half of them of persons
EPOCHS, FRAMES = 12, 64  # of the classifier's training, and frames in a step
STEPS, CLIPS = 100, 2  # of each adapter's, and sequences in a step
RATES = (1e-3, 3e-3)
STABILITY = 0.2  # the paper's lambda for corruptions
KINDS = {"controlled": Controlled(hidden=32), "spatial": Spatial(3, hidden=32)}

Tensors = dict[str, Tensor]  # of sequences: "frames" (N, T, 3, H, W) in [0, 1] and "person" (N,), 1 or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--cache", type=Path, help="folder for the scenes' frames")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small maps: a second thread costs more than it gives
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    scenes = open_sets(load_recipe("scenes", [f"data.cache={arguments.cache}"] if arguments.cache else []))
    found = {
        role: kept(out / f"{role}.safetensors", lambda role=role: gather(getattr(scenes, role))) for role in COUNTS
    }
    base = make_classifier()
    base.load_state_dict(kept(out / "base.safetensors", lambda: train_classifier(base, found["train"])))
    base.eval().requires_grad_(False)
    chosen = {role: balanced(found[role], count) for role, count in COUNTS.items()}
    attacked = {
        role: kept(out / f"attacked-{role}.safetensors", lambda role=role: attack(base, chosen[role]))
        for role in COUNTS
    }
    methods = {"EMA 0.5": Method(EMA(0.5)), "EMA 0.8": Method(EMA(0.8)), "aligned": Method(Aligned(signal="logits"))}
    for kind in KINDS:
        methods[kind] = Method(load_adapter(base, best_adapter(kind, base, attacked, out / "runs")))
    for version, sequences in (("clean", chosen["test"]), ("attacked", attacked["test"])):
        result = evaluate(
            base, list(recordings(sequences)), methods, metrics=("accuracy", "instability"), target="labels"
        )
        result.write(out / "evaluations" / f"{version}.json")
        for method, numbers in result.overall.items():
            print(f"{version} {method}: {numbers}", flush=True)


def kept(file: Path, make: Callable[[], Tensors]) -> Tensors:
    """Read what was finished before, or make it and keep it."""
    if not file.exists():
        print(f"{file.stem} ...", flush=True)
        part = file.with_name(f"{file.name}.part")
        save_file({name: value.contiguous() for name, value in make().items()}, part)
        part.replace(file)
    return load_file(file)


# --- sequences that follow things through scenes ----------------------------------------------------------------------


def gather(scenes: Sequence[Recording]) -> Tensors:
    """Cut all sequences out of scenes."""
    clips: list[Tensor] = []
    person: list[int] = []
    for recording in scenes:
        for start in range(0, recording.frames.num_frames - LENGTH + 1, LENGTH):
            frames, labels = read_frames(recording, range(start, start + LENGTH), target="labels")
            for name in ("person", *OTHERS):
                for clip in follow(frames, labels == CLASSES.index(name)):
                    clips.append(clip)
                    person.append(int(name == "person"))
    return {"frames": torch.stack(clips), "person": torch.tensor(person)}


def follow(frames: Tensor, masks: Tensor) -> Iterator[Tensor]:
    """Cut out the things of one class (T, H, W) that stay in sight: squares (T, 3, SIDE, SIDE) with a margin."""
    import cv2

    _, _, found, _ = cv2.connectedComponentsWithStats(masks[0].byte().numpy())
    for left, top, width, height, pixels in found[1:].tolist():
        if pixels < SMALLEST:
            continue
        side = min(round(1.25 * max(width, height)), *masks.shape[1:])
        y, x = top + height / 2, left + width / 2
        squares = []
        for frame, mask in zip(frames, masks, strict=True):
            rows, columns = window(y, side, mask.shape[0]), window(x, side, mask.shape[1])
            inside = mask[rows, columns].nonzero().double()
            if len(inside) < LEAST * pixels:
                break
            y, x = (inside.mean(0) + torch.tensor([rows.start, columns.start]) + 0.5).tolist()
            rows, columns = window(y, side, mask.shape[0]), window(x, side, mask.shape[1])
            squares.append(scaled(frame[None, :, rows, columns], (SIDE, SIDE), "bilinear")[0])
        if len(squares) == len(frames):
            yield torch.stack(squares)


def window(middle: float, side: int, limit: int) -> slice:
    start = min(max(0, round(middle - side / 2)), limit - side)
    return slice(start, start + side)


def balanced(sequences: Tensors, count: int) -> Tensors:
    """Draw as many sequences of persons as of other things, `count` in all if there are so many."""
    order = torch.randperm(len(sequences["person"]), generator=torch.Generator().manual_seed(0))
    person = sequences["person"][order] == 1
    each = min(count // 2, int(person.sum()), int((~person).sum()))
    drawn = torch.stack([order[person][:each], order[~person][:each]], 1).flatten()
    return {name: value[drawn] for name, value in sequences.items()}


class Sequenced(Video):
    """Frames that are there already."""

    def __init__(self, name: str, frames: Tensor) -> None:
        self.name, self.num_frames, self.frame_rate = name, len(frames), 24.0
        self.height, self.width = frames.shape[-2:] if frames.ndim == 4 else (1, 1)
        self.frames = frames

    def read(self, numbers: Sequence[int]) -> Tensor:
        return self.frames[self._checked(numbers)]


def recordings(sequences: Tensors) -> Iterator[Recording]:
    for n, (clip, person) in enumerate(zip(sequences["frames"], sequences["person"], strict=True)):
        labels = Sequenced(f"sequence{n}", person.expand(len(clip)))
        yield Recording(Sequenced(f"sequence{n}", clip), {"labels": labels})


# --- the classifier and the attack ------------------------------------------------------------------------------------


def make_classifier() -> Classifier:
    from transformers import ResNetConfig, ResNetForImageClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="bottleneck", num_labels=2
        )
        return Classifier(ResNetForImageClassification(config), size=None)


def train_classifier(base: nn.Module, sequences: Tensors) -> Tensors:
    """Train on clean frames, varied at random; both classes weigh the same."""
    network = copy.deepcopy(base).train()
    frames, labels = sequences["frames"].flatten(0, 1), sequences["person"].repeat_interleave(LENGTH)
    weight = len(labels) / (2 * labels.bincount(minlength=2))
    random = torch.Generator().manual_seed(0)
    steps = EPOCHS * (len(labels) // FRAMES)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels), generator=random).split(FRAMES)[: len(labels) // FRAMES]:
            optimizer.zero_grad()
            F.cross_entropy(network(varied(frames[batch], random)), labels[batch], weight).backward()
            optimizer.step()
            schedule.step()
    return network.state_dict()


def varied(x: Tensor, random: torch.Generator) -> Tensor:
    """Mirror, move, scale and tint each frame a little: the scenes are too few to do without."""
    n = len(x)
    scale = torch.empty(n).uniform_(0.75, 1.1, generator=random)
    place = torch.zeros(n, 2, 3)
    place[:, 0, 0] = scale * (1 - 2 * torch.randint(2, (n,), generator=random))
    place[:, 1, 1] = scale
    place[:, :, 2] = torch.empty(n, 2).uniform_(-0.15, 0.15, generator=random)
    x = F.grid_sample(x, F.affine_grid(place, list(x.shape), False), padding_mode="reflection", align_corners=False)
    tint = torch.empty(n, 3, 1, 1).uniform_(0.7, 1.3, generator=random)
    return (x * tint + torch.empty(n, 1, 1, 1).uniform_(-0.1, 0.1, generator=random)).clamp(0, 1)


def attack(base: nn.Module, sequences: Tensors) -> Tensors:
    """Push every frame towards one of the two classes, the side drawn at random: the attack of the paper."""
    ifgsm = IFGSM.preset("ivm", base, objective=lambda logits: logits[0, 1] - logits[0, 0])
    return {**sequences, "frames": ifgsm(sequences["frames"])}


# --- the adapters -----------------------------------------------------------------------------------------------------


def best_adapter(kind: str, base: nn.Module, attacked: dict[str, Tensors], runs: Path) -> Path:
    """Train at each rate, unless that is done; return the adapter with the lowest loss on the validation sequences."""
    losses: dict[Path, float] = {}
    for rate in RATES:
        folder = runs / f"{kind}-{rate:g}"
        told = runs / f"{folder.name}.json"
        if not told.exists():
            model = train_adapter(kind, base, attacked["train"], rate)
            with torch.no_grad():
                loss = loss_of(model, attacked["validation"]["frames"], attacked["validation"]["person"]).item()
            save_adapter(model, folder)
            model.remove()
            told.write_text(json.dumps({"validation": loss}) + "\n", encoding="utf-8")
        losses[folder] = json.loads(told.read_text(encoding="utf-8"))["validation"]
        print(f"{folder.name}: validation {losses[folder]:.4f}", flush=True)
    return min(losses, key=lambda folder: losses[folder])


def train_adapter(kind: str, base: nn.Module, sequences: Tensors, rate: float) -> StabilizedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        controller = Controller(16, depth=4, downscale=2)
        example = torch.zeros(1, 3, SIDE, SIDE)
        model = stabilize(base, paper_plan(base, KINDS[kind]), controller=controller, example=example)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(STEPS):
        drawn = torch.randint(len(sequences["person"]), (CLIPS,), generator=random)
        optimizer.zero_grad()
        loss_of(model, sequences["frames"][drawn], sequences["person"][drawn]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def loss_of(model: StabilizedModel, clips: Tensor, person: Tensor) -> Tensor:
    logits, _ = model(clips)
    target = person[:, None].expand(logits.shape[:2])
    # Attacked logits are large: with the bound on the distance that there is by default they would have no gradient.
    plain = partial(cross_entropy, epsilon=0.0)
    return unified_loss({"": logits}, {"": target}, distance=plain, stability=STABILITY)["total"]


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
