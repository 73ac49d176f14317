"""fit(): train what was added to a base, or the base itself, on clips, with the unified loss."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_later

from unflicker.checks import InputError
from unflicker.layers import pick
from unflicker.losses import Distance, unified_loss
from unflicker.model import StabilizedModel
from unflicker.outputs import main_output
from unflicker.state import State, detach

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = tuple[Tensor, Tensor]
Batches = Iterable[Batch] | Iterable[dict[str, Tensor]]
Precision = Literal["float32", "bf16", "fp16"]
FORMAT = "1"


def fit(
    model: StabilizedModel,
    batches: Batches | Callable[[int], Batches],
    *,
    steps: int,
    learning_rate: float = 1e-4,
    schedule: Literal["cosine"] | Sequence[int] = "cosine",
    stability: float = 0.2,
    distance: str | Distance = "rmse",
    truncate: int | None = None,
    recompute: bool = False,
    average: float = 0.0,
    precision: Precision = "float32",
    seed: int = 0,
    validate: Callable[[StabilizedModel], float] | None = None,
    validate_every: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train the stabilizers and their controller, and the base too if it was unfrozen, on clips.

    Instant Video Models, section 5: Adam, no weight decay, back-propagation through all frames of each clip. Runs on
    a GPU if there is one, and on many under `accelerate launch`, where each process gives `batches` of its own.

    Args:
        model: a stabilized model; what trains in it is changed in place. It ends with the weights that `validate`
            found best, or the last.
        batches: pairs (input, target) of clips (B, T, C, H, W), or dicts of both; or a function that gives them from a
            step on, counted from 0, which spares a resumed run to go through those it has seen.
        steps: how many batches to take.
        learning_rate: its highest value.
        schedule: "cosine", down to a hundredth after a short rise; or the steps after which it falls to a tenth, as
            in the paper. An empty list keeps it.
        stability: the weight of the stability term, below 1/2; the paper's lambda.
        distance: as `unified_loss` takes it.
        truncate: carry the state through the clip, but back-propagate through so many frames at a time. None: all.
        recompute: keep only what passes between frames, and compute the rest of each frame again on the way back.
        average: keep a moving average of the weights with this decay, as 0.999, and validate and end with that.
        precision: of the forward pass; the weights stay float32. A CPU takes bf16 too, a GPU also fp16.
        seed: what the network itself draws, as dropout, is a function of it and the step.
        validate: gives a number that is to be low, as the loss on other clips.
        validate_every: steps between validations; there is always one at the end. None: only that one.
        checkpoint: a file that holds all of the run; if it exists the run goes on from it, bit for bit as if it had
            never stopped.
        checkpoint_every: steps between writes of that file.
        on_step: called with each step's number, from 1, and what is returned of it, before a checkpoint is written.

    Returns:
        Of every step of this call "accuracy", "stability", "total" and "learning_rate", and where `validate` was asked
        "validation".

    Raises:
        InputError: there is nothing to train, the batches end early, or the checkpoint is of another run.
        FloatingPointError: the loss or its gradient stopped being finite; the model has the weights of the step
            before, or the best, and the checkpoint is as it was last written.

    >>> from unflicker.model import stabilize
    >>> from unflicker.stabilizers import LearnedEMA
    >>> clean = torch.rand(1, 1, 3, 8, 8).expand(1, 4, 3, 8, 8)
    >>> model = stabilize(torch.nn.Conv2d(3, 3, 1), {"": LearnedEMA()}, example=clean[:, 0])
    >>> len(fit(model, [(clean, clean)] * 2, steps=2))
    2
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("There is nothing to train: the stabilizers of this model have no weights.")
    for name, number in (("steps", steps), ("validate_every", validate_every), ("truncate", truncate)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be 1 or more, got {number}.")
    if not 0 <= average < 1:
        raise InputError(f"average is the weight of the past, from 0 (off) to below 1, got {average}.")
    _check_choices(schedule, precision, checkpoint)
    if truncate is not None or recompute:
        _check_no_batch_norm(model)
    home, was_training = parameters[0].device, model.training
    accelerator = _accelerator(precision, unused=any(p.requires_grad for p in model.base.parameters()))
    run = _Run(model, torch.optim.Adam(parameters, lr=learning_rate), average)
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None and file.exists():
        run.load(file)
    run.scaler = accelerator.scaler
    run.load_scaler()
    wrapped, optimizer = accelerator.prepare(model, run.optimizer)
    history: list[dict[str, float]] = []
    seen = run.step
    forward: Callable[..., tuple[Tensor, State]] | None = None
    model.train()
    try:
        with _own_random_numbers():
            for batch in _from(batches, run.step, steps):
                clip, target = (batch["input"], batch["target"]) if isinstance(batch, dict) else batch
                torch.manual_seed(seed * 1_000_003 + run.step)
                rate = learning_rate * _relative_rate(run.step, steps, schedule)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad()
                clip, target = clip.to(accelerator.device), target.to(accelerator.device)
                if forward is None:
                    forward = _main(wrapped, main_output(model.base, clip[:1, 0]))
                    forward = _remembering(forward) if recompute else forward
                terms = _backward(forward, clip, target, accelerator, stability, distance, truncate)
                _check_finite(terms, parameters, run.step + 1, accelerator)
                optimizer.step()
                run.step += 1
                run.note_average()
                told = {**_mean_over_processes(terms, accelerator), "learning_rate": rate}
                due = run.step == steps or (validate_every is not None and run.step % validate_every == 0)
                if validate is not None and due:
                    told["validation"] = run.validate(validate)
                history.append(told)
                if on_step is not None:
                    on_step(run.step, told)
                writes = run.step % checkpoint_every == 0 or run.step == steps
                if writes and file is not None and accelerator.is_main_process:
                    run.save(file)
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        model.__dict__.pop("forward", None)  # accelerate leaves its own there, and copies would share it
        model.load_state_dict(run.result(), strict=False)
        model.to(home).train(was_training)
    if run.step < steps:
        raise InputError(f"The batches ended after {len(history) + seen} of {steps} steps.")
    return history


def device() -> torch.device:
    """Return where `fit` computes: the GPU of this process if there is one.

    >>> device().type in ("cpu", "cuda", "mps", "xpu")
    True
    """
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available()).device


def known_frames(target: Tensor) -> int:
    """Count the frames of clips (B, T, ...) that have a truth anywhere: one that is not NaN, or no negative index.

    >>> known_frames(torch.tensor([[[1.0, 2.0], [float("nan"), 1.0], [float("nan"), float("nan")]]]))
    2
    """
    known = ~target.isnan() if target.is_floating_point() else target >= 0
    return int(known.flatten(2).any(2).sum())


def shard() -> tuple[int, int]:
    """Return which of how many processes this is, under `accelerate launch` or `torchrun`.

    >>> shard()
    (0, 1)
    """
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    return state.process_index, state.num_processes


@dataclass
class _Run:
    """All that a run goes on from: weights, the optimizer's moments, averages, and the best so far."""

    model: StabilizedModel
    optimizer: torch.optim.Adam
    decay: float
    step: int = 0
    best_value: float = math.inf
    average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    scaler: Any = None
    """Of fp16's gradients; it has a memory too."""
    _scaler_state: str = ""

    def __post_init__(self) -> None:
        if self.decay:
            self.average = _copied(self.weights())

    def weights(self) -> dict[str, Tensor]:
        """What may change: all but a frozen base."""
        frozen = not any(p.requires_grad for p in self.model.base.parameters())
        return {
            name: value for name, value in self.model.state_dict().items() if not (frozen and name.startswith("base."))
        }

    def result(self) -> dict[str, Tensor]:
        return self.best or self.average or self.weights()

    def note_average(self) -> None:
        """Follow the weights; at first closely, so that the average is not one of the initial weights."""
        decay = min(self.decay, self.step / (self.step + 10))
        now = self.weights()
        for name, value in self.average.items():
            if value.is_floating_point():
                value.lerp_(now[name].to(value.device), 1 - decay)
            else:
                value.copy_(now[name])

    def validate(self, judge: Callable[[StabilizedModel], float]) -> float:
        """Judge the weights, or their average, and keep them if they are the best so far."""
        kept = _copied(self.weights())
        self.model.eval()
        try:
            if self.average:
                self.model.load_state_dict(self.average, strict=False)
            value = float(judge(self.model))
            if value < self.best_value:
                self.best_value, self.best = value, _copied(self.weights())
        finally:
            self.model.load_state_dict(kept, strict=False)
            self.model.train()
        return value

    def save(self, file: Path) -> None:
        """Write everything; the file that was there stays whole until the new one is."""
        groups = {"weights": self.weights(), "average": self.average, "best": self.best}
        tensors = {f"{group}/{name}": value for group, each in groups.items() for name, value in each.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in moments.items()}
        facts = {"format": FORMAT, "step": str(self.step), "best": json.dumps(self.best_value)}
        if self.scaler is not None:
            facts["scaler"] = json.dumps(self.scaler.state_dict())
        part = file.with_name(f"{file.name}.part")
        try:
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, part, facts)
            os.replace(part, file)
        except (OSError, SafetensorError) as error:
            kept = f"; the one before it, {file}, is whole" if file.exists() else ""
            raise InputError(
                f"The checkpoint of step {self.step} could not be written ({error}): make room and run again{kept}."
            ) from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def load(self, file: Path) -> None:
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "best": {}, "optimizer": {}}
        try:
            with safe_open(file, "pt") as opened:
                facts = opened.metadata() or {}
                for name in opened.keys():  # noqa: SIM118 - it is no dict
                    group, _, rest = name.partition("/")
                    groups[group][rest] = opened.get_tensor(name)
            if facts["format"] != FORMAT:
                raise KeyError(f"format {facts['format']}")
            self.step, self.best_value = int(facts["step"]), json.loads(facts["best"])
            self._scaler_state = facts.get("scaler", "")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"The checkpoint {file} cannot be read ({error}); take it away to begin anew.") from None
        mine = self.weights()
        shapes = {name: tuple(value.shape) for name, value in mine.items()}
        if {name: tuple(value.shape) for name, value in groups["weights"].items()} != shapes:
            raise InputError(f"The checkpoint {file} is of another model; choose another file, or take it away.")
        self.model.load_state_dict(groups["weights"], strict=False)
        self.best = groups["best"]
        if self.decay:
            self.average = groups["average"] or self.average
        saved = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in groups["optimizer"].items():
            number, _, key = name.partition("/")
            moments.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict({**saved, "state": moments})

    def load_scaler(self) -> None:
        if self.scaler is not None and self._scaler_state:
            self.scaler.load_state_dict(json.loads(self._scaler_state))


