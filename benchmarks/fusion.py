"""Time and memory of the spatial fusion step against the plain unfold form. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/fusion.py

Under glibc's default malloc much of the unfold form's time is page faults of its large temporaries. With the
thresholds that the commands set (MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
MALLOC_TOP_PAD_=268435456) the ratios are about a third of that; the memory figure means nothing then.

Times are this process's CPU milliseconds (wall for --threads 2), the least of several runs; memory is how far a
fresh process grows while one step runs, in feature maps.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.functional import spatial_fusion

# channels, height, width, groups
PER_CHANNEL = (32, 368, 640, 32)
SHARED = (64, 256, 256, 1)


def unfold_form(z: Tensor, past: Tensor, logits: Tensor) -> Tensor:
    """The published formulation: a softmax with one more zero logit, and K * K copies of the past."""
    batch, channels, height, width = z.shape
    groups = logits.shape[1] // 9
    logits = logits.view(batch, groups, 9, height * width)
    weights = torch.cat([logits, torch.zeros_like(logits[:, :, :1])], 2).softmax(2)
    copies = F.unfold(past, 3, padding=1).view(batch, groups, channels // groups, 9, height * width)
    fused = (copies * weights[:, :, None, :9]).sum(3)
    return (fused + weights[:, :, 9:] * z.view(batch, groups, channels // groups, -1)).view(z.shape)


def inputs(channels: int, height: int, width: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    z, past = torch.rand(2, 1, channels, height, width)
    return z, past, torch.randn(1, groups * 9, height, width) - 2


def ours(z: Tensor, past: Tensor, logits: Tensor, seen: Tensor | None = None, strength: Tensor | None = None) -> Tensor:
    seen = torch.ones_like(z[:, :1]) if seen is None else seen
    strength = torch.ones(1, 1, 1, 1) if strength is None else strength
    return spatial_fusion(z, past, logits, kernel_size=3, seen=seen, strength=strength)


def least(run: Callable[[], object], repeats: int) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return round(1000 * min(times), 2)


def peak_in_maps(form: str) -> float:
    """Run one step of a form in a fresh process and return how far its memory rose at most, in feature maps (Linux)."""
    script = (
        "import re, sys, torch\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import fusion\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "torch.set_num_threads(1)\n"
        "args = fusion.inputs(*fusion.PER_CHANNEL)\n"
        "form = getattr(fusion, sys.argv[2])\n"
        "with torch.no_grad():\n"
        "    form(*(a[:, :, :8, :8].contiguous() for a in args))\n"
        "    open('/proc/self/clear_refs', 'w').write('5')  # forget the peak of what came before\n"
        "    before = peak()\n"
        "    form(*args)\n"
        "print((peak() - before) * 1024 / (args[0].numel() * 4))"
    )
    arguments = [sys.executable, "-c", script, str(Path(__file__).parent), form]
    return round(float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report: dict[str, object] = {"threads": arguments.threads}
    with torch.no_grad():
        args = inputs(*PER_CHANNEL)
        slow, fast = (least(lambda f=f: f(*args), arguments.repeats) for f in (unfold_form, ours))
        report["one kernel per channel, C=32, 640x368"] = {
            "unfold_ms": slow,
            "ours_ms": fast,
            "speedup": round(slow / fast, 1),
            "unfold_peak_maps": peak_in_maps("unfold_form"),
            "ours_peak_maps": peak_in_maps("ours"),
        }
        args = inputs(*SHARED)
        last = (*(a.contiguous(memory_format=torch.channels_last) for a in args), torch.ones(1, 1, *SHARED[1:3]))
        last = (*last, torch.ones(1, 1, 1, 1))
        compiled = torch.compile(ours)
        slow = least(lambda: unfold_form(*args), arguments.repeats)
        fast = least(lambda: ours(*args), arguments.repeats)
        fastest = least(lambda: compiled(*last), 5 * arguments.repeats)
        copy = least(lambda: args[0].clone(), 5 * arguments.repeats)
        report["one kernel for all channels, C=64, 256x256"] = {
            "unfold_ms": slow,
            "ours_ms": fast,
            "speedup": round(slow / fast, 1),
            "compiled_channels_last_ms": fastest,
            "compiled_speedup": round(slow / fastest, 1),
            "copy_ms": copy,
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
