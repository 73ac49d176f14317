"""The networks of the second paper: weights to the last one, losses against plain loops, weights of others read."""

import io
import math
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from unflicker.checks import InputError
from unflicker.networks.colorization import ColorizationAutoencoder, VGGColorization, load_vgg16
from unflicker.networks.hdr_autoencoder import HDRAutoencoder
from unflicker.networks.hdrcnn import (
    HDRCNN,
    blend,
    hdr_loss,
    illumination_kernel,
    illumination_of,
    load_published,
    log_light,
    read_arrays,
    saturation_mask,
)
from unflicker.networks.transform_net import TransformNet

EPS = 1 / 255


def count_weights(network):
    """As TensorLayer counts: kernels, biases, and four vectors for each batch norm."""
    trained = sum(each.numel() for each in network.parameters())
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    return trained + sum(each.running_mean.numel() + each.running_var.numel() for each in norms)


def count_trained(network):
    return sum(each.numel() for each in network.parameters())


def lively(network):
    """Weights and statistics that none of the layers can hide: fresh ones are zeros and ones in many places."""
    with torch.no_grad():
        for each in network.modules():
            if isinstance(each, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(each.weight, std=(2 / each.weight[0].numel()) ** 0.5)
                nn.init.normal_(each.bias, std=0.1)
            elif isinstance(each, nn.BatchNorm2d):
                each.weight.uniform_(0.5, 1.5)
                each.bias.normal_(std=0.1)
                each.running_mean.normal_(std=0.1)
                each.running_var.uniform_(0.5, 1.5)
    return network


NETWORKS = {
    "colorization": (ColorizationAutoencoder, 1, 2, 1_568_698, 1_566_294),
    "vgg": (VGGColorization, 1, 2, 18_683_434, 18_681_318),
    "vgg-plain": (lambda: VGGColorization(batch_norm=False), 1, 2, 18_679_202, 18_679_202),
    "hdr-a": (HDRAutoencoder, 1, 1, 1_289_653, 1_287_443),
    "hdr-b": (lambda: HDRAutoencoder("B"), 1, 1, 1_289_653, 1_287_443),
    "hdr-skip": (lambda: HDRAutoencoder(input_skip=True), 1, 1, 1_289_653, 1_287_443),
    "hdrcnn": (HDRCNN, 3, 3, 29_447_332, 29_443_358),
}
SMALL = [name for name in NETWORKS if not name.startswith(("vgg", "hdrcnn"))]


@pytest.mark.parametrize("make, inputs, outputs, weights, trained", NETWORKS.values(), ids=NETWORKS)
def test_weights_are_as_many_as_published(make, inputs, outputs, weights, trained):
    with torch.device("meta"):
        network = make()
    assert count_weights(network) == weights and count_trained(network) == trained


def test_blind_video_consistency_has_the_published_weights():
    with torch.device("meta"):
        assert count_weights(TransformNet()) == 2_979_555


@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_comes_out_as_it_went_in(name):
    make, inputs, outputs, *_ = NETWORKS[name]
    network = lively(make()).eval()
    sizes = [(64, 32), (33, 50), (7, 1)] if name in SMALL else [(33, 18)]
    for size in sizes:
        y = network(torch.rand(2, inputs, *size))
        assert y.shape == (2, outputs, *size) and torch.isfinite(y).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_network_in_eval_sees_each_image_alone_and_in_training_its_batch(name):
    make, inputs, *_ = NETWORKS[name]
    network = lively(make()).eval()
    x = torch.rand(3, inputs, 32, 32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    network.train()
    assert not torch.allclose(network(x)[1:2], network(x[1:])[:1], atol=1e-3)
    changed = [key for key, value in network.state_dict().items() if not torch.equal(before[key], value)]
    assert changed and all("running" in key or "num_batches" in key for key in changed)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_weight(name):
    make, inputs, *_ = NETWORKS[name]
    network = lively(make()).train()
    network(torch.rand(2, inputs, 64, 64)).square().sum().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), key
        # A bias before batch norm, or a ReLU that stays shut, may go without.
        assert weight.ndim == 1 or weight.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_are_checked(name):
    make, inputs, *_ = NETWORKS[name]
    with torch.device("meta"):
        network = make()
    with pytest.raises(InputError, match=re.escape(f"(B, {inputs}, H, W)")):
        network(torch.rand(1, 4, 32, 32))


# --- colour -----------------------------------------------------------------------------------------------------------


def test_colour_layers_in_plain_form():
    network = lively(ColorizationAutoencoder()).eval()
    weights = [(each, norm) for each, norm in pairs_of(network)]
    x = torch.rand(1, 1, 16, 24)
    y = x - 0.5
    for number, (conv, norm) in enumerate(weights, 1):
        y = F.conv2d(y, conv.weight, conv.bias, stride=2 if number in (1, 3, 5) else 1, padding=1)
        y = normalised(y, norm)
        y = y.relu() if number < 13 else y
        if number in (9, 11, 13):
            y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(network(x), y, atol=1e-5, rtol=1e-4)


def pairs_of(network):
    layers = [each for each in network.modules() if isinstance(each, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d))]
    return list(zip(layers[::2], layers[1::2], strict=True))


