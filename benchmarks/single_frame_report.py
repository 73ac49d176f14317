"""What benchmarks/single_frame.py found, in the form of the paper's figures 3 to 7 and tables 3 and 4.

    python benchmarks/single_frame_report.py [--from FOLDER ...]

With --from, what is finished in the folders of the study is gathered into docs/single-frame first, with the pictures
that need the networks. The block of docs/results.md between the two marks is made of these files alone; a test makes it
again and compares.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from unflicker.checks import InputError
from unflicker.recipes.single_frame import load_single_frame

if TYPE_CHECKING:
    from single_frame import Study

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "single-frame"
BEGIN, END = "<!-- single-frame: made by benchmarks/single_frame_report.py -->", "<!-- single-frame: end -->"
APPLICATIONS = {"hdr": "HDR from one exposure", "color": "Colour from grey"}
PLAIN, AUGMENTED = "no term", "augmentation"
DATA = {
    "hdr": "Procedural pictures and sequences, counted where the camera clipped, in logarithms; the peak is ln 100.",
    "color": "Squares out of frames of our training clips stand in for CelebA, and our test clips for YouTube Faces; "
    "PSNR is that of a / 100 and b / 100.",
}
TERMS = ("noise stability", "warp stability", "transform invariance", "sparse Jacobian")
NEW = ("transform invariance", "sparse Jacobian")
COLOURS = dict(
    zip((*TERMS, PLAIN, AUGMENTED), ("#7f7f7f", "#d62728", "#1f77b4", "#2ca02c", "black", "#9467bd"), strict=True)
)
# Tables 3 and 4: what a row is, and PSNR and smoothness as published. 0.95 and 0.8 are ratios of 19 and 4.
ROWS: tuple[tuple[str, str, float], ...] = (
    ("baseline", "baseline", 0),
    ("fine-tuning, no term", PLAIN, 0),
    ("transform invariance, r = 32 (paper: 19)", "transform invariance", 32),
    ("transform invariance, r = 8 (paper: 4)", "transform invariance", 8),
    ("sparse Jacobian, r = 32 (paper: 19)", "sparse Jacobian", 32),
    ("blind video consistency", "blind", 0),
)
PAPER = {
    "hdr": (
        (25.5131, 5.9951),
        (25.9865, 5.8538),
        (24.1678, 10.6435),
        (25.4374, 8.0798),
        (24.7287, 7.3048),
        (25.3702, 7.2035),
    ),
    "color": (
        (18.5805, 0.7243),
        (18.4315, 0.6348),
        (18.8880, 2.8934),
        (18.9437, 1.9074),
        (18.8852, 2.5079),
        (18.6086, 1.0287),
    ),
}


def main() -> None:
    from results_page import put  # beside this script

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="sources", type=Path, nargs="+", help="the --out folders of single_frame.py")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for source in arguments.sources or ():
        gather(source)
    found = read()
    sensitivity_figure()
    for each in found.values():
        curves_figure(each)
    put(BEGIN, END, block(found))
    print(f"docs/results.md has {', '.join(f'{len(each.runs)} runs of {name}' for name, each in found.items())}.")


# --- what was found ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A number over several fine-tunings: mean and standard deviation (0 for one) of PSNR and smoothness."""

    psnr: float
    psnr_spread: float
    smooth: float
    smooth_spread: float
    mean: float
    """Smoothness averaged over the sequences, where `smooth` is the median."""
    seeds: int


