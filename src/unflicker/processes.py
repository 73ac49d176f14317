"""Work on many items, such as videos, spread over processes that end with their parent, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from unflicker.checks import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
Tell = Callable[[], None]


def spread(
    work: Callable[[int, Item, Tell], Result],
    items: Sequence[Item],
    processes: int,
    on_step: Callable[[int], None],
) -> list[Result]:
    """Return `work(number, item, tell)` for each item, in their order; what is raised there is raised here.

    Args:
        work: is given an item with its number, from 0 on, and calls `tell` after each step it takes. It and the items
            must be picklable for more than one process, and scripts need their `if __name__ == "__main__"`.
        items: what to work on.
        processes: 1 works here; more are started anew, of one thread each.
        on_step: called with the number of all steps that were told, after each here, twice a second with processes.

    Raises:
        InputError: a process died.

    >>> spread(lambda number, item, tell: number * item, [3, 4], 1, print)
    [0, 4]
    """
    if processes == 1:
        done = 0

        def tell() -> None:
            nonlocal done
            done += 1
            on_step(done)

        return [work(number, item, tell) for number, item in enumerate(items)]
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(min(processes, len(items)), context, _begin, (work, counter, stop)) as pool:
        futures = [pool.submit(_work, number, item) for number, item in enumerate(items)]
        try:
            running = set(futures)
            while running:
                done_now, running = wait(running, timeout=0.5, return_when=FIRST_EXCEPTION)
                for each in done_now:
                    each.result()  # what went wrong there goes wrong here
                on_step(counter.value)
            return [each.result() for each in futures]
        except BrokenProcessPool as error:
            raise InputError(
                "A process died, most likely for lack of memory (take fewer processes), or because the script that "
                'started it has no `if __name__ == "__main__":`.'
            ) from error
        except BaseException:
            stop.set()  # they look at it after every step
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Worker:
    """What a process that works keeps."""

    work: Callable[..., Any]
    counter: Any
    stop: Any


_worker: _Worker | None = None  # of this process, if it is one


def _begin(work: Callable[..., Any], counter: Any, stop: Any) -> None:
    """Prepare a process; it goes when its parent has gone, however that was killed."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which sets `stop`
    torch.set_num_threads(1)
    _worker = _Worker(work, counter, stop)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(number: int, item: Any) -> Any:
    assert _worker is not None
    worker = _worker

    def tell() -> None:
        with worker.counter.get_lock():
            worker.counter.value += 1
        if worker.stop.is_set():
            raise InterruptedError("stopped")

    return worker.work(number, item, tell)