def normalised(y, norm):
    shape = (1, -1, 1, 1)
    deviation = (norm.running_var + 1e-5).sqrt().view(shape)
    return (y - norm.running_mean.view(shape)) / deviation * norm.weight.view(shape) + norm.bias.view(shape)


def vgg16_state_dict(wide=64):
    """Random weights as torchvision lays VGG16 out, with a classifier that is small here."""
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = (wide, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    found = {"classifier.0.weight": torch.rand(3, 4), "classifier.0.bias": torch.rand(3)}
    for place, inputs, outputs in zip(places, (3, *widths[:-1]), widths, strict=True):
        found[f"features.{place}.weight"] = torch.randn(outputs, inputs, 3, 3) * (2 / 9 / inputs) ** 0.5
        found[f"features.{place}.bias"] = torch.randn(outputs) * 0.1
    return found


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(1)
    return vgg16_state_dict()


@pytest.mark.parametrize("ending", [".pth", ".safetensors", "parallel"])
def test_vgg16_is_loaded_from_the_usual_files(vgg, tmp_path, ending):
    file = tmp_path / ("w.pth" if ending == "parallel" else f"w{ending}")
    if ending == ".safetensors":
        save_file(vgg, file)
    elif ending == "parallel":
        torch.save({"state_dict": {key.replace("features.", "features.module."): v for key, v in vgg.items()}}, file)
    else:
        torch.save(vgg, file)
    network = VGGColorization(batch_norm=False).eval()
    before = network.decoder[0][0].weight.clone()
    load_vgg16(network, file)
    for key, value in network.features.state_dict(prefix="features.").items():
        assert torch.equal(value, vgg[key])
    assert torch.equal(network.decoder[0][0].weight, before)

    x = torch.rand(1, 1, 16, 32)
    y = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for place in (0, 2, "pool", 5, 7, "pool", 10, 12, 14, "pool", 17, 19, 21, "pool", 24, 26, 28):
        if place == "pool":
            y = F.max_pool2d(y, 2)
        else:
            y = F.conv2d(y, vgg[f"features.{place}.weight"], vgg[f"features.{place}.bias"], padding=1).relu()
    for number, conv in enumerate([*network.middle, *network.decoder[::2][:3], *network.decoder[6:8]], 1):
        y = F.conv2d(y, conv[0].weight, conv[0].bias, padding=1)
        y = y.relu() if number < 7 else y
        if number in (3, 4, 5, 7):
            y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(network(x), y, atol=1e-5, rtol=1e-4)


def test_other_weights_than_vgg16s_are_told(vgg, tmp_path):
    network = VGGColorization()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    lacking = {key: value for key, value in vgg.items() if not key.startswith("features.28")}
    torch.save({"net": nn.Linear(1, 1)}, tmp_path / "object.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save([1.0], tmp_path / "list.pth")
    for weights, words in [
        (lacking, "lack 2 of the 26 tensors of VGG16's convolutions, such as 'features.28.weight'"),
        (vgg16_state_dict(wide=32), r"features.0.weight is (32, 3, 3, 3), not (64, 3, 3, 3)"),
        (tmp_path / "none.pth", "There is no file"),
        (tmp_path / "object.pth", "must be nothing but tensors"),
        (tmp_path / "text.safetensors", "must be nothing but tensors"),
        (tmp_path / "list.pth", "hold no tensors by name"),
        ({"features.0.weight": 1.0}, "hold no tensors by name"),
    ]:
        with pytest.raises(InputError, match=re.escape(words)):
            load_vgg16(network, weights)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


# --- HDR, the small network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize("input_skip", [False, True])
def test_hdr_layers_in_plain_form(variant, input_skip):
    network = lively(HDRAutoencoder(variant, input_skip=input_skip)).eval()
    x = torch.rand(1, 1, 32, 64)

    def layer(y, sequence):
        y = F.conv2d(y, sequence[0].weight, sequence[0].bias, padding=1)
        return normalised(y, sequence[1]).relu()

    y, skips = x, []
    for level in network.encoders:
        for sequence in level:
            y = layer(y, sequence)
        skips.append(y)
        y = F.max_pool2d(y, 2)
    for number in range(5):
        up = network.ups[number]
        y = normalised(F.conv_transpose2d(y, up[0].weight, up[0].bias, stride=2, padding=1), up[1]).relu()
        y = y + skips[4 - number]
        y = layer(y, network.decoders[number]) if variant == "B" else y
    y = normalised(F.conv2d(y, network.output[0].weight, network.output[0].bias, padding=1), network.output[1])
    y = y + (x**2 + EPS).log() if input_skip else y
    torch.testing.assert_close(network(x), y, atol=1e-4, rtol=1e-4)
    assert [len(level) for level in network.encoders] == 5 * [2 if variant == "A" else 1]


def test_hdr_variants_are_two():
    with pytest.raises(InputError, match="variant 'A' or 'B', got 'C'"):
        HDRAutoencoder("C")


# --- HDRCNN -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hdrcnn():
    torch.manual_seed(2)
    return lively(HDRCNN()).eval()


def test_fresh_fuse_layers_add():
    network = HDRCNN()
    for fuse in [*network.fuses, network.last_fuse]:
        one, other = torch.randn(2, 1, fuse.out_channels, 3, 4).unbind()
        torch.testing.assert_close(fuse(torch.cat([one, other], 1)), one + other, atol=1e-5, rtol=1e-5)


def test_fresh_deconvolutions_interpolate():
    network = HDRCNN()
    for up in network.ups:
        x = torch.randn(1, up[0].in_channels, 4, 5)
        expected = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)[:, : up[0].out_channels]
        torch.testing.assert_close(up[0](x)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5, rtol=1e-5)


def in_tensorflow_layout(network):
    """The arrays that TensorLayer would save of a network: written down layer by layer, as the authors' script."""
    arrays = []

    def conv(layer):
        arrays.extend([np.ascontiguousarray(layer.weight.detach().permute(2, 3, 1, 0).numpy()), plain(layer.bias)])

    def norm(layer):
        arrays.extend(map(plain, (layer.bias, layer.weight, layer.running_mean, layer.running_var)))

    for encoder in network.encoders:
        for layer in encoder[::2]:
            conv(layer)
    conv(network.middle[0])
    norm(network.middle[1])
    for up, fuse in zip(network.ups, network.fuses, strict=True):
        conv(up[0])  # for a deconvolution torch has inputs first: rows, columns, outputs, inputs, as TensorFlow
        norm(up[1])
        conv(fuse)
    conv(network.head[0])
    norm(network.head[1])
    conv(network.last_fuse)
    return arrays


def plain(tensor):
    return tensor.detach().numpy().copy()


def object_array(arrays):
    made = np.empty(len(arrays), dtype=object)
    for number, array in enumerate(arrays):
        made[number] = array
    return made


def write_npz(file, arrays, protocol):
    """As numpy's savez wrote lists of arrays of several shapes, over the years with several protocols."""
    head = io.BytesIO()
    made = object_array(arrays)
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": made.shape})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("params.npy", head.getvalue() + pickle.dumps(made, protocol=protocol))


def plain_hdrcnn(x, arrays):
    """HDRCNN from the arrays in their order alone, rows first as in TensorFlow."""
    arrays = iter([torch.from_numpy(array) for array in arrays])

    def conv(y, padding):
        weight, bias = next(arrays), next(arrays)
        return F.conv2d(y, weight.permute(3, 2, 0, 1), bias, padding=padding)

    def norm(y):
        beta, gamma, mean, variance = (next(arrays).view(1, -1, 1, 1) for _ in range(4))
        return ((y - mean) / (variance + 1e-5).sqrt() * gamma + beta).relu()

    def fuse(y, skip):
        return conv(torch.cat([y, ((skip / 255) ** 2 + 1 / 255).log()], 1), 0)

    y = 255 * x[:, [2, 1, 0]] - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    skips = [255 * x]
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            y = conv(y, 1).relu()
        skips.append(y)
        y = F.max_pool2d(y, 2)
    y = norm(conv(y, 1))
    for level in (5, 4, 3, 2, 1):
        weight, bias = next(arrays), next(arrays)
        y = norm(F.conv_transpose2d(y, weight.permute(3, 2, 0, 1), bias, stride=2, padding=1))
        y = fuse(y, skips[level])
    y = fuse(norm(conv(y, 0)), skips[0])
    assert next(arrays, None) is None
    return y


def test_hdrcnn_in_plain_form(hdrcnn):
    x = torch.rand(2, 3, 32, 64)
    expected = plain_hdrcnn(x, in_tensorflow_layout(hdrcnn))
    torch.testing.assert_close(hdrcnn(x), expected, atol=1e-3, rtol=1e-3)


def test_a_deconvolution_is_tensorflows():
    """TensorFlow's is the adjoint of a convolution of kernel 4, stride 2, one pixel of zeros around."""
    kernel, x = np.random.default_rng(0).normal(size=(4, 4)), np.random.default_rng(1).normal(size=(3, 2))
    expected = np.zeros((6, 4))
    for row in range(3):
        for column in range(2):
            for i in range(4):
                for j in range(4):
                    if 0 <= 2 * row + i - 1 < 6 and 0 <= 2 * column + j - 1 < 4:
                        expected[2 * row + i - 1, 2 * column + j - 1] += x[row, column] * kernel[i, j]
    layer = HDRCNN().ups[4][0].double()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0] = torch.from_numpy(kernel)
        inputs = torch.zeros(1, 128, 3, 2, dtype=torch.float64)
        inputs[0, 0] = torch.from_numpy(x)
        np.testing.assert_allclose(layer(inputs)[0, 0].numpy(), expected, atol=1e-12)


