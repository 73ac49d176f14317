"""A ResNet-50 (He et al., CVPR 2016) that classifies frames, as transformers has it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from unflicker.networks.base import Framed, Sizing, from_hub

REPO = "microsoft/resnet-50"
# Where Instant Video Models stabilizes it against adversarial noise: every bottleneck block.
PAPER_SITES = {"net.resnet.encoder.stages.*.layers.*": "map"}


class Classifier(Framed):
    """Takes frames (B, 3, H, W) RGB in [0, 1] and returns logits (B, K).

    Args:
        net: a `ResNetForImageClassification` of transformers.
        size: the short side of what the network looks at; 256 is what its crops of 224 are taken from when it is
            measured. The whole frame is looked at. None: the frame's own size, as for crops of 224 x 224.

    >>> Classifier(nn.Identity()).sizing(720, 1280)
    (256, 455)
    """

    def __init__(self, net: nn.Module, *, size: int | None = 256) -> None:
        sizing = Sizing() if size is None else Sizing("short", size)
        super().__init__(net, sizing=sizing, mode="bicubic", entry="logits")


def load(source: str | Path = REPO, *, size: int | None = 256) -> Classifier:
    """Return the classifier with its published weights for 1000 classes, from the hub or from a local folder.

    Raises:
        InputError: transformers is missing, or the source cannot be read.
    """
    return Classifier(from_hub("ResNetForImageClassification", source), size=size)
