"""What benchmarks/adversarial.py found, beside the paper: a table and findings in docs/results.md.

    python benchmarks/adversarial_report.py [--from FOLDER]

With --from, what is finished there is gathered into docs/adversarial/results.json first. The block of docs/results.md
between the two marks is made of that file alone; a test makes it again and compares.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from unflicker.checks import InputError
from unflicker.results import BASE, TRUTH, Evaluation

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "adversarial" / "results.json"
BEGIN, END = "<!-- adversarial: made by benchmarks/adversarial_report.py -->", "<!-- adversarial: end -->"
VERSIONS = ("clean", "attacked")
TRAINED = ("controlled", "spatial")
PAPER = (77.0, 88.8)  # accuracy under attack, per cent: ResNet-50 alone, and with stabilizers in its blocks

Found = dict[str, Any]


def main() -> None:
    from results_page import put  # beside this script

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="what benchmarks/adversarial.py wrote"
    )
    arguments = parser.parse_args()
    if arguments.source is not None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(gather(arguments.source), indent=1) + "\n", encoding="utf-8")
    put(BEGIN, END, block(read()))


def gather(source: Path) -> Found:
    """Bring together the runs' validation losses and each method's numbers, clean and attacked."""
    runs = {file.stem: json.loads(file.read_text())["validation"] for file in sorted(source.glob("runs/*.json"))}
    evaluations = {name: Evaluation.read(source / "evaluations" / f"{name}.json") for name in VERSIONS}
    attacked = evaluations["attacked"]
    return {
        "sequences": len(attacked.videos),
        "frames": attacked.frames,
        "validation": runs,
        **{name: each.overall for name, each in evaluations.items()},
        "errors": {name: _error(attacked, name) for name in attacked.overall if name not in (BASE, TRUTH)},
    }


def read() -> Found:
    """What was gathered.

    Raises:
        InputError: nothing was.
    """
    if not RESULTS.exists():
        raise InputError(f"There is no {RESULTS}; run benchmarks/adversarial.py, and this with --from.")
    found: Found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def block(found: Found) -> str:
    """The part of docs/results.md that is made of the numbers."""
    lines = [
        BEGIN,
        "",
        f"{found['sequences']} sequences of scenes held out, {found['frames']} frames, half of them of "
        "persons. Accuracy is over all frames, the first of each sequence included, which no stabilizer can help; in "
        "brackets the standard error over sequences. What changes is the share of pairs of frames that get different "
        "classes.",
        "",
        "| | accuracy, clean | accuracy, attacked | gain under attack | changes, clean | changes, attacked |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, attacked in found["attacked"].items():
        if name == TRUTH:
            continue
        clean = found["clean"][name]
        gain = "" if name == BASE else f"{_gain(found, name):+.1f} points ({100 * found['errors'][name]:.1f})"
        row = ["network alone" if name == BASE else name, f"{100 * clean['accuracy']:.1f} %"]
        row += [f"{100 * attacked['accuracy']:.1f} %", gain]
        row += [f"{100 * clean['instability']:.1f} %", f"{100 * attacked['instability']:.1f} %"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in _findings(found)), "", END])


def _findings(found: Found) -> list[str]:
    alone = 100 * found["attacked"][BASE]["accuracy"]
    told = ", ".join(f"{name} {100 * found['attacked'][name]['accuracy']:.1f} %" for name in TRAINED)
    better = [name for name in TRAINED if _gain(found, name) > 200 * found["errors"][name]]
    clean = ", ".join(
        f"{name} {100 * (found['clean'][name]['accuracy'] - found['clean'][BASE]['accuracy']):+.1f}" for name in TRAINED
    )
    others = {name: found["attacked"][name]["accuracy"] for name in found["errors"] if name not in TRAINED}
    best = max(others, key=lambda name: others[name])
    return [
        f"Stabilizers in the blocks make up for an attack that does not know them (the paper: {PAPER[0]:.1f} to "
        f"{PAPER[1]:.1f} %): {'holds' if better else '**does not hold**'}, by more than two standard errors, for "
        f"{' and '.join(better) or 'neither'} ({alone:.1f} % to {told}).",
        f"What that costs on clean sequences, in points of accuracy: {clean}.",
        f"Without training, on the logits alone, the best is {best}: {100 * others[best]:.1f} %.",
    ]


def _gain(found: Found, name: str) -> float:
    """Of accuracy under attack against the network alone, in points."""
    gain: float = 100 * (found["attacked"][name]["accuracy"] - found["attacked"][BASE]["accuracy"])
    return gain


def _error(each: Evaluation, name: str) -> float:
    """The standard error of a method's gain in accuracy, each sequence with itself."""
    gains = [
        (video.numbers[name]["accuracy"] or 0.0) - (video.numbers[BASE]["accuracy"] or 0.0) for video in each.videos
    ]
    return statistics.stdev(gains) / len(gains) ** 0.5


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
