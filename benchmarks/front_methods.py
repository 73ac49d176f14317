"""What benchmarks/front.py compares: the conditions a video is put in, and the methods that make it steady."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from unflicker import Controller, StabilizedModel, load_adapter, save_adapter, stabilize
from unflicker.corruptions import ClaheFlicker, ToneJitter, gaussian_noise, parse
from unflicker.data.base import FileVideo, Recording
from unflicker.data.cache import cached
from unflicker.data.camera import to_lab, to_rgb
from unflicker.data.clips import ClipDataset
from unflicker.data.clips import load as load_clips
from unflicker.functional import luma
from unflicker.networks.colorization import ColorizationAutoencoder
from unflicker.stabilizers import EMA, Aligned, Controlled, Gaussian, LearnedEMA, Spatial, Stabilizer
from unflicker.state import State
from unflicker.tasks import TASKS, load_network, load_task
from unflicker.training import fit

SIZE = (192, 320)
SEED = 1
EXAMPLE = torch.zeros(1, 3, *SIZE)
COLOUR_STEPS = 1500
STEADY_CLAHE = ClaheFlicker(limit=(1.75, 1.75), tiles=(4, 4))

# --- conditions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A clip in a condition: what goes in, what should come out, and what is known besides. All (T, 3, H, W)."""

    truth: Tensor
    flickering: Tensor
    """What is to be made steady: the input of the network, or where there is none the flickering video itself."""
    guide: Tensor
    mask: Tensor | None
    """(T, 1, H, W), 0 where the input did not arrive."""


@dataclass(frozen=True)
class Condition:
    """Where flicker comes from."""

    name: str
    says: str
    task: str | None = None
    """The task whose network flickers; None if the video flickers by itself or is coloured."""
    sigma: float = 0.0
    corruption: str = ""
    fade: bool = False
    lamp: bool = False
    """The flickering video is all there is: no steady input vouches for it."""
    colours: bool = False
    """A network that was trained here gives colour to grey frames, to each anew."""

    def degrade(self, clean: Tensor, seed: int) -> Tensor:
        """Noise first, then the corruption; clips (T, C, H, W) or (B, T, C, H, W)."""
        noisy = gaussian_noise(clean, self.sigma, seed=seed) if self.sigma else clean
        return parse(self.corruption, seed=seed)(noisy) if self.corruption else noisy

    def scene(self, clean: Tensor) -> Scene:
        """Put a clean clip (T, 3, H, W) into the condition."""
        if self.fade:
            ramp = 0.2 + 0.8 * torch.linspace(-1, 1, len(clean)).abs()
            clean = clean * ramp[:, None, None, None]
        flickering = self.degrade(clean, SEED)
        if self.colours:
            grey = luma(clean).expand_as(clean)
            return Scene(clean, grey, grey, None)
        if self.task is not None:
            mask = arrived(flickering) if "drop" in self.corruption else None
            return Scene(clean, flickering, flickering, mask)
        truth = STEADY_CLAHE(clean) if self.corruption.startswith(ClaheFlicker.name) else clean
        return Scene(truth, flickering, flickering if self.lamp else clean, None)


