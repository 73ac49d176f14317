"""Compression: JPEG, H.264 as in a live stream, and coarse pixels."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.corruptions.base import Corruption, Draw


class _Coded(Corruption):
    """What encodes 8-bit RGB pictures; grey clips are coded as RGB and come back grey."""

    def _check_frames(self, clip: Tensor) -> None:
        if clip.shape[-3] not in (1, 3):
            raise InputError(f"{self.name} codes frames with 3 channels (or 1), got {tuple(clip.shape)}.")


class JPEG(_Coded):
    """Encode and decode each frame as JPEG, by libjpeg through OpenCV: the bytes Pillow would write.

    `quality` is Pillow's, 1 (worst) to 100, chroma 4:2:0. Not kornia's JPEG, whose rounding is softened for gradients.
    Nothing is drawn: the seed does not matter. Preset "ivm" is quality 10; severities are those of ImageNet-C.

    >>> out = JPEG.preset("ivm")(torch.rand(1, 3, 16, 16))
    >>> bool((out * 255 - (out * 255).round()).abs().max() < 1e-4)  # 8 bits
    True
    """

    name = "jpeg"
    levels: ClassVar = {"quality": (25, 18, 15, 10, 7)}
    presets: ClassVar = {"ivm": {"quality": 10}}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", quality: int | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.quality = self._whole("quality", quality, 1, 100)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        import cv2

        picture = cv2.cvtColor(_to_bytes(frame), cv2.COLOR_RGB2BGR)
        _, code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        decoded: Any = cv2.imdecode(code, cv2.IMREAD_COLOR)
        return _to_frame(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), frame)


class H264(_Coded):
    """Encode and decode the clip as H.264, by x264 as for a live stream: one frame in, one frame out.

    Tuned for zero latency, preset "veryfast", 4:2:0, a key frame every 250 frames and at scene cuts: blocks and smears
    that build up and are swept away over time. `crf` is x264's, 0 to 51 (worst). Each row of the batch is a stream of
    its own whose coder stays open between calls, so calls must follow one another. Frames of odd size are padded for
    the coder. Nothing is drawn: the seed does not matter.

    >>> clip, stream = torch.rand(3, 3, 16, 16), H264(crf=40)
    >>> whole = stream(clip)
    >>> torch.equal(whole, torch.cat([stream(clip[:1]), stream(clip[1:], start=1)]))
    True
    """

    name = "h264"
    levels: ClassVar = {"crf": (26, 31, 36, 41, 46)}
    looks_back = True

    def __init__(self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", crf: float | None = None) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.crf: float = self._setting("crf", crf, 0, 51)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        import av

        picture = _to_bytes(frame)
        height, width = picture.shape[:2]
        if height % 2 or width % 2 or min(height, width) < 16:
            more = [max(16, size + size % 2) - size for size in (height, width)]
            picture = np.pad(picture, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
        if stream not in self._memory:
            self._memory[stream] = _open_coder(picture.shape[1], picture.shape[0], self.crf)
        encoder, decoder = self._memory[stream]
        coded = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        coded.pts = t
        decoded = [each for packet in encoder.encode(coded) for each in decoder.decode(packet)]
        if len(decoded) != 1:
            raise RuntimeError(f"x264 returned {len(decoded)} frames for one; expected a coder without delay.")
        return _to_frame(decoded[0].to_ndarray(format="rgb24")[:height, :width], frame)


class Pixelate(Corruption):
    """Average down to `factor` of the size, and repeat the pixels back up.

    Boxes are those of `torch.nn.functional.interpolate(mode="area")`, sizes are rounded down. Nothing is drawn: the
    seed does not matter. Preset "ivm" is 0.25.

    >>> Pixelate(factor=0.5)(torch.arange(4.0).reshape(1, 1, 2, 2) / 4).flatten().tolist()
    [0.375, 0.375, 0.375, 0.375]
    """

    name = "pixelate"
    levels: ClassVar = {"factor": (0.5, 0.4, 0.3, 0.25, 0.2)}
    presets: ClassVar = {"ivm": {"factor": 0.25}}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", factor: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.factor: float = self._setting("factor", factor, 1e-3, 1)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        height, width = frame.shape[-2:]
        small = F.interpolate(
            frame[None], size=(max(1, int(height * self.factor)), max(1, int(width * self.factor))), mode="area"
        )
        return F.interpolate(small, size=(height, width), mode="nearest-exact")[0]


def _open_coder(width: int, height: int, crf: float) -> tuple[Any, Any]:
    """An encoder and a decoder with one thread each, on which the result does not depend then."""
    import av

    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.thread_count = 1
    encoder.options = {"preset": "veryfast", "tune": "zerolatency", "crf": f"{crf:g}"}
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    return encoder, decoder


def _to_bytes(frame: Tensor) -> np.ndarray:
    """(H, W, 3) bytes of a frame (3 or 1, H, W)."""
    values = frame.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return np.ascontiguousarray(values.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _to_frame(picture: np.ndarray, like: Tensor) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(picture)).to(like.device).permute(2, 0, 1).to(like.dtype) / 255
    return values.mean(0, keepdim=True) if len(like) == 1 else values.contiguous()
