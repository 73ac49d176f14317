"""What benchmarks/study.py found, beside the paper: tables, figures and findings in docs/results.md.

    python benchmarks/study_report.py [--from FOLDER]

With --from, what is finished there is added to docs/study/*.json first, in place of what has the same name. The block
of docs/results.md between the two marks is made of these files alone; a test makes it again and compares.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from unflicker.checks import InputError
from unflicker.results import BASE, TRUTH, Evaluation
from unflicker.tradeoff import figure, frontier

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- study: made by benchmarks/study_report.py -->", "<!-- study: end -->"
STUDIES = {"denoise-0.1": "Noise 0.1", "denoise-0.6": "Noise 0.6", "enhance": "Enhancement, moderate"}
# Instability and PSNR as published (tables 5 to 7, NFS); the network alone is what output-fixed tends to.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "denoise-0.1": {
        BASE: (26.22, 36.64),
        "output-fixed 0.98": (25.64, 36.70),
        "output-fixed 0.95": (24.79, 36.76),
        "output-fixed 0.9": (23.43, 36.79),
        "output-fixed 0.8": (20.91, 36.58),
        "output-fixed 0.6": (16.37, 35.34),
        "gaussian 0.5": (22.87, 36.77),
        "gaussian 1": (16.33, 35.41),
        "gaussian 2": (11.90, 32.96),
        "simple-fixed 0.98": (30.21, 34.67),
        "simple-fixed 0.95": (40.44, 31.30),
        "simple-fixed 0.9": (53.94, 28.14),
        "simple-fixed 0.8": (65.09, 25.62),
        "learned 0.1": (22.98, 36.82),
        "learned 0.2": (21.80, 36.74),
        "learned 0.4": (19.46, 36.36),
        "learned 0.8": (15.38, 35.00),
        "controlled 0.1": (22.21, 37.51),
        "controlled 0.2": (21.28, 37.41),
        "controlled 0.4": (19.01, 37.00),
        "controlled 0.8": (14.61, 35.76),
        "spatial 0.1": (22.13, 37.65),
        "spatial 0.2": (21.10, 37.57),
        "spatial 0.4": (18.94, 37.15),
        "spatial 0.8": (14.25, 34.94),
    },
    "denoise-0.6": {
        BASE: (36.15, 27.69),
        "output-fixed 0.98": (35.13, 27.75),
        "output-fixed 0.95": (33.65, 27.83),
        "output-fixed 0.9": (31.30, 27.94),
        "output-fixed 0.8": (26.98, 28.12),
        "output-fixed 0.6": (19.53, 28.27),
        "gaussian 0.5": (30.23, 27.98),
        "gaussian 1": (18.55, 28.26),
        "gaussian 2": (11.82, 28.02),
        "simple-fixed 0.98": (64.92, 24.36),
        "simple-fixed 0.95": (119.74, 20.09),
        "simple-fixed 0.9": (180.81, 16.56),
        "simple-fixed 0.8": (230.73, 13.86),
        "learned 0.1": (20.24, 28.29),
        "learned 0.2": (17.73, 28.27),
        "learned 0.4": (14.25, 28.13),
        "learned 0.8": (10.21, 27.69),
        "controlled 0.1": (19.47, 29.22),
        "controlled 0.2": (17.26, 29.15),
        "controlled 0.4": (13.67, 28.92),
        "controlled 0.8": (10.12, 28.45),
        "spatial 0.1": (15.20, 22.00),
        "spatial 0.2": (16.55, 21.73),
        "spatial 0.4": (9.09, 22.28),
        "spatial 0.8": (11.66, 22.45),
    },
    "enhance": {
        BASE: (33.06, 30.93),
        "gaussian 0.5": (29.46, 30.70),
        "gaussian 1": (22.23, 29.26),
        "gaussian 2": (16.49, 27.38),
        "output-fixed 0.98": (32.42, 30.91),
        "output-fixed 0.95": (31.50, 30.87),
        "output-fixed 0.9": (30.00, 30.76),
        "output-fixed 0.8": (27.16, 30.40),
        "output-fixed 0.6": (21.80, 29.26),
        "simple-fixed 0.98": (32.55, 30.90),
        "simple-fixed 0.95": (31.61, 30.82),
        "simple-fixed 0.9": (29.76, 30.59),
        "simple-fixed 0.8": (25.88, 29.90),
        "learned 0.1": (32.44, 30.92),
        "learned 0.2": (31.34, 30.87),
        "learned 0.4": (28.96, 30.66),
        "learned 0.8": (23.60, 29.75),
        "controlled 0.1": (31.78, 31.25),
        "controlled 0.2": (30.57, 31.13),
        "controlled 0.4": (28.00, 30.86),
        "controlled 0.8": (21.79, 29.85),
        "spatial 0.1": (32.38, 32.81),
        "spatial 0.2": (31.29, 32.70),
        "spatial 0.4": (28.66, 32.30),
        "spatial 0.8": (22.31, 31.00),
    },
}
ORDER = (
    *("output-fixed", "gaussian", "simple-fixed", "learned", "controlled", "spatial"),
    *("aligned", "aligned-recover", "aligned-learned", "merged"),
)


def main() -> None:
    from results_page import put  # beside this script

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, help="the --out folder of benchmarks/study.py")
    arguments = parser.parse_args()
    if arguments.source is not None:
        gather(arguments.source)
    found = read()
    figure(
        {STUDIES[name]: frontier(without_collapse(each)) for name, each in found.items()}, DOCS / "study/tradeoff.png"
    )
    put(BEGIN, END, block(found))
    told = ", ".join(f"{len(each.overall) - 2} methods at {name}" for name, each in found.items())
    print(f"docs/results.md has {told}.")


def gather(source: Path) -> None:
    """Put each study's evaluations, one for each method, beside those of docs/study."""
    for name in STUDIES:
        files = sorted((source / name / "evaluations").glob("*.json"))
        if not files:
            continue
        kept = DOCS / "study" / f"{name}.json"
        parts = [Evaluation.read(file) for file in ([kept] if kept.exists() else []) + files]
        first = parts[0]
        if any([v.name for v in part.videos] != [v.name for v in first.videos] for part in parts):
            raise InputError(f"{source / name} was measured on other videos than {kept}; make one of them anew.")
        new = [part for part in parts if part is first or not part.overall.keys() <= first.overall.keys()]
        videos = [
            dataclasses.replace(
                video, numbers={row: each for part in parts for row, each in part.videos[i].numbers.items()}
            )
            for i, video in enumerate(first.videos)
        ]
        whole = dataclasses.replace(
            first,
            overall=_ordered({row: each for part in parts for row, each in part.overall.items()}),
            videos=videos,
            costs={row: each for part in parts for row, each in part.costs.items()},
            strengths={row: each for part in parts for row, each in part.strengths.items()},
            seconds=sum(part.seconds for part in new),
        )
        whole.write(DOCS / "study" / f"{name}.json")