def _backward(
    model: Callable[..., Any],
    clip: Tensor,
    target: Tensor,
    accelerator: Accelerator,
    stability: float,
    distance: str | Distance,
    truncate: int | None,
) -> dict[str, float]:
    """Add up the gradients of one batch, in pieces of `truncate` frames; return the loss terms of the whole."""
    length = clip.shape[1]
    piece = min(truncate or length, length)
    whole = None if piece == length else float(known_frames(target))
    state: State | None = None
    previous: Batch | None = None
    sums: dict[str, float] = {}
    for start in range(0, length, piece):
        now = slice(start, start + piece)
        preds, state = model(clip[:, now], state)
        terms = unified_loss(
            preds.float(), target[:, now], stability=stability, distance=distance, previous=previous, frames=whole
        )
        accelerator.backward(terms["total"])
        sums = {name: sums.get(name, 0.0) + value.item() for name, value in terms.items()}
        state, previous = detach(state), (preds[:, -1].detach().float(), target[:, now][:, -1])
    return sums


def _main(model: Callable[..., Any], entry: str) -> Callable[[Tensor, State | None], tuple[Tensor, State]]:
    """Take the main tensor out of what a network returns, if that is a tuple or a dict."""
    if not entry:
        return model

    def forward(clip: Tensor, state: State | None) -> tuple[Tensor, State]:
        output, state = model(clip, state)
        return pick(output, entry.removeprefix("::"), "The network's output"), state

    return forward


