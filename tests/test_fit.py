"""fit(): schedules, truncation, averages, the best weights, and runs that are stopped at any moment."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unflicker.checkpoint import adapter_state_dict
from unflicker.checks import InputError
from unflicker.losses import unified_loss
from unflicker.model import StabilizedModel, stabilize
from unflicker.stabilizers import Controlled, LearnedEMA, Spatial
from unflicker.training import fit

CLIP = torch.rand(2, 6, 3, 12, 16, generator=torch.Generator().manual_seed(3))


def build(template=None, base=None) -> StabilizedModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        base = nn.Conv2d(3, 3, 3, padding=1) if base is None else base
        return stabilize(base, {"": template or Spatial(3, hidden=4)}, example=CLIP[:, 0])


def batches(start: int):
    for step in range(start, 1000):
        noise = torch.randn(CLIP.shape, generator=torch.Generator().manual_seed(step))
        yield (CLIP + 0.1 * noise).clamp(0, 1), CLIP


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_plain_loop_gives_the_same_weights():
    model, other = build(), build()
    fit(model, batches, steps=4, learning_rate=1e-2, schedule=[2], stability=0.3)
    optimizer = torch.optim.Adam([p for p in other.parameters() if p.requires_grad], lr=1e-2)
    for step, (clip, target) in zip(range(4), batches(0), strict=False):
        optimizer.param_groups[0]["lr"] = 1e-2 if step < 2 else 1e-3
        optimizer.zero_grad()
        unified_loss(other(clip)[0], target, stability=0.3)["total"].backward()
        optimizer.step()
    for name, value in adapter_state_dict(other).items():
        assert torch.allclose(adapter_state_dict(model)[name], value, atol=1e-7), name


def test_the_rates_that_were_used_are_told():
    history = fit(build(), batches, steps=5, learning_rate=1.0e-3, schedule=[1, 3])
    assert [round(terms["learning_rate"], 8) for terms in history] == [1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    rates = [terms["learning_rate"] for terms in fit(build(), batches, steps=9, learning_rate=1e-3)]
    assert rates[0] == 1e-3 and rates == sorted(rates, reverse=True) and rates[-1] < 0.05e-3


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, stop, average):
    judged = []

    def judge(model):
        judged.append(model(CLIP)[0].square().mean().item())
        return judged[-1]

    options = dict(steps=6, learning_rate=1e-2, average=average, validate=judge, validate_every=2, checkpoint_every=1)
    whole = build()
    history = fit(whole, batches, **options, checkpoint=tmp_path / "whole")

    def stopping(start):
        for step, batch in enumerate(batches(start), start):
            if step == stop:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(build(), stopping, **options, checkpoint=tmp_path / "stopped")
    resumed = build()
    rest = fit(resumed, batches, **options, checkpoint=tmp_path / "stopped")
    assert [terms["total"] for terms in rest] == [terms["total"] for terms in history[stop:]]
    assert same(adapter_state_dict(resumed), adapter_state_dict(whole))
    assert same(load_file(tmp_path / "stopped"), load_file(tmp_path / "whole"))
    again = build()
    assert fit(again, batches, **options, checkpoint=tmp_path / "whole") == []  # it is done
    assert same(adapter_state_dict(again), adapter_state_dict(whole))


def test_a_list_of_batches_is_gone_on_with_where_it_was(tmp_path):
    some = [batch for _, batch in zip(range(4), batches(0), strict=False)]
    whole, resumed = build(), build()
    fit(whole, some, steps=4)
    fit(build(), some, steps=4, checkpoint=tmp_path / "c", checkpoint_every=2, on_step=lambda *_: None)
    (tmp_path / "c").unlink()
    with pytest.raises(InputError, match="ended after 2 of 4"):
        fit(build(), some[:2], steps=4, checkpoint=tmp_path / "c", checkpoint_every=2)
    fit(resumed, some, steps=4, checkpoint=tmp_path / "c")
    assert same(adapter_state_dict(resumed), adapter_state_dict(whole))


RUN = """
    import sys, torch
    sys.path.insert(0, {tests!r})
    from test_fit import batches, build, fit
    torch.set_num_threads(1)
    def tell(step, terms):
        print(step, flush=True)
    fit(build(), batches, steps=40, learning_rate=1e-2, checkpoint={file!r}, checkpoint_every=1, on_step=tell)
