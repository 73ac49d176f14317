"""Stabilizers one after the other at the same layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unflicker.checks import InputError
from unflicker.guide import Guide
from unflicker.stabilizers.base import Layout, Stabilizer
from unflicker.state import State, part, under


class Chain(Stabilizer):
    """Feeds the layer's output through several stabilizers in turn, each with a past of its own.

    Instant Video Models, appendix C: two stabilizers that were trained for one corruption each are composed without
    retraining. If the model has as many controllers as the chain has members, each member listens to its own.

    >>> from unflicker.stabilizers.ema import EMA
    >>> [member.kind for member in Chain(EMA(0.1), EMA(0.2)).members]
    ['ema', 'ema']
    """

    kind = "chain"

    def __init__(self, *members: Stabilizer) -> None:
        super().__init__()
        if len(members) < 2 or not all(isinstance(member, Stabilizer) for member in members):
            raise InputError(f"Chain needs two or more stabilizers, as in Chain(EMA(0.1), Spatial(3)), got {members}.")
        self.members: list[Stabilizer] = nn.ModuleList(members)  # type: ignore[assignment]
        self.layout = members[0].layout

    @property
    def uses_controller(self) -> bool:  # type: ignore[override]
        return any(member.uses_controller for member in self.members)

    @property
    def uses_guide(self) -> bool:  # type: ignore[override]
        return any(member.uses_guide for member in self.members)

    @property
    def guided_by_frame(self) -> bool:  # type: ignore[override]
        return any(member.guided_by_frame for member in self.members)

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        return any(member.needs_noise for member in self.members)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.members))})"

    def settings(self) -> dict[str, Any]:
        return {"members": list(self.members)}

    def _own(self, each: tuple[Any, ...], i: int) -> tuple[Any, ...]:
        return each[i : i + 1] if len(each) == len(self.members) else each

    def build(self, channels: int, layout: Layout, context_channels: tuple[int, ...]) -> None:
        super().build(channels, layout, context_channels)
        for i, member in enumerate(self.members):
            member.build(channels, layout, self._own(context_channels, i))

    def fresh(self, z: Tensor) -> State:
        return {k: v for i, member in enumerate(self.members) for k, v in under(str(i), member.fresh(z)).items()}

    def forward(
        self,
        z: Tensor,
        state: State,
        *,
        strength: Tensor,
        contexts: tuple[Tensor, ...] = (),
        guide: Guide | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        following: State = {}
        for i, member in enumerate(self.members):
            own = part(state, str(i))
            z, own = member(z, own, strength=strength, contexts=self._own(contexts, i), guide=guide, mask=mask)
            following |= under(str(i), own)
        return z, following
