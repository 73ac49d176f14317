"""Tables and figures of what benchmarks/front.py has finished."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from front_methods import CONDITIONS, METHODS

from unflicker.checks import InputError

Rows = dict[str, dict[str, Any]]
# What the figures show: the conditions of each panel.
FIGURES = {
    "tradeoff_denoise.png": ("denoise", "denoise-heavy"),
    "tradeoff_flicker.png": ("tone", "field", "clahe", "tone-in-fade"),
}
WORST = (25.0, -3.0)  # what is worse than +25 % or -3 dB is drawn there, with its numbers
FAMILIES = {  # colours that stay apart for the colour-blind, and a mark each
    "ema": ("#0072B2", "o", "average of the output"),
    "gaussian": ("#56B4E9", "s", "Gaussian"),
    "learned-ema": ("#CC79A7", "v", "learned average, all layers"),
    "controlled": ("#E69F00", "^", "paper: controlled"),
    "spatial": ("#8C510A", "D", "paper: spatial"),
    "bundled-spatial": ("#C9A227", "d", "bundled spatial"),
    "tmix": ("#999999", "P", "FFmpeg tmix"),
    "hqdn3d": ("#555555", "X", "FFmpeg hqdn3d"),
    "atadenoise": ("#777777", "<", "FFmpeg atadenoise"),
    "deflicker": ("#BBBBBB", ">", "FFmpeg deflicker"),
    "aligned": ("#009E73", "*", "Aligned"),
    "aligned-recover": ("#7B3FA0", "*", "Aligned, detail recovered"),
    "merged": ("#D62728", "*", "Merged"),
    "aligned-output": ("#00C896", "h", "Aligned, output alone"),
    "aligned-torch": ("#005F46", "p", "Aligned, flow in torch"),
    "aligned-learned": ("#D55E00", "*", "Aligned, trained"),
}


def write_report(out: Path) -> None:
    """Write results.json, table.md and the figures of an out folder.

    Raises:
        InputError: nothing has been finished there.
    """
    if not (out / "settings.json").exists():
        raise InputError(f"{out} has no results of benchmarks/front.py; run it with --clips first.")
    settings = json.loads((out / "settings.json").read_text())
    costs = json.loads((out / "costs.json").read_text()) if (out / "costs.json").exists() else {}
    items: dict[str, dict[str, Rows]] = {}
    for path in sorted(out.glob("items/*/*/*.json")):
        condition, video, method = (*path.parts[-3:-1], path.stem)
        items.setdefault(condition, {}).setdefault(method, {})[video] = json.loads(path.read_text())
    if not items:
        raise InputError(f"{out} holds no finished item yet.")
    results = {
        condition: {method: mean(items[condition][method]) for method in METHODS if method in items[condition]}
        for condition in CONDITIONS
        if condition in items
    }
    lacking = {name: lack for name, each in METHODS.items() if (lack := each.missing())}
    content = {"settings": settings, "left_out": lacking, "costs": costs, "mean": results, "clips": items}
    (out / "results.json").write_text(json.dumps(_few_digits(content), separators=(",", ":")) + "\n")
    (out / "table.md").write_text("\n".join(_page(settings, lacking, costs, results)) + "\n")
    for name, conditions in FIGURES.items():
        there = [condition for condition in conditions if len(results.get(condition, {})) > 1]
        if there:
            _figure(out / name, there, results, costs)
    print(f"{out}: results.json, table.md and figures of {sum(len(r) for r in results.values())} rows.")


def _few_digits(content: Any) -> Any:
    """Keep four digits of every fraction, which is more than a repetition would agree on."""
    if isinstance(content, dict):
        return {key: _few_digits(value) for key, value in content.items()}
    return float(f"{content:.4g}") if isinstance(content, float) else content


def mean(clips: Rows) -> dict[str, Any]:
    """Average a method in a condition over its clips, each clip alike: values, and changes against the base."""
    found = list(clips.values())

    def over(values: Iterable[float]) -> float:
        values = list(values)
        return sum(values) / len(values)

    def change(key: str) -> float | None:
        if any(each["base"][key] == 0 for each in found):
            return None  # nothing was wrong
        return over(100 * (each["method"][key] / each["base"][key] - 1) for each in found)

    return {
        "clips": len(found),
        "frames": sum(each["frames"] for each in found),
        **{key: over(each["method"][key] for each in found) for key in found[0]["method"]},
        "psnr_gain": over(each["method"]["psnr"] - each["base"]["psnr"] for each in found),
        "psnr_gain_least": min(each["method"]["psnr"] - each["base"]["psnr"] for each in found),
        "ssim_gain": over(each["method"]["ssim"] - each["base"]["ssim"] for each in found),
        **{f"{key}_change_percent": change(key) for key in ("tde", "instability", "warping")},
        "truth_instability_percent": over(
            100 * (each["truth"]["instability"] / each["base"]["instability"] - 1) for each in found
        ),
        "truth_warping": over(each["truth"]["warping"] for each in found),
    }


def _page(settings: dict[str, Any], lacking: dict[str, str], costs: Rows, results: dict[str, Rows]) -> list[str]:
    trained = [each.name for each in METHODS.values() if each.layers]
    short = [f"{each.name} ({each.frames} frames of a clip)" for each in METHODS.values() if each.frames]
    lines = [
        "<!-- Made by benchmarks/front.py; do not edit. -->",
        "",
        f"Clips at {settings['size'][1]}x{settings['size'][0]}, {settings['frames'] or 'all'} frames, seed "
        f"{settings['seed']}. Changes are against the base on the same frames, means over the clips. "
        f"{', '.join(trained)}: {settings['steps']} training steps for each condition, on {len(settings['training'])} "
        f"other clips. Cut short, and not in every condition: {', '.join(short)}.",
        *(f"{name} is left out: {lack}." for name, lack in lacking.items()),
        "",
        "## Overview: PSNR in dB / TDE in %, against the base",
        "",
        "Where nothing is wrong: PSNR to the clip.",
        "",
        "| method | " + " | ".join(results) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    for method in METHODS:
        cells = [_pair(rows.get(method)) for rows in results.values()]
        if method != "base" and any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    if costs:
        lines += _cost_table(costs)
    for condition, rows in results.items():
        lines += _condition_table(condition, rows)
    return lines


def _cost_table(costs: Rows) -> list[str]:
    base = costs["base"]
    lines = [
        "",
        "## Costs, on top of the denoiser's own",
        "",
        f"The denoiser: {base['weights']:,.0f} weights, {base['macs'] / 1e6:,.0f} MMAC, {base['ms']:.1f} ms, "
        f"{base['mib']:.0f} MiB of new tensors at the peak of a frame.",
        "Memory: the state, and how far that peak rises.",
        "",
        "| method | what | weights | MACs / base | ms | ms / base | MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        if method != "base" and method in costs:
            cost = costs[method]
            macs = f"{cost['macs'] / base['macs']:.3f}" if "macs" in cost else "-"
            memory = f"{cost['mib']:.1f}" if "mib" in cost else "-"
            lines.append(
                f"| {method} | {METHODS[method].says} | {cost['weights']:,.0f} | {macs} | {cost['ms']:.1f} | "
                f"{cost['ms'] / base['ms']:.2f} | {memory} |"
            )
    return lines


def _condition_table(condition: str, rows: Rows) -> list[str]:
    base = rows.get("base") or next(iter(rows.values()))
    lines = [
        "",
        f"## {condition}: {CONDITIONS[condition].says}",
        "",
        f"{base['clips']} clips, {base['frames']} frames. The truth's own raw instability is "
        f"{base['truth_instability_percent']:+.1f} % against the base's, its warping error "
        f"{1e4 * base['truth_warping']:.2f}.",
        "",
        "| method | PSNR dB | worst clip | SSIM | TDE | raw instability | warping error x 10^4 | frames |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, row in rows.items():
        if method == "base":
            cells = [f"{row['psnr']:.2f}", "", f"{row['ssim']:.4f}", f"{row['tde']:.4f}", f"{row['instability']:.4f}"]
            cells.append(f"{1e4 * row['warping']:.2f}")
        else:
            perfect = row["tde_change_percent"] is None
            cells = [
                f"{row['psnr']:.2f}" if perfect else f"{row['psnr_gain']:+.2f}",
                f"{row['psnr_gain_least']:+.2f}",
                f"{row['ssim_gain']:+.4f}",
            ]
            cells += [_percent(row, "tde"), _percent(row, "instability")]
            cells.append(f"{1e4 * row['warping']:.2f} ({_percent(row, 'warping')})")
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {row['frames']} |")
    return lines


def _percent(row: dict[str, Any], key: str) -> str:
    change = row[f"{key}_change_percent"]
    return f"{row[key]:.4f}" if change is None else f"{change:+.1f} %"


def _pair(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    change = row["tde_change_percent"]
    return f"{row['psnr']:.1f} dB" if change is None else f"{row['psnr_gain']:+.2f} / {change:+.0f}"


def _figure(path: Path, conditions: list[str], results: dict[str, Rows], costs: Rows) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 2 if len(conditions) > 1 else 1
    lines = -(-len(conditions) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.9 * columns + 2.4, 3.4 * lines), squeeze=False)
    shown: dict[str, Any] = {}
    for axis, condition in zip(axes.flat, conditions, strict=False):
        rows = results[condition]
        averages = [rows[name] for name in METHODS if name.startswith("ema-") and name in rows]
        axis.plot(
            [min(row["tde_change_percent"], WORST[0]) for row in averages],
            [max(row["psnr_gain"], WORST[1]) for row in averages],
            color=FAMILIES["ema"][0],
            linewidth=1,
        )
        for method, row in rows.items():
            family = "ema" if method.startswith("ema-") else method
            if family not in FAMILIES or row["tde_change_percent"] is None:
                continue
            colour, mark, label = FAMILIES[family]
            if family in costs:
                label += f", {costs[family]['ms']:.1f} ms"
            elif family == "ema" and "ema-0.2" in costs:
                label += f", {costs['ema-0.2']['ms']:.1f} ms"
            size = 150 if mark == "*" else 45
            true = row["tde_change_percent"], row["psnr_gain"]
            place = min(true[0], WORST[0]), max(true[1], WORST[1])
            if place != true:
                text = f"({true[0]:+.0f} %, {true[1]:+.1f} dB)"
                axis.annotate(text, place, fontsize=6, xytext=(6, -2), textcoords="offset points")
            shown[label] = axis.scatter(*place, s=size, c=colour, marker=mark, edgecolors="white", zorder=3)
            if family == "ema":
                axis.annotate(method[4:], place, fontsize=7, xytext=(3, 4), textcoords="offset points")
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.axvline(0, color="#999999", linewidth=0.8)
        axis.invert_xaxis()  # better is up and to the right
        axis.set_title(f"{condition}\n{CONDITIONS[condition].says}", fontsize=8)
        axis.set_xlabel("temporal-difference error, change in %", fontsize=8)
        axis.set_ylabel("PSNR, change in dB", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in list(axes.flat)[len(conditions) :]:
        axis.remove()
    style = {"fontsize": 8, "title_fontsize": 8, "frameon": False}
    figure.legend(shown.values(), shown.keys(), loc="center right", title="milliseconds extra", **style)
    figure.tight_layout(rect=(0, 0, 1 - 2.4 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)
