"""What benchmarks/robustness.py found, beside the paper: tables and findings in docs/results.md.

    python benchmarks/robustness_report.py [--from FOLDER]

With --from, what is finished there is copied to docs/robustness/*.json first. The block of docs/results.md between the
two marks is made of these files alone; a test makes it again and compares.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

from unflicker.checks import InputError
from unflicker.results import BASE, TRUTH, Evaluation

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- robustness: made by benchmarks/robustness_report.py -->", "<!-- robustness: end -->"
CORRUPTIONS = ("clean", "patch-drop", "elastic", "frame-drop", "jpeg", "impulse")
TITLES = {"enhance": "Enhancement", "depth": "Depth", "segment": "Segmentation"}
QUALITY = {"enhance": "psnr", "depth": "abs_rel", "segment": "miou"}
SHOWN = {"psnr": ("PSNR, dB", 2), "abs_rel": ("AbsRel", 3), "miou": ("mIoU", 3)}
TRAINED = ("aligned-learned", "aligned-spatial")
ALONE = {"jpeg": "aligned-jpeg"}  # trained for one corruption alone, as all of the paper's are
STEADIER = 25.0  # per cent: what the trained adapter is to reach under each corruption, with no less accuracy
# Quality and instability of the base and of the paper's adapter: tables 1 (HDRNet, Depth Anything) and 4 (DeepLab).
PAPER: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "enhance": {
        "patch-drop": (17.43, 164.6, 31.39, 30.36),
        "elastic": (24.00, 64.23, 26.63, 24.97),
        "frame-drop": (28.65, 94.04, 31.69, 29.14),
        "jpeg": (24.85, 42.06, 26.46, 23.58),
        "impulse": (14.28, 217.8, 27.37, 30.90),
    },
    "depth": {
        "patch-drop": (0.070, 9.89, 0.070, 4.73),
        "elastic": (0.052, 7.76, 0.057, 4.75),
        "frame-drop": (0.065, 14.17, 0.050, 4.91),
        "jpeg": (0.057, 7.32, 0.065, 4.92),
        "impulse": (0.047, 6.83, 0.056, 4.98),
    },
    "segment": {
        "clean": (0.406, 0.079, 0.411, 0.059),
        "patch-drop": (0.060, 0.454, 0.405, 0.064),
        "elastic": (0.377, 0.090, 0.403, 0.064),
        "frame-drop": (0.369, 0.209, 0.406, 0.063),
        "jpeg": (0.109, 0.216, 0.337, 0.066),
        "impulse": (0.051, 0.312, 0.399, 0.065),
    },
}

Found = Mapping[str, Mapping[str, Evaluation]]


def main() -> None:
    from results_page import put  # beside this script

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="what benchmarks/robustness.py wrote"
    )
    arguments = parser.parse_args()
    if arguments.source is not None:
        for task in TITLES:
            for corruption in CORRUPTIONS:
                file = arguments.source / f"{task}-{corruption}.json"
                if file.exists():
                    Evaluation.read(file).write(DOCS / "robustness" / file.name)
    put(BEGIN, END, block(read()))


def read() -> Found:
    """The evaluations that are there, by task and corruption.

    Raises:
        InputError: there is none.
    """
    found: dict[str, dict[str, Evaluation]] = {}
    for task in TITLES:
        for corruption in CORRUPTIONS:
            file = DOCS / "robustness" / f"{task}-{corruption}.json"
            if file.exists():
                found.setdefault(task, {})[corruption] = Evaluation.read(file)
    if not found:
        raise InputError(f"{DOCS / 'robustness'} is empty; run benchmarks/robustness.py, and this with --from.")
    return found


def block(found: Found) -> str:
    """The part of docs/results.md that is made of the evaluations."""
    lines = [BEGIN, ""]
    for task, each in found.items():
        lines += [*_table(task, each), ""]
    for task, each in found.items():
        lines += [f"- {_finding(task, each, name)}" for name in TRAINED if name in each["clean"].overall]
    return "\n".join([*lines, "", END])


def _table(task: str, found: Mapping[str, Evaluation]) -> list[str]:
    metric = QUALITY[task]
    heading, digits = SHOWN[metric]
    first = next(iter(found.values()))
    video = first.videos[0]
    methods = list(dict.fromkeys(name for each in found.values() for name in each.overall if name not in (BASE, TRUTH)))
    lines = [
        f"**{TITLES[task]}** ({len(first.videos)} recordings, {first.frames} frames, the first of {video.width}x"
        f"{video.height}). {heading} of the network alone and with each adapter, and the change of instability:",
        "",
        f"| corruption | alone | {' | '.join(methods)} | paper: {heading} | paper: instability |",
        f"|---|--:|{'--:|' * len(methods)}--:|--:|",
    ]
    for corruption, each in found.items():
        base = each.overall[BASE]
        row = [corruption, f"{_number(base[metric]):.{digits}f}"]
        for name in methods:
            mine = each.overall.get(name)
            if mine is None:
                row.append("")
                continue
            row.append(f"{_number(mine[metric]):.{digits}f}, {_change(each, name):+.0f} %")
        if corruption in PAPER[task]:
            alone, before, ours, after = PAPER[task][corruption]
            row += [f"{alone:.{digits}f} to {ours:.{digits}f}", f"{100 * (after / before - 1):+.0f} %"]
        else:
            row += ["", ""]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _finding(task: str, found: Mapping[str, Evaluation], name: str) -> str:
    """Whether a trained adapter is steadier by a quarter under each corruption, and no less accurate.

    Where there is one for a corruption alone it stands for "aligned-spatial" there.
    """
    metric = QUALITY[task]
    higher = metric != "abs_rel"
    short, worse, called = [], [], f"`{name}`"
    for corruption, each in found.items():
        if corruption == "clean":
            continue
        alone = ALONE.get(corruption, name) if name == "aligned-spatial" else name
        change, gains = _change(each, alone), _gains(each, alone, metric)
        gain = statistics.mean(gains)
        if alone != name:
            called += f" ({corruption}: `{alone}`, {change:+.1f} % at {gain:+.2f} dB)"
        if change > -STEADIER:
            short.append(f"{corruption} {change:+.1f} %")
        if (gain if higher else -gain) < 0:
            error = statistics.stdev(gains) / len(gains) ** 0.5
            worse.append(f"{corruption} {gain:+.4f}, standard error {error:.4f}")
    told = [f"not under {', '.join(short)}"] if short else []
    told += [f"less accurate under {', '.join(worse)}"] if worse else []
    verdict = "reached" if not told else f"**not reached** ({'; '.join(told)})"
    if task == "depth":
        closer = sum(
            _number(each.overall[name]["delta1"]) > _number(each.overall[BASE]["delta1"]) for each in found.values()
        )
        verdict += f"; the share of pixels within 1.25 times the truth rises in {closer} of {len(found)} rows"
    if task == "enhance":
        truth, before = (_number(found["jpeg"].overall[row]["instability"]) for row in (TRUTH, BASE))
        verdict += (
            f"; the truth's own instability is {truth:.4f}, that of the network under jpeg {before:.4f}: most of it is "
            "motion, and less of it is no merit"
        )
    return (
        f"{TITLES[task]}: at least {STEADIER:.0f} % steadier under each of the five corruptions with {called}, and no "
        f"less accurate than the network alone: {verdict}."
    )


def _gains(each: Evaluation, name: str, metric: str) -> list[float]:
    """What an adapter adds to a measure, recording by recording."""
    numbers = [video.numbers for video in each.videos]
    return [_number(found[name][metric]) - _number(found[BASE][metric]) for found in numbers]


def _change(each: Evaluation, name: str) -> float:
    """Of instability against the network alone, in per cent."""
    return 100 * (_number(each.overall[name]["instability"]) / _number(each.overall[BASE]["instability"]) - 1)


def _number(value: float | None) -> float:
    assert value is not None
    return value


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
