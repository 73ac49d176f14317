"""docs/results.md, of which each study's report makes the part between its two marks."""

from __future__ import annotations

from pathlib import Path

from unflicker.checks import InputError

PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def put(begin: str, end: str, block: str) -> None:
    """Replace what is between two marks, and the marks, by a block that has them; all else stays.

    Raises:
        InputError: the page lacks one of the marks.
    """
    text = PAGE.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise InputError(f"{PAGE} has no block between {begin!r} and {end!r}.")
    before, _, rest = text.partition(begin)
    part = PAGE.with_name(f"{PAGE.name}.part")
    part.write_text(before + block + rest.partition(end)[2], encoding="utf-8")
    part.replace(PAGE)