def test_published_weights_are_read(hdrcnn, tmp_path):
    arrays = in_tensorflow_layout(hdrcnn)
    assert len(arrays) == 80 and sum(array.size for array in arrays) == 29_447_332
    write_npz(tmp_path / "hdrcnn_params.npz", arrays, 2)
    network = HDRCNN().eval()
    load_published(network, tmp_path / "hdrcnn_params.npz")
    (tmp_path / "hdrcnn_params.npz").unlink()  # 177 MB, which pytest would keep
    for key, value in hdrcnn.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(network.state_dict()[key], value), key
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(network(x), hdrcnn(x))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_every_protocol_are_read(tmp_path, protocol):
    arrays = [
        np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype("f4"),
        np.asfortranarray(np.arange(12, dtype="f4").reshape(3, 4)),
        np.array([1.5, -2.0], dtype=">f8"),
        np.ones((2, 1, 3), "f2"),
    ]
    write_npz(tmp_path / "some.npz", arrays, protocol)
    found = read_arrays(tmp_path / "some.npz")
    assert len(found) == 4 and all(array.dtype == np.float32 for array in found)
    for array, other in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(array, other)


def test_arrays_of_this_numpy_are_read(tmp_path):
    arrays = [np.ones((2, 3), "f4"), np.zeros(4, "f4")]
    np.savez(tmp_path / "list.npz", params=object_array(arrays))
    np.savez(tmp_path / "plain.npz", *arrays)
    for name in ("list", "plain"):
        for array, other in zip(read_arrays(tmp_path / f"{name}.npz"), arrays, strict=True):
            np.testing.assert_array_equal(array, other)


