"""What the torchmetrics classes share: videos that come whole or in chunks, sums that add up over ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from unflicker.checks import InputError

_numbers = itertools.count()


class VideoMetric(Metric):
    """A metric of videos, which come whole or chunk by chunk: clip and chunks give the same number.

    Each `update` begins a new video unless it says `continues=True`, so that nothing leaks from one into the next.
    Clips are (T, C, H, W) or, several side by side, (B, T, C, H, W). `compute` may be asked at any time and takes the
    running video as if it ended there. What is synchronised between ranks and merged is two vectors of sums; the
    frames that wait for their successors stay on their rank, and a `state_dict` is empty.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, stream: Callable[[], Any], size: int) -> None:
        """Make a metric whose videos are each followed by a `stream()` with `size` sums."""
        super().__init__()
        # A name of its own keeps a MetricCollection from sharing one metric's state with another while both are zero.
        self._name = f"totals_{next(_numbers)}"
        self.add_state(self._name, torch.zeros(2, size, dtype=torch.float64), dist_reduce_fx="sum")
        self._stream = stream
        self._streams: list[Any] = []
        self._batched = False

    def follow(self, continues: bool, preds: Tensor, *others: Tensor | None, axes: int = 4) -> None:
        """Hand the next frames to the streams, those of the running video if it `continues`.

        Args:
            continues: the frames follow on those of the last call.
            preds: a clip, or clips side by side.
            others: what goes with it, with the same axes in front.
            axes: how many axes one clip has; one more is that of the batch.
        """
        batched = preds.ndim == axes + 1
        rows = list(preds) if batched else [preds]
        each: list[list[Tensor | None]] = []
        for other in others:
            if other is None or not batched:
                each.append([other] * len(rows))
            elif len(other) != len(rows):
                raise InputError(f"preds has {len(rows)} clips side by side, what goes with it {len(other)}.")
            else:
                each.append(list(other))
        if not continues:
            streams = [self._stream() for _ in rows]
        elif not self._streams:
            raise InputError("There is no video to continue: give its first frames without continues=True.")
        elif (len(rows), batched) != (len(self._streams), self._batched):
            raise InputError(
                f"{len(self._streams)} running beside each other cannot continue as {len(rows)}: begin new videos."
            )
        else:
            streams = self._streams
        for stream, *chunk in zip(streams, rows, *each, strict=True):
            stream.update(*chunk)
        if not continues:
            self.end_video()
            self._streams, self._batched = streams, batched

    def end_video(self) -> None:
        """Close the running video, which frees its frames."""
        self._settle()
        totals = getattr(self, self._name)
        totals[0] += totals[1]
        totals[1] = 0
        self._streams = []

    def total(self) -> Tensor:
        """Return the sums over all videos, the running one included."""
        return getattr(self, self._name).sum(0)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._streams = []

    def sync(
        self,
        dist_sync_fn: Callable | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable | None = None,
    ) -> None:
        """Synchronise between ranks, as torchmetrics does before `compute`; the running video counts as it stands."""
        if not self._is_synced:
            self._settle()
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add another metric of this kind, its running video as it stands."""
        if not isinstance(incoming_state, type(self)):
            raise InputError(f"Only another {type(self).__name__} can be merged, got {type(incoming_state).__name__}.")
        incoming_state._settle()
        totals = getattr(self, self._name)
        totals[0] += incoming_state.total().to(totals)
        self._update_count += incoming_state._update_count
        self._computed = None

    def _forward_reduce_state_update(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the metric does: take whole videos, and return their own value."""
        if kwargs.get("continues"):
            raise InputError("A chunk has no value of its own: call update(..., continues=True), then compute().")
        self.end_video()
        return super()._forward_reduce_state_update(*args, **kwargs)

    def _settle(self) -> None:
        """Write down what the running video adds if it ends now."""
        totals = getattr(self, self._name)
        totals[1] = 0
        for stream in self._streams:
            totals[1] += stream.totals().to(totals)


def enough(count: Tensor, what: str) -> None:
    """Raise if nothing has been counted: 0 would be taken for a result."""
    if not count:
        raise InputError(f"{what}, and none was given.")
