"""finetune(): the sum it descends, what is drawn, batch norm, and what is said when it cannot go on."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from unflicker.checks import InputError
from unflicker.finetuning import finetune, shuffled
from unflicker.regularizers import Augmentation, NoiseStability, RandomWarp, SparseJacobian, TransformInvariance


def images(count: int = 4, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, 24, 24, generator=torch.Generator().manual_seed(5))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def pairs(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(), 1 - images())] * count


TERMS = [TransformInvariance, SparseJacobian, NoiseStability]


@pytest.mark.parametrize("make", TERMS)
def test_it_is_the_loop_of_the_equation(make):
    """Equation 1 by a second, plain loop."""
    ours, theirs = network(), network()
    history = finetune(ours, pairs(), steps=3, term=make(), ratio=4, learning_rate=1e-2, schedule="constant", seed=7)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for step, (x, y) in enumerate(pairs()):
        preds = theirs(x)
        drawn = torch.Generator().manual_seed(7 * 1_000_003 + step)
        loss = 0.2 * F.mse_loss(preds, y) + 0.8 * make()(theirs, x, y, preds=preds, generator=drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert history[step]["total"] == pytest.approx(loss.item(), rel=1e-6)
        assert history[step]["total"] == pytest.approx(
            0.2 * history[step]["reconstruction"] + 0.8 * history[step]["term"]
        )
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-6)


def test_augmentation_is_the_loop_on_warped_pairs():
    """Equation 5."""
    ours, theirs = network(), network()
    finetune(ours, pairs(2), steps=2, augment=RandomWarp(), learning_rate=1e-2, schedule="constant")
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for step, (x, y) in enumerate(pairs(2)):
        loss = Augmentation()(theirs, x, y, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    def tuned(seed: int, term: bool = True) -> nn.Module:
        net = nn.Sequential(network(), nn.Dropout(0.3))
        torch.manual_seed(torch.seed() % 1000)  # what was drawn before plays no part
        finetune(net, pairs(), steps=3, term=TransformInvariance() if term else None, learning_rate=1e-2, seed=seed)
        return net

    assert same(tuned(0), tuned(0)) and not same(tuned(0), tuned(1)) and not same(tuned(0), tuned(0, term=False))


def test_the_caller_keeps_his_random_numbers_and_the_network_its_mode():
    net = network().eval()
    net[0].train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    finetune(net, pairs(1), steps=1, term=TransformInvariance())
    assert torch.equal(torch.rand(1), expected)
    assert net[0].training and not net.training and not net[1].training
    assert all(p.grad is None for p in net.parameters())


def test_ratio_zero_is_plain_training():
    one, other = network(), network()
    finetune(one, pairs(), steps=3, term=SparseJacobian(), ratio=0)
    finetune(other, pairs(), steps=3)
    assert same(one, other)


def test_without_targets_the_network_holds_on_to_what_it_made():
    net = nn.Conv2d(1, 1, 3, padding=1)
    expected = (net(images()) + 1).detach()
    history = finetune(
        net,
        [images()] * 2,
        steps=2,
        term=TransformInvariance(),
        reconstruction=lambda preds, y: F.mse_loss(preds, y + 1),
    )
    assert history[0]["reconstruction"] == pytest.approx(1)
    assert history[1]["reconstruction"] == pytest.approx(F.mse_loss(net(images()), expected).item(), rel=0.01)


def test_batch_norm_is_counted_in_both_passes_or_kept():
    net, kept = network(), network()
    finetune(net, pairs(2), steps=2, term=TransformInvariance())
    finetune(kept, pairs(2), steps=2, term=TransformInvariance(), statistics="kept")
    assert net[1].num_batches_tracked == 4 and kept[1].num_batches_tracked == 0
    assert torch.equal(kept[1].running_mean, torch.zeros(4))
    assert not torch.equal(kept[1].weight, torch.ones(4))  # its weights train all the same


def test_a_mask_is_that_of_the_target():
    history = finetune(
        network(), pairs(1), steps=1, term=TransformInvariance(), mask=lambda y: torch.zeros_like(y[:, :1])
    )
    assert history[0]["term"] == 0 < history[0]["reconstruction"]


def test_it_makes_a_network_steadier():
    def left(ratio: float) -> float:
        net = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 5, padding=2))
        torch.manual_seed(2)
        for each in net[::2]:
            each.reset_parameters()
        x = images(8)
        noisy = [(x, 10 * torch.randn(8, 1, 24, 24, generator=torch.Generator().manual_seed(9)))] * 40
        finetune(net, noisy, steps=40, term=TransformInvariance(), ratio=ratio, learning_rate=1e-2)
        return TransformInvariance()(net, x, generator=torch.Generator().manual_seed(11)).item()

    assert left(32) < 0.7 * left(0)


def test_the_learning_rate_falls_to_a_hundredth():
    rates = [
        row["learning_rate"] for row in finetune(network(), itertools.repeat(pairs()[0]), steps=60, learning_rate=1)
    ]
    assert max(rates) == 1 and rates[-1] < 0.02 and rates == sorted(rates, reverse=True)


class Bursts(nn.Module):
    """Its gradient or its output stops being finite in its third pass."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.net, self.where, self.passes = network(), where, 0

    def forward(self, x):
        self.passes += 1
        y = self.net(x)
        if self.passes < 3:
            return y
        return y * float("nan") if self.where == "output" else y + 0 * (y - y).abs().sqrt()