def read() -> dict[str, Evaluation]:
    """The studies that are there.

    Raises:
        InputError: there is none.
    """
    found = {name: DOCS / "study" / f"{name}.json" for name in STUDIES}
    there = {name: Evaluation.read(file) for name, file in found.items() if file.exists()}
    if not there:
        raise InputError(f"{DOCS / 'study'} has no study; run benchmarks/study.py, and this with --from.")
    return there


def without_collapse(evaluation: Evaluation) -> Evaluation:
    """Leave out what nobody wants, and what would squeeze the rest of a figure."""
    far = {name for name in evaluation.overall if name.endswith(" 8") or name.startswith("simple-fixed")}
    return dataclasses.replace(evaluation, overall={k: v for k, v in evaluation.overall.items() if k not in far})


def block(found: Mapping[str, Evaluation]) -> str:
    """The part of docs/results.md that is made of the studies."""
    lines = [BEGIN, "", "![Trade-off, small study](study/tradeoff.png)", ""]
    for name, evaluation in found.items():
        lines += [*_table(name, evaluation), ""]
    lines += ["Which of the paper's findings hold here:", ""]
    lines += [f"- {line}" for line in _findings(found)]
    return "\n".join([*lines, "", END])


def _table(name: str, evaluation: Evaluation) -> list[str]:
    base, paper = evaluation.overall[BASE], PAPER[name]
    truth = evaluation.overall[TRUTH]["instability"]
    first = evaluation.videos[0]
    assert truth is not None
    lines = [
        f"**{STUDIES[name]}** ({len(evaluation.videos)} test clips, {evaluation.frames} frames of "
        f"{first.width}x{first.height}): network alone {base['psnr']:.2f} dB, instability {base['instability']:.4f}, "
        f"of which {truth:.4f} is the truth's own. Changes against the network alone:",
        "",
        "| method | PSNR, dB | instability | TDE | paper: PSNR, dB | paper: instability |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in evaluation.overall:
        if row in (BASE, TRUTH):
            continue
        psnr, change, error = _changes(evaluation, row)
        theirs = ("", "")
        if row in paper:
            theirs = (f"{paper[row][1] - paper[BASE][1]:+.2f}", f"{_percent(paper[row][0], paper[BASE][0]):+.1f} %")
        lines.append(f"| {row} | {psnr:+.2f} | {change:+.1f} % | {error:+.1f} % | {theirs[0]} | {theirs[1]} |")
    return lines


def _changes(evaluation: Evaluation, row: str) -> tuple[float, float, float]:
    """PSNR in dB, instability and temporal-difference error in percent, against the base."""
    mine, base = evaluation.overall[row], evaluation.overall[BASE]
    error = "temporal_difference_error"
    return (
        _number(mine["psnr"]) - _number(base["psnr"]),
        _percent(_number(mine["instability"]), _number(base["instability"])),
        _percent(_number(mine[error]), _number(base[error])),
    )


def _findings(found: Mapping[str, Evaluation]) -> list[str]:
    return [
        *_simple_fixed(found),
        *_both_better(found),
        *_order(found),
        *_fails_when_long(found),
        *_collapse(found),
        *_frame_rate(found),
    ]


def _verdict(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def _simple_fixed(found: Mapping[str, Evaluation]) -> list[str]:
    return _over_settings(
        {name: each for name, each in found.items() if name.startswith("denoise")},
        lambda row: row.startswith("simple-fixed"),
        "A fixed average in all layers makes denoising worse in both measures",
        lambda psnr, change: psnr < 0 and change > 0,
    )


def _both_better(found: Mapping[str, Evaluation]) -> list[str]:
    return _over_settings(
        found,
        lambda row: row in ("controlled 0.1", "controlled 0.2", "controlled 0.4"),
        "Controlled averages improve both measures for lambda up to 0.4",
        lambda psnr, change: psnr > 0 and change < 0,
    )


def _over_settings(
    found: Mapping[str, Evaluation], wanted: Callable[[str], bool], claim: str, holds: Callable[[float, float], bool]
) -> list[str]:
    """Say for each study whether a claim holds for all settings of a method, by dB of PSNR and % of instability."""
    lines = []
    for study, each in found.items():
        changes = {row.split()[1]: _changes(each, row)[:2] for row in each.overall if wanted(row)}
        if changes:
            told = "; ".join(
                f"{setting}: {psnr:+.2f} dB, {change:+.1f} %" for setting, (psnr, change) in changes.items()
            )
            verdict = _verdict(all(holds(*pair) for pair in changes.values()))
            lines.append(f"{claim} ({STUDIES[study].lower()}): {verdict} ({told}).")
    return lines


def _order(found: Mapping[str, Evaluation]) -> list[str]:
    lines = []
    for name, each in found.items():
        rows = [f"{method} 0.2" for method in ("spatial", "controlled", "learned")]
        if name != "denoise-0.6" and all(row in each.overall for row in rows):  # there the paper's spatial fails
            psnr = [_changes(each, row)[0] for row in rows]
            told = ", ".join(f"{row.split()[0]} {value:+.2f} dB" for row, value in zip(rows, psnr, strict=True))
            lines.append(
                "At lambda 0.2 spatial fusion is ahead of controlled averages, and these of learned ones "
                f"({STUDIES[name].lower()}): {_verdict(psnr == sorted(psnr, reverse=True))} ({told})."
            )
    return lines


def _fails_when_long(found: Mapping[str, Evaluation]) -> list[str]:
    each = found.get("denoise-0.6")
    rows = [row for row in each.overall if row.startswith("spatial") and not row.endswith(" 8")] if each else []
    if not each or not rows:
        return []
    changes = {row: _changes(each, row)[0] for row in rows}
    told = ", ".join(f"{row.split()[1]}: {value:+.2f} dB" for row, value in changes.items())
    longest = max(video.frames for video in each.videos)
    return [
        f"Spatial fusion trained on 8 frames fails under extreme noise on long video (the paper: -5.2 to -6.0 dB over "
        f"hundreds of frames): here, on {longest} frames of each clip, {told}."
    ]


def _collapse(found: Mapping[str, Evaluation]) -> list[str]:
    lines = []
    for name, each in found.items():
        rows = [row for row in each.overall if row.endswith(" 8")]
        for row in rows:
            psnr, change, _ = _changes(each, row)
            value = _number(each.overall[row]["instability"])
            lines.append(
                f"Above the collapse bound (lambda 8, 8 frames) the output freezes, instability below 0.001 "
                f"({row.split()[0]}, {STUDIES[name].lower()}): {_verdict(value < 1e-3)} after so few steps "
                f"({value:.4f}, {change:+.1f} %, {psnr:+.2f} dB)."
            )
    return lines


def _frame_rate(found: Mapping[str, Evaluation]) -> list[str]:
    """Our clips of 60 frames a second against those of 12.5 to 30; the paper has 240 and 24."""
    each = found.get("denoise-0.1")
    row = "controlled 0.2"
    if each is None or row not in each.overall:
        return []

    def gain(fast: bool) -> float:
        chosen = [video.numbers for video in each.videos if video.name.startswith("ax_london_pan") == fast]
        return sum(_number(n[row]["psnr"]) - _number(n[BASE]["psnr"]) for n in chosen) / len(chosen)

    fast, slow = gain(True), gain(False)
    return [
        f"The gain shrinks at low frame rates: {_verdict(fast > slow)} between our two clips of 60 frames a second and "
        f"the six of 12.5 to 30 ({row}: {fast:+.2f} dB against {slow:+.2f} dB). But most of the six "
        "stand still, and the two are pans: motion in pixels a frame decides, not the rate."
    ]


def _ordered(rows: Mapping[str, dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """By method, then by setting, in the order of the paper's tables; the base first and the truth last."""

    def place(name: str) -> tuple[int, float]:
        if name in (BASE, TRUTH):
            return (-1 if name == BASE else len(ORDER), 0.0)
        method, _, setting = name.rpartition(" ")
        sign = -1 if method.endswith("fixed") else 1
        return (ORDER.index(method), sign * float(setting))

    return {name: rows[name] for name in sorted(rows, key=place)}


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _percent(value: float, reference: float) -> float:
    return 100 * (value / reference - 1)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