class Colours(nn.Module):
    """Gives colour to grey frames (B, 3, H, W) in [0, 1]; what it returns is as well."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ColorizationAutoencoder()

    def forward(self, x: Tensor) -> Tensor:
        lightness, _ = to_lab(x)
        return to_rgb(lightness, self.net(lightness)).clamp(0, 1)


def train_colours(videos: list[Path], file: Path) -> None:
    """Train `Colours` on frames of a few videos, which is little: its colours are often wrong, and never steady."""
    torch.manual_seed(SEED)
    network = Colours().train()
    nn.init.constant_(network.net.decoder[-2][1].weight, 0.1)  # about how far colours are from grey
    recordings = [Recording(FileVideo(video)) for video in videos]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, COLOUR_STEPS)
    with tempfile.TemporaryDirectory() as decoded:
        dataset = ClipDataset(
            cached(recordings, decoded, limit_gib=8), length=1, crop=128, scales=(1.0, 0.6, 0.4), seed=SEED
        )
        for step, clips in enumerate(load_clips(dataset, batch=8, steps=COLOUR_STEPS), start=1):
            lightness, colour = to_lab(clips["target"].squeeze(1))
            loss = F.mse_loss(network.net(lightness), colour)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 500 == 0:
                print(f"  colours, step {step}: loss {loss.item():.5f}", flush=True)
    part = file.with_name(f"{file.name}.part")
    save_file(network.state_dict(), part)
    part.replace(file)


def arrived(clip: Tensor, block: int = 8) -> Tensor:
    """(T, 1, H, W): 0 in blocks of exact zeros, as lost packets leave them."""
    lit = F.max_pool2d(clip.amax(1, keepdim=True), block, ceil_mode=True) > 0
    return F.interpolate(lit.float(), scale_factor=block)[..., : clip.shape[-2], : clip.shape[-1]]


TONE = ToneJitter.name
CONDITIONS = {
    each.name: each
    for each in (
        Condition("denoise", "noise 0.1, denoised frame by frame", "denoise", 0.1),
        Condition("denoise-heavy", "noise 0.6, denoised frame by frame", "denoise-heavy", 0.6),
        Condition("patch-drop", "noise 0.1, then a tenth of the 8x8 patches lost", "denoise", 0.1, "patch_drop:ivm"),
        Condition("elastic", "noise 0.1, then elastic distortion", "denoise", 0.1, "elastic:ivm"),
        Condition("frame-drop", "noise 0.1, then a tenth of the frames lost", "denoise", 0.1, "frame_drop:ivm"),
        Condition("jpeg", "noise 0.1, then JPEG of quality 10", "denoise", 0.1, "jpeg:ivm"),
        Condition("impulse", "noise 0.1, then 5 % salt and 5 % pepper", "denoise", 0.1, "impulse_noise:ivm"),
        Condition("tone", "gain, gamma and white balance jitter; the input is steady", corruption=TONE),
        Condition("field", "a smooth gain field jitters; the input is steady", corruption="field_jitter"),
        Condition("clahe", "local equalisation jitters; the input is steady", corruption="clahe_flicker"),
        Condition("tone-in-fade", "tone jitter while the truth fades out and in", corruption=TONE, fade=True),
        Condition("colour", "a network colours grey frames, each anew; the input is steady", colours=True),
        Condition("lamp", "tone jitter, and no steady input to go by", corruption=TONE, lamp=True),
        Condition("clean", "nothing is wrong"),
        Condition("clean-fade", "nothing is wrong: a true fade out and in", fade=True),
    )
}

# --- methods ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way to make a video steady. One of `output`, `layers`, `adapter` and `filters` is set, or none for the base."""

    name: str
    says: str
    output: Callable[[], Stabilizer] | None = None
    """A stabilizer at the output: it runs on the kept outputs of the base."""
    masked: bool = False
    """It is told what did not arrive; in conditions where nothing is lost it is left out."""
    layers: Callable[[], StabilizedModel] | None = None
    """Stabilizers inside the denoiser, trained for each condition."""
    rate: float = 0.0
    adapter: str = ""
    """One of the task's adapters."""
    filters: tuple[tuple[str, str], ...] = ()
    """FFmpeg filters with their options, on the base's output."""
    late: int = 0
    """How many frames too late the filters give what belongs to a frame."""
    only: tuple[str, ...] = ()
    """The conditions it runs in by default."""
    frames: int | None = None
    """It sees that many frames of each clip, by default."""

    def applies(self, condition: Condition) -> bool:
        if self.masked and "drop" not in condition.corruption:
            return False
        if self.only and condition.name not in self.only:
            return False
        if self.adapter:
            return condition.task is not None and self.adapter in TASKS[condition.task].adapters
        return condition.task is not None or self.layers is None

    def missing(self) -> str:
        """Say what this machine lacks for it; nothing if it can run."""
        if self.filters:
            import av.filter

            lacks = [name for name, _ in self.filters if name not in av.filter.filters_available]
            return f"PyAV was built without the filter {lacks[0]}" if lacks else ""
        return ""


# The paper puts a stabilizer behind every block and at the output.
BLOCKS = ("encoders.*.*", "middle_blks.*", "decoders.*.*", "")
DENOISED = tuple(name for name, each in CONDITIONS.items() if each.task is not None)
SLOW = ("denoise", "denoise-heavy", "patch-drop", "frame-drop")


def in_layers(template: Stabilizer, controller: Controller | None = None) -> StabilizedModel:
    network = load_network("denoise")  # the weights do not matter yet
    return stabilize(network, dict.fromkeys(BLOCKS, template), controller=controller, example=EXAMPLE)


METHODS = {
    each.name: each
    for each in (
        Method("base", "the network alone"),
        Method("ema-0.1", "average of the output, past weight 0.1", output=lambda: EMA(0.1)),
        Method("ema-0.2", "average of the output, past weight 0.2", output=lambda: EMA(0.2)),
        Method("ema-0.4", "average of the output, past weight 0.4", output=lambda: EMA(0.4)),
        Method("gaussian", "Gaussian over the last 4 outputs, sigma 1", output=lambda: Gaussian(4, 1.0)),
        Method(
            "tmix",
            "FFmpeg tmix, 3 frames, 1 of them ahead",
            filters=(("format", "gbrp16le"), ("tmix", "frames=3")),
            late=1,
        ),
        # A spatial strength of 0 would mean the default.
        Method(
            "hqdn3d",
            "FFmpeg hqdn3d, in time alone",
            filters=(("format", "yuv444p10le"), ("hqdn3d", "0.01:0.01:6:4.5")),
        ),
        Method(
            "atadenoise",
            "FFmpeg atadenoise, 9 frames, 4 of them ahead",
            filters=(("format", "gbrp10le"), ("atadenoise", "s=9")),
        ),
        Method(
            "deflicker",
            "FFmpeg deflicker, 5 frames, 4 of them ahead",
            filters=(("format", "yuv444p10le"), ("deflicker", "size=5")),
        ),
        Method("learned-ema", "learned average in all layers", layers=lambda: in_layers(LearnedEMA()), rate=1e-2),
        Method(
            "controlled",
            "paper's controlled average in all layers, half width",
            layers=lambda: in_layers(Controlled(hidden=32), Controller.paper(16)),
            rate=2e-3,
            only=SLOW,
            frames=60,
        ),
        Method(
            "spatial",
            "paper's spatial fusion 3x3 in all layers, half width",
            layers=lambda: in_layers(Spatial(3, hidden=32, paper_exact=True), Controller.paper(16)),
            rate=2e-3,
            only=SLOW,
            frames=60,
        ),
        Method("bundled-spatial", "bundled spatial fusion at the output", adapter="spatial"),
        Method("aligned", "Aligned: evidence of output and input", output=Aligned),
        Method(
            "aligned-recover",
            "Aligned, detail recovered from the input",
            output=lambda: Aligned(recover=True),
            only=DENOISED,
        ),
        Method("merged", "Merged: frames averaged before the network", adapter="merged"),
        Method("aligned-output", "Aligned, evidence of the output alone", output=lambda: Aligned(evidence="output")),
        Method("aligned-torch", "Aligned, flow in torch", output=lambda: Aligned(flow="torch")),
        Method("aligned-mask", "Aligned, told what did not arrive", output=Aligned, masked=True),
        Method("aligned-learned", "Aligned, trained tier", adapter="aligned-learned"),
    )
}


