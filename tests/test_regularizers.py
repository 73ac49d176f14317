"""Stable without video: the warp against a plain loop, every term against its equation, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unflicker.checks import InputError
from unflicker.regularizers import (
    Augmentation,
    ElasticWarp,
    ExposureChange,
    NoiseStability,
    RandomWarp,
    SparseJacobian,
    Stability,
    Together,
    TransformInvariance,
    ratio_of,
    warp_matrix,
    weight_of,
)

NET = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))
X, Y = torch.rand(2, 2, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def drawn(seed=1):
    return torch.Generator().manual_seed(seed)


def slow_warp(image, tx, ty, turn, zoom, shear_x, shear_y):
    """Section 1.3 of our specification by the letter, pixel by pixel: translate, rotate, zoom, shear; zeros outside."""
    height, width = image.shape[1:]
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            u, v = x + tx - width / 2, y + ty - height / 2
            u, v = math.cos(turn) * u - math.sin(turn) * v, math.sin(turn) * u + math.cos(turn) * v
            u, v = zoom * u, zoom * v
            u, v = u + math.tan(shear_x) * v, v + math.tan(shear_y) * u
            u, v = u + width / 2, v + height / 2
            left, top = math.floor(u), math.floor(v)
            for row, share_y in ((top, 1 - (v - top)), (top + 1, v - top)):
                for column, share_x in ((left, 1 - (u - left)), (left + 1, u - left)):
                    if 0 <= row < height and 0 <= column < width:
                        out[:, y, x] += share_y * share_x * image[:, row, column]
    return out


def parameters(generator, count, scale):
    """What RandomWarp draws, in its order."""
    limits = torch.tensor([2.0, 2.0, math.radians(1), 0.03, math.radians(1), math.radians(1)])
    return (torch.rand(count, 6, generator=generator, dtype=torch.float64) * 2 - 1) * limits * scale


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_warp_is_the_published_one(scale):
    image = torch.rand(2, 3, 20, 26, dtype=torch.float64)
    change = RandomWarp(scale).draw(image, drawn())
    change = type(change)(change.positions.double(), "zeros")
    for n, (tx, ty, turn, zoom, shear_x, shear_y) in enumerate(parameters(drawn(), 2, scale).tolist()):
        expected = slow_warp(image[n], tx, ty, turn, 1 + zoom, shear_x, shear_y)
        assert torch.allclose(change(image)[n], expected, atol=1e-5)  # positions are float32


def test_the_matrix_is_exact():
    values = parameters(drawn(), 5, 3.0)
    tx, ty, turn, zoom, shear_x, shear_y = values.unbind(1)
    matrix = warp_matrix(tx, ty, turn, 1 + zoom, shear_x, shear_y, height=17, width=40)
    image = torch.rand(1, 17, 40, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(17.0), torch.arange(40.0), indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1).double()
    for n in range(5):
        where = places @ matrix[n, :2].T
        grid = (2 * where + 1) / torch.tensor([40.0, 17.0], dtype=torch.float64) - 1
        fast = F.grid_sample(image[None], grid[None], align_corners=False, padding_mode="zeros")[0]
        slow = slow_warp(image, *(v.item() for v in (tx[n], ty[n], turn[n], 1 + zoom[n], shear_x[n], shear_y[n])))
        assert torch.allclose(fast, slow, atol=1e-6)


def test_every_image_has_its_own_warp_and_the_ranges_hold():
    x = torch.rand(400, 1, 128, 128)
    change = RandomWarp().draw(x, drawn())
    centre = change.positions[:, 64, 64] - 64
    assert centre.abs().max() < 2.1 and centre.std(0).min() > 1  # uniform in -2..2 has 1.15
    shifts = (change.positions - RandomWarp(1e-9).draw(x[:1]).positions).norm(dim=-1)
    assert shifts.mean().item() == pytest.approx(1.82, abs=0.1)  # of the specification, by Monte Carlo
    assert shifts.amax((1, 2)).mean().item() == pytest.approx(3.4, abs=0.2) and shifts.max() < 6.3
    beyond = 1 - change.valid(x).mean()
    assert 0.02 < beyond < 0.06


def test_steps_go_one_after_the_other():
    x = F.interpolate(torch.rand(1, 1, 4, 4, generator=drawn()), size=(64, 64), mode="bicubic")
    both = RandomWarp(steps=2).draw(x, drawn())
    generator = drawn()
    first, second = RandomWarp().draw(x, generator), RandomWarp().draw(x, generator)
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert torch.allclose(both(x)[inside], second(first(x))[inside], atol=5e-3)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_warp_follows_the_size_of_the_output(factor):
    """A smooth picture, warped and then made smaller (larger), is the smaller (larger) one, warped."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    large = torch.sin(3 * x + 2 * y)[None, None]
    small = F.avg_pool2d(large, factor)
    for source, other in ((large, small), (small, large)):
        change = RandomWarp(0.5).draw(source, drawn())
        expected = change(source)
        expected = (
            F.avg_pool2d(expected, factor)
            if source is large
            else F.interpolate(expected, size=(64, 96), mode="bilinear")
        )
        inside = (..., slice(8, -8), slice(8, -8))
        assert torch.allclose(change(other)[inside], expected[inside], atol=2e-2)


