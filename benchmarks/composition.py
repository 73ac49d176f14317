"""Adapters composed without training them together (Instant Video Models, appendix C and table 3), small.

    python benchmarks/composition.py --clips FOLDER --out FOLDER

An adapter for each of the five corruptions is trained alone; where there is a choice of learning rates the one with the
lowest loss on the validation clips is taken. Then every ordered pair is composed and measured on the test clips, whose
frames go through the pair's first corruption and then its second; the adapters work in the same order. Each training
run and each evaluation is kept when it is finished, and the command goes on where it was stopped.
`benchmarks/composition_report.py` makes the page of what is there.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path

import torch

from unflicker.bases import load_base
from unflicker.checkpoint import compose_adapters
from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.evaluation import evaluate
from unflicker.experiments import ADAPTER, RESULT, open_sets, train
from unflicker.recipes import Recipe, load_recipe

CLIPS = Path(__file__).with_name("clips.yaml")
CORRUPTIONS = ("patch-drop", "elastic", "frame-drop", "jpeg", "impulse")
# Chosen on lost patches for all; elastic distortion, whose adapter froze the picture at that rate, chose anew.
RATES = {**dict.fromkeys(CORRUPTIONS, (3e-3,)), "patch-drop": (1e-3, 3e-3), "elastic": (1e-3, 3e-3)}
STEPS = 60  # of every adapter alike
FRAMES = 12  # of every test clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of clean videos, named as in clips.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--cache", type=Path, help="folder for decoded frames")
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=FRAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small crops: a second thread costs more than it gives
    chosen = {each: best_adapter(each, arguments) for each in CORRUPTIONS}
    for first, second in permutations(CORRUPTIONS, 2):
        file = arguments.out / "evaluations" / f"{first}+{second}.json"
        if file.exists():
            continue
        one, other = (recipe(each, RATES[each][0], arguments) for each in (first, second))
        base = load_base(one.base.network)
        found = evaluate(
            base,
            open_sets(one).test,
            {"composed": compose_adapters(base, [chosen[first], chosen[second]])},
            corruptions=[*one.data.corruptions, *other.data.corruptions[1:]],  # the first is the noise, of both
            metrics=("psnr", "instability"),
            size=one.data.size,
            frames=arguments.frames,
            seed=1,
        )
        found.write(file)
        for method, numbers in found.overall.items():
            shown = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items() if value is not None)
            print(f"{first}, then {second}, {method}: {shown}", flush=True)


def best_adapter(corruption: str, arguments: argparse.Namespace) -> Path:
    """Train for one corruption at its rates, unless that is done; return the adapter that does best in validation."""
    losses: dict[Path, float] = {}
    for rate in RATES[corruption]:
        folder = arguments.out / "runs" / f"{corruption}-{rate:g}"
        if not (folder / RESULT).exists():
            train(recipe(corruption, rate, arguments), folder)
        losses[folder / ADAPTER] = json.loads((folder / RESULT).read_text(encoding="utf-8"))["validation"]
        print(f"{folder.name}: validation {losses[folder / ADAPTER]:.5f}", flush=True)
    return min(losses, key=lambda each: losses[each])


def recipe(corruption: str, rate: float, arguments: argparse.Namespace) -> Recipe:
    name = f"denoise-{corruption}-small+composable-small+small+{CLIPS}"
    changes = [f"data.root={arguments.clips}", f"training.learning_rate={rate}", f"training.steps={arguments.steps}"]
    changes += ["training.validate_every=null", "training.batch=1", "training.workers=0"]
    changes += ["data.short_side=240", "data.scales=[1.0, 0.7]", "data.size=[96, 160]", "data.frames=8"]
    if arguments.cache is not None:
        changes.append(f"data.cache={arguments.cache}")
    return load_recipe(name, changes)


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