def test_arrays_of_python_2_are_read(tmp_path):
    """Written out by hand: strings of bytes where Python 3 has others."""
    numbers = np.array([1.0, -2.5, 300.0], "<f4")
    dtype = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85"
        + dtype % b"f4"
        + b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x0c"
        + numbers.tobytes()
        + b"tb"
    )
    whole = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85"
        + dtype % b"O8"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]"
        + array
        + b"atb."
    )
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(tmp_path / "old.npz", "w") as archive:
        archive.writestr("params.npy", head.getvalue() + whole)
    (found,) = read_arrays(tmp_path / "old.npz")
    np.testing.assert_array_equal(found, numbers)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_files_that_are_no_lists_of_arrays_are_told(tmp_path):
    write_npz(tmp_path / "evil.npz", [np.ones(2, "f4"), Evil()], 2)
    write_npz(tmp_path / "evil4.npz", [np.ones(2, "f4"), Evil()], 4)
    write_npz(tmp_path / "text.npz", ["no array"], 2)
    write_npz(tmp_path / "whole.npz", [np.ones(2, int)], 2)
    np.savez(tmp_path / "one.npz", params=np.ones(3))
    np.savez(tmp_path / "named.npz", weights=np.ones(3))
    (tmp_path / "zip.npz").write_bytes(b"no zip")
    for name, words in {
        "none": "There is no file",
        "evil": "holds more than arrays",
        "evil4": "holds more than arrays",
        "text": "holds more than arrays of floats",
        "whole": "holds more than arrays of floats",
        "one": "its params are a single array",
        "named": "cannot be read as a list of arrays",
        "zip": "cannot be read as a list of arrays (BadZipFile",
    }.items():
        with pytest.raises(InputError, match=re.escape(words)):
            read_arrays(tmp_path / f"{name}.npz")