def test_reflection_has_no_black_border():
    x = torch.ones(4, 1, 32, 32)
    assert RandomWarp(3.0, padding="reflection").draw(x, drawn())(x).min() > 0.999
    change = RandomWarp(3.0).draw(x, drawn())
    assert change(x).min() == 0 and change.valid(x).mean() < 1


def test_the_terms_are_their_equations():
    with torch.no_grad():
        change = RandomWarp().draw(X, drawn())
        preds, moved = NET(X), NET(change(X))
        expected = {
            Stability(): (preds - moved).square().mean(),
            TransformInvariance(): (moved - change(preds)).square().mean(),
            SparseJacobian(): ((moved - preds) - (change(Y) - Y)).square().mean(),
            Augmentation(): (moved - change(Y)).square().mean(),
        }
        for term, value in expected.items():
            for given in (None, preds):
                assert torch.isclose(term(NET, X, Y, preds=given, generator=drawn()), value, rtol=1e-5), term
        generator = drawn()
        strength = 0.01 + 0.03 * torch.rand(2, 1, 1, 1, generator=generator)
        noisy = X + strength * torch.randn(X.shape, generator=generator)
        assert torch.isclose(NoiseStability()(NET, X, generator=drawn()), (preds - NET(noisy)).square().mean())


def test_masks_and_domains_are_those_of_the_hdr_code():
    eps, mask = 1 / 255, (Y.amax(1, keepdim=True) > 0.9).float()

    def log(linear):
        return torch.log(linear + eps)

    with torch.no_grad():
        change = RandomWarp().draw(X, drawn())
        preds, moved = NET(X), NET(change(X))
        invariance = ((moved - change(preds)) * change(mask)).square().mean()
        assert torch.isclose(TransformInvariance()(NET, X, mask=mask, generator=drawn()), invariance)
        jacobian = ((moved - preds) - (log(change(Y)) - log(Y))) * torch.maximum(mask, change(mask))
        term = SparseJacobian(domain=log)
        assert torch.isclose(term(NET, X, Y, mask=mask, generator=drawn()), jacobian.square().mean())
        valid = change.valid(X)
        inside = ((moved - change(preds)) * valid).square().mean() / valid.mean()
        assert torch.isclose(TransformInvariance(valid_only=True)(NET, X, generator=drawn()), inside)


def test_the_distance_is_a_setting():
    with torch.no_grad():
        change = RandomWarp().draw(X, drawn())
        expected = (NET(change(X)) - change(NET(X))).abs().mean()
    assert torch.isclose(TransformInvariance(distance=F.l1_loss)(NET, X, generator=drawn()), expected)


def test_the_gradient_flows_through_both_branches():
    net = nn.Conv2d(3, 3, 3, padding=1)
    for term in (TransformInvariance(), SparseJacobian(), Stability(), NoiseStability()):
        preds, other = net(X), torch.rand_like(X)
        (through_preds,) = torch.autograd.grad(term(lambda _, fixed=other: fixed, X, Y, preds=preds), preds)
        assert through_preds.abs().sum() > 0, term
        net.zero_grad()
        term(net, X, Y, preds=net(X).detach()).backward()
        assert net.weight.grad.abs().sum() > 0, term


