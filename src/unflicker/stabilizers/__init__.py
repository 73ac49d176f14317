"""Stabilizers: small recurrent modules that blend a layer's present with its past."""

from typing import Any

from unflicker.checks import InputError, nearest
from unflicker.stabilizers.aligned import Aligned
from unflicker.stabilizers.base import Layout, Stabilizer, from_map, to_map
from unflicker.stabilizers.chain import Chain
from unflicker.stabilizers.controlled import Controlled
from unflicker.stabilizers.ema import EMA, LearnedEMA
from unflicker.stabilizers.gaussian import Gaussian
from unflicker.stabilizers.merged import Merged
from unflicker.stabilizers.spatial import Spatial

KINDS: dict[str, type[Stabilizer]] = {
    cls.kind: cls for cls in (EMA, LearnedEMA, Gaussian, Controlled, Spatial, Aligned, Merged, Chain)
}

__all__ = [
    "EMA",
    "KINDS",
    "Aligned",
    "Chain",
    "Controlled",
    "Gaussian",
    "Layout",
    "LearnedEMA",
    "Merged",
    "Spatial",
    "Stabilizer",
    "describe",
    "from_description",
    "from_map",
    "to_map",
]


def describe(stabilizer: Stabilizer) -> dict[str, Any]:
    """Return kind and settings as plain data, enough for `from_description` to make the same template.

    >>> describe(EMA(0.2))
    {'kind': 'ema', 'decay': 0.2, 'layout': 'auto'}
    """
    settings = stabilizer.settings()
    if isinstance(stabilizer, Chain):
        settings["members"] = [describe(member) for member in settings["members"]]
    return {"kind": stabilizer.kind, **settings}


def from_description(description: dict[str, Any]) -> Stabilizer:
    """Make a stabilizer from what `describe` returned.

    Raises:
        InputError: the kind or a setting is not known.
    """
    settings = dict(description)
    kind = settings.pop("kind", None)
    if kind not in KINDS:
        raise InputError(f"There is no stabilizer of kind {kind!r}; {nearest(str(kind), KINDS)}")
    if kind == "chain":
        return Chain(*(from_description(member) for member in settings["members"]))
    try:
        return KINDS[kind](**settings)
    except TypeError as error:
        raise InputError(f"A stabilizer of kind {kind!r} cannot be made from {settings}: {error}.") from None
