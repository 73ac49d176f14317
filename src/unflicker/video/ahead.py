"""Threads beside the main one: a video is read a few frames ahead of the work and written a few frames behind it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self, TypeVar

from unflicker.video.base import Frame, Writer

T = TypeVar("T")
AHEAD = 4  # frames in flight between two threads


def read_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """Run an iterator in a thread of its own, a few items ahead; closing ends the thread."""
    queue: Queue[Any] = Queue(AHEAD)
    stop = Event()
    end = object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return queue.put(item, timeout=0.1)
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:  # handed to the one who reads
            put((end, error))

    thread = Thread(target=work, name="unflicker-read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        _join(thread, stop)


class WriteBehind:
    """Hands frames to a writer in a thread of its own; an error there is raised by the next `put` or at the end."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._queue: Queue[Frame] = Queue(AHEAD)
        self._error: BaseException | None = None
        self._complete, self._stop = Event(), Event()
        self._thread = Thread(target=self._work, name="unflicker-write", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(self, frame: Frame) -> None:
        while self._error is None:
            try:
                return self._queue.put(frame, timeout=0.1)
            except Full:
                continue
        raise self._error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        (self._complete if kind is None else self._stop).set()
        _join(self._thread, self._stop)
        if kind is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                last = self._complete.is_set()  # asked before the queue is found empty, so that nothing is missed
                try:
                    self._writer.write(self._queue.get(timeout=0.1))
                except Empty:
                    if last:
                        return
        except BaseException as error:
            self._error = error


def _join(thread: Thread, stop: Event) -> None:
    """Wait for a thread; Ctrl-C stops it and is raised when it has ended, for only then may its files be closed."""
    interrupt: KeyboardInterrupt | None = None
    while thread.is_alive():
        try:
            thread.join(timeout=1)
        except KeyboardInterrupt as error:
            stop.set()
            interrupt = error
    if interrupt is not None:
        raise interrupt