def load(method: Method, condition: Condition, trained: Path | None = None) -> StabilizedModel:
    """Return a method's model: around the network, or around nothing if it works on kept outputs."""
    if method.output is not None:
        return stabilize(nn.Identity(), {"": method.output()}, example=EXAMPLE)
    assert condition.task is not None
    if trained is not None and method.layers is not None:
        return load_adapter(load_network(condition.task), trained)
    return load_task(condition.task, method.adapter)


class Stream:
    """Frames (T, 3, H, W) on their way through a model, one by one."""

    def __init__(
        self, model: Callable[..., tuple[Tensor, State]], frames: Tensor, guide: Tensor, mask: Tensor | None = None
    ) -> None:
        self.model, self.frames, self.guide, self.mask = model, frames, guide, mask
        self.state: State | None = None
        self.t = 0

    def step(self) -> Tensor:
        """Return the output of the next frame, (3, H, W)."""
        now = slice(self.t, self.t + 1)
        known = {} if self.mask is None else {"mask": self.mask[now]}
        with torch.inference_mode():
            y, self.state = self.model(self.frames[now], self.state, guide=self.guide[now], **known)
        self.t += 1
        return y[0]

    def all(self) -> Tensor:
        return torch.stack([self.step() for _ in self.frames])


def filtered(frames: Tensor, filters: tuple[tuple[str, str], ...], late: int = 0) -> Tensor:
    """Take frames (T, 3, H, W) in [0, 1] through FFmpeg filters, at 16 bits; each output is at its input's place."""
    import av
    import av.filter

    graph = av.filter.Graph()
    times = Fraction(1, 25)
    height, width = frames.shape[-2:]
    source = last = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb48le"), time_base=times)
    for name, options in (*filters, ("format", "rgb48le"), ("buffersink", "")):
        following = graph.add(name, options)
        last.link_to(following)
        last = following
    graph.configure()
    out = list(frames)

    def pull() -> None:
        while True:
            try:
                got = last.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(got, av.VideoFrame) and got.pts is not None
            if got.pts >= late:
                out[got.pts - late] = torch.from_numpy(got.to_ndarray().astype(np.float32) / 65535).permute(2, 0, 1)

    pixels = (frames.clamp(0, 1) * 65535).round().int().permute(0, 2, 3, 1).numpy().astype(np.uint16)
    for t, each in enumerate(pixels):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(each), format="rgb48le")
        frame.pts, frame.time_base = t, times
        source.push(frame)
        pull()
    source.push(None)  # what filters hold back comes out at the end
    pull()
    return torch.stack(out)


def train(method: Method, condition: Condition, videos: list[Path], steps: int, folder: Path) -> None:
    """Train a method's stabilizers for a condition on clips of 8 frames, two a step, and save them."""
    assert method.layers is not None and condition.task is not None
    torch.manual_seed(SEED)
    model = method.layers()
    model.base.load_state_dict(load_network(condition.task).state_dict())
    recordings = [Recording(FileVideo(video)) for video in videos]
    dataset = ClipDataset(recordings, length=8, crop=48, scales=(0.6, 0.4), seed=SEED)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step, clips in enumerate(load_clips(dataset, batch=2, steps=steps)):
            clean = clips["target"]
            yield condition.degrade(clean, seed=1000 + step), clean

    def say(step: int, terms: dict[str, float]) -> None:
        if step % 50 == 0:
            print(f"  {method.name}, {condition.name}, step {step}: loss {terms['total']:.5f}", flush=True)

    fit(model, batches(), steps=steps, learning_rate=method.rate, stability=0.2, on_step=say)
    notes = f"{method.says}; {condition.says}; {steps} steps of benchmarks/front.py.\n"
    save_adapter(model.eval(), folder, notes=notes)