def _remembering(model: Callable[..., Any]) -> Callable[[Tensor, State | None], tuple[Tensor, State]]:
    """Go frame by frame and keep no activations: each frame is computed again when its gradient is due."""

    def forward(clip: Tensor, state: State | None) -> tuple[Tensor, State]:
        frames = []
        for t in range(clip.shape[1]):
            y, state = recompute_later(model, clip[:, t : t + 1], state, use_reentrant=False)
            frames.append(y)
        assert state is not None
        return torch.cat(frames, 1), state

    return forward


def _check_finite(terms: dict[str, float], parameters: Sequence[Tensor], step: int, accelerator: Accelerator) -> None:
    """Stop before the weights are spoiled. With fp16 a gradient may overflow: the scaler leaves that step out."""
    total = torch.tensor(terms["total"], device=accelerator.device)
    if accelerator.mixed_precision != "fp16":
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = total + 0 * torch.stack(torch._foreach_norm(gradients)).sum()  # NaN where anything is not finite
    if not torch.isfinite(accelerator.reduce(total)):
        found = terms["total"]
        what = f"The loss is {found}" if not math.isfinite(found) else "The gradient of the loss is not finite"
        raise FloatingPointError(f"{what} at step {step}: lower the learning rate, or look for NaN in the clips.")


