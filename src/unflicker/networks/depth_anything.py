"""Depth Anything v2 (Yang et al., NeurIPS 2024): relative disparity from single images, as transformers has it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from unflicker.networks.base import Framed, Sizing, from_hub

REPO = "depth-anything/Depth-Anything-V2-Small-hf"
PATCH = 14
# Where Instant Video Models stabilizes it, and what each layer gives: four reassemble layers, four fusion layers, the
# head.
PAPER_SITES = {
    "net.neck.reassemble_stage.layers.*": "map",
    "net.neck.fusion_stage.layers.*": "map",
    "net.head": "plane",
}


class DepthAnything(Framed):
    """Takes frames (B, 3, H, W) RGB in [0, 1] and returns relative disparity (B, 1, H, W), 0 or more, near is large.

    Its scale and shift are the network's own and mean something within one frame only.

    Args:
        net: a `DepthAnythingForDepthEstimation` of transformers.
        size: the network looks at frames of about this height or width, in whole patches of 14 pixels: the side that
            has to be scaled less becomes `size`, which is the short one of frames larger than that, and the
            proportions are kept; so does its published image processor. Smaller is faster and coarser.

    >>> DepthAnything(nn.Identity()).sizing(720, 1280)
    (518, 924)
    """

    def __init__(self, net: nn.Module, *, size: int = 518) -> None:
        super().__init__(
            net,
            sizing=Sizing("least", size, size, multiple=PATCH),
            mode="bicubic",
            entry="predicted_depth",
            back="bicubic",
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp_min(0)  # bicubic scaling overshoots


def load(source: str | Path = REPO, *, size: int = 518) -> DepthAnything:
    """Return Depth Anything with its published weights, from the hub or from a local folder.

    Raises:
        InputError: transformers is missing, or the source cannot be read.
    """
    return DepthAnything(from_hub("DepthAnythingForDepthEstimation", source), size=size)
