"""The trade-off study of Instant Video Models (tables 5 to 7), small: six methods over their settings, and ours.

    python benchmarks/study.py denoise-0.1 --clips FOLDER --out FOLDER

Each training run and each evaluation is kept when it is finished, and the command goes on where it was stopped; run it
twice at a time to use two cores (`--only learned`). `benchmarks/study_report.py` makes the page of what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from unflicker import stabilize
from unflicker.bases import load_base
from unflicker.checks import InputError
from unflicker.cli import tune_process
from unflicker.evaluation import Method, evaluate
from unflicker.experiments import open_sets, train, with_adapter
from unflicker.recipes import Recipe, load_recipe
from unflicker.stabilizers import EMA, Gaussian
from unflicker.tasks import TASKS, paper_plan

CLIPS = Path(__file__).with_name("clips.yaml")
STUDIES = {"denoise-0.1": "denoise-0.1-small", "denoise-0.6": "denoise-0.6-small", "enhance": "enhance-moderate-small"}
CROPS = {"enhance": "[96,160]"}  # what is local to HDRNet is a share of the frame
STEPS = 150  # of every trained method alike
FRAMES = 24  # of every test clip, alike for every method
STABILITY = (0.2, 0.4, 0.1, 0.8, 8.0)  # in this order, for the time may not do for all
TRAINED = {"learned": "learned", "controlled": "controlled-small", "spatial": "spatial-small"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--clips", type=Path, required=True, help="folder of clean videos, named as in clips.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--only", nargs="+", choices=["untrained", *TRAINED], help="some of the methods")
    parser.add_argument("--cache", type=Path, help="folder for decoded and enhanced frames")
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=FRAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small crops: a second thread costs more than it gives
    only = arguments.only or ["untrained", *TRAINED]
    out = arguments.out / arguments.study
    kept = [] if arguments.cache is None else [f"data.cache={arguments.cache}"]
    plain = recipe(arguments.study, None, 0.2, arguments.clips, arguments.steps, kept)
    if "untrained" in only:
        for name, method in untrained(plain):
            measure(plain, name, method, out, arguments.frames)
    for stability in STABILITY:
        for name, part in TRAINED.items():
            if name in only and (stability < 1 or name != "controlled"):  # two are enough to see a collapse
                each = recipe(arguments.study, part, stability, arguments.clips, arguments.steps, kept)
                label = f"{name} {stability:g}"
                print(label, flush=True)
                folder = out / "runs" / label.replace(" ", "-")
                trained = train(each, folder)
                print(f"  validation {trained.validation:.5f}", flush=True)
                base = load_base(each.base.network)
                measure(each, label, Method(with_adapter(each, base, str(folder))), out, arguments.frames)


def recipe(study: str, part: str | None, stability: float, clips: Path, steps: int, changes: list[str]) -> Recipe:
    names = [STUDIES[study], *([part] if part else []), str(CLIPS)]
    training = load_recipe(STUDIES[study]).training
    changes = [
        *changes,
        f"data.root={clips}",
        f"training.steps={steps}",
        f"training.validate_every={max(1, steps // 2)}",
    ]
    changes += ["training.batch=1", "training.workers=0", "data.frames=8", f"training.schedule={training.schedule}"]
    changes += [f"loss.stability={stability}", *([f"data.crop={CROPS[study]}"] if study in CROPS else [])]
    return load_recipe("+".join(names), changes)


def untrained(plain: Recipe) -> Iterator[tuple[str, Method]]:
    """Methods that need no training: the paper's three, and ours. What a beta is there is 1 - decay here."""
    base = load_base(plain.base.network)
    for beta in (0.98, 0.95, 0.9, 0.8, 0.6):
        yield f"output-fixed {beta:g}", Method(EMA(1 - beta))
    for sigma in (0.5, 1.0, 2.0):
        yield f"gaussian {sigma:g}", Method(Gaussian(8, sigma))
    example = torch.zeros(1, 3, 192, 320)
    for beta in (0.98, 0.95, 0.9, 0.8):
        plan = paper_plan(base, EMA(1 - beta))
        yield f"simple-fixed {beta:g}", Method(stabilize(base, plan, example=example))
    for strength in (0.5, 1.0, 2.0):
        yield f"aligned {strength:g}", Method(with_adapter(plain, base, "aligned"), strength)
    for name in ("aligned-recover", "aligned-learned", "merged"):
        if name in TASKS[str(plain.base.network)].adapters:
            yield f"{name} 1", Method(with_adapter(plain, base, name))


def measure(each: Recipe, name: str, method: Method, out: Path, frames: int) -> None:
    """Evaluate one method on the test clips, unless that is done."""
    file = out / "evaluations" / f"{name.replace(' ', '-')}.json"
    if file.exists():
        return
    found = evaluate(
        load_base(each.base.network) if not hasattr(method.model, "base") else method.model.base,
        open_sets(each).test,
        {name: method},
        corruptions=each.data.corruptions,
        metrics=("psnr", "ssim", "instability", "temporal_difference_error"),
        size=each.data.size,
        frames=frames,
        target=each.data.target,
        seed=1,
        with_base=name == "output-fixed 0.98",  # once is enough
    )
    found.write(file)
    row = found.overall[name]
    print(f"  {name}: {row['psnr']:.2f} dB, instability {row['instability']:.4f}", flush=True)


if __name__ == "__main__":
    tune_process()
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