"""


def start(file: Path) -> subprocess.Popen:
    code = textwrap.dedent(RUN).format(tests=str(Path(__file__).parent), file=str(file))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    with start(whole) as process:
        process.communicate()
        assert process.returncode == 0
    for wait in (7, 5):  # killed twice, somewhere in a step or in the writing of the file
        with start(killed) as process:
            for _ in range(wait):
                process.stdout.readline()
            time.sleep(0.003 * wait)
            os.kill(process.pid, signal.SIGKILL)
    with start(killed) as process:
        steps = process.communicate()[0].split()
    assert 1 < int(steps[0]) < 40 and steps[-1] == "40"
    assert same(load_file(killed), load_file(whole))


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    file = tmp_path / "c.safetensors"
    fit(build(), batches, steps=2, checkpoint=file)
    before = file.read_bytes()
    code = f"""
        import resource, signal, sys, torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_fit import InputError, batches, build, fit
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            fit(build(), batches, steps=4, checkpoint={str(file)!r}, checkpoint_every=1)
        except InputError as error:
            print(error)
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True).stdout
    assert "checkpoint of step 3 could not be written" in told and "the one before it" in told and "is whole" in told
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("template", [LearnedEMA(), Spatial(3, hidden=4), Controlled(hidden=4)])
def test_frames_computed_again_give_the_same_gradients(template):
    a, b = build(template), build(template)
    fit(a, batches, steps=2, learning_rate=1e-2)
    fit(b, batches, steps=2, learning_rate=1e-2, recompute=True)
    for name, value in adapter_state_dict(a).items():
        assert torch.allclose(adapter_state_dict(b)[name], value, atol=1e-6), name


def test_truncation_carries_the_state_and_cuts_the_gradient():
    whole, pieces, cut = build(LearnedEMA()), build(LearnedEMA()), build(LearnedEMA())
    first = fit(whole, batches, steps=1, learning_rate=1e-2)
    assert fit(pieces, batches, steps=1, learning_rate=1e-2, truncate=6) == first
    told = fit(cut, batches, steps=1, learning_rate=1e-2, truncate=2)[0]
    assert told["total"] == pytest.approx(first[0]["total"], rel=1e-6)  # the state went on, the frames are the same
    # A loop by hand that detaches after every second frame.
    other = build(LearnedEMA())
    clip, target = next(batches(0))
    state, past = None, None
    for t in range(0, 6, 2):
        preds, state = other(clip[:, t : t + 2], state)
        terms = unified_loss(preds, target[:, t : t + 2], previous=past, frames=12)
        terms["total"].backward()
        state, past = {n: v.detach() for n, v in state.items()}, (preds[:, -1].detach(), target[:, t + 1])
    torch.optim.Adam(other.stabilizers.parameters(), lr=1e-2).step()
    assert torch.allclose(other.stabilizers["output"].logit, cut.stabilizers["output"].logit, atol=1e-7)


def test_the_best_weights_win():
    values = iter([3.0, 1.0, 2.0])
    kept = []

    def judge(model):
        kept.append({name: value.clone() for name, value in adapter_state_dict(model).items()})
        assert not model.training
        return next(values)

    model = build()
    history = fit(model, batches, steps=5, validate=judge, validate_every=2)
    assert [terms.get("validation") for terms in history] == [None, 3.0, None, 1.0, 2.0]
    assert same(adapter_state_dict(model), kept[1]) and not same(kept[1], kept[2])


def test_the_average_lies_between_the_weights():
    seen = []
    model = build(LearnedEMA())
    fit(
        model,
        batches,
        steps=3,
        learning_rate=0.1,
        schedule=(),
        average=0.999,
        on_step=lambda *_: seen.append(model.stabilizers["output"].logit.detach().clone()),
    )
    start = build(LearnedEMA()).stabilizers["output"].logit.detach()
    expected = start.clone()
    for n, value in enumerate(seen, 1):
        expected.lerp_(value, 1 - n / (n + 10))
    assert torch.allclose(model.stabilizers["output"].logit, expected)


def test_the_base_trains_when_it_was_unfrozen(tmp_path):
    model = StabilizedModel(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), {}, (), (3, 12, 16))
    before = {name: value.clone() for name, value in model.base.state_dict().items()}
    model.unfreeze()
    fit(model, batches, steps=2, learning_rate=1e-2, checkpoint=tmp_path / "c")
    assert not any(torch.equal(value, before[name]) for name, value in model.base.state_dict().items())
    assert "weights/base.1.running_mean" in load_file(tmp_path / "c")