@dataclass(frozen=True)
class Found:
    """A study as committed."""

    application: str
    recipe: dict[str, Any]
    runs: list[dict[str, Any]]
    references: dict[str, dict[str, float]]
    """The baseline, and what any network must beat: the input as it is, or grey."""
    rates: dict[str, float]

    def point(self, term: str, ratio: float) -> Point | None:
        rows = [each for each in self.runs if each["term"] == term and each["ratio"] == ratio]
        if term in self.references:
            rows = [self.references[term]]
        if term == "blind":
            file = FOLDER / f"blind-{self.application}.json"
            rows = [_blind(file)] if file.exists() else []
        if not rows:
            return None
        psnr, smooth, mean = (
            np.array([row.get(name, row["smoothness"]) for row in rows]) for name in ("psnr", "smoothness", "mean")
        )
        return Point(*_spread(psnr), *_spread(smooth), float(mean.mean()), len(rows))

    def ratios(self, term: str) -> list[float]:
        return sorted({each["ratio"] for each in self.runs if each["term"] == term})

    def need(self, term: str, ratio: float = 0) -> Point:
        point = self.point(term, ratio)
        assert point is not None
        return point


def _spread(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def read() -> dict[str, Found]:
    """The studies that are there.

    Raises:
        InputError: there is none.
    """
    found = {}
    for name in APPLICATIONS:
        file = FOLDER / f"{name}.json"
        if file.exists():
            found[name] = Found(name, **json.loads(file.read_text(encoding="utf-8")))
    if not found:
        raise InputError(f"{FOLDER} has no study; run benchmarks/single_frame.py, and this with --from.")
    return found


def gather(source: Path) -> None:
    """Bring what is finished together, and paint what needs the networks."""
    from single_frame import Study

    recipe = load_single_frame(source / "recipe.yaml")
    study = Study(recipe, source)
    files = sorted((source / "runs").glob("*.json"))
    if not files:
        raise InputError(f"{source} has no finished run yet.")
    runs = []
    for file in files:
        row = json.loads(file.read_text(encoding="utf-8"))
        runs.append({key: row[key] for key in ("term", "ratio", "seed", "seconds")} | _numbers(row["sequences"]))
    runs.sort(key=lambda row: (row["ratio"], row["term"], row["seed"]))
    baseline = json.loads((source / "baseline.json").read_text(encoding="utf-8"))
    trivial = {
        each[0]: study.application.measured(_trivial(recipe.application, each[1]), each) for each in study.sequences
    }
    rates = source / "rates.json"
    told = recipe.model_dump(mode="json")
    told["data"] |= {"root": None, "videos": None}  # where they lay is nobody's business
    facts = {
        "recipe": told,
        "references": {"baseline": _numbers(baseline["sequences"]), "trivial": _numbers(trivial)},
        "rates": json.loads(rates.read_text(encoding="utf-8")) if rates.exists() else {},
    }
    text = json.dumps({**facts, "runs": runs}, indent=0).replace("\n", " ").replace("}, {", "},\n{")
    (FOLDER / f"{recipe.application}.json").write_text(text + "\n", encoding="utf-8")
    paint(study)


def _numbers(sequences: dict[str, dict[str, float]]) -> dict[str, float]:
    """PSNR and smoothness of a run over its sequences."""
    rows = list(sequences.values())
    smooth = [row["smoothness"] for row in rows]
    own = sum(row["energy"] for row in rows)  # none in what never changes
    numbers = {
        "psnr": float(np.mean([row["psnr"] for row in rows])),
        "smoothness": float(np.median(smooth)),
        "mean": float(np.mean(smooth)),
        "pooled": math.sqrt(sum(row["truth energy"] for row in rows) / own) if own else math.inf,
    }
    return {name: round(value, 5) if math.isfinite(value) else 1e9 for name, value in numbers.items()}


def _blind(file: Path) -> dict[str, float]:
    """What benchmarks/blind_consistency.py measured, as the runs are told."""
    rows = [row["blind"] for row in json.loads(file.read_text(encoding="utf-8"))["sequences"].values()]
    smooth = [row["smoothness"] for row in rows]
    psnr = float(np.mean([row["psnr"] for row in rows]))
    return {"psnr": psnr, "smoothness": float(np.median(smooth)), "mean": float(np.mean(smooth))}


def _trivial(application: str, x: Tensor) -> Tensor:
    """The clipped input as it is; or grey."""
    return torch.log(x.square() + 1 / 255) if application == "hdr" else torch.zeros_like(x).expand(-1, 2, -1, -1)


# --- the block --------------------------------------------------------------------------------------------------------


def block(found: dict[str, Found]) -> str:
    """The part of docs/results.md that is made of the studies."""
    lines = [BEGIN, ""]
    for each in found.values():
        lines += [*_table(each), ""]
        if each.application == "color" and (best := max(row["psnr"] for row in each.runs)) < each.need("trivial").psnr:
            told = f"None of these networks comes as near as grey (the best: {best:.2f} dB): so few pictures of so few"
            lines += [f"{told} scenes teach little, and smoothness of what is wrong is no merit.", ""]
    lines += ["Whether the paper's findings hold here, by the median smoothness:", ""]
    lines += [f"- {line}" for line in _findings(found)]
    lines += ["", *_pictures(found)]
    return "\n".join([*lines, END])


def _table(found: Found) -> list[str]:
    data, before, after = (found.recipe[key] for key in ("data", "pretraining", "finetuning"))
    trivial, base = found.need("trivial"), found.need("baseline")
    what = "the clipped input itself has" if found.application == "hdr" else "grey would have"
    seeds = sorted({row["seed"] for row in found.runs})
    moved = ", the warp being of the light before it is clipped" if found.recipe["grid"]["moves"] == "light" else ""
    rate = f"learning rate {after['learning_rate']:g}"
    if found.rates:
        tried = ", ".join(f"{name}: {value:.2f} dB" for name, value in found.rates.items())
        rate += f" (on validation pictures without a term, {tried})"
    lines = [
        f"**{APPLICATIONS[found.application]}.** {DATA[found.application]} "
        f"{data['images']} pictures of {data['size']}x{data['size']}, "
        f"{before['steps']} steps of {before['batch']} before and {after['steps']} of {after['batch']} of "
        f"fine-tuning{moved}, {rate}; {data['sequences']} test sequences of up to {data['frames']} frames; "
        f"{len(found.runs)} fine-tunings, seeds {seeds[0]} to {seeds[-1]}. Beside that, {what} {trivial.psnr:.2f} dB. "
        "S is the median over the sequences, in brackets their mean; of several seeds the mean and standard deviation.",
        "",
        "| training | PSNR, dB | S | change | S ratio | seeds | paper: change | paper: S ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    theirs = PAPER[found.application]
    for (label, term, ratio), (psnr, smooth) in zip(ROWS, theirs, strict=True):
        point = found.point(term, ratio)
        if point is None:
            continue
        mine = f"{point.psnr:.2f}{_deviation(point.psnr_spread, point.seeds)}"
        steady = f"{point.smooth:.3f}{_deviation(point.smooth_spread, point.seeds)} ({point.mean:.3f})"
        lines.append(
            f"| {label} | {mine} | {steady} | {point.psnr - base.psnr:+.2f} | {point.smooth / base.smooth:.2f} "
            f"| {point.seeds} | {psnr - theirs[0][0]:+.2f} | {smooth / theirs[0][1]:.2f} |"
        )
    lines += ["", f"![PSNR and smoothness against the ratio](single-frame/{found.application}.png)"]
    missing = [r for r in found.recipe["grid"]["ratios"] if not all(found.point(term, r) for term in TERMS)]
    if missing:
        lines += ["", f"Not run: r = {', '.join(f'{r:g}' for r in missing)} for some of the terms."]
    return lines


def _deviation(spread: float, seeds: int) -> str:
    return f" ± {spread:.2g}" if seeds > 1 else ""


def _findings(found: dict[str, Found]) -> list[str]:
    lines = []
    for name, each in found.items():
        if each.point(PLAIN, 0) is None:
            continue
        where = APPLICATIONS[name]
        for line in (_aim(each), _both_beat(each), _noise(each), _collapse(each), _monotone(each), _flat(each)):
            if line:
                lines.append(f"{where}: {line}")
    return lines


def _verdict(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def _against(found: Found, term: str, ratio: float, reference: str = PLAIN) -> tuple[float, float] | None:
    """PSNR in dB and smoothness in percent, against fine-tuning without a term."""
    point, plain = found.point(term, ratio), found.point(reference, 0)
    if point is None or plain is None:
        return None
    return point.psnr - plain.psnr, 100 * (point.smooth / plain.smooth - 1)


def _told(changes: Iterable[tuple[str, tuple[float, float]]]) -> str:
    return "; ".join(f"{label} {psnr:+.2f} dB, S {smooth:+.0f} %" for label, (psnr, smooth) in changes)


def _aim(found: Found) -> str:
    changes = {term: change for term in NEW if (change := _against(found, term, 8))}
    if found.application != "hdr" or len(changes) < len(NEW):
        return ""
    holds = all(psnr >= -0.1 and smooth >= 15 for psnr, smooth in changes.values())
    return (
        f"our aim, at r = 8 both new terms at least 15 % smoother than without, and at most 0.1 dB below: "
        f"{_verdict(holds)} ({_told(changes.items())})."
    )


def _both_beat(found: Found) -> str:
    changes, holds = [], True
    for ratio in (8, 32):
        for term in NEW:
            plain, augmented = _against(found, term, ratio), _against(found, term, ratio, AUGMENTED)
            if plain is None or augmented is None:
                return ""
            holds = holds and min(*plain, *augmented) > 0
            changes.append((f"{term}, r = {ratio:g},", plain))
    extra = _against(found, AUGMENTED, 0)
    assert extra is not None
    return (
        f"(i) at r = 8 and 32 both new terms beat no term and augmentation in PSNR and S: {_verdict(holds)} (against "
        f"no term: {_told([*changes, (AUGMENTED, extra)])})."
    )


def _noise(found: Found) -> str:
    gains = {}
    for term in TERMS:
        changes = [_against(found, term, ratio) for ratio in (8, 32)]
        if any(change is None for change in changes):
            return ""
        gains[term] = sum(change[1] for change in changes if change) / 2
    told = ", ".join(f"{term} {gain:+.0f} %" for term, gain in gains.items())
    return (
        f"(ii) stability against noise has the smallest gain of S (r = 8 and 32 averaged): "
        f"{_verdict(min(gains, key=lambda term: gains[term]) == 'noise stability')} ({told})."
    )


def _collapse(found: Found) -> str:
    ratios = [ratio for ratio in found.ratios("warp stability") if ratio >= 128]
    if found.application != "hdr" or not ratios:
        return ""
    trivial, plain = found.need("trivial").psnr, found.need(PLAIN).psnr
    values = {ratio: found.need("warp stability", ratio).psnr for ratio in ratios}
    holds = all(abs(value - trivial) < abs(value - plain) for value in values.values())
    told = ", ".join(f"r = {ratio:g}: {value:.2f} dB" for ratio, value in values.items())
    return (
        f"(iii) stability against the warp comes nearer to the error of the clipped input than to that without a term, "
        f"for r from 128: {_verdict(holds)} ({told}; clipped input {trivial:.2f} dB, no term {plain:.2f} dB)."
    )


def _monotone(found: Found) -> str:
    ratios = found.ratios("transform invariance")
    if len(ratios) < 3:
        return ""
    values = [found.need(PLAIN).smooth, *(found.need("transform invariance", ratio).smooth for ratio in ratios)]
    told = ", ".join(f"{ratio:g}: {value:.3f}" for ratio, value in zip([0.0, *ratios], values, strict=True))
    return f"(iv) S grows with r for transform invariance: {_verdict(values == sorted(values))} (r = {told})."


def _flat(found: Found) -> str:
    ratios = found.ratios("sparse Jacobian")
    common = [ratio for ratio in ratios if all(found.point(term, ratio) for term in TERMS)]
    if len(common) < 3:
        return ""
    ranges = {}
    for term in TERMS:
        values = [found.need(term, ratio).psnr for ratio in common]
        ranges[term] = max(values) - min(values)
    told = ", ".join(f"{term} {value:.2f} dB" for term, value in ranges.items())
    return (
        f"(v) the PSNR of the sparse Jacobian changes least with r, from {common[0]:g} to {common[-1]:g}: "
        f"{_verdict(min(ranges, key=lambda term: ranges[term]) == 'sparse Jacobian')} (highest less lowest: {told})."
    )


def _pictures(found: dict[str, Found]) -> list[str]:
    lines = ["![What S sees, beside what the eye sees](single-frame/sensitivity.png)", ""]
    for name in found:
        if (FOLDER / f"{name}-traces.png").exists():
            lines += [f"![Single pixels over time](single-frame/{name}-traces.png)", ""]
        if (FOLDER / f"{name}-differences.png").exists():
            lines += [f"![What changes between two frames](single-frame/{name}-differences.png)", ""]
    return lines


# --- figures ----------------------------------------------------------------------------------------------------------


def sensitivity(rho: float, frequency: np.ndarray) -> np.ndarray:
    """Contrast sensitivity of the eye to `rho` cycles a degree that pass `frequency` times a second.

    The spatio-velocity surface of Kelly (1979) as Daly wrote it, with the constants that Laird et al. (SPIE 6057, 2006)
    fitted for eyes that move freely; a pattern at rest still drifts by 0.1 degrees a second.
    """
    c0, c1, c2 = 0.6329, 0.8404, 0.7986
    v = c2 * np.maximum(frequency / rho, 0.1)
    k = 6.1 + 7.3 * np.abs(np.log10(v / 3)) ** 3
    return k * c0 * c1 * v * (2 * math.pi * c1 * rho) ** 2 * np.exp(-4 * math.pi * c1 * rho * (v + 2) / 45.9)


def sensitivity_figure() -> None:
    """Figure 3: how much of a change S counts, by its frequency, beside how well it is seen."""
    figure, axes = _figure(1, (7, 3.2))
    f = np.geomspace(0.1, 60, 400)
    axes[0].plot(f, 1 - np.exp(-2 * math.pi**2 * 0.15**2 * f**2), color="black", linewidth=2, label="S, amplitude")
    curves = {rho: sensitivity(rho, f) for rho in (1, 2, 4, 8)}
    highest = max(curve.max() for curve in curves.values())
    for rho, curve in curves.items():
        axes[0].plot(f, curve / highest, label=f"eye, {rho} cycles/degree")
    axes[0].set(xscale="log", xlabel="Hz", ylabel="share of the highest", xlim=(0.1, 60), ylim=(0, 1.05))
    axes[0].set_title("What the smoothness S sees, beside the eye (Laird et al. 2006)", fontsize=9)
    figure.legend(fontsize=7, loc="outside right center")
    _save(figure, FOLDER / "sensitivity.png")


def curves_figure(found: Found) -> None:
    """Figures 4 and 5: PSNR and smoothness against the ratio."""
    figure, axes = _figure(2, (9, 3.4))
    ratios = sorted({row["ratio"] for row in found.runs if row["ratio"]})
    for axis, (value, spread) in zip(axes, (("psnr", "psnr_spread"), ("smooth", "smooth_spread")), strict=True):
        for term in TERMS:
            mine = found.ratios(term)
            points = [found.need(term, ratio) for ratio in mine]
            if points:
                middle, band = (np.array([getattr(p, name) for p in points]) for name in (value, spread))
                axis.plot(mine, middle, marker="o", markersize=3, color=COLOURS[term], label=term)
                axis.fill_between(mine, middle - band, middle + band, color=COLOURS[term], alpha=0.2, linewidth=0)
        for term, style in (("baseline", "-"), (PLAIN, ":"), (AUGMENTED, "--")):
            point = found.point(term, 0)
            if point is not None:
                axis.axhline(
                    getattr(point, value), color=COLOURS.get(term, "black"), linestyle=style, linewidth=1, label=term
                )
        axis.set_xscale("log", base=2)
        axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axis.set_xlabel("r, term to reconstruction")
    axes[0].set_ylabel("PSNR, dB")
    axes[1].set_ylabel("smoothness S, median")
    axes[1].set_yscale("log")
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter("{x:g}")
    axes[1].tick_params(axis="y", which="both", labelsize=7)
    axes[1].legend(fontsize=7)
    figure.suptitle(APPLICATIONS[found.application], fontsize=10)
    _save(figure, FOLDER / f"{found.application}.png")


def paint(study: Study) -> None:
    """Figures 6 and 7, of the sequence on which the baseline is least smooth; seed 0."""
    from single_frame import video

    shown = {
        "baseline": "baseline",
        PLAIN: "no-term-0-0",
        "transform invariance, r = 32": "transform-invariance-32-0",
        "sparse Jacobian, r = 32": "sparse-Jacobian-32-0",
    }
    files = {label: study.folder / "weights" / f"{name}.safetensors" for label, name in shown.items()}
    if not all(file.exists() for file in files.values()):
        return
    numbers = json.loads((study.folder / "baseline.json").read_text(encoding="utf-8"))["sequences"]
    sequence = min(study.sequences, key=lambda each: numbers[each[0]]["smoothness"])
    name, x, y, _ = sequence
    truth = study.application.domain(y)
    outputs = {}
    for label, file in files.items():
        network = study.application.network().eval()
        network.load_state_dict(load_file(file))
        outputs[label] = video(network, x)
    counted = torch.ones_like(x) if study.application.counted is None else study.application.counted(x)
    hdr = study.recipe.application == "hdr"
    traces_figure(name, outputs, truth, counted, FOLDER / f"{study.recipe.application}-traces.png", hdr)
    differences_figure(name, outputs, truth, counted, FOLDER / f"{study.recipe.application}-differences.png")


def traces_figure(name: str, outputs: dict[str, Tensor], truth: Tensor, counted: Tensor, file: Path, hdr: bool) -> None:
    """Figure 6: the first channel of the pixel that the baseline makes flicker most, of those that always count."""
    always = counted.amin(0)[0] > 0
    change = (outputs["baseline"][1:, 0] - outputs["baseline"][:-1, 0] - truth[1:, 0] + truth[:-1, 0]).square().mean(0)
    place = int(torch.where(always, change, -1).argmax())
    row, column = divmod(place, truth.shape[-1])
    figure, axes = _figure(1, (8, 3))
    axes[0].plot(truth[:, 0, row, column], color="grey", linewidth=2.5, alpha=0.6, label="truth")
    for (label, output), colour in zip(outputs.items(), ("#ff7f0e", "black", "#1f77b4", "#2ca02c"), strict=True):
        axes[0].plot(output[:, 0, row, column], label=label, color=colour, linewidth=1.2)
    axes[0].set(xlabel="frame", ylabel="ln(luminance + 1/255)" if hdr else "a / 100")
    axes[0].set_title(f"{name}, pixel ({column}, {row}): where the baseline flickers most", fontsize=9)
    axes[0].legend(fontsize=7)
    _save(figure, file)


def differences_figure(name: str, outputs: dict[str, Tensor], truth: Tensor, counted: Tensor, file: Path) -> None:
    """Figure 7: |frame - frame before|, in the middle of the sequence."""
    n = len(truth) // 2
    shown = {"truth": truth, **outputs}
    maps = {label: ((clip[n] - clip[n - 1]) * counted[n]).abs().mean(0) for label, clip in shown.items()}
    highest = float(torch.quantile(maps["baseline"], 0.995))
    figure, axes = _figure(len(maps), (2 * len(maps), 2.3))
    for axis, (label, picture) in zip(axes, maps.items(), strict=True):
        axis.imshow(picture, cmap="magma", vmin=0, vmax=highest)
        axis.set_title(label, fontsize=7)
        axis.set_axis_off()
    figure.suptitle(f"{name}, |frame {n} - frame {n - 1}|", fontsize=8)
    _save(figure, file)


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=90, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, metadata={"Software": None})


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
