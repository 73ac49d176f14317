"""What the networks of other packages share: frames in, maps of their size out, and a sentence where one fails."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.checks import InputError

Mode = Literal["bilinear", "bicubic"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHOWN = 4  # names of weights in a sentence


@dataclass(frozen=True)
class Sizing:
    """At what size a network looks at a frame.

    rule: "own", the frame's own, padded to `multiple`; "exact", height x width, whatever the proportions; "short",
    the short side is `height`; "least", the one side fits that has to be scaled less, as the image processors of dense
    prediction networks do with `keep_aspect_ratio`. Sizes are rounded to `multiple`.

    >>> Sizing("least", 518, 518, multiple=14)(720, 1280)
    (518, 924)
    >>> Sizing("short", 224)(720, 1280)
    (224, 398)
    >>> Sizing(multiple=8)(9, 16)
    (16, 16)
    """

    rule: Literal["own", "exact", "short", "least"] = "own"
    height: int = 0
    width: int = 0
    multiple: int = 1

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        if self.rule == "own":
            return height + -height % self.multiple, width + -width % self.multiple
        if self.rule == "exact":
            return self.height, self.width
        if self.rule == "short":
            scale = self.height / min(height, width)
        else:
            scale = min(self.height / height, self.width / width, key=lambda each: abs(1 - each))
        return self._rounded(height * scale), self._rounded(width * scale)

    def _rounded(self, length: float) -> int:
        return max(self.multiple, round(length / self.multiple) * self.multiple)


class Framed(nn.Module):
    """Lets a network that wants normalised pictures of some size take frames (B, 3, H, W) RGB in [0, 1].

    What is a map, (B, C, h, w) or (B, h, w), comes back as (B, C, H, W) at the frame's size, or at a part of it; what
    is not, as (B, K), comes back as it is. Nothing is cropped away, so that a place in a layer is that place in the
    frame. The network's own layers are found under "net.".

    Args:
        net: the network.
        mean, std: what its pictures are normalised with, by channel.
        sizing: at what size it looks at them.
        mode: how they are scaled there, antialiased.
        entry: the entry of a tuple, dict or ModelOutput to return; nothing for a tensor.
        back: how maps are scaled back; None leaves them at the network's own scale, as for super-resolution.
        reduction: 4 gives maps of a quarter of the frame's height and width.

    >>> Framed(nn.Conv2d(3, 5, 3, stride=2, padding=1))(torch.rand(1, 3, 30, 41)).shape
    torch.Size([1, 5, 30, 41])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        sizing: Sizing | None = None,
        mode: Mode = "bilinear",
        entry: str = "",
        back: Mode | None = "bilinear",
        reduction: int = 1,
    ) -> None:
        super().__init__()
        if reduction < 1:
            raise InputError(f"reduction divides the frame's size and is 1 or more, got {reduction}.")
        self.net = net
        # Not in the state_dict: weights of others do not have them.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.sizing = Sizing() if sizing is None else sizing
        self.mode, self.entry, self.back, self.reduction = mode, entry, back, reduction

    def forward(self, x: Tensor) -> Tensor:
        check_rgb(x, type(self.net).__name__)
        height, width = x.shape[-2:]
        size = self.sizing(height, width)
        if self.sizing.rule == "own":
            seen = F.pad(x, (0, size[1] - width, 0, size[0] - height), mode="replicate")
        else:
            seen = scaled(x, size, self.mode)
        y = self.net((seen - self.mean) / self.std)
        y = y[self.entry] if self.entry else y
        if y.ndim == 3:
            y = y.unsqueeze(1)
        if y.ndim != 4:
            return y
        if self.back is None:
            factor = y.shape[-1] // size[1]
            return y[..., : height * factor, : width * factor]
        if self.sizing.rule != "own":
            size = (height, width)
        wanted = (-(-size[0] // self.reduction), -(-size[1] // self.reduction))
        if y.shape[-2:] != wanted:
            y = F.interpolate(y, size=wanted, mode=self.back, align_corners=False)
        return y[..., : -(-height // self.reduction), : -(-width // self.reduction)]


def scaled(x: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    """Scale pictures (B, C, H, W) in [0, 1] as the image libraries do, antialiased; they stay in [0, 1].

    >>> scaled(torch.ones(1, 3, 8, 8), (4, 6), "bicubic").shape
    torch.Size([1, 3, 4, 6])
    """
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)


def check_rgb(x: Tensor, who: str) -> None:
    """Refuse frames that are not RGB.

    Raises:
        InputError: x is not (B, 3, H, W).

    >>> check_rgb(torch.rand(1, 3, 4, 4), "NAFNet")
    """
    if x.ndim == 4 and x.shape[1] == 3:
        return
    fix = {1: ": repeat grey ones, as x.expand(-1, 3, -1, -1)", 4: ": take the alpha channel off, as x[:, :3]"}
    what = fix.get(x.shape[1], "") if x.ndim == 4 else ""
    raise InputError(f"{who} takes RGB frames (B, 3, H, W), got {tuple(x.shape)}{what}.")


def needed(package: str, purpose: str) -> Any:
    """Import a package that not everyone has.

    Raises:
        InputError: it is not installed, or cannot be imported; says what to do.

    >>> needed("math", "numbers").sqrt(4)
    2.0
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise InputError(f"{purpose} needs {package}, which cannot be imported: {told(error)}.") from error
        name = package.replace("_", "-")
        raise InputError(f"{purpose} needs {name}, which is not installed: pip install {name}.") from None
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision that was built for another torch
        raise InputError(
            f"{purpose} needs {package}, which cannot be imported ({told(error)}); install one that fits your torch."
        ) from error


def from_hub(
    kind: str, source: str | Path, *, trained: bool = True, weights: Mapping[str, Tensor] | None = None
) -> Any:
    """Load something of transformers from a folder, or by its name on the hub.

    Args:
        kind: the class of transformers that loads it, as "AutoConfig" or "AutoModelForDepthEstimation".
        source: a local folder, or OWNER/NAME.
        trained: False gives a model with random weights, for which the folder needs its config.json alone.
        weights: tensors by name to take instead of the folder's, under names of any version of transformers.

    Raises:
        InputError: transformers is missing, there is no such folder, the hub cannot be reached, or the weights do not
            fit the model.
    """
    purpose = f"hf:{source}"
    transformers = needed("transformers", purpose)
    try:
        loader = getattr(transformers, kind)
        with _quiet(transformers):
            if kind == "AutoConfig":
                return loader.from_pretrained(str(source))
            if trained and weights is None:
                model, found = loader.from_pretrained(
                    str(source), output_loading_info=True, ignore_mismatched_sizes=True
                )
            else:
                config = transformers.AutoConfig.from_pretrained(str(source))
                model = loader.from_config(config) if kind.startswith("Auto") else loader(config)
                if weights is None:
                    return model
                # Its own loader knows the names that older files have.
                model, found = type(model).from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(weights),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
    except (ImportError, RuntimeError) as error:
        raise InputError(f"{purpose} cannot be loaded: {told(error)[:300]}.") from error
    except (OSError, ValueError, KeyError) as error:
        if Path(source).is_dir():
            raise InputError(f"The folder {source} holds no model that transformers can load: {told(error)}.") from None
        if str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
            raise InputError(f"There is no folder {source}; hf: takes a folder, as ./NAME, or OWNER/NAME.") from None
        raise InputError(
            f"{source} could not be fetched from the hub (no network, or no such name); without network, bring its "
            f"files here (config.json, model.safetensors, preprocessor_config.json) and give the folder: hf:./FOLDER."
        ) from None
    # The package fills what is missing with random numbers and only warns. Published files may hold more than is used.
    misfit = misfits(
        [name for name in sorted(found["missing_keys"]) if not name.endswith("num_batches_tracked")],
        [] if weights is None else sorted(found["unexpected_keys"]),
        [f"{name} {tuple(came)}, not {tuple(expected)}" for name, came, expected in sorted(found["mismatched_keys"])],
    )
    if misfit:
        raise InputError(f"The weights of {purpose} do not fit {type(model).__name__}: {misfit}.")
    return model


def misfits(missing: Sequence[str], extra: Sequence[str], other: Sequence[str]) -> str:
    """Say how weights do not fit: what is missing, what is left over, what has another size; nothing if they fit.

    >>> misfits(["a.weight", "a.bias"], [], [])
    'it lacks 2 (a.weight, a.bias)'
    """
    return "; ".join(
        f"{what} {len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, names in (("it lacks", missing), ("it has too many:", extra), ("of another size:", other))
        if names
    )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bars and reports that transformers and its hub write while they load."""
    own, hub = transformers.utils.logging, logging.getLogger("huggingface_hub")
    level, bars, hub_level = own.get_verbosity(), own.is_progress_bar_enabled(), hub.level
    own.set_verbosity_error()
    own.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        own.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            own.enable_progress_bar()


def told(error: BaseException) -> str:
    """An error in one line.

    >>> told(KeyError("a"))
    "KeyError: 'a'"
    """
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