def test_damaged_files_are_told(tmp_path):
    write_npz(tmp_path / "good.npz", [np.ones((3, 5), "f4"), np.zeros(4, "f4")], 3)
    with zipfile.ZipFile(tmp_path / "good.npz") as archive:
        content = archive.read("params.npy")
    for length in range(0, len(content), 7):
        with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
            archive.writestr("params.npy", content[:length])
        with pytest.raises(InputError, match="cannot be read as a list of arrays"):
            read_arrays(tmp_path / "cut.npz")


def test_other_weights_than_hdrcnns_are_told(hdrcnn, tmp_path):
    arrays = in_tensorflow_layout(hdrcnn)
    network = HDRCNN()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    write_npz(tmp_path / "short.npz", 79 * [np.ones(1, "f4")], 2)
    with pytest.raises(InputError, match=r"HDRCNN has 80 arrays of weights, but .*short.npz holds 79\."):
        load_published(network, tmp_path / "short.npz")
    arrays[0], arrays[78] = arrays[0] * 2, arrays[78].swapaxes(2, 3)
    write_npz(tmp_path / "turned.npz", arrays, 4)
    words = "should be last_fuse.weight of HDRCNN, (1, 1, 6, 3), but is (1, 1, 3, 6)."
    with pytest.raises(InputError, match=re.escape(words)):
        load_published(network, tmp_path / "turned.npz")
    (tmp_path / "turned.npz").unlink()  # 118 MB, which pytest would keep
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


# --- masks and losses, in loops ---------------------------------------------------------------------------------------


def kernel_in_loops():
    """The kernel as it is described: bins of a normal distribution, outer product, root, sum of 1."""

    def below(x):
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    interval = (2 * 2 + 1) / 13
    edges = [-2 - interval / 2 + i * (4 + interval) / 13 for i in range(14)]
    masses = [below(edges[i + 1]) - below(edges[i]) for i in range(13)]
    kernel = np.array([[math.sqrt(one * other) for other in masses] for one in masses])
    return kernel / kernel.sum()


def illumination_in_loops(light):
    """Of light (H, W, C), smoothed logarithms of luminance (H, W)."""
    height, width, channels = light.shape
    kernel = kernel_in_loops()
    weights = (0.213, 0.715, 0.072) if channels == 3 else (1.0,)
    logs = np.log(sum(weight * light[:, :, c] for c, weight in enumerate(weights)) + EPS)
    smooth = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            for i in range(13):
                for j in range(13):
                    if 0 <= y + i - 6 < height and 0 <= x + j - 6 < width:
                        smooth[y, x] += kernel[i, j] * logs[y + i - 6, x + j - 6]
    return smooth


def loss_in_loops(preds, target, kind, share):
    total = 0.0
    for each, truth in zip(preds, target, strict=True):  # (C, H, W)
        logs, light = each.transpose(1, 2, 0), truth.transpose(1, 2, 0)
        lit, truly_lit = illumination_in_loops(np.exp(logs) - EPS), illumination_in_loops(light)
        for y in range(logs.shape[0]):
            for x in range(logs.shape[1]):
                mask = min(max((light[y, x].max() - 0.95) / 0.05, 0.0), 1.0)
                for c in range(logs.shape[2]):
                    true_log = math.log(light[y, x, c] + EPS)
                    if kind == "l2":
                        total += ((logs[y, x, c] - true_log) * mask) ** 2
                        continue
                    reflectance, truth_of_it = logs[y, x, c] - lit[y, x], true_log - truly_lit[y, x]
                    error = share * (lit[y, x] - truly_lit[y, x]) ** 2
                    error += (1 - share) * (reflectance - truth_of_it) ** 2
                    total += error * mask
    return total / preds.size


