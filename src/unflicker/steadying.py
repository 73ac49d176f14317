"""A network fine-tuned on a folder of images to be steady on video: measured before and after, and written."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unflicker.checks import InputError, nearest
from unflicker.data.base import Video
from unflicker.data.folder import open_video
from unflicker.data.stills import StillVideo, stills
from unflicker.finetuning import finetune, shuffled
from unflicker.flow import consistent, flow, warp
from unflicker.layers import evaluating
from unflicker.metrics.quality import frame_psnr
from unflicker.metrics.temporal import InstabilityStream, SmoothnessStream
from unflicker.outputs import run_once
from unflicker.pairs import ImagePairs, find_pairs
from unflicker.regularizers import (
    NoiseStability,
    Regularizer,
    SparseJacobian,
    Stability,
    TransformInvariance,
    weight_of,
)
from unflicker.training import device

if TYPE_CHECKING:
    from rich.table import Table

TERMS: dict[str, type[Regularizer]] = {
    "transform-invariance": TransformInvariance,
    "sparse-jacobian": SparseJacobian,
    "stability": Stability,
    "noise": NoiseStability,
}
HELD_OUT, EVERY = 4, 5  # at most, and one image in so many, is kept for measuring
CLIPS, FRAMES = 4, 24  # of synthetic motion
WATCHED, WIDEST = 72, 640  # frames of a real clip, and pixels of its width
FRAME_RATE = 24.0  # where nobody says
SHOWN = 5  # images that were left out, by name
MOST_LOST, LEAST_KEPT = 0.5, 30.0  # dB to the targets, and to what was made before; beyond them a warning is due

Motion = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]  # frame number and two frames: flow, where it holds


@dataclass(frozen=True)
class Comparison:
    """What a network makes of moving pictures, before and after.

    Attributes:
        name: of the clip.
        kept: PSNR in dB of what it makes against what it made before.
        smoothness: S after over S before (equation 10 of Single-frame Regularization); above 1 is smoother.
        warping_error: root mean square change along the motion, of the input, of the output before and after.
        instability: root mean square change from frame to frame, true motion included, of the same three.
    """

    name: str
    kept: float
    smoothness: float
    warping_error: tuple[float, float, float]
    instability: tuple[float, float, float]


@dataclass
class Steadied:
    """What came of it: on how many images it was trained and measured, and how steady the network was and is."""

    file: Path
    trained_on: int
    measured_on: int
    held_out: bool
    """Whether those that were measured on were not trained on; a single image is both."""
    psnr: tuple[float, float] | None = None
    """In dB against the targets, before and after, if there are any."""
    moving: list[Comparison] = field(default_factory=list)
    """On the images in synthetic motion, and on the real clip if there is one."""
    skipped: list[str] = field(default_factory=list)
    """A sentence for each image that could not be used."""

    @property
    def notes(self) -> list[str]:
        """What should be known about the numbers, a sentence each."""
        told = self.skipped[:SHOWN]
        if len(self.skipped) > SHOWN:
            told.append(f"{len(self.skipped)} images were left out in all.")
        if not self.held_out:
            told.append("There was one image to use, so the network was measured on what it was trained on.")
        if self.psnr is not None and self.psnr[0] - self.psnr[1] > MOST_LOST:
            lost = self.psnr[0] - self.psnr[1]
            told.append(f"It is {lost:.1f} dB farther from the targets than before: a smaller ratio costs less.")
        for each in self.moving:
            if self.psnr is None and each.kept < LEAST_KEPT:
                told.append(
                    f"What it makes of {each.name} is {each.kept:.1f} dB from what it made before: look whether it "
                    "blurs, which is smooth too; a smaller ratio keeps more."
                )
            if each.smoothness < 1:
                told.append(f"It did not become smoother on {each.name}: try more steps, or a larger ratio.")
        return told


def steady(
    network: nn.Module,
    images: str | Path,
    out: str | Path,
    *,
    targets: str | Path | None = None,
    video: str | Path | None = None,
    term: str = "transform-invariance",
    ratio: float = 4.0,
    steps: int = 500,
    batch: int = 8,
    learning_rate: float = 1e-4,
    overwrite: bool = False,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Steadied:
    """Fine-tune a network on images so that it is steady frame by frame, and write its weights.

    Single-frame Regularization (CVPR 2019), equation 1, on crops of up to 128 pixels; batch norm keeps its statistics.
    One image in five, at most four, is not trained on: the network is measured on them, in motion that is made and
    known exactly (`unflicker.data.stills`).

    Args:
        network: from frames (B, 3, H, W) RGB in [0, 1] to images, H and W times or divided by a whole number. Changed
            in place; all of its weights train.
        images: a folder, see `unflicker.pairs.find_pairs`.
        out: a .safetensors file for its `state_dict`.
        targets: a folder with what it should make of each image; without it that is what it made before.
        video: a real clip to measure on as well: its first 72 frames, averaged down to 640 pixels in width.
        term: one of `TERMS`.
        ratio: of the term to the reconstruction, 0 or more.
        steps, batch, learning_rate: of the training.
        overwrite: replace `out`.
        on_step: see `unflicker.finetuning.finetune`.

    Raises:
        InputError: something given cannot be used; nothing is written.
        FloatingPointError: the training diverged; nothing is written.

    Example::

        steady(net, "frames/", "net-steady.safetensors").moving[0].smoothness  # 1.6
    """
    out = Path(out)
    _check_file(out, overwrite)
    if term not in TERMS:
        raise InputError(f"There is no term {term!r}; {nearest(term, TERMS)}")
    weight_of(ratio)
    if steps < 1 or batch < 1 or not 0 < learning_rate < 1:
        raise InputError(
            f"Give 1 step or more, a batch of 1 or more and a learning rate between 0 and 1; got {steps=}, {batch=}, "
            f"{learning_rate=}."
        )
    clip = None if video is None else _open_clip(Path(video))
    pairs, skipped = find_pairs(images, targets)
    measured = pairs[::EVERY][:HELD_OUT]
    rest = [pair for pair in pairs if pair not in measured]
    if not any(True for _ in network.parameters()):
        raise InputError(f"{type(network).__name__} has no weights, so there is nothing to train.")
    network.requires_grad_(True).to(device())
    chosen = TERMS[term]()
    channels = _check_network(network, chosen, ImagePairs(pairs).size)

    if clip is not None:
        run_once(network, next(iter(_frames(clip))).to(device()))

    crops, tests = (ImagePairs(some, channels=channels) for some in (rest or measured, measured))
    pictures = [tests[i] for i in range(len(measured))]
    original = copy.deepcopy(network)
    finetune(
        network,
        shuffled(crops, batch=min(batch, len(crops))),
        steps=steps,
        term=chosen,
        ratio=ratio,
        learning_rate=learning_rate,
        statistics="kept",
        on_step=on_step,
    )
    write_weights(network, out, {"term": term, "ratio": f"{ratio:g}", "steps": str(steps)})

    whole = [pair.image for pair in measured if pair not in tests.damaged]
    found = Steadied(out, len(crops.pairs) - len(crops.damaged), len(whole), bool(rest))
    if targets is not None:
        before, after = (sum(_psnr(each, x, y) for x, y in pictures) / len(pictures) for each in (original, network))
        found.psnr = (before, after)
    found.moving.append(_in_motion(original, network, whole, tests.size))
    if clip is not None:
        rate = clip.frame_rate or FRAME_RATE
        found.moving.append(compare(clip.name, original, network, [(_frames(clip), _found_motion)], frame_rate=rate))
    found.skipped = [*skipped, *crops.damaged.values(), *tests.damaged.values()]
    return found


def compare(
    name: str,
    before: nn.Module,
    after: nn.Module,
    clips: Iterable[tuple[Iterable[Tensor], Motion]],
    *,
    frame_rate: float = FRAME_RATE,
) -> Comparison:
    """Take clips through two networks, frame by frame, and average over the clips.

    Args:
        name: of them.
        before, after: the networks; outputs of another size are averaged or repeated to that of the frames.
        clips: of each its frames (1, 3, H, W) and how it moves: a function of the number of a frame, it and the next,
            to the flow between them (1, 2, H, W) and where that holds, (1, 1, H, W).
        frame_rate: frames a second.

    >>> net, frames = nn.Identity(), torch.rand(3, 1, 3, 16, 16)
    >>> still = lambda t, one, two: (torch.zeros(1, 2, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.bool))
    >>> found = compare("noise", net, net, [(frames, still)])
    >>> found.smoothness, round(found.warping_error[1], 1)
    (1.0, 0.4)
    """
    each = [_compare_clip(before, after, frames, motion, frame_rate) for frames, motion in clips]
    kept, smoothness, *rest = torch.stack(each).nanmean(0).tolist()
    return Comparison(name, kept, smoothness, (rest[0], rest[1], rest[2]), (rest[3], rest[4], rest[5]))


def table(found: Steadied) -> Table:
    """Return the numbers as rows of input, before and after."""
    from rich.table import Table

    made = Table(box=None)
    with_targets = ("dB to targets",) * (found.psnr is not None)
    for heading in ("", "", *with_targets, "dB to before", "smoothness", "along motion", "instability"):
        made.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    for number, each in enumerate(found.moving):
        for i, row in enumerate(("input", "before", "after")):
            cells = [each.name if i == 0 else "", row]
            if found.psnr is not None:
                cells.append(f"{found.psnr[i - 1]:.2f}" if i > 0 and number == 0 else "")
            cells += [f"{each.kept:.2f}" if i == 2 else "", ("", "1.00", f"{each.smoothness:.2f}")[i]]
            made.add_row(*cells, f"{each.warping_error[i]:.5f}", f"{each.instability[i]:.5f}")
    return made


def write_weights(network: nn.Module, file: str | Path, facts: dict[str, str] | None = None) -> None:
    """Write a network's `state_dict` as safetensors, as `--weights` takes it; it appears when it is complete.

    Raises:
        InputError: it cannot be written; what was begun is removed.
    """
    file = Path(file)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    try:
        part.touch()
        mode = part.stat().st_mode
        save_file(weights, part, facts)
        part.chmod(mode)  # safetensors keeps its files to their owner
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be written ({error}). What was begun is removed.") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _check_file(file: Path, overwrite: bool) -> None:
    if file.suffix != ".safetensors":
        raise InputError(f"Weights are written as .safetensors, but the output is {file}; give it that ending.")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"{file} cannot be written: its folder must exist and be yours; choose another place.")
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists; pass --overwrite (overwrite=True) to replace it, or choose another name.")


def _check_network(network: nn.Module, term: Regularizer, size: int) -> int:
    """Try the network and the term once, and return how many channels it makes."""
    example = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(_first(network))
    preds = run_once(network, example)
    with evaluating(network), torch.no_grad():
        term(network, example, preds if isinstance(preds, Tensor) else None)
    return int(preds.shape[1])


def _open_clip(path: Path) -> Video:
    if not path.exists():
        raise InputError(f"There is no file or folder {path}; check the name.")
    clip = open_video(path)
    if clip.num_frames < 2:
        raise InputError(f"{path} has one frame: how a network flickers shows from two frames on.")
    return clip


def _frames(clip: Video) -> Iterable[Tensor]:
    """The first frames of a clip, (1, 3, H, W) in [0, 1]."""
    factor = min(1.0, WIDEST / clip.width)
    size = tuple(max(32, 32 * round(n * factor / 32)) for n in (clip.height, clip.width))
    for number in range(min(WATCHED, clip.num_frames)):
        frame = clip.read([number])
        frame = frame.float() / 255 if frame.dtype == torch.uint8 else frame
        yield F.interpolate(frame, size=size, mode="area")


def _found_motion(number: int, frame: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    forward, backward = flow(frame, following), flow(following, frame)
    return forward, consistent(forward, backward)


def _in_motion(before: nn.Module, after: nn.Module, images: Sequence[Path], size: int) -> Comparison:
    recordings = stills(images, num_frames=FRAMES, height=size, width=size, count=CLIPS)

    def clip(video: StillVideo) -> tuple[Iterable[Tensor], Motion]:
        return (video.read([t]) for t in range(FRAMES)), lambda t, *_: (video.flow.read([t]), video.matches([t]))

    videos = (recording.frames for recording in recordings)
    return compare("images in motion", before, after, (clip(v) for v in videos if isinstance(v, StillVideo)))


def _compare_clip(
    before: nn.Module, after: nn.Module, frames: Iterable[Tensor], motion: Motion, frame_rate: float
) -> Tensor:
    """What is kept, the ratio of smoothness, three warping errors and three instabilities."""
    steps = [InstabilityStream(normalized=True, mask_nan=False) for _ in range(3)]
    smooth = SmoothnessStream(frame_rate, "identity", 0.15, 4.0, 1 / 255)
    kept: list[Tensor] = []
    errors: list[Tensor] = []
    last: list[Tensor] = []
    with ExitStack() as stack, torch.inference_mode():
        for network in (before, after):
            stack.enter_context(evaluating(network))
        for number, frame in enumerate(frames):
            now = [frame, *(_seen(network, frame) for network in (before, after))]
            kept.append(frame_psnr(now[2], now[1]))
            smooth.update(now[2], now[1])
            for stream, picture in zip(steps, now, strict=True):
                stream.update(picture)
            if last:
                way, holds = motion(number - 1, last[0], frame)
                changes = [torch.where(holds, a - warp(b, way), 0) for a, b in zip(last, now, strict=True)]
                share = holds.float().mean().clamp_min(1e-6)
                errors.append(torch.stack([change.square().mean() / share for change in changes]))
            last = now
    means = [stream.totals() for stream in steps]
    return torch.cat(
        [
            torch.cat(kept).clamp_max(100).mean().view(1),
            smooth.totals()[:1].float(),
            torch.stack(errors).mean(0).sqrt(),
            torch.stack([each[0] / each[1] for each in means]).float(),
        ]
    )


def _seen(network: nn.Module, frame: Tensor) -> Tensor:
    y: Tensor = network(frame.to(_first(network))).float().cpu()
    return y if y.shape[-2:] == frame.shape[-2:] else F.interpolate(y, size=frame.shape[-2:], mode="area")


def _psnr(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with evaluating(network), torch.inference_mode():
        return float(frame_psnr(network(x[None].to(_first(network))).cpu(), y[None]))


def _first(network: nn.Module) -> Tensor:
    """A weight, for its device and type."""
    return next(network.parameters(), torch.zeros(()))
