"""Aligned evidence: the past is brought to where things are now, and counts by how many frames agree with it."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unflicker.checks import InputError, nearest
from unflicker.evidence import (
    EDGE,
    LONGEST,
    MOVED,
    NOISE_AT_EDGES,
    RESAMPLING,
    TINY,
    WINDOW,
    consistency,
    counted,
    explained,
    follow_tone,
    fresh_tone,
    noise_variance,
)
from unflicker.flow import METHODS, PRESETS, Flow, enlarge, fetch, flow
from unflicker.functional import (
    box_mean,
    doubled,
    flow_to,
    gradient,
    half,
    in_frame,
    is_finite,
    luma,
    mean_channel,
    noise_level,
    positive,
    resize,
    value_range,
)
from unflicker.guide import Guide
from unflicker.recovery import BANDS, MARKS, fresh_recovery, recover
from unflicker.stabilizers.base import Layout, Stabilizer, believed
from unflicker.state import State, part, under

Signal = Literal["auto", "image", "depth", "logits", "map"]
Evidence = Literal["both", "output"]
FlowOn = Literal["auto", "guide", "output"]
FEATURES = 10  # of the learned head
FLOOR = 0.001  # the least noise of an image, as a standard deviation


class Aligned(Stabilizer):
    """A recursive mean along the motion that trusts its past by evidence. It has no weights and needs no training.

    The last result is carried along the optical flow. Each pixel counts how many frames in a row agreed with what was
    there: its evidence n. The past weighs n / (n + 1), as in a running mean, and loses evidence where it does not
    explain the present: at what was hidden, what changed, what the flow missed. Jumps of tone that are smooth over
    the frame (a network that grades every frame anew) are taken out where the network's input did not jump.

    Args:
        signal: what the layer returns, for the distance that is right for it. "image": values as they are;
            "depth": depth or disparity in any unit; "logits": the classes' probabilities are compared (Hellinger's
            distance, to second order the Kullback-Leibler divergence), logits are averaged; "map": any features.
            "auto" takes 3 channels for an image and the rest for maps.
        evidence: "both" sources, or that of the "output" alone, which is cheaper and leaves jumps of tone.
        flow: "auto" is DIS on a CPU with OpenCV and tensors elsewhere; else as in `unflicker.flow.flow`. A callable
            gets luma at half size, (B, 1, H/2, W/2), now and before, and returns (B, 2, H/2, W/2) in such pixels.
        preset: of DIS.
        flow_on: where motion is looked for: on the "guide" (worked out once for all layers), on the "output" (images
            alone), or "auto": on the less noisy of the two.
        recover: the network is a denoiser, and what it took for noise is given back where the average of its input
            along the motion shows it, times the strength up to 1: see `unflicker.recovery`. Images alone, of the size
            and the range of the guide, against which it is measured. Of a network that changes the picture it would
            undo the change.
        learned: add a small network (1.3 k weights, at half size) that corrects the weight of the past; for images
            it also mixes in the average of the input, or, with `recover`, corrects how much of each band of detail
            is believed (1.7 k weights in all). Maps alone. Until it is trained it changes nothing.
        layout: see `Stabilizer`. Tokens and vectors have no place in the frame; theirs is the evidence without flow.

    Raises:
        InputError: a name is not known, or a flow is asked for where there is no frame to align.

    >>> import torch
    >>> from unflicker.model import stabilize
    >>> model = stabilize(torch.nn.Identity(), {"": Aligned()}, example=torch.zeros(1, 3, 32, 48))
    >>> noisy = 0.5 + 0.1 * torch.randn(1, 8, 3, 32, 48)
    >>> y, state = model(noisy, guide=torch.full_like(noisy, 0.5))
    >>> bool((y[:, -1] - 0.5).std() < 0.06)
    True
    """

    kind = "aligned"
    head: nn.Sequential
    judge: nn.Sequential | None
    uses_guide = True

    def __init__(
        self,
        *,
        signal: Signal = "auto",
        evidence: Evidence = "both",
        flow: str | Flow = "auto",
        preset: str = "medium",
        flow_on: FlowOn = "auto",
        recover: bool = False,
        learned: bool = False,
        layout: Layout = "auto",
    ) -> None:
        super().__init__(layout)
        for name, value, known in (
            ("signal", signal, get_args(Signal)),
            ("evidence", evidence, get_args(Evidence)),
            ("flow_on", flow_on, get_args(FlowOn)),
            ("preset", preset, PRESETS),
            *(() if callable(flow) else (("flow", flow, METHODS),)),
        ):
            if value not in known:
                raise InputError(f"Aligned has no {name} {value!r}; {nearest(str(value), known)}")
        self.signal, self.evidence, self.flow, self.preset, self.flow_on = signal, evidence, flow, preset, flow_on
        self.recover, self.learned, self.judge = recover, learned, None
        self.needs_noise = recover

    def build(self, channels: int, layout: Layout, context_channels: tuple[int, ...]) -> None:
        super().build(channels, layout, context_channels)
        if not self._is_map and (self.flow not in ("auto", "none") or self.flow_on != "auto"):
            raise InputError(
                f"Aligned cannot align {layout}: it has no place in the frame. Leave out flow and flow_on; evidence "
                "is then counted without motion."
            )
        if self.signal == "auto":
            self.signal = "image" if channels == 3 and self._is_map else "map"
        if self.flow_on == "output" and self.signal != "image":
            raise InputError(f'Aligned looks for motion on images; for the signal "{self.signal}" leave out flow_on.')
        if self.recover and (self.signal != "image" or channels != 3 or not self._is_map):
            what = f'is "{self.signal}"' if channels == 3 and self._is_map else f"returns {channels}"
            raise InputError(f"Aligned(recover=True) is for images of 3 channels; this layer {what}.")
        if self.learned:
            if not self._is_map:
                raise InputError(f"Aligned(learned=True) is for maps; {layout} have no place in the frame.")
            self.head = nn.Sequential(
                nn.Conv2d(FEATURES, 8, 3, padding=1, padding_mode="replicate"),
                nn.LeakyReLU(0.1),
                nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate"),
                nn.LeakyReLU(0.1),
                nn.Conv2d(8, 1 if self.recover else 2, 1),
            )
            if self.recover:
                first, last = nn.Conv2d(MARKS, 12, 1), nn.Conv2d(12, BANDS, 1)
                self.judge = nn.Sequential(first, nn.LeakyReLU(0.1), nn.Conv2d(12, 12, 1), nn.LeakyReLU(0.1), last)
            for added in (self.head, self.judge):
                for parameter in added[-1].parameters() if added is not None else ():
                    nn.init.zeros_(parameter)  # it starts at the rule exactly

    def settings(self) -> dict[str, Any]:
        if callable(self.flow):
            raise InputError(f"Aligned with a flow of one's own cannot be saved; name one: {', '.join(METHODS)}.")
        return super().settings()

    @property
    def _is_map(self) -> bool:
        return self.layout in ("map", "plane")

    def fresh(self, z: Tensor) -> State:
        dtype = torch.promote_types(z.dtype, torch.float32)
        plane = torch.zeros_like(z[:, :1], dtype=dtype)
        plane = half(plane) if self._is_map else plane
        state = {"past": torch.zeros_like(z), "evidence": plane, "noise": plane[..., :1, :1].clone()}
        if self._is_map:
            state["moved"] = plane.clone()  # which hypothesis won; nothing depends on it, `--explain` shows it
        if self._keeps_input:
            state["input"] = torch.zeros_like(z, dtype=dtype)
        if self._has_tone:
            state |= under("tone", fresh_tone(plane))
        if self.recover:
            state |= under("detail", fresh_recovery(plane[..., :1, :1]))
        return state

    @property
    def _has_tone(self) -> bool:
        return self._is_map and self.evidence == "both" and self.signal in ("image", "depth")

    @property
    def _keeps_input(self) -> bool:
        return self.recover or (self.learned and self.signal == "image")

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
        """Take one frame (B, C, H, W) on; see `Stabilizer.forward`.

        What is missing, for `mask`, the guide or for not being finite, is filled from the aligned past.
        """
        dtype = torch.promote_types(z.dtype, torch.float32)
        own = {name: value.to(dtype) for name, value in state.items()}
        valid = believed(z, guide, mask, (z.shape[-2], z.shape[-1]) if self._is_map else (1, 1))
        present = z.to(dtype) if valid is None else torch.where(valid, z.to(dtype), own["past"])
        step = self._along_motion if self._is_map else self._in_place
        blended, detail, seen, following = step(present, valid, own, strength.to(dtype), guide)
        shown = blended if detail is None else blended + detail  # the past is what has none, as the present has none
        if not is_finite(torch.stack([value.sum() for value in following.values()])):
            following = {name: value.nan_to_num(0, 0, 0) for name, value in following.items()}
        active = seen & (strength > 0)
        if valid is None and bool(active.all()) and is_finite(shown):
            past = blended.to(z.dtype)  # the usual frame of a program: no pixel needs a choice
            return (past.clone() if detail is None else shown.to(z.dtype)), {"past": past, **following}
        past, result = (torch.where(active & torch.isfinite(each), each, present) for each in (blended, shown))
        passed = result.to(z.dtype) if valid is None else torch.where(valid | active, result.to(z.dtype), z)
        return passed, {"past": past.to(z.dtype), **following}  # not the same tensor: what follows may work in place

    def _in_place(
        self, y: Tensor, valid: Tensor | None, own: State, strength: Tensor, guide: Guide | None
    ) -> tuple[Tensor, None, Tensor, State]:
        """Evidence without motion, for tokens and vectors: each element of the sequence counts for itself."""
        past, n = own["past"], own["evidence"]
        expected = n / (n + 1)
        squared = (_classes(past) - _classes(y) if self.signal == "logits" else past - y).square().mean(
            1, keepdim=True
        ) * expected
        noise = noise_variance(squared, own["noise"], TINY)
        odds = n * consistency(squared, squared, None, noise)
        if valid is not None:
            odds = torch.where(valid, odds, n)
        weight = odds * strength / (odds * strength + 1)
        following = {
            "evidence": counted(odds, strength, valid),
            "noise": noise * (n > 0).any(2, True),
        }
        return torch.lerp(y, past, weight), None, n > 0, following

    def _along_motion(
        self, y: Tensor, valid: Tensor | None, own: State, strength: Tensor, guide: Guide | None
    ) -> tuple[Tensor, Tensor | None, Tensor, State]:
        """The rule, for maps: the present y (B, C, H, W); flow, evidence and gates are at half its size."""
        past, n = own["past"], own["evidence"]
        size, small = (y.shape[-2], y.shape[-1]), (n.shape[-2], n.shape[-1])
        guided = guide if self._has_tone else None
        grey = luma(y) if self.signal == "image" else y
        if guided is None and self.signal == "image":  # colours have no part in what follows at half size
            y_half, past_half = half(grey), half(luma(past))
        else:
            y_half, past_half = half(y), half(past)
        bright, bright_past = self._brightness(y_half), self._brightness(past_half)
        offset, unit = self._range(bright, bright_past)
        motion, clean, steep = self._motion((bright - offset) / unit, (bright_past - offset) / unit, guide)
        inside = in_frame(motion) * positive(n)
        compared, compared_past = self._compared(bright, y_half), self._compared(bright_past, past_half)
        carried = [n, compared_past]
        if guided is None and self.signal == "image":
            x, x_past = compared, compared_past  # it is its own guide, and carried anyway
        else:
            x, x_past = (bright, bright_past) if guided is None else (guided.luma, guided.past)
            x, x_past = resize(x, small), resize(x_past, small)
            carried.append(x_past)
        n_moved, *moved_channels = self._fetch(torch.cat(carried, 1), motion).split(1, 1)
        compared_moved = torch.cat(moved_channels[: compared.shape[1]], 1)
        x_moved = moved_channels[-1]
        n_moved = n_moved.clamp(0.0, LONGEST) * inside
        following: State = {}

        # The low band: what jumped smoothly over the frame, and how much of that to take back.
        jump: Tensor | None = None
        hold: Tensor | None = None
        if guided is not None:
            tone, more = follow_tone(
                y_half / unit,
                past_half / unit,
                resize(guided.colour, small),
                resize(guided.colour_past, small),
                x_moved,
                inside,
                motion,
                clean,
                strength,
                part(own, "tone"),
                light=self.signal == "image",
                method=self.flow,
            )
            following |= under("tone", more)
            if torch.compiler.is_compiling() or bool((tone.acts > 0).any()):
                plane = resize(guided.plane, size)
                jump, hold = (self._field(planes * tone.acts * unit, plane) for planes in (tone.jump, tone.hold))

        # Static or moved? The better one is fetched, once, at full size. Interpolation costs evidence.
        shifted = compared if jump is None else compared + self._brightness(half(jump))
        errors = [mean_channel((there - shifted).square()) for there in (compared_past, compared_moved)]
        energy = half(gradient(grey)) if self.signal == "image" else mean_channel(gradient(compared))
        static, moved, edges = box_mean(torch.cat([*errors, energy], 1), WINDOW).split(1, 1)
        edges = edges / unit.square()
        variance = self._variance(edges, own["noise"], steep, clean)
        n_moved = n_moved / (1 + RESAMPLING * n_moved * edges / variance.clamp_min(TINY))
        static, moved = static * (n / (n + 1)), moved * (n_moved / (n_moved + 1))
        leads = static - MOVED * moved
        known = None if valid is None else half(valid.to(y)) == 1
        if known is not None or torch.compiler.is_compiling() or not bool(n.amin() > 0):
            leads = torch.where((n > 0) if known is None else (n > 0) & known, leads, 1)
        goes = positive(torch.minimum(leads, n_moved))
        count = torch.lerp(n, n_moved, goes)
        moves = motion * goes
        reference = self._fetch(past, moves)

        # How well it explains the present, and what it weighs for that.
        difference = reference - y if jump is None else reference - y - jump
        residual = _classes(y + difference) - _classes(y) if self.signal == "logits" else difference
        expected = count / (count + 1)
        squared = half(mean_channel(residual.square())) * (expected / unit.square())
        signed = half(mean_channel(residual)) * (expected.sqrt() / unit)
        mean = box_mean(squared, WINDOW)
        at_first: Tensor | float = math.inf
        if torch.compiler.is_compiling() or not bool((own["noise"] > 0).all()):
            at_first = 16 * (noise_level(bright) / unit).clamp_min(0.01).square()
        noise = noise_variance(squared, own["noise"], FLOOR**2, at_first)
        doubt = (EDGE / steep).clamp_max(1)  # a network that was given much noise errs in patches
        agrees = consistency(squared, mean, signed, self._variance(edges, noise, steep, clean), doubt=doubt)
        watched = guided is not None and (torch.compiler.is_compiling() or bool((clean > 0).any()))
        shown = torch.lerp(x_past, x_moved, goes) - x if watched or self.learned else n
        if watched:
            agrees = agrees * torch.where(clean > 0, explained(signed, shown), 1)
        odds = count * agrees
        if self.learned:
            variance = self._variance(edges, noise, steep, clean).clamp_min(TINY)
            features = [squared / variance, mean / variance, edges / variance, static / moved.clamp_min(TINY)]
            features = [*features, noise.expand_as(n), box_mean(shown.square(), WINDOW), steep.expand_as(n)]
            features = [(each + 1e-4).log().clamp(-8, 8) / 4 for each in features]
            signs = [(signed / variance.sqrt()).clamp(-3, 3), goes, odds / LONGEST]
            seen_by_head = torch.cat([*features, *signs], 1).to(next(self.head.parameters()))
            correction, *share = self.head(seen_by_head).to(y).split(1, 1)
            odds = odds * correction.clamp(-4, 4).exp()
        if known is not None:
            odds = torch.where(known, odds, count)
        weight = odds * strength / (odds * strength + 1)
        blended = torch.addcmul(y if hold is None else y + hold, self._enlarge(weight, size), difference)
        if valid is not None:
            blended = torch.where(valid, blended, reference)
        detail: Tensor | None = None
        if self._keeps_input and guide is not None and guide.frame.shape == y.shape:
            kept = self._fetch(own["input"], moves)
            frame = guide.bounded.to(y)
            arrived = frame if valid is None else torch.where(valid, frame, kept)
            average = torch.lerp(arrived, kept, self._enlarge(odds / (odds + 1), size))
            following["input"] = average
            if self.recover:
                frames = torch.minimum(odds, count) + (1 if known is None else known.to(y))
                detail, more = recover(
                    *guide.to_unit(blended, average, frame),
                    frames.clamp_max(LONGEST),
                    part(own, "detail"),
                    clips=guide.usual,
                    judge=self.judge,
                    known=valid,
                    method=self.flow,
                )
                detail = guide.from_unit(detail) * strength.clamp_max(1)
                following |= under("detail", more)
            elif self.learned:
                mixed = torch.lerp(blended, average, self._enlarge(share[0] * strength.clamp_max(1), size))
                blended = mixed if valid is None else torch.where(valid, mixed, blended)
        elif self._keeps_input:
            following["input"] = own["input"]
            following |= under("detail", part(own, "detail"))
        everywhere = not torch.compiler.is_compiling() and bool(count.amin() > 0)
        seen = count[..., :1, :1] > 0 if everywhere else doubled(count > 0, size)
        have = n.amax((2, 3), keepdim=True) > 0
        following |= {
            "evidence": counted(odds, strength, known),
            "noise": noise * have,
            "moved": goes,
        }
        return blended, detail, seen, following

    def _motion(self, bright: Tensor, bright_past: Tensor, guide: Guide | None) -> tuple[Tensor, Tensor, Tensor]:
        """Flow at half size, (B, 2, h, w); whether the guide is the cleaner signal, and how much edges excuse."""
        image, size = self.signal == "image", (bright.shape[-2], bright.shape[-1])
        if guide is None:
            still = torch.zeros_like(bright)
            found = (
                flow(bright, bright_past, method=self.flow, preset=self.preset) if image else still.repeat(1, 2, 1, 1)
            )
            return found, still[..., :1, :1], still[..., :1, :1] + EDGE
        clean = torch.ones_like(bright[..., :1, :1])
        noise = noise_level(guide.luma)
        steep = (NOISE_AT_EDGES * noise).clamp(EDGE / 2, 6 * EDGE)
        if image:
            clean = (noise < (2 * noise_level(bright)).clamp_min(0.008)).to(bright)
        lazy = not torch.compiler.is_compiling()
        flow_on = self.flow_on if image else "guide"
        if flow_on == "auto" and guide.luma.shape[-2:] != size:
            flow_on = "guide"
        if flow_on == "guide" or (flow_on == "auto" and lazy and bool((clean > 0).all())):
            return flow_to(guide.flow(self.flow, self.preset), size), clean, steep
        if flow_on == "output" or (lazy and not bool((clean > 0).any())):
            return flow(bright, bright_past, method=self.flow, preset=self.preset), clean, steep
        # Streams differ, or a graph is being made: one flow, each stream on the better pair.
        pair = (torch.where(clean > 0, a, b) for a, b in ((guide.luma, bright), (guide.past, bright_past)))
        return flow(*pair, method=self.flow, preset=self.preset), clean, steep

    def _fetch(self, image: Tensor, motion: Tensor) -> Tensor:
        return fetch(image, motion, method=self.flow)

    def _enlarge(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return enlarge(maps, size, method=self.flow)

    def _field(self, planes: Tensor, plane: Tensor) -> Tensor:
        """A tone at full size: constant + slope x luma, from coarse maps (B, 2 C, h, w)."""
        constant, slope = self._enlarge(planes, (plane.shape[-2], plane.shape[-1])).chunk(2, 1)
        return torch.addcmul(constant, slope, plane)

    def _brightness(self, y: Tensor) -> Tensor:
        return luma(y) if self.signal == "image" else y.mean(1, keepdim=True)

    def _range(self, bright: Tensor, bright_past: Tensor) -> tuple[Tensor, Tensor]:
        """What counts as 0 and as 1: an image's range, which is [0, 1] if it fits; the spread of any other map."""
        zero, one = torch.zeros_like(bright[..., :1, :1]), torch.ones_like(bright[..., :1, :1])
        if self.signal == "logits":
            return zero, one
        if self.signal == "image":
            return value_range(bright, bright_past)
        spread = 1.25 * (bright - bright.mean((2, 3), keepdim=True)).abs().mean((2, 3), keepdim=True)
        return zero, torch.where(spread > TINY, spread, one)

    def _compared(self, bright: Tensor, y: Tensor) -> Tensor:
        """What the two hypotheses are compared in, at half size: luma of an image, classes, all channels of a map."""
        return bright if self.signal == "image" else _classes(y) if self.signal == "logits" else y

    def _variance(self, edges: Tensor, noise: Tensor, steep: Tensor, clean: Tensor) -> Tensor:
        """What one may expect of a residual; where the guide is clean an edge is no excuse for more than 4 times."""
        most = (4 * noise).masked_fill((clean <= 0) | (noise <= 0), math.inf)
        return noise + torch.minimum(steep * edges, most)


def _classes(logits: Tensor) -> Tensor:
    """Bring logits to where squared distance is (four times) Hellinger's, about twice the KL divergence.

    A single channel is the logit of one class against its absence.
    """
    if logits.shape[1] == 1:
        logits = torch.cat([logits, torch.zeros_like(logits)], 1)
    return 2 * logits.softmax(1).sqrt()
