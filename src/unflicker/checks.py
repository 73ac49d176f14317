"""Checks at the door: every error says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given from outside cannot be used: a file, an option, a plan, a tensor's shape.

    The message is one sentence made to be shown to a person; the command line prints it and exits with 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the entry of `known` closest to `name`, or lists them all if none is close.

    >>> nearest("spatail", ["spatial", "ema"])
    "did you mean 'spatial'?"
    >>> nearest("x", ["spatial", "ema"])
    "there is 'spatial', 'ema'."
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(repr(n) for n in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"there is {shown}." if names else "there are none."
