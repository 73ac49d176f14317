"""Networks by name or from a file of the user's, and weights that do or do not fit."""

import re
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unflicker.bases import load_base
from unflicker.checks import InputError

NET = """
from torch import nn
import beside_it

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1))

def make_list():
    return [1]

def make_error():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def net(tmp_path, request, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_it.py").write_text("x = 1\n")
    file = tmp_path / f"net_{abs(hash(request.node.name))}.py"  # each test another: modules are kept
    file.write_text(NET)
    return file


def test_a_function_of_a_file_makes_the_network(net):
    network = load_base(f"{net}:make")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "ending, wrap", [(".safetensors", None), (".pth", None), (".pt", "params"), (".pth", "module")]
)
def test_weights_come_from_the_usual_files(net, tmp_path, ending, wrap):
    other = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1))
    file, weights = tmp_path / f"w{ending}", other.state_dict()
    if ending == ".safetensors":
        save_file(weights, file)
    elif wrap == "module":
        torch.save({f"module.{name}": value for name, value in weights.items()}, file)
    else:
        torch.save({wrap: weights} if wrap else weights, file)
    frame = torch.rand(1, 3, 8, 8)
    assert torch.equal(load_base(f"{net}:make", file)(frame), other(frame))


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_what_cannot_be_a_network_or_weights(net, tmp_path, capfd):
    def told(name, weights=None):
        with pytest.raises(InputError) as caught:
            load_base(name, weights)
        return str(caught.value)

    assert "There is no network 'denoize'; did you mean 'denoise'?" in told("denoize")
    assert "There is no file gone.py to take 'make' from" in told("gone.py:make")
    assert "has no function 'mak'; did you mean 'make'?" in told(f"{net}:mak")
    assert "must return a torch.nn.Module, but gave list" in told(f"{net}:make_list")
    assert "make_error() of" in (said := told(f"{net}:make_error")) and "RuntimeError: no luck" in said
    (tmp_path / "torch.py").write_text("def make(): pass")
    assert "cannot be imported as 'torch', which is taken" in told(f"{tmp_path / 'torch.py'}:make")
    (tmp_path / "broken_net.py").write_text("def make(:")
    assert "cannot be imported: SyntaxError" in told(f"{tmp_path / 'broken_net.py'}:make")
    assert "There is no file gone.pth with weights" in told("denoise", "gone.pth")
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    assert "holds more than tensors" in told("denoise", tmp_path / "evil.pth")
    assert "unpickled" not in capfd.readouterr().out
    torch.save([1], tmp_path / "list.pth")
    assert "holds no weights by name" in told("denoise", tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    assert "cannot be read" in told("denoise", tmp_path / "cut.safetensors")
    save_file({"0.weight": torch.zeros(4, 3, 1, 1), "x": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert re.search(
        r"do not fit Sequential: it lacks 3 \(0.bias, 1.weight, 1.bias\); it has too many: 1 \(x\); "
        r"of another size: 1 \(0.weight \(4, 3, 1, 1\), not \(4, 3, 3, 3\)\)",
        told(f"{net}:make", tmp_path / "w.safetensors"),
    )
