"""What benchmarks/composition.py found, beside the paper: a table and findings in docs/results.md.

    python benchmarks/composition_report.py [--from FOLDER]

With --from, what is finished there is gathered into docs/composition/results.json first. The block of docs/results.md
between the two marks is made of that file alone; a test makes it again and compares.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from unflicker.checks import InputError
from unflicker.results import BASE, TRUTH, Evaluation

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "composition" / "results.json"
BEGIN, END = "<!-- composition: made by benchmarks/composition_report.py -->", "<!-- composition: end -->"
OURS = "composed"
# Table 3: PSNR and instability of the composed adapters, then of the network alone.
PAPER = {
    "patch-drop+elastic": (29.53, 22.64, 18.56, 152.40),
    "patch-drop+frame-drop": (33.88, 19.15, 17.47, 218.69),
    "patch-drop+jpeg": (29.07, 31.67, 18.51, 152.60),
    "patch-drop+impulse": (24.83, 60.89, 17.49, 153.96),
    "elastic+patch-drop": (29.93, 19.24, 18.42, 155.24),
    "elastic+frame-drop": (28.01, 17.79, 25.65, 129.61),
    "elastic+jpeg": (29.11, 18.46, 25.94, 53.75),
    "elastic+impulse": (27.20, 16.22, 22.95, 69.70),
    "frame-drop+patch-drop": (33.84, 19.79, 17.50, 218.18),
    "frame-drop+elastic": (29.67, 18.69, 25.65, 130.22),
    "frame-drop+jpeg": (25.99, 17.59, 26.56, 124.21),
    "frame-drop+impulse": (28.95, 57.28, 23.14, 103.00),
    "jpeg+patch-drop": (30.55, 21.88, 18.41, 154.20),
    "jpeg+elastic": (29.19, 18.16, 25.81, 54.48),
    "jpeg+frame-drop": (25.87, 17.16, 26.56, 124.21),
    "jpeg+impulse": (28.40, 19.74, 23.93, 65.24),
    "impulse+patch-drop": (30.14, 24.61, 16.98, 163.34),
    "impulse+elastic": (26.73, 17.86, 23.38, 62.01),
    "impulse+frame-drop": (28.94, 21.21, 22.66, 138.58),
    "impulse+jpeg": (25.25, 39.47, 21.55, 89.25),
}
SEEN, HIDDEN = "jpeg+impulse", "impulse+jpeg"  # the paper's example of a second corruption that hides the first

Found = dict[str, Any]


def main() -> None:
    from results_page import put  # beside this script

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="what benchmarks/composition.py wrote"
    )
    arguments = parser.parse_args()
    if arguments.source is not None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(gather(arguments.source), indent=1) + "\n", encoding="utf-8")
    put(BEGIN, END, block(read()))


def gather(source: Path) -> Found:
    """Bring together what is finished: the runs' validation losses, and the numbers of each pair over all clips."""
    files = {pair: source / "evaluations" / f"{pair}.json" for pair in PAPER}
    pairs = {pair: Evaluation.read(file) for pair, file in files.items() if file.exists()}
    if not pairs:
        raise InputError(f"{source} has no evaluation; run benchmarks/composition.py first.")
    runs = {file.parent.name: json.loads(file.read_text()) for file in sorted(source.glob("runs/*/result.json"))}
    first = next(iter(pairs.values()))
    return {
        "clips": len(first.videos),
        "frames": first.frames,
        "size": [first.videos[0].height, first.videos[0].width],
        "steps": max(run["steps"] for run in runs.values()),
        "validation": {name: run["validation"] for name, run in runs.items()},
        "pairs": {pair: each.overall for pair, each in pairs.items()},
    }


def read() -> Found:
    """What was gathered.

    Raises:
        InputError: nothing was.
    """
    if not RESULTS.exists():
        raise InputError(f"There is no {RESULTS}; run benchmarks/composition.py, and this with --from.")
    found: Found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def block(found: Found) -> str:
    """The part of docs/results.md that is made of the numbers."""
    height, width = found["size"]
    truth = next(iter(found["pairs"].values()))[TRUTH]["instability"]
    lines = [
        BEGIN,
        "",
        f"{len(found['pairs'])} of the {len(PAPER)} ordered pairs, {found['clips']} test clips, {found['frames']} "
        f"frames of {width}x{height}, {found['steps']} steps for each adapter. The truth's own instability is "
        f"{truth:.4f}.",
        "",
        "| first | second | PSNR, dB: alone | composed | instability: alone | composed | | paper: PSNR | paper: "
        "instability |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for pair, each in found["pairs"].items():
        base, ours = each[BASE], each[OURS]
        psnr, instability, psnr_alone, instability_alone = PAPER[pair]
        row = [*pair.split("+"), f"{base['psnr']:.2f}", f"{ours['psnr']:.2f}"]
        row += [f"{base['instability']:.4f}", f"{ours['instability']:.4f}", f"{_change(each):+.0f} %"]
        row += [f"{psnr_alone:.2f} to {psnr:.2f}", f"{100 * (instability / instability_alone - 1):+.0f} %"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in _findings(found["pairs"])), "", END])


def _findings(pairs: Found) -> list[str]:
    fail = {pair: each for pair, each in pairs.items() if _gain(each) <= 0 or _change(each) >= 0}
    theirs = sum(psnr > alone and after < before for psnr, after, alone, before in PAPER.values())
    told = f"; not {_listed(fail)}" if fail else ""
    lines = [
        f"Two adapters that never saw each other improve both measures in {len(pairs) - len(fail)} of {len(pairs)} "
        f"ordered pairs{told}. The paper: {theirs} of {len(PAPER)}."
    ]
    if SEEN in pairs and HIDDEN in pairs:
        seen, hidden = pairs[SEEN], pairs[HIDDEN]
        holds = seen[OURS]["psnr"] > hidden[OURS]["psnr"] and _gain(seen) > _gain(hidden)
        lines.append(
            "They are effective unless the second corruption hides the first, as JPEG hides impulses (the paper: "
            f"{PAPER[SEEN][0]:.2f} dB for JPEG, then impulses, and {PAPER[HIDDEN][0]:.2f} dB for impulses, then JPEG): "
            f"{'holds' if holds else '**does not hold**'} ({seen[OURS]['psnr']:.2f} dB, {_gain(seen):+.2f} against the "
            f"network alone, and {hidden[OURS]['psnr']:.2f} dB, {_gain(hidden):+.2f})."
        )
    least = dict(sorted(pairs.items(), key=lambda item: _gain(item[1]))[:4])
    lines.append(f"The smallest gains: {_listed(least)}.")
    frozen = {pair: each for pair, each in pairs.items() if each[OURS]["instability"] < each[TRUTH]["instability"]}
    if frozen:
        names = "; ".join(pair.replace("+", ", then ") for pair in frozen)
        lines.append(f"Steadier than the truth, so that motion was lost as well: {len(frozen)} pairs ({names}).")
    return lines


def _listed(pairs: Found) -> str:
    return "; ".join(
        f"{pair.replace('+', ', then ')} ({_gain(each):+.2f} dB, {_change(each):+.0f} %)"
        for pair, each in pairs.items()
    )


def _gain(each: Found) -> float:
    """Of PSNR against the network alone, in dB."""
    gain: float = each[OURS]["psnr"] - each[BASE]["psnr"]
    return gain


def _change(each: Found) -> float:
    """Of instability against the network alone, in per cent."""
    change: float = 100 * (each[OURS]["instability"] / each[BASE]["instability"] - 1)
    return change


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
