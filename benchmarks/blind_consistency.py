"""Blind video consistency (Lai et al., ECCV 2018), trained anew and measured behind the baseline of a study.

    OMP_NUM_THREADS=1 python benchmarks/blind_consistency.py STUDY --out FOLDER [--steps 300]

STUDY is a folder of `single_frame.py` whose baseline is trained. The test sequences, the pixels that count and the
measures are those of the study. FOLDER gets the weights, and a JSON with the numbers of every sequence, also of the
baseline.

The authors' weights are gone, so `TransformNet` is trained here, in minutes: a small part of their 100,000 steps of
four clips of 11 frames at 192x192. Theirs serves every task; this one serves the study it was trained for, and has seen
the flicker of its very network, which is in its favour.

What it is trained on: the study's training pictures, filmed by a camera that moves, with shapes in front, so that
motion and occlusion are exact and no optical flow is needed. The clips are played backwards, for the motion that is
known leads to the next frame and the losses ask for that to the last. What makes the flicker is the baseline, frame by
frame, in two clips of three, and in the third tone and colour that change with every frame or place.

The losses: short- and long-term warped L1 where a point is still seen, each 100 times, as published. For the
perceptual loss (VGG16, whose weights are not at hand) stands an L1 of the values and of their differences between
neighbouring pixels, 20 times: less tolerant of a change of tone than features of VGG are. At 100 times, as much as one
of the others, the network learned nothing: any step away from the processed frame cost more than it gained.

Pictures are RGB in [0, 1]. HDR is shown to it as the logarithm of light between 1/255 and 100 times the clip level,
grey, where the paper took gamma-corrected light: that is the domain the study measures in, and nothing is clipped.
"""

import argparse
import json
import time
from collections.abc import Iterator
from collections.abc import Sequence as Many
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from single_frame import Sequence, Study, keep, training_pictures, write
from torch import Tensor, nn

from unflicker.cli import tune_process
from unflicker.corruptions.flicker import FieldJitter, ToneJitter
from unflicker.data.camera import to_lab, to_rgb
from unflicker.data.hdr import BRIGHTEST
from unflicker.data.stills import StillVideo, stills
from unflicker.flow import warp
from unflicker.networks.hdr_autoencoder import EPS
from unflicker.networks.transform_net import TransformNet
from unflicker.recipes.single_frame import load_single_frame

CLIPS, FRAMES = 48, 7  # how many, and how long
PICTURE, CLIP, CROP = 128, 96, 64  # pixels: what is filmed, the clips, and the crops that are trained on
DARK, BRIGHT = float(np.log(EPS)), float(np.log(BRIGHTEST + EPS))
SHORT, LONG, FIDELITY = 100.0, 100.0, 20.0
RATE = 2e-4  # twice the published, for a three-hundredth of the steps


class Played(NamedTuple):
    """A clip played backwards: frames and processed (T, 3, H, W), and for each frame but the first where its points
    are in the frame before (`short`) and in the first (`long`), in pixels, and whether they are seen there."""

    frames: Tensor
    processed: Tensor
    short: Tensor  # (T - 1, 3, H, W): motion along x and y, and 1 where it holds
    long: Tensor


# --- pictures as the network sees them --------------------------------------------------------------------------------


def log_light_to_rgb(log_light: Tensor) -> Tensor:
    """ln(light + 1/255), (B, 1, H, W), as a grey picture (B, 3, H, W) in [0, 1]."""
    return ((log_light - DARK) / (BRIGHT - DARK)).clamp(0, 1).expand(-1, 3, -1, -1)


def rgb_to_log_light(rgb: Tensor) -> Tensor:
    return rgb.mean(1, keepdim=True) * (BRIGHT - DARK) + DARK


class HDRPictures:
    """The HDR study's inputs and outputs as pictures, and back."""

    def filmed(self, study: Study) -> list[Tensor]:
        """Training pictures (3, H, W) for the camera: with all of their light."""
        return [log_light_to_rgb(torch.log(y + EPS)[None])[0].contiguous() for y in taken(study, 1)]

    def seen(self, picture: Tensor) -> Tensor:
        """What the network is given of a picture (T, 3, H, W): clipped, in 8 bits."""
        light = torch.exp(rgb_to_log_light(picture)) - EPS
        return (light.clamp(0, 1).sqrt() * 255).round() / 255

    def original(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)

    def processed(self, x: Tensor, preds: Tensor) -> Tensor:
        return log_light_to_rgb(preds)

    def preds(self, x: Tensor, picture: Tensor) -> Tensor:
        return rgb_to_log_light(picture)