@pytest.mark.parametrize(("where", "words"), [("output", "The loss is nan"), ("gradient", "The gradient of the loss")])
def test_what_is_not_finite_stops_it_with_the_last_good_weights(where, words):
    net, good = Bursts(where), Bursts("never")
    with pytest.raises(FloatingPointError, match=f"{words}.* at step 3: lower the learning rate"):
        finetune(net, pairs(4), steps=4, schedule="constant")
    finetune(good, pairs(2), steps=2, schedule="constant")
    assert same(net, good)  # the statistics of batch norm too


class Cuts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return self.conv(x)


class Listing(Cuts):
    def forward(self, x):
        return [super().forward(x)]


class Vectors(Cuts):
    def forward(self, x):
        return super().forward(x).mean((2, 3))


frozen = network().requires_grad_(False)
MISTAKES = {
    "crops": (dict(network=Cuts()), "makes 22x22 of 24x24 pixels"),
    "list": (dict(network=Listing()), "makes images .* this made a list"),
    "vectors": (dict(network=Vectors()), r"this made \(4, 1\)"),
    "frozen": (dict(network=frozen), "nothing to train"),
    "steps": (dict(steps=0), "1 step or more"),
    "rate": (dict(learning_rate=0.0), "learning rate above 0"),
    "ratio": (dict(ratio=-1.0), "is 0 or more, got -1"),
    "schedule": (dict(schedule="linear"), "schedule is 'cosine' or 'constant', got 'linear'"),
    "statistics": (dict(statistics="none"), "statistics is 'batch' or 'kept', got 'none'"),
    "augmentation": (dict(term=Augmentation()), "give augment=RandomWarp"),
    "no targets": (dict(batches=[images()], augment=RandomWarp()), r"give pairs \(x, y\)"),
    "targets": (dict(batches=[(images(), images(4, 3))]), r"\(4, 1, 24, 24\), got \(4, 3, 24, 24\)"),
    "not finite": (dict(batches=[(images() / 0, images())]), "not finite"),
    "bytes": (dict(batches=[(images().byte(), images())]), "images .* of floats"),
    "short": (dict(steps=2), "The batches ended after 1 of 2 steps"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_a_sentence(name):
    given, words = MISTAKES[name]
    given = {"network": network(), "batches": pairs(1), "steps": 1, "term": TransformInvariance()} | given
    with pytest.raises(InputError, match=words):
        finetune(given.pop("network"), given.pop("batches"), **given)


def test_batches_go_through_all_images_in_another_order_each_time():
    numbers = torch.arange(6.0).view(6, 1, 1, 1)
    drawn = shuffled(TensorDataset(numbers, numbers + 100), batch=2, seed=3)
    rounds = [[next(drawn) for _ in range(3)] for _ in range(2)]
    orders = [torch.cat([x for x, _ in each]).flatten().tolist() for each in rounds]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6)) and orders[0] != orders[1]
    assert all(torch.equal(y, x + 100) for each in rounds for x, y in each)
    again = shuffled(TensorDataset(numbers, numbers + 100), batch=2, seed=3)
    assert torch.equal(next(again)[0], rounds[0][0][0])


def test_batches_of_images_alone_leave_out_what_is_left_over():
    drawn = shuffled(list(torch.arange(5.0).view(5, 1, 1, 1)), batch=2)
    first = torch.cat([next(drawn) for _ in range(2)]).flatten().tolist()
    assert len(set(first)) == 4
    assert next(shuffled(TensorDataset(torch.zeros(6, 1, 1, 1)), batch=2)).shape == (2, 1, 1, 1)


def test_a_batch_of_more_images_than_there_are_is_refused():
    with pytest.raises(InputError, match="A batch of 7 cannot be drawn from 6 images; take 1 to 6"):
        shuffled(TensorDataset(torch.zeros(6, 1, 1, 1)), batch=7)