def test_a_network_that_commutes_with_warps_is_not_charged():
    """A pointwise linear map moves along with its input; a positional one does not."""
    pointwise = nn.Conv2d(3, 3, 1, bias=False)
    assert TransformInvariance()(pointwise, X) < 1e-10
    ramp = torch.linspace(0, 1, 32)
    assert TransformInvariance()(lambda x: x * ramp, X) > 1e-5


def test_training_with_a_term_makes_a_network_steadier():
    """A network that sees only every second pixel flickers when the picture moves; the term teaches it not to."""
    torch.manual_seed(0)
    clean = F.interpolate(torch.rand(16, 1, 12, 12), size=(48, 48), mode="bilinear")

    def trained(a):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 1, 3, padding=1),
        )
        optimizer, term = torch.optim.Adam(net.parameters(), 1e-2), TransformInvariance()
        for _ in range(60):
            preds = net(clean)
            loss = (1 - a) * F.mse_loss(preds, clean) + a * term(net, clean, preds=preds)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return TransformInvariance()(net, clean, generator=drawn()).item()

    assert trained(weight_of(8)) < 0.7 * trained(0.0)


def test_other_families():
    moved = ElasticWarp(2.0, smoothness=4).draw(X, drawn())
    still = RandomWarp(1e-9).draw(X).positions
    assert (moved.positions - still).std().item() == pytest.approx(2.0, rel=0.1)
    gains = ExposureChange(1.0).draw(X, drawn())(X) / X
    assert gains.amax((1, 2, 3)).tolist() == pytest.approx(gains.amin((1, 2, 3)).tolist(), rel=1e-4)
    both = Together(RandomWarp(), ExposureChange()).draw(X, drawn())
    generator = drawn()
    first, second = RandomWarp().draw(X, generator), ExposureChange().draw(X, generator)
    assert torch.equal(both(X), second(first(X))) and torch.equal(both.valid(X), first.valid(X))


def test_what_is_refused():
    def told(call, *arguments, **options):
        with pytest.raises(InputError) as caught:
            call(*arguments, **options)
        return str(caught.value)

    invariance = TransformInvariance()
    assert "takes images (B, C, H, W) of floats, got torch.uint8" in told(invariance, NET, X.byte())
    assert "values that are not finite" in told(invariance, NET, X / 0)
    assert "too small for a warp of scale 1; take 8 pixels or more" in told(invariance, NET, X[..., :7])
    assert "makes 20x28 of 24x32 pixels" in told(invariance, lambda x: x[..., 2:-2, 2:-2], X)
    assert "that makes images (B, C, H, W) of images; this made (2, 3)" in told(invariance, lambda x: x.mean((2, 3)), X)
    assert "this made tuple" in told(invariance, lambda x: (x,), X)
    assert "SparseJacobian needs the target: term(net, x, y)" in told(SparseJacobian(), NET, X)
    assert "target must be as the network's output, (2, 3, 24, 32), got (2, 1, 24, 32)" in told(
        SparseJacobian(), NET, X, Y[:, :1]
    )
    assert "from 0 to below 1, got 1" in told(ratio_of, 1)
    assert "0 or more, got -1" in told(weight_of, -1)
    assert "scale above 0" in told(RandomWarp, 0)
    assert "positive number of stops" in told(ExposureChange, 0)
    assert "Together takes perturbations" in told(Together)
    assert [weight_of(ratio_of(a)) for a in (0.0, 0.5, 0.95)] == pytest.approx([0.0, 0.5, 0.95])


def test_outputs_of_other_sizes():
    half, double = nn.Conv2d(3, 1, 2, stride=2), nn.ConvTranspose2d(3, 1, 2, stride=2)
    for net in (half, double):
        assert torch.isfinite(TransformInvariance()(net, X))
        target = torch.rand_like(net(X))
        assert torch.isfinite(SparseJacobian()(net, X, target))