class ColourPictures:
    """The same of the colorization study: L / 100 in, a and b / 100 out."""

    def filmed(self, study: Study) -> list[Tensor]:
        light, colour = taken(study, 0), taken(study, 1)
        return list(to_rgb(torch.stack(light), torch.stack(colour)).clamp(0, 1))

    def seen(self, picture: Tensor) -> Tensor:
        return to_lab(picture)[0]

    def original(self, x: Tensor) -> Tensor:
        return to_rgb(x, torch.zeros_like(x).expand(-1, 2, -1, -1))

    def processed(self, x: Tensor, preds: Tensor) -> Tensor:
        return to_rgb(x, preds)

    def preds(self, x: Tensor, picture: Tensor) -> Tensor:
        return to_lab(picture.clamp(0, 1))[1]


PICTURES = {"hdr": HDRPictures(), "color": ColourPictures()}
Pictures = HDRPictures | ColourPictures


def taken(study: Study, part: int) -> list[Tensor]:
    """Of the study's training pictures, larger, so that there is room for the camera."""
    data = study.recipe.data.model_copy(update={"images": CLIPS, "validation": 1, "size": PICTURE})
    dataset = training_pictures(study.recipe.model_copy(update={"data": data}))[0]
    return [dataset[i][part] for i in range(CLIPS)]


@torch.inference_mode()
def steadied(net: TransformNet, frames: Tensor, processed: Tensor) -> Tensor:
    """Take a processed video (T, 3, H, W) through the network, frame after frame; the first stays."""
    outputs, state = [processed[:1]], None
    for t in range(1, len(frames)):
        y, state = net(processed[t : t + 1], outputs[-1], frames[t : t + 1], frames[t - 1 : t], state)
        outputs.append(y)
    return torch.cat(outputs)


# --- training ---------------------------------------------------------------------------------------------------------


def played_backwards(frames: Tensor, processed: Tensor, flows: Tensor, seen: Tensor) -> Played:
    """Say where points come from: `flows` (T - 1, 2, H, W) lead from each frame to the next, and so does `seen`."""
    last = len(flows) - 1
    total, whole = flows[last : last + 1], seen[last : last + 1].float()
    long = [torch.cat([total, whole], 1)]
    for n in range(last - 1, -1, -1):
        step = flows[n : n + 1]
        whole = seen[n : n + 1].float() * (warp(whole, step) > 0.999)
        total = step + warp(total, step)
        long.append(torch.cat([total, whole], 1))
    short = torch.cat([flows, seen.float()], 1)
    return Played(frames.flip(0), processed.flip(0), short.flip(0), torch.cat(long))


def make_clips(study: Study, pictures: Pictures, network: nn.Module) -> list[Played]:
    """Film training pictures and process them."""
    made = []
    videos = stills(pictures.filmed(study), num_frames=FRAMES, height=CLIP, width=CLIP, seed=1)
    for i, video in enumerate(recording.frames for recording in videos):
        assert isinstance(video, StillVideo)
        scene = video.read(range(FRAMES))
        flows, seen = video.flow.read(range(FRAMES - 1)), video.matches(range(FRAMES - 1))
        if i % 3:
            x = pictures.seen(scene)
            with torch.no_grad():
                frames, processed = pictures.original(x), pictures.processed(x, network(x))
        else:
            jitter = (ToneJitter, FieldJitter)[i // 3 % 2](severity=1 + i // 6 % 4, seed=i)
            frames, processed = scene, jitter(scene)
        made.append(played_backwards(frames, processed, flows, seen))
    return made


def batches(clips: Many[Played], batch: int, rng: np.random.Generator) -> Iterator[Played]:
    """Crops of clips at random, as stacks (T, B, C, H, W); mirrored, where motion along x changes its sign."""
    while True:
        chosen = []
        for index in rng.choice(len(clips), batch, replace=False):
            top, left = rng.integers(0, CLIP - CROP + 1, 2)
            parts = [each[..., top : top + CROP, left : left + CROP] for each in clips[index]]
            if rng.uniform() < 0.5:
                sign = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
                parts = [each.flip(-1) * (1.0 if i < 2 else sign) for i, each in enumerate(parts)]
            chosen.append(parts)
        yield Played(*(torch.stack(each, 1) for each in zip(*chosen, strict=True)))


def temporal_loss(y: Tensor, before: Tensor, motion: Tensor) -> Tensor:
    """The L1 distance to an earlier output along the motion (B, 3, H, W), where the point is seen and inside."""
    flow, seen = motion[:, :2], motion[:, 2:]
    inside = F.grid_sample(torch.ones_like(seen), _grid(flow), padding_mode="zeros", align_corners=True) > 0.999
    return ((y - warp(before, flow)).abs() * (seen * inside)).mean()


def _grid(flow: Tensor) -> Tensor:
    height, width = flow.shape[-2:]
    x = (torch.arange(width) + flow[:, 0]) * (2 / (width - 1)) - 1
    y = (torch.arange(height)[:, None] + flow[:, 1]) * (2 / (height - 1)) - 1
    return torch.stack([x, y], -1)


def fidelity_loss(y: Tensor, processed: Tensor) -> Tensor:
    """What stands for the perceptual loss: L1 of the values and of the differences of neighbours."""
    error = y - processed
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def clip_loss(net: TransformNet, clip: Played) -> Tensor:
    """The loss of a batch of clips; as published the last output and the state carry no gradient on."""
    first = last = clip.processed[0]
    state: dict[str, Tensor] | None = None
    total = torch.zeros(())
    steps = len(clip.frames) - 1
    for t in range(1, steps + 1):
        y, state = net(clip.processed[t], last, clip.frames[t], clip.frames[t - 1], state)
        state = {name: value.detach() for name, value in state.items()}
        total = total + SHORT * temporal_loss(y, last, clip.short[t - 1])
        if t > 1:
            total = total + LONG * temporal_loss(y, first, clip.long[t - 1])
        total = total + FIDELITY * fidelity_loss(y, clip.processed[t])
        last = y.detach()
    return total / steps


def train(clips: Many[Played], *, steps: int, batch: int, seed: int = 0) -> tuple[TransformNet, dict[str, float]]:
    """Train, the rate falling to a tenth along a cosine; and tell how long it took and what was left of the loss."""
    torch.manual_seed(seed)
    net = TransformNet().train()
    nn.init.zeros_(net.deconv3.conv2d.weight)  # it begins with the processed frame; there is no time to learn that
    nn.init.zeros_(net.deconv3.conv2d.bias)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    stream = batches(clips, batch, np.random.default_rng(seed))
    start, smooth = time.process_time(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.55 + 0.45 * float(np.cos(np.pi * step / steps)))
        loss = clip_loss(net, next(stream))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        smooth = 0.95 * smooth + 0.05 * loss.item() if step else loss.item()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1} of {steps}, loss {smooth:.3f}", flush=True)
    return net.eval(), {"steps": steps, "batch": batch, "minutes": (time.process_time() - start) / 60, "loss": smooth}


