"""The time of one training step with each regularizer against one without. Prints JSON.

    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 \
        OMP_NUM_THREADS=1 python benchmarks/regularized_step.py

A step is a forward pass, the mean squared error, the backward pass and Adam, on the two small networks of
Single-frame Regularization at 128x128. With a regularizer it is two passes, the changes of the images, and their
backward pass. All kinds of steps take turns, and of each the least and the middle CPU time count.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unflicker.networks.colorization import ColorizationAutoencoder
from unflicker.networks.hdr_autoencoder import HDRAutoencoder
from unflicker.regularizers import (
    NoiseStability,
    Regularizer,
    SparseJacobian,
    Stability,
    TransformInvariance,
    weight_of,
)

BAR = 2.2
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and the channels of the target
    "HDRAutoencoder": (HDRAutoencoder, 1),
    "ColorizationAutoencoder": (ColorizationAutoencoder, 2),
}
TERMS: dict[str, Regularizer | None] = {
    "plain": None,
    "noise stability": NoiseStability(),
    "stability": Stability(),
    "transform invariance": TransformInvariance(),
    "sparse Jacobian": SparseJacobian(),
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, term: Regularizer | None) -> None:
    preds = net(x)
    loss = F.mse_loss(preds, y)
    if term is not None:
        a = weight_of(4)
        loss = (1 - a) * loss + a * term(net, x, y, preds=preds)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def measure(make: Callable[[], nn.Module], channels: int, batch: int, repeats: int) -> dict[str, object]:
    net = make().train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    x, y = torch.rand(batch, 1, 128, 128), torch.rand(batch, channels, 128, 128)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in TERMS}
    for turn in range(repeats + 1):
        for name, term in TERMS.items():
            start = clock()
            step(net, optimizer, x, y, term)
            if turn:  # the first is to warm up
                times[name].append(clock() - start)
    least, middle = ({name: how(each) for name, each in times.items()} for how in (min, statistics.median))
    ratios = {
        name: {"ratio": round(least[name] / least["plain"], 3), "of_middles": round(middle[name] / middle["plain"], 3)}
        for name in TERMS
        if name != "plain"
    }
    return {"plain_ms": round(1000 * least["plain"], 1), **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    report: dict[str, object] = {"threads": arguments.threads, "batch": arguments.batch, "bar": BAR}
    for name, (make, channels) in NETWORKS.items():
        report[name] = measure(make, channels, arguments.batch, arguments.repeats)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