def _mean_over_processes(terms: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return terms
    values = accelerator.reduce(torch.tensor(list(terms.values()), device=accelerator.device), "mean")
    return dict(zip(terms, values.tolist(), strict=True))


def _relative_rate(step: int, steps: int, schedule: Literal["cosine"] | Sequence[int]) -> float:
    if schedule == "cosine":
        rise = min(1.0, (step + 1) / max(1, steps // 50))
        return rise * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
    return 0.1 ** sum(step >= int(milestone) for milestone in schedule)


def _from(batches: Batches | Callable[[int], Batches], start: int, steps: int) -> Iterator[Any]:
    """The batches of the steps from `start` on."""
    if callable(batches):
        return itertools.islice(batches(start), steps - start)
    return itertools.islice(batches, start, steps)


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Give the caller's random numbers back at the end."""
    with torch.random.fork_rng():
        yield


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _check_choices(
    schedule: Literal["cosine"] | Sequence[int], precision: Precision, checkpoint: str | Path | None
) -> None:
    if isinstance(schedule, str) and schedule != "cosine":
        raise InputError(
            f'schedule is "cosine" or the steps at which the rate falls, as [20000, 30000]; got {schedule!r}.'
        )
    if precision not in get_args(Precision):
        raise InputError(f"precision is one of {', '.join(get_args(Precision))}, got {precision!r}.")
    if precision == "fp16" and not torch.accelerator.is_available():
        raise InputError("fp16 needs a GPU; a CPU takes float32 or bf16.")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise InputError(f"There is no folder {Path(checkpoint).parent} for the checkpoint; make it first.")


def _check_no_batch_norm(model: StabilizedModel) -> None:
    """Its statistics would be those of some frames instead of the clip's, and be counted again on the way back."""
    learns = any(p.requires_grad for p in model.base.parameters())
    if learns and any(isinstance(each, torch.nn.modules.batchnorm._BatchNorm) for each in model.base.modules()):
        raise InputError(
            "truncate and recompute split clips, which a network with batch norm that is trained would notice."
        )


def _accelerator(precision: Precision, unused: bool) -> Accelerator:
    """Make it ready; `unused`: some weights may take no part in a step, as those of a network's other heads."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    name = "no" if precision == "float32" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != name:
        AcceleratorState._reset_state()  # one process may fit twice
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=unused)]
    return Accelerator(mixed_precision=name, cpu=not torch.accelerator.is_available(), kwargs_handlers=handlers)
