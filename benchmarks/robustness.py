"""Corruptions on enhancement, depth and segmentation (Instant Video Models, tables 1 and 4), small.

    python benchmarks/robustness.py enhance --clips FOLDER --out FOLDER
    python benchmarks/robustness.py depth --out FOLDER

The bundled networks and adapters on recordings that none of them was trained on: the test clips for enhance, scenes
held out for segment, a hundred scenes that are in no recipe for depth, where twenty leave AbsRel to chance. Each
evaluation is kept when it is finished, and the command goes on where it was stopped. `benchmarks/robustness_report.py`
makes the page of what is there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.experiments import evaluate_recipe
from unflicker.recipes import load_recipe

CLIPS = Path(__file__).with_name("clips.yaml")
RECIPES = {"enhance": "enhance-moderate-small", "depth": "depth-small", "segment": "segment-small"}
CORRUPTIONS = ("clean", "patch-drop", "elastic", "frame-drop", "jpeg", "impulse")
ADAPTERS = ("ema", "aligned", "aligned-learned")
MORE = {"enhance": ("aligned-spatial",)}
ALONE = {("enhance", "jpeg"): ("aligned-jpeg",)}  # trained for one corruption alone
FRAMES = 24  # of every test recording
SCENES = ["data.options.count=200", "data.test.only=['scene1??']"]  # the recipes know scene0 to scene99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(RECIPES))
    parser.add_argument("--clips", type=Path, help="folder of clean videos, named as in clips.yaml; for enhance")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--cache", type=Path, help="folder for decoded and made frames")
    parser.add_argument("--adapters", nargs="+", metavar="NAME", help="as `unflicker run` takes them")
    parser.add_argument("--frames", type=int, default=FRAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task == "enhance" and arguments.clips is None:
        parser.error("enhance needs --clips")
    torch.set_num_threads(1)
    for corruption in CORRUPTIONS:
        file = arguments.out / f"{arguments.task}-{corruption}.json"
        if file.exists():
            continue
        names = [RECIPES[arguments.task], *([corruption] if corruption != "clean" else [])]
        changes = [f"evaluation.frames={arguments.frames}", "evaluation.baselines={}", "evaluation.seed=1"]
        if arguments.task == "enhance":
            names.append(str(CLIPS))
            changes.append(f"data.root={arguments.clips}")
        if arguments.task == "depth":
            changes += SCENES
        if arguments.cache is not None:
            changes.append(f"data.cache={arguments.cache}")
        recipe = load_recipe("+".join(names), changes)
        task = arguments.task
        adapters = arguments.adapters or (*ADAPTERS, *MORE.get(task, ()), *ALONE.get((task, corruption), ()))
        found = evaluate_recipe(recipe, {Path(name).name: name for name in adapters})
        found.write(file)
        for method, numbers in found.overall.items():
            shown = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items() if value is not None)
            print(f"{arguments.task} {corruption} {method}: {shown}", flush=True)


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
