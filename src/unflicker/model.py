"""stabilize() and StabilizedModel: the only room that joins a base model and stabilizers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unflicker.checks import InputError
from unflicker.controllers import Controller
from unflicker.guide import Guide
from unflicker.layers import evaluating, freeze, map_tensors, pick, put
from unflicker.plans import Place, Plan, pick_input, probe, resolve, shown, where_is
from unflicker.stabilizers import Chain, Stabilizer, from_map, to_map
from unflicker.state import State, part, restart, under

Controllers = Controller | tuple[Controller, ...]
MOST = 1e6  # strength from which the past counts for all there is


@dataclass
class _Call:
    """One forward pass in progress: what the hooks need, and what they leave behind."""

    streams: int
    frames: int
    state: State
    strength: Tensor
    reset: Tensor | None
    mask: Tensor | None
    contexts: list[tuple[Tensor, ...]]
    guides: list[Guide] = field(default_factory=list)
    following: State = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    resized: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)


def stabilize(
    base: nn.Module, plan: Plan, *, controller: Controllers | None = None, example: Tensor
) -> StabilizedModel:
    """Insert stabilizers into an image network, which stays frozen and whole.

    Args:
        base: any network that takes frames (B, C, H, W). It is put in evaluation mode and frozen; nothing else about
            it changes, and called alone it gives what it always gave.
        plan: where to put what. Keys name layers: `"decoder.0"`, a glob (`*` one part of a name, `**` any number),
            `""` for the network's output, `"in:NAME"` for a layer's input and `"in:"` for the network's, and
            `"NAME::0"` or `"NAME::depth"` to pick from a tuple or dict. Values are templates, copied for each layer;
            None leaves a layer out. A full name beats a glob, a later glob an earlier one.
        controller: the network that feeds controlled stabilizers (a tuple: one per member of a `Chain`). Made with
            its defaults where one is needed and none is given.
        example: one batch of frames (B, C, H, W), run once to learn the shapes.

    Raises:
        InputError: the plan does not fit the network. Nothing has been changed then.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    >>> from unflicker.stabilizers import EMA, Spatial
    >>> frame = torch.rand(1, 3, 16, 16)
    >>> model = stabilize(net, {"0": Spatial(3, hidden=8), "": EMA(0.2)}, example=frame)
    >>> y, state = model(frame)
    >>> torch.equal(y, net(frame))  # the first frame is the base's
    True
    """
    if not isinstance(example, Tensor):
        raise InputError(f"example must be a tensor of frames (B, C, H, W), got {type(example).__name__}.")
    if example.ndim != 4 or not example.is_floating_point():
        raise InputError(f"example must be frames (B, C, H, W) of a floating type, got {shown(example)}.")
    choices = resolve(base, plan)
    if controller is not None and not any(choice.template.uses_controller for choice in choices.values()):
        raise InputError("A controller was given, but nothing in the plan listens to one: leave it out.")
    with evaluating(base):
        places = probe(base, choices, example)
    model = StabilizedModel(
        base,
        {place: choices[place.address].template for place in places},
        controller if isinstance(controller, tuple) else (controller,) if controller else (),
        tuple(example.shape[1:]),
    )
    for module in (*model.stabilizers.values(), *model.controllers):
        module.to(example)
    return model


class StabilizedModel(nn.Module):
    """A frozen base model with stabilizers, made by `stabilize` or `load_adapter`.

    `base` is the network, `stabilizers` and `controllers` are what was added. One forward pass at a time; many
    streams are many rows of a batch, or many states.

    >>> from unflicker.stabilizers import EMA
    >>> model = stabilize(nn.Identity(), {"": EMA(0.5)}, example=torch.zeros(1, 1, 2, 2))
    >>> clip = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 2, 2)
    >>> y, state = model(clip)
    >>> y[0, :, 0, 0, 0].tolist()
    [0.0, 0.5, 0.75]
    """

    def __init__(
        self,
        base: nn.Module,
        templates: Mapping[Place, Stabilizer],
        controllers: tuple[Controller, ...],
        frame_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.frame_shape = frame_shape
        self.places = {place.address.key: place for place in templates}
        if not controllers and any(template.uses_controller for template in templates.values()):
            controllers = (Controller(),)
        for template in templates.values() if len(controllers) > 1 else ():
            if template.uses_controller and not (
                isinstance(template, Chain) and len(template.members) == len(controllers)
            ):
                raise InputError(
                    f"{len(controllers)} controllers are for Chains of {len(controllers)} members, one each; "
                    f"the plan has {type(template).__name__} as well."
                )
        controllers = copy.deepcopy(controllers)
        for controller in controllers:
            controller.build(frame_shape[0])
        self.controllers: list[Controller] = nn.ModuleList(controllers)  # type: ignore[assignment]
        self.stabilizers: dict[str, Stabilizer] = nn.ModuleDict()  # type: ignore[assignment]
        self._state_names: dict[str, frozenset[str]] = {}
        for place, template in templates.items():
            stabilizer = copy.deepcopy(template)
            try:
                stabilizer.build(place.channels, place.layout, tuple(c.width for c in controllers))
            except InputError as error:
                raise InputError(f"{where_is(place.address)}: {error}") from None
            self.stabilizers[_module_name(place.address.key)] = stabilizer
            self._state_names[place.address.key] = frozenset(stabilizer.fresh(torch.zeros(1, place.channels, 1, 1)))
        hosts = {key: base.get_submodule(place.address.layer) for key, place in self.places.items()}
        # Everything has been checked; from here on the base is touched.
        self.base = base
        self._frozen = True
        self._enabled = True
        self._call: _Call | None = None
        self._macs: tuple[int, int] | None = None
        self._modes = {name: module.training for name, module in base.named_modules()}
        self._trainable = {name: p.requires_grad for name, p in base.named_parameters()}
        freeze(base)
        for key, place in self.places.items():
            if not place.address.layer:
                continue  # the network's own input and output pass through `forward`
            # Partials of bound methods, not closures: they follow deepcopy and pickle. Registered once, they idle
            # unless this model's forward is running.
            if place.address.is_input:
                hosts[key].register_forward_pre_hook(partial(self._on_input, key), with_kwargs=True)
            else:
                hosts[key].register_forward_hook(partial(self._on_output, key))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        reset: bool | Tensor | None = None,
        strength: float | Tensor = 1.0,
        guide: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Any, State]:
        """Take the next frame or clip of each stream through the network.

        Args:
            x: frames (B, C, H, W) or clips (B, T, C, H, W), as the base takes frames.
            state: what the last call returned; None starts new videos, and so does a change of frame size.
            reset: which streams start afresh before this frame: bool, (B,), or (B, T) for single frames of a clip.
            strength: multiplies the odds of the past: 0 is the base alone, 1 as trained, 2 stronger; number, (B,),
                or (B, T).
            guide: what vouches for the output, shaped as x; the controller looks at it. Unless given it is x, for
                `Aligned` what the network sees of it where a stabilizer at "in:" changes that.
            mask: (B, 1, H, W) or (B, T, 1, H, W), 0 where the input is not valid: the past stands in there.

        Returns:
            What the base returns, with the time axis of x, and the state for the next call.

        Raises:
            InputError: a shape does not fit.
        """
        if self._call is not None:
            raise InputError("This model is in a forward pass already; give every thread a copy.deepcopy of its own.")
        if not isinstance(x, Tensor):
            raise InputError(f"x must be a tensor (B, C, H, W) or (B, T, C, H, W), got {type(x).__name__}.")
        clip = x.ndim == 5
        call = self._open(x, state, reset, strength, guide, mask)
        folded = x.flatten(0, 1) if clip else x
        if not self._enabled:
            y, following = self.base(folded), {}
        else:
            self._call = call
            try:
                if "input" in self.places:
                    folded = self._stabilized("input", folded)
                    self._watch_for_others(call, x, folded.detach(), guide)
                y = self.base(folded)
                for key, place in self.places.items():
                    if not place.address.layer and not place.address.is_input:
                        y = put(y, place.address.selector, self._stabilized(key, self._pick(key, y)))
            finally:
                self._call = None
            missing = [key for key in self.places if key not in call.done]
            if missing:
                where = where_is(self.places[missing[0]].address)
                raise InputError(f"{where} did not run in this forward pass; take it out of the plan.")
            following = call.following
        return (map_tensors(partial(_unfold, x.shape[:2]), y) if clip else y), following

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the base run alone inside a `with` block; the streams start afresh after it."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def train(self, mode: bool = True) -> StabilizedModel:
        """Set the mode of what was added; a frozen base stays in evaluation mode."""
        super().train(mode)
        if self._frozen:
            self.base.eval()
        return self

    def unfreeze(self) -> None:
        """Let the base train along, on purpose."""
        self._frozen = False
        self.base.requires_grad_(True).train(self.training)

    def remove(self) -> nn.Module:
        """Take the stabilizers out of the base and return it as it was; this model cannot be used afterwards."""
        for module in self.base.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for number, hook in list(hooks.items()):
                    if isinstance(hook, partial) and getattr(hook.func, "__self__", None) is self:
                        del hooks[number]
                        module._forward_pre_hooks_with_kwargs.pop(number, None)
        for name, module in self.base.named_modules():
            module.training = self._modes[name]
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        return self.base

    def summary(self) -> str:
        """Say what was inserted where, and what it adds: parameters, and multiply-adds at the example's size.

        Multiply-adds are those of convolutions and matrix products, as is usual; blending is not counted.
        """
        base_parameters = _parameters(self.base)
        added = 0
        base_macs, all_macs = self._multiply_adds()
        rows = [("layer", "stabilizer", "returns", "parameters")]
        for key, place in self.places.items():
            stabilizer = self.stabilizers[_module_name(key)]
            shape = " x ".join(str(n) for n in place.shape)
            rows.append((str(place.address) or '""', str(stabilizer), shape, f"{_parameters(stabilizer):,}"))
            added += _parameters(stabilizer)
        for each in self.controllers:
            rows.append(("controller", f"width {each.width}", f"1/{each.downscale} size", f"{_parameters(each):,}"))
            added += _parameters(each)
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        table = [
            f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows
        ]
        extra = all_macs - base_macs
        size = " x ".join(str(n) for n in self.frame_shape)
        return "\n".join(
            [
                f"{type(self.base).__name__}: {base_parameters:,} parameters, {base_macs / 1e6:,.1f} MMAC at {size}",
                *table,
                f"added: {added:,} parameters ({_percent(added, base_parameters)}), "
                f"{extra / 1e6:,.1f} MMAC ({_percent(extra, base_macs)})",
            ]
        )

    def __repr__(self) -> str:
        return self.summary()

    def _multiply_adds(self) -> tuple[int, int]:
        if self._macs is not None:  # print() should not run the network every time
            return self._macs
        first = next((p for p in self.base.parameters() if p.is_floating_point()), torch.zeros(()))
        frame = torch.zeros(1, *self.frame_shape, device=first.device, dtype=first.dtype)
        counts = []
        for run in (self.base, self):
            with evaluating(self), torch.no_grad(), FlopCounterMode(display=False) as counter:
                run(frame)
            counts.append(counter.get_total_flops() // 2)
        self._macs = (counts[0], counts[1])
        return self._macs

    def _open(
        self,
        x: Tensor,
        state: State | None,
        reset: bool | Tensor | None,
        strength: float | Tensor,
        guide: Tensor | None,
        mask: Tensor | None,
    ) -> _Call:
        """Check the arguments, bring them to (B, T, ...), and let the controllers look at the frames."""
        if x.ndim not in (4, 5) or not x.is_floating_point() or 0 in x.shape:
            raise InputError(f"x must be frames (B, C, H, W) or clips (B, T, C, H, W) of floats, got {shown(x)}.")
        if x.shape[-3] != self.frame_shape[0]:
            raise InputError(f"x must have {self.frame_shape[0]} channels, as the example had, got {shown(x)}.")
        streams, frames = x.shape[0], x.shape[1] if x.ndim == 5 else 1
        if guide is not None and guide.shape != x.shape:
            raise InputError(f"guide must be shaped as x, {tuple(x.shape)}, got {shown(guide)}.")
        if mask is not None:
            expected = (*x.shape[:-3], 1, *x.shape[-2:])
            if mask.shape != expected:
                raise InputError(f"mask must be {expected}: one channel, else as x; got {shown(mask)}.")
            mask = mask.view(streams, frames, 1, *x.shape[-2:])
        if state and "size" not in state:
            raise InputError("The state comes from another model, or none: it has no entry 'size'.")
        if state and state["size"].shape[-2:] != x.shape[-2:]:
            state = None  # a change of size is a new video
        if state and state["size"].shape[0] != streams:
            raise InputError(f"The state holds {state['size'].shape[0]} streams, but x has {streams}.")
        if not (reset is None or isinstance(reset, (bool, Tensor))):
            raise InputError(f"reset must be a bool or a tensor of them, got {type(reset).__name__}.")
        if isinstance(reset, Tensor):
            resets: Tensor | None = _per_frame("reset", reset.bool(), streams, frames, first_only=True)
        else:
            resets, state = None, None if reset else state
        if not isinstance(strength, (int, float, Tensor)):
            raise InputError(f"strength must be a number or a tensor, got {type(strength).__name__}.")
        if not isinstance(strength, Tensor):
            if not 0 <= strength <= MOST:
                raise InputError(f"strength must be 0 (off) or more, up to {MOST:g}, got {strength}.")
            strength = torch.full((), strength, dtype=x.dtype, device=x.device)
        elif (
            not torch.compiler.is_compiling()
            and strength.device.type == "cpu"
            and not bool(((strength >= 0) & (strength <= MOST)).all())
        ):
            raise InputError(f"strength must be 0 (off) or more, up to {MOST:g}, got {strength.tolist()}.")
        strength = _per_frame("strength", strength.to(x), streams, frames)
        call = _Call(streams, frames, state or {}, strength, resets, mask, [])
        call.following["size"] = x.new_zeros(streams, 0, *x.shape[-2:])
        if self._enabled:
            seen = (x if guide is None else guide).view(streams, frames, *x.shape[-3:])
            if self.controllers:
                self._look(call, seen)
            if "input" not in self.places:
                if any(stabilizer.uses_guide for stabilizer in self.stabilizers.values()):
                    self._watch(call, seen, "guide")
            elif self.stabilizers["input"].uses_guide:
                own = x if self.stabilizers["input"].guided_by_frame else seen
                self._watch(call, own.view(seen.shape), "frame")
        return call

    def _watch_for_others(self, call: _Call, x: Tensor, changed: Tensor, guide: Tensor | None) -> None:
        """Make the guide of all stabilizers but that of the input, whose result it is unless one is given."""
        others = [each for name, each in self.stabilizers.items() if name != "input"]
        if not any(each.uses_guide for each in others):
            return
        if guide is None:
            guide = x if any(each.needs_noise for each in others) else changed
        # What was filled at the input has not arrived for all that.
        arrived = None if all(each.whole for each in call.guides) else torch.stack([g.valid for g in call.guides], 1)
        self._watch(call, guide.view(call.streams, call.frames, *x.shape[-3:]), "guide", arrived)

    def _look(self, call: _Call, x: Tensor) -> None:
        own = [
            part(call.state, f"controller{i}") or controller.fresh(x[:, 0])
            for i, controller in enumerate(self.controllers)
        ]
        if call.state and not all(part(call.state, f"controller{i}") for i in range(len(own))):
            raise InputError("The state comes from another model: it holds nothing for the controller.")
        for t in range(call.frames):
            contexts = []
            for i, controller in enumerate(self.controllers):
                if call.reset is not None:
                    own[i] = restart(own[i], call.reset[:, t])
                context, own[i] = controller(x[:, t], own[i], None if call.mask is None else call.mask[:, t])
                contexts.append(context)
            call.contexts.append(tuple(contexts))
        for i in range(len(own)):
            call.following |= under(f"controller{i}", own[i])

    def _watch(self, call: _Call, x: Tensor, name: str, mask: Tensor | None = None) -> None:
        """Put each frame of the guide beside the one before."""
        mask = call.mask if mask is None else mask.to(x)
        own = part(call.state, name) or Guide.fresh(x[:, 0])
        if call.state and not part(call.state, name):
            raise InputError("The state comes from another model: it holds nothing of the guide.")
        call.guides.clear()
        for t in range(call.frames):
            if call.reset is not None:
                own = restart(own, call.reset[:, t])
            call.guides.append(Guide(x[:, t], own, None if mask is None else mask[:, t]))
            own = call.guides[-1].following
        call.following |= under(name, own)

    def _context_at(self, call: _Call, t: int, size: tuple[int, int] | None) -> tuple[Tensor, ...]:
        if (t, size) not in call.resized:  # layers of one size share it
            each = zip(self.controllers, call.contexts[t], strict=True)
            call.resized[t, size] = tuple(controller.context_at(context, size) for controller, context in each)
        return call.resized[t, size]

    def _pick(self, key: str, value: Any) -> Tensor:
        address = self.places[key].address
        return pick(value, address.selector, where_is(address))

    def _on_output(self, key: str, module: nn.Module, args: Any, output: Any) -> Any:
        if self._call is None:
            return None
        return put(output, self.places[key].address.selector, self._stabilized(key, self._pick(key, output)))

    def _on_input(self, key: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._call is None:
            return None
        address = self.places[key].address
        z = self._stabilized(key, pick_input(address, args, kwargs))
        if address.selector and not address.selector.isdigit():
            return args, {**kwargs, address.selector: z}
        return put(args, address.selector or "0", z), kwargs

    def _stabilized(self, key: str, z: Tensor) -> Tensor:
        """Run one layer's recurrence over the frames of the call."""
        call, place = self._call, self.places[key]
        assert call is not None
        if key in call.done:
            raise InputError(
                f"{where_is(place.address)} runs more than once in a forward pass; stabilize a layer around it."
            )
        call.done.add(key)
        stabilizer = self.stabilizers[_module_name(key)]
        maps = to_map(z, place.layout).unflatten(0, (call.streams, call.frames))
        own = part(call.state, key) if call.state else stabilizer.fresh(maps[:, 0])
        if own.keys() != self._state_names[key]:
            raise InputError(
                f"{where_is(place.address)} does not find its own in the state: it comes from another model."
            )
        past = next(value for name, value in own.items() if name.endswith("past"))
        if past.shape != maps[:, 0].shape:
            raise InputError(
                f"{where_is(place.address)} is {tuple(maps[:, 0].shape)}, but the state holds {tuple(past.shape)} "
                "for it: it comes from another model."
            )
        size = (maps.shape[-2], maps.shape[-1]) if place.layout in ("map", "plane") else None
        results = []
        for t in range(call.frames):
            if call.reset is not None:
                own = restart(own, call.reset[:, t])
            result, own = stabilizer(
                maps[:, t],
                own,
                strength=call.strength[:, t].view(-1, 1, 1, 1),
                contexts=self._context_at(call, t, size) if stabilizer.uses_controller else (),
                guide=call.guides[t] if stabilizer.uses_guide else None,
                mask=None if call.mask is None else call.mask[:, t],
            )
            results.append(result)
        call.following |= under(key, own)
        result = from_map(results[0] if call.frames == 1 else torch.stack(results, 1).flatten(0, 1), place.layout)
        # What follows gets the memory layout it is used to.
        if z.is_contiguous():
            return result.contiguous()
        if z.ndim == 4 and z.is_contiguous(memory_format=torch.channels_last):
            return result.contiguous(memory_format=torch.channels_last)
        return result


def _per_frame(name: str, value: Tensor, streams: int, frames: int, *, first_only: bool = False) -> Tensor:
    """Bring (), (B,) or (B, T) to (B, T)."""
    if value.shape not in ((), (streams,), (streams, frames)):
        raise InputError(f"{name} must be a scalar, ({streams},) or ({streams}, {frames}), got {shown(value)}.")
    if value.ndim == 2:
        return value
    value = value.expand(streams)[:, None]
    if first_only:
        return torch.cat([value, value.new_zeros(streams, frames - 1)], 1)
    return value.expand(streams, frames)


def _unfold(shape: torch.Size, value: Tensor) -> Tensor:
    return value.unflatten(0, shape) if value.ndim and value.shape[0] == shape.numel() else value


def _module_name(key: str) -> str:
    """ModuleDict takes no dots."""
    return key.replace(".", "/")


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _percent(share: float, whole: float) -> str:
    return f"{100 * share / whole:.1f} % of the base" if whole else "the base has none"