def hdr_pair(channels, height=7, width=15):
    """A prediction and light of which about a third is clipped, some of it in part."""
    target = torch.rand(2, channels, height, width, dtype=torch.float64) * 0.6
    target = torch.where(torch.rand_like(target[:, :1]) < 0.4, target + 0.5, target)
    return torch.randn_like(target), target


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind, share", [("split", 0.5), ("split", 0.2), ("l2", 0.5)])
def test_the_loss_is_that_of_plain_loops(channels, kind, share):
    preds, target = hdr_pair(channels)
    mask = saturation_mask(target)
    assert ((mask > 0) & (mask < 1)).any() and (mask == 1).any() and (mask == 0).any()
    expected = loss_in_loops(preds.numpy(), target.numpy(), kind, share)
    found = hdr_loss(preds, target, kind=kind, illumination=share)
    assert found.item() == pytest.approx(expected, rel=1e-9) and expected > 0.01
    assert hdr_loss(preds, target, kind=kind, illumination=share, mask=mask) == found


def test_the_kernel_is_as_described():
    line = illumination_kernel()
    np.testing.assert_allclose(torch.outer(line, line).numpy(), kernel_in_loops(), rtol=1e-12)
    places = torch.arange(-6, 7)
    assert (line * places**2).sum().sqrt().item() == pytest.approx(3.19, abs=0.005)
    light = torch.rand(1, 3, 5, 4, dtype=torch.float64)
    expected = illumination_in_loops(light[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(illumination_of(log_light(light))[0, 0].numpy(), expected, rtol=1e-9)


def test_losses_hold_for_any_prediction_and_train():
    target = 3 * torch.rand(1, 3, 8, 8)
    for kind in ("split", "l2"):
        assert hdr_loss(log_light(target), target, kind=kind) < 1e-10
        preds = torch.full_like(target, -200.0).requires_grad_()  # light far below what a float can hold
        loss = hdr_loss(preds, target, kind=kind)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(preds.grad).all()
        preds = torch.zeros_like(target, requires_grad=True)
        hdr_loss(preds, target, kind=kind).backward()
        assert preds.grad.abs().max() > 0
        assert hdr_loss(torch.randn_like(target), target * 0.1, kind=kind) == 0  # nothing is clipped


def test_the_mask_and_the_final_image_in_loops():
    x = torch.rand(2, 3, 4, 5) * 0.15 + 0.87
    x[0, 0, 0, 0] = 1.0
    preds = torch.randn(2, 3, 4, 5)
    mask, image = saturation_mask(x.clamp(max=1)), blend(x.clamp(max=1), preds)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                pixel = np.minimum(x[b, :, i, j].numpy().astype(float), 1)
                share = min(max((pixel.max() - 0.95) / 0.05, 0), 1)
                assert mask[b, 0, i, j].item() == pytest.approx(share, abs=1e-5)
                expected = (1 - share) * pixel**2 + share * (np.exp(preds[b, :, i, j].numpy()) - EPS)
                np.testing.assert_allclose(image[b, :, i, j].numpy(), expected, atol=1e-4)
    assert mask[0, 0, 0, 0] == 1 and torch.equal(blend(x[:, :1] * 0.5, preds[:, :1]), (x[:, :1] * 0.5).square())


def test_images_that_do_not_belong_together_are_told():
    one, other = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)
    for call, words in [
        (lambda: hdr_loss(one, other), "got (1, 3, 8, 8) and (1, 3, 8, 9)"),
        (lambda: hdr_loss(one[:, :2], one[:, :2]), "(B, 3, H, W) or (B, 1, H, W)"),
        (lambda: hdr_loss(one, one, kind="l1"), "kind='l1'"),
        (lambda: hdr_loss(one, one, illumination=1.5), "illumination=1.5"),
        (lambda: hdr_loss(one, one, mask=one), "The mask must be (1, 1, 8, 8), got (1, 3, 8, 8)"),
        (lambda: blend(one, other), "must be of one shape"),
    ]:
        with pytest.raises(InputError, match=re.escape(words)):
            call()


# --- blind video consistency ------------------------------------------------------------------------------------------


@pytest.fixture
def steady():
    return TransformNet(width=4, blocks=2)


def frames_of(size, batch=1):
    return torch.rand(4, batch, 3, *size).unbind()


def test_transform_net_in_plain_form(steady):
    weights = dict(steady.named_parameters())
    processed, last_output, frame, last_frame = frames_of((12, 16), batch=2)
    hidden, cell = torch.randn(2, 2, 16, 3, 4).unbind()

    def conv(name, y, size, stride=1):
        y = F.pad(y, 4 * (size // 2,), mode="reflect")
        return F.conv2d(y, weights[f"{name}.conv2d.weight"], weights[f"{name}.conv2d.bias"], stride=stride)

    def leaky(y):
        return torch.maximum(y, 0.2 * y)

    def doubled(y):
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3)

    a1 = leaky(conv("conv1a", torch.cat([processed, last_output], 1), 7))
    b1 = leaky(conv("conv1b", torch.cat([frame, last_frame], 1), 7))
    a2, b2 = leaky(conv("conv2a", a1, 3, 2)), leaky(conv("conv2b", b1, 3, 2))
    y = leaky(conv("conv3", torch.cat([a2, b2], 1), 3, 2))
    for number in range(2):
        y = y + conv(f"ResBlocks.{number}.conv2", leaky(conv(f"ResBlocks.{number}.conv1", y, 3)), 3)
    gates = F.conv2d(
        torch.cat([y, hidden], 1), weights["convlstm.Gates.weight"], weights["convlstm.Gates.bias"], padding=1
    )
    take, keep, show = gates[:, :48].sigmoid().split(16, 1)
    new_cell = keep * cell + take * gates[:, 48:].tanh()
    new_hidden = show * new_cell.tanh()
    y = leaky(conv("deconv1", doubled(new_hidden), 3))
    y = leaky(conv("deconv2", doubled(torch.cat([y, a2], 1)), 3))
    expected = processed + conv("deconv3", torch.cat([y, a1], 1), 7).tanh()

    state = {"hidden": hidden, "cell": cell}
    found, next_state = steady(processed, last_output, frame, last_frame, state)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(next_state["cell"], new_cell, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(next_state["hidden"], new_hidden, atol=1e-5, rtol=1e-5)
    assert torch.equal(state["cell"], cell)


@pytest.mark.parametrize("size", [(12, 16), (13, 22), (33, 5), (1, 2)])
def test_any_frame_is_steadied(steady, size):
    four = frames_of(size, batch=2)
    y, state = steady(*four)
    assert y.shape == four[0].shape and (y - four[0]).abs().max() < 1
    again, _ = steady(*four, state)
    assert torch.isfinite(again).all() and not torch.equal(again, y)


def test_a_state_of_zeros_is_a_new_video(steady):
    four = frames_of((8, 12))
    y, state = steady(*four)
    assert state.keys() == {"hidden", "cell"} and state["cell"].shape == (1, 16, 2, 3)
    again, other = steady(*four, {name: torch.zeros_like(value) for name, value in state.items()})
    assert torch.equal(y, again) and torch.equal(state["cell"], other["cell"])
    steady.eval()
    assert torch.equal(steady(*four)[0], y)


def test_streams_of_a_batch_stay_apart(steady):
    four = frames_of((8, 12), batch=3)
    _, state = steady(*four)
    y, _ = steady(*four, state)
    alone, _ = steady(*(each[1:2] for each in four), {name: value[1:2] for name, value in state.items()})
    torch.testing.assert_close(y[1:2], alone, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_weight_of_transform_net_and_the_past(steady):
    four = [each.clone().requires_grad_() for each in frames_of((16, 16))]
    y, state = steady(*four)
    y, _ = steady(*four, state)
    y.square().sum().backward()
    for key, weight in steady.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, key
    assert all(each.grad.abs().max() > 0 for each in four)


def test_frames_and_states_that_do_not_belong_together_are_told(steady):
    four = frames_of((8, 8))
    _, state = steady(*frames_of((16, 16)))
    for call, words in [
        (lambda: steady(*four[:3], torch.rand(1, 3, 8, 9)), "four frames of one shape (B, 3, H, W)"),
        (lambda: steady(*(each[:, :1] for each in four)), "got (1, 1, 8, 8)"),
        (lambda: steady(*four, state), "hidden and cell of (1, 16, 2, 2), got"),
        (lambda: steady(*four, {}), "got {}"),
    ]:
        with pytest.raises(InputError, match=re.escape(words)):
            call()