# --- the command ------------------------------------------------------------------------------------------------------


Rows = dict[str, dict[str, float]]


def measured(study: Study, pictures: Pictures, network: nn.Module, blind: TransformNet, sequence: Sequence) -> Rows:
    """The study's numbers of a sequence: of the baseline, of it through pictures and back, and steadied."""
    _, x, _, _ = sequence
    with torch.inference_mode():
        preds = torch.cat([network(part) for part in x.split(20)])
        frames, processed = pictures.original(x), pictures.processed(x, preds)
        steady = steadied(blind, frames, processed)
        made = {"baseline": preds, "as pictures": pictures.preds(x, processed), "blind": pictures.preds(x, steady)}
    return {name: study.application.measured(each, sequence) for name, each in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not (arguments.study / "weights" / "baseline.safetensors").exists():
        raise SystemExit(f"error: {arguments.study} has no baseline yet; run single_frame.py first.")
    study = Study(load_single_frame(str(arguments.study / "recipe.yaml"), []), arguments.study)
    application = study.recipe.application
    pictures, network = PICTURES[application], study.baseline().eval()
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights, notes = (arguments.out / f"{application}.{end}" for end in ("safetensors", "training.json"))
    if weights.exists():
        blind = TransformNet().eval()
        blind.load_state_dict(load_file(weights))
    else:
        clips = make_clips(study, pictures, network)
        blind, told = train(clips, steps=arguments.steps, batch=arguments.batch)
        keep(blind, weights)
        write(notes, json.dumps(told))
    rows = {each[0]: measured(study, pictures, network, blind, each) for each in study.sequences}
    report: dict[str, object] = {
        name: {key: float(np.mean([row[name][key] for row in rows.values()])) for key in ("psnr", "smoothness")}
        for name in ("baseline", "as pictures", "blind")
    }
    told = json.loads(notes.read_text(encoding="utf-8"))
    note = (
        f"TransformNet trained here for {told['steps']} steps of {told['batch']} clips of {FRAMES} frames at "
        f"{CROP}x{CROP}, {told['minutes']:.0f} minutes of one core, for this application alone, on training pictures "
        "in made motion, without VGG: an L1 of values and gradients instead."
    )
    blind_row = report["blind"]
    assert isinstance(blind_row, dict)
    report = {**blind_row, "note": note, "training": told, "means": report, "sequences": rows}
    write(arguments.out / f"{application}.json", json.dumps(report, indent=1))
    print(json.dumps({key: report[key] for key in ("psnr", "smoothness", "means")}, indent=1))


if __name__ == "__main__":
    tune_process()
    main()
