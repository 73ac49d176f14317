"""How long a user waits before anything happens. Prints JSON.

python benchmarks/startup.py
"""

import json
import subprocess
import sys
import time


def least(code: list[str], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    torch = least(["-c", "import torch"])
    everything = "import torch, unflicker; [getattr(unflicker, name) for name in unflicker.__all__]"
    print(
        json.dumps(
            {
                "import_torch_s": round(torch, 2),
                "import_unflicker_adds_s": round(least(["-c", "import torch, unflicker"]) - torch, 2),
                "every_public_name_adds_s": round(least(["-c", everything]) - torch, 2),
                "help_s": round(least(["-m", "unflicker", "--help"]), 2),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
