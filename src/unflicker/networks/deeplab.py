"""DeepLabv3+ (Chen et al., ECCV 2018): classes of pixels, on MobileNetV2 as transformers has it, or on a ResNet."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from unflicker.networks.base import Framed, Sizing, from_hub, needed

REPO = "google/deeplabv3_mobilenet_v2_1.0_513"
# Where Instant Video Models stabilizes it, and what each layer gives. The stem ends with the first of the 17 inverted
# residuals. The network's input is among them: for corruptions it matters most.
PAPER_SITES = {
    "in:": "map",
    "net.mobilenet_v2.conv_stem": "map",
    "net.mobilenet_v2.layer.*": "map",
    "net.segmentation_head.conv_aspp": "map",
    "net.segmentation_head.conv_projection": "map",
    "net.segmentation_head.classifier": "map",
}
# The same places of the ResNet variant: every residual block, pyramid, projection of the fine features, classifier.
RESNET_SITES = {
    "in:": "map",
    "net.encoder.layer*.*": "map",
    "net.decoder.aspp": "map",
    "net.decoder.block1": "map",
    "net.segmentation_head.0": "map",
}


class DeepLab(Framed):
    """Takes frames (B, 3, H, W) RGB in [0, 1] and returns logits (B, K, H, W), scaled up bilinearly.

    The features have 1/16 of the size that the network looks at.

    Args:
        net: a `MobileNetV2ForSemanticSegmentation` of transformers, with `output_stride=16`.
        size: the short side of what the network looks at; the proportions are kept. None: the frame's own size.
        reduction: 4 gives logits (B, K, H/4, W/4), rounded up, which saves memory where there are many classes.

    >>> DeepLab(nn.Identity()).sizing(1080, 1920)
    (513, 912)
    """

    def __init__(self, net: nn.Module, *, size: int | None = 513, reduction: int = 1) -> None:
        super().__init__(
            net,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            sizing=Sizing() if size is None else Sizing("short", size),
            entry="logits",
            reduction=reduction,
        )


def load(source: str | Path = REPO, *, size: int | None = 513, reduction: int = 1) -> DeepLab:
    """Return DeepLabv3+ with its published weights for 21 classes, from the hub or from a local folder.

    Raises:
        InputError: transformers is missing, or the source cannot be read.
    """
    return DeepLab(from_hub("MobileNetV2ForSemanticSegmentation", source), size=size, reduction=reduction)


def untrained(classes: int = 21) -> DeepLab:
    """Return DeepLabv3+ on MobileNetV2 at the published size, output stride 16, with random weights.

    Args:
        classes: K of the logits (B, K, H, W).

    Raises:
        InputError: transformers is missing.
    """
    transformers = needed("transformers", "DeepLabv3+")
    config = transformers.MobileNetV2Config(num_labels=classes, output_stride=16)
    return DeepLab(transformers.MobileNetV2ForSemanticSegmentation(config), size=None)


def on_resnet(encoder: str = "resnet50", *, classes: int = 21, reduction: int = 1) -> Framed:
    """Return an untrained DeepLabv3+ on a ResNet, output stride 16, of segmentation-models-pytorch.

    Args:
        encoder: as that package names it.
        classes: K of the logits (B, K, H, W).
        reduction: as for `DeepLab`.

    Raises:
        InputError: the package is missing.
    """
    smp = needed("segmentation_models_pytorch", "DeepLabv3+ on a ResNet")
    net = smp.DeepLabV3Plus(encoder, encoder_weights=None, encoder_output_stride=16, classes=classes)
    return Framed(net, sizing=Sizing(multiple=16), reduction=reduction)