def test_bfloat16_trains_float32_weights():
    model = build()
    history = fit(model, batches, steps=2, precision="bf16")
    exact = fit(build(), batches, steps=2)
    assert history[0]["total"] == pytest.approx(exact[0]["total"], rel=0.02) and history != exact
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(CLIP)[0].dtype == torch.float32


def test_dropout_is_a_function_of_seed_and_step():
    def noisy():
        model = StabilizedModel(nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 3, 1)), {}, (), (3, 12, 16))
        nn.init.constant_(model.base[1].weight, 0.3)
        nn.init.zeros_(model.base[1].bias)
        model.unfreeze()
        return model

    models = [noisy() for _ in range(3)]
    before = torch.get_rng_state()
    a, b, c = (fit(model, batches, steps=2, seed=seed) for model, seed in zip(models, (1, 1, 2), strict=True))
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), before)


def test_what_fit_says_when_it_cannot(tmp_path):
    with pytest.raises(InputError, match="steps must be 1 or more, got 0"):
        fit(build(), batches, steps=0)
    with pytest.raises(InputError, match="truncate must be 1 or more, got 0"):
        fit(build(), batches, steps=1, truncate=0)
    with pytest.raises(InputError, match=r"from 0 \(off\) to below 1, got 1"):
        fit(build(), batches, steps=1, average=1)
    with pytest.raises(InputError, match=r"There is no folder .*nowhere for the checkpoint"):
        fit(build(), batches, steps=1, checkpoint=tmp_path / "nowhere" / "c")
    with pytest.raises(InputError, match=r"or the steps at which the rate falls, .* got 'linear'"):
        fit(build(), batches, steps=1, schedule="linear")
    with pytest.raises(InputError, match="precision is one of float32, bf16, fp16, got 'half'"):
        fit(build(), batches, steps=1, precision="half")
    file = tmp_path / "c"
    fit(build(LearnedEMA()), batches, steps=1, checkpoint=file)
    with pytest.raises(InputError, match="is of another model"):
        fit(build(), batches, steps=1, checkpoint=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot be read .*take it away to begin anew"):
        fit(build(), batches, steps=1, checkpoint=file)


def test_frames_without_a_truth_weigh_nothing_however_a_clip_is_split():
    def unknown(start):
        for clip, target in batches(start):
            yield clip, target.clone().index_fill_(1, torch.tensor([1, 2, 5]), float("nan"))

    whole, pieces = (fit(build(LearnedEMA()), unknown, steps=1, truncate=n)[0]["total"] for n in (None, 2))
    assert pieces == pytest.approx(whole, rel=1e-5)


def test_what_batch_norm_would_notice_is_refused():
    model = StabilizedModel(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), {}, (), (3, 12, 16))
    model.unfreeze()
    for option in ({"truncate": 2}, {"recompute": True}):
        with pytest.raises(InputError, match="a network with batch norm that is trained would notice"):
            fit(model, batches, steps=1, **option)


def test_the_model_is_itself_again_after_mixed_precision():
    model = build()
    fit(model, batches, steps=1, precision="bf16")
    assert "forward" not in vars(model)


def test_a_divergence_leaves_the_weights_of_the_step_before():
    model, good = build(), build()
    fit(good, batches, steps=2, schedule=())

    def spoiled(start):
        for step, (clip, target) in enumerate(batches(start), start):
            yield clip, target * (float("inf") if step == 2 else 1)

    with pytest.raises(FloatingPointError, match="at step 3: lower the learning rate"):
        fit(model, spoiled, steps=5, schedule=())
    assert same(adapter_state_dict(model), adapter_state_dict(good))


class Pair(nn.Module):
    """Returns a dict, as networks of other packages do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return {"features": x.mean((2, 3)), "logits": self.net(x)}


@pytest.mark.parametrize("recompute", [False, True])
def test_the_main_entry_of_a_dict_is_trained(recompute):
    weights = []
    for address, base in (("", nn.Conv2d(3, 3, 1)), ("::logits", Pair())):
        torch.manual_seed(1)
        for parameter in base.parameters():
            nn.init.normal_(parameter)
        model = stabilize(base, {address: LearnedEMA()}, example=torch.rand(1, 3, 8, 8))
        fit(model, batches, steps=2, recompute=recompute)
        weights.append(list(adapter_state_dict(model).values()))
    assert all(torch.equal(*each) for each in zip(*weights, strict=True))
