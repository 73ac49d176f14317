"""Recipes carried out: from a folder of videos and a network of one's own to an adapter, a table and a curve."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from unflicker.bases import load_base
from unflicker.checks import InputError
from unflicker.cli import main
from unflicker.corruptions import parse
from unflicker.data.local_laplacian import STRONG, local_laplacian
from unflicker.evaluation import _seed
from unflicker.experiments import build_model, evaluate_recipe, open_model, train, validation_loss, with_adapter
from unflicker.losses import unified_loss
from unflicker.metrics.quality import psnr
from unflicker.recipes import load_recipe
from unflicker.results import Evaluation
from unflicker.sets import open_sets
from unflicker.tasks import add_adapter
from unflicker.video import Frame, VideoInfo, open_reader, open_writer

NET = """
    import torch
    from torch import nn

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
"""
RECIPE = """
    about: A tiny one.
    base: {network: NETWORK}
    adapter: {plan: {"0": {kind: learned_ema}, "": {kind: learned_ema}}}
    data: {length: 3, crop: 16, corruptions: ["gaussian_noise:1"], target: base, frames: 6}
    training: {steps: 6, batch: 2, learning_rate: 0.1, validate_every: 3, checkpoint_every: 1, workers: 0}
    evaluation: {baselines: {"EMA 0.2": {kind: ema, decay: 0.2}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with six videos of 8 frames in clips/, a network in tinynet.py and a recipe in mine.yaml."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "clips").mkdir()
    for number in range(6):
        picture = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(number))
        picture = torch.nn.functional.interpolate(picture[None], size=(24, 40), mode="bilinear")[0]
        info = VideoInfo(32, 24, Fraction(24), Fraction(1, 24))
        with open_writer(folder / "clips" / f"v{number}.mp4", info, crf=4) as writer:
            for t in range(8):
                writer.write(Frame(picture[..., t : t + 32].clone(), t, Fraction(1, 24)))
    (folder / "tinynet.py").write_text(textwrap.dedent(NET))
    network = f"{folder / 'tinynet.py'}:make"
    (folder / "mine.yaml").write_text(textwrap.dedent(RECIPE).replace("NETWORK", network))
    return folder


@pytest.fixture
def mine(place):
    return lambda *changes: load_recipe(place / "mine.yaml", [f"data.root={place / 'clips'}", *changes])


def command(*arguments, expect: int = 0) -> str:
    """Run a command in this process and return what it said."""
    before = sys.argv
    sys.argv = ["unflicker", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = before
    assert (left.value.code or 0) == expect
    return ""


def same(a: Path, b: Path) -> bool:
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_fifth_recording_is_held_out(mine):
    sets = open_sets(mine())
    names = [[each.name for each in group] for group in (sets.train, sets.validation, sets.test)]
    assert names == [["v0", "v3", "v4", "v5"], ["v1"], ["v2"]]
    sets = open_sets(mine("data.train.only=[v*]", "data.train.without=[v5]", "data.test.only=[v5]"))
    assert [len(group) for group in (sets.train, sets.validation, sets.test)] == [5, 0, 1]


def test_what_cannot_be_found_is_told(mine, place, tmp_path):
    with pytest.raises(InputError, match=r"does not say where the clips are: add data.root=FOLDER"):
        open_sets(load_recipe(place / "mine.yaml"))
    with pytest.raises(InputError, match="no layout 'davids'; did you mean 'davis'"):
        open_sets(mine("data.layout=davids"))
    with pytest.raises(InputError, match=r"data.options do not suit the layout 'stills'"):
        open_sets(mine("data.layout=stills", "data.options={frmes: 3}"))
    with pytest.raises(InputError, match="No recording is left to train on"):
        train(mine("data.test.only=[v*]"), tmp_path / "run")
    with pytest.raises(InputError, match="No recording is left for a test"):
        evaluate_recipe(mine("data.train.only=[v1]"), {})
    with pytest.raises(InputError, match="trains the base alone, yet has an adapter"):
        train(mine("training.trains=base"), tmp_path / "run2")
    with pytest.raises(InputError, match=r"both adapter.plan and adapter.start"):
        build_model(mine("adapter.start=ema"))


def test_an_unreadable_video_is_named_and_skipped(mine, place, tmp_path):
    for path in (place / "clips").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "v3.mp4").unlink()
    (tmp_path / "v3.mp4").write_bytes(b"no video")
    trained = train(mine(f"data.root={tmp_path}"), tmp_path / "run")
    assert len(trained.skipped) == 1 and "v3.mp4" in trained.skipped[0]


def test_training_leaves_everything_in_its_folder(mine, tmp_path):
    steps = []
    trained = train(mine(), tmp_path / "run", on_step=lambda step, terms: steps.append((step, terms["total"])))
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), float(row["total"])) for row in rows] == steps
    assert [bool(row["validation"]) for row in rows] == [False, False, True] * 2
    best = min(float(row["validation"]) for row in rows if row["validation"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert trained.validation == result["validation"] == best and result["steps"] == 6
    resolved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert resolved["training"]["learning_rate"] == 0.1 and resolved["training"]["truncate"] is None
    # What was saved has that loss again.
    model = add_adapter(load_base(mine().base.network), tmp_path / "run")
    recording = open_sets(mine()).validation[0]
    assert validation_loss(model, recording, mine(), model.base) == pytest.approx(best, rel=1e-6)
    assert "gaussian_noise:1" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_the_validation_loss_is_that_of_one_long_clip(mine):
    recipe = mine("data.frames=null", "data.target=clean", "data.corruptions=[]", "loss.stability=0.3")
    recording = open_sets(recipe).validation[0]
    model = build_model(recipe)
    clip = recording.frames.read(range(8)).float()[None] / 255
    with torch.no_grad():
        expected = unified_loss(model(clip)[0], clip, stability=0.3)["total"]
    assert validation_loss(model, recording, recipe) == pytest.approx(expected.item(), rel=1e-5)


DESCRIBED = """
    import torch
    from torch import nn

    class Described(nn.Module):
        def __init__(self, channels):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Conv2d(3, channels, 3, padding=1)

        def forward(self, x):
            return {"loss": None, "logits": self.net(x)}

    def depth():
        return Described(1)

    def labels():
        return Described(12)
"""


@pytest.mark.parametrize(
    ("target", "distance", "metrics"),
    [("depth", "inverse_depth_rmse", ("abs_rel", "instability")), ("labels", "cross_entropy", ("miou", "instability"))],
)
def test_depth_and_labels_are_validated_and_evaluated(place, tmp_path, target, distance, metrics):
    (tmp_path / f"{target}net.py").write_text(textwrap.dedent(DESCRIBED))
    recipe = load_recipe(
        place / "mine.yaml",
        [
            f"base.network={tmp_path / target}net.py:{target}",
            "adapter.plan={'::logits': {kind: ema, decay: 0.3}}",
            "data.layout=scenes",
            "data.options={count: 3, num_frames: 10, height: 24, width: 32}",
            f"data.target={target}",
            "data.frames=null",
            "data.corruptions=[]",
            f"loss.distance={distance}",
            f"evaluation.metrics=[{', '.join(metrics)}]",
        ],
    )
    model, (recording,) = build_model(recipe), open_sets(recipe).validation
    clip, truth = recording.frames.read(range(10))[None], recording.targets[target].read(range(10))[None]
    with torch.no_grad():
        expected = unified_loss(model(clip)[0]["logits"], truth, stability=0.2, distance=distance)["total"]
    assert validation_loss(model, recording, recipe) == pytest.approx(expected.item(), rel=1e-5)
    found = evaluate_recipe(recipe, {})
    assert tuple(found.metrics) == metrics and set(found.overall) == {"base", "EMA 0.2", "truth"}
    assert found.overall["EMA 0.2"]["instability"] < found.overall["base"]["instability"]


def test_a_finished_run_is_not_repeated_and_another_recipe_is_refused(mine, tmp_path):
    train(mine(), tmp_path / "run")
    before = (tmp_path / "run" / "log.csv").read_bytes()
    again = []
    train(mine(), tmp_path / "run", on_step=lambda *each: again.append(each))
    assert not again and (tmp_path / "run" / "log.csv").read_bytes() == before
    with pytest.raises(InputError, match=r"holds a run of another recipe \(loss.stability was 0.2, is 0.4\)"):
        train(mine("loss.stability=0.4"), tmp_path / "run")


def test_a_run_that_is_killed_at_any_moment_gives_the_same_adapter(place, tmp_path):
    """kill -9, three times, at whatever it is doing then; workers and all."""
    arguments = [sys.executable, "-m", "unflicker", "train", place / "mine.yaml", "--data", place / "clips"]
    arguments += ["training.steps=30", "training.workers=1", "training.average=0.9", "--out"]
    subprocess.run([*arguments, tmp_path / "whole"], check=True, capture_output=True)
    log, killed = tmp_path / "killed" / "log.csv", 0
    for lines in (3, 9, 17):
        process = subprocess.Popen([*arguments, tmp_path / "killed"], stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < lines):
            time.sleep(0.002)
        killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed == 3
    subprocess.run([*arguments, tmp_path / "killed"], check=True, capture_output=True)
    assert same(tmp_path / "killed" / "adapter" / "adapter.safetensors", tmp_path / "whole/adapter/adapter.safetensors")
    assert same(tmp_path / "killed" / "progress.safetensors", tmp_path / "whole" / "progress.safetensors")
    assert log.read_text() == (tmp_path / "whole" / "log.csv").read_text()


def test_two_processes_train_as_one_with_all_their_clips(place, tmp_path):
    arguments = ["train", place / "mine.yaml", "--data", place / "clips", "training.steps=4", "--out"]
    subprocess.run([sys.executable, "-m", "unflicker", *arguments, tmp_path / "one"], check=True, capture_output=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "unflicker"]
    done = subprocess.run([*launch, *arguments, tmp_path / "two"], check=True, capture_output=True, text=True)
    assert done.stderr.count("unflicker: step 4 of 4") == 1
    one, two = (load_file(tmp_path / run / "adapter" / "adapter.safetensors") for run in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    rows = [list(csv.reader((tmp_path / run / "log.csv").read_text().splitlines())) for run in ("one", "two")]
    for a, b in zip(*(each[1:] for each in rows), strict=True):
        assert [float(x) for x in a if x] == pytest.approx([float(x) for x in b if x], rel=1e-5)


def test_two_runs_cannot_share_a_folder(mine, tmp_path):
    def meanwhile(step, terms):
        code = "import sys; from pathlib import Path; from unflicker.experiments import claimed\n"
        code += "with claimed(Path(sys.argv[1])): pass"
        told = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True).stderr
        assert f"Another run is at work in {tmp_path}" in told

    train(mine("training.steps=1"), tmp_path, on_step=meanwhile)


def test_the_network_trains_along_or_alone(mine, tmp_path):
    before = load_base(mine().base.network).state_dict()
    train(mine("training.trains=both"), tmp_path / "both")
    train(mine("training.trains=base", "adapter.plan={}", "data.length=1", "loss.distance=mse"), tmp_path / "alone")
    for run, adapter in (("both", True), ("alone", False)):
        after = load_file(tmp_path / run / "base.safetensors")
        assert after.keys() == before.keys() and not any(torch.equal(after[name], before[name]) for name in after)
        assert (tmp_path / run / "adapter").exists() == adapter
    found = evaluate_recipe(mine(), {run: str(tmp_path / run) for run in ("both", "alone")})
    assert set(found.overall) == {"base", "truth", "EMA 0.2", "both", "alone"}
    psnr = {name: row.get("psnr") for name, row in found.overall.items()}
    assert psnr["alone"] != psnr["base"] != psnr["both"]
    # Its own outputs on clean frames were the target, and those of the network as it was.
    with (tmp_path / "both" / "log.csv").open() as file:
        assert float(next(csv.DictReader(file))["accuracy"]) < 0.1


def test_what_is_named_is_held_out_and_the_rest_trains(mine):
    sets = open_sets(mine("data.test.only=[v5]"))
    assert sets.names() == {"train": ["v0", "v2", "v3", "v4"], "validation": ["v1"], "test": ["v5"]}
    sets = open_sets(mine("data.validation.only=[v0]", "data.test.only=[v5]"))
    assert sets.names() == {"train": ["v1", "v2", "v3", "v4"], "validation": ["v0"], "test": ["v5"]}
    with pytest.raises(InputError, match=r"'v1' is in data.train and in data.validation"):
        open_sets(mine("data.train.only=[v1]", "data.validation.only=[v1]"))
    with pytest.raises(InputError, match='The layout "folder" has no split'):
        open_sets(mine("data.train.split=train"))


def test_a_folder_that_grew_is_noticed(mine, place, tmp_path):
    for path in (place / "clips").iterdir():
        (tmp_path / path.name).symlink_to(path)
    train(mine(f"data.root={tmp_path}"), tmp_path / "run")
    (tmp_path / "a_new.mp4").symlink_to(place / "clips" / "v0.mp4")
    with pytest.raises(InputError, match=r"recordings have changed since .* began \(a_new is new in train; v"):
        train(mine(f"data.root={tmp_path}", "training.workers=1"), tmp_path / "run")
    with pytest.warns(UserWarning, match="was trained on recordings of this test, or chosen by them: v1"):
        evaluate_recipe(mine(f"data.root={tmp_path}"), {"run": str(tmp_path / "run")})


def test_a_damaged_validation_video_is_named_and_left_out(mine, place, tmp_path):
    for path in (place / "clips").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "v1.mp4").read_bytes())
    begin = content.index(b"mdat") + 400
    content[begin : begin + 3000] = bytes(3000)
    (tmp_path / "v1.mp4").write_bytes(content)
    trained = train(mine(f"data.root={tmp_path}", "data.validation.only=[v1, v2]"), tmp_path / "run")
    assert [each for each in trained.skipped if "v1.mp4" in each] and trained.validation is not None


def test_the_base_s_own_output_is_what_an_evaluation_holds_it_to(mine):
    found = evaluate_recipe(mine(), {})
    recording = open_sets(mine()).test[0]
    network = load_base(mine().base.network)
    clean = recording.frames.read(range(8)).float() / 255
    noisy = torch.cat(
        [parse("gaussian_noise:1", seed=_seed(0, 0, 0))(frame[None], start=t) for t, frame in enumerate(clean)]
    )
    with torch.no_grad():
        expected = psnr(network(noisy).clamp(0, 1), network(clean).clamp(0, 1))
    assert found.overall["base"]["psnr"] == pytest.approx(expected.item(), abs=1e-4)
    assert evaluate_recipe(mine("data.corruptions=[]"), {}).overall["base"]["psnr"] == 100


def test_a_joined_recipe_goes_through_every_command(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extra.yaml").write_text("training: {steps: 2}\n")
    joined = [f"{place / 'mine.yaml'}+extra.yaml", "--data", place / "clips"]
    command("train", *joined)
    command("evaluate", *joined, "--adapter", "runs/mine+extra")
    command("sweep", *joined, "--over", "loss.stability=0.1,0.3")
    network = load_recipe(place / "mine.yaml").base.network
    command("run", place / "clips/v0.mp4", "out.mp4", "--model", network, "--adapter", "runs/mine+extra")
    assert "mine+extra" in Evaluation.read("runs/mine+extra/evaluation/evaluation.json").overall
    command("sweep", *joined, "--over", "data.corruptions=[snow:1],[fog]", expect=2)
    assert "would measure each run on something else" in capsys.readouterr().err
    command("recipes")
    assert "denoise-0.1-small" in capsys.readouterr().out


def test_run_takes_the_network_that_was_trained_along(mine, place, tmp_path):
    train(mine("training.trains=both", "training.learning_rate=0.01"), tmp_path / "both")
    recipe = mine()
    whole = open_model(recipe.base.network, None, str(tmp_path / "both"))
    inner = open_model(recipe.base.network, None, str(tmp_path / "both" / "adapter"))
    trained = load_file(tmp_path / "both" / "base.safetensors")
    for model in (whole, inner, with_adapter(recipe, load_base(recipe.base.network), str(tmp_path / "both"))):
        assert all(torch.equal(value, trained[name]) for name, value in model.base.state_dict().items())


def test_a_first_start_that_failed_blocks_nothing(mine, tmp_path):
    with pytest.raises(InputError, match="needs the package tensorboard"):
        train(mine("training.tensorboard=true"), tmp_path / "run")
    train(mine("training.steps=2"), tmp_path / "run")  # another recipe, and nothing to go on with
    (tmp_path / "run" / "recipe.yaml").write_text("")
    with pytest.raises(InputError, match=r"holds a run, but .* cannot be read"):
        train(mine("training.steps=2"), tmp_path / "run")


def test_a_network_that_cannot_take_the_frames_is_told_of_before_training(mine, tmp_path):
    (tmp_path / "grey_net.py").write_text("from torch import nn\ndef make():\n    return nn.Conv2d(1, 1, 3)\n")
    with pytest.raises(
        InputError, match=r"The network, a Conv2d, cannot take a frame \(1, 3, 16, 16\): Given groups=1"
    ):
        train(mine(f"base.network={tmp_path / 'grey_net.py'}:make", "adapter.plan={'': {kind: ema}}"), tmp_path / "run")


def test_inspect_lists_layers_and_suggests_a_plan(mine, place, capsys):
    command("inspect", mine().base.network, place / "clips" / "v0.mp4")
    told = capsys.readouterr().out
    assert "Conv2d" in told and '"": Aligned()' in told and '"": {kind: aligned}' in told
    command("inspect", "denoize", expect=2)
    assert "There is no network 'denoize'; did you mean 'denoise'?" in capsys.readouterr().err


def test_run_finds_the_picture_in_what_a_network_returns(place, tmp_path):
    (tmp_path / "dict_net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return {'score': x.mean((2, 3)), 'picture': 1 - x}\n"
    )
    command(
        "run",
        place / "clips" / "v0.mp4",
        tmp_path / "out.mp4",
        "--model",
        f"{tmp_path / 'dict_net.py'}:Net",
        "--compare",
    )
    with open_reader(tmp_path / "out.mp4") as reader, open_reader(place / "clips" / "v0.mp4") as source:
        first, before = next(iter(reader)).data, next(iter(source)).data
    assert first.shape == (3, 24, 64) and (first[..., :32] - (1 - before)).abs().mean() < 0.05


def test_details_brought_out_are_a_truth_like_any_other(mine, tmp_path):
    recipe = mine("data.enhance=strong", "data.target=truth", f"data.cache={tmp_path / 'cache'}", "training.steps=2")
    recording = open_sets(recipe).train[0]
    frame = recording.frames.read([3])
    enhanced = local_laplacian(frame.float() / 255, **STRONG).clamp(0, 1)
    assert torch.equal(recording.targets["truth"].read([3]), enhanced.mul(255).round().byte())
    other = open_sets(mine("data.enhance=moderate", "data.target=truth", f"data.cache={tmp_path / 'cache'}")).train[0]
    assert not torch.equal(other.targets["truth"].read([3]), recording.targets["truth"].read([3]))
    train(recipe, tmp_path / "run")
    assert evaluate_recipe(recipe, {"run": str(tmp_path / "run")}).overall["run"]["psnr"] < 60
    with pytest.raises(InputError, match=r"data.enhance makes the truth: set data.target=truth"):
        open_sets(mine("data.enhance=strong"))


def test_the_paper_s_places_in_hdrnet_are_there():
    model = build_model(load_recipe("enhance-strong"))
    assert len(model.places) == 15  # 11 convolutions, 3 linear layers, the output
    assert load_recipe("enhance-strong+base").training.trains == "base"


def test_a_divergence_keeps_what_was_best(mine, place, tmp_path, capsys):
    arguments = ["train", place / "mine.yaml", "--data", place / "clips", "--out", tmp_path / "run"]
    command(*arguments, "training.trains=both", "training.learning_rate=1e20", "training.validate_every=1", expect=3)
    told = capsys.readouterr().err
    assert re.search(r"error: The .* at step \d+: lower the learning rate.*The best weights until then are in", told)
    weights = load_file(tmp_path / "run" / "adapter" / "adapter.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_clips_from_stills_train_as_well(mine, tmp_path):
    from unflicker.demo import demo_clip

    for n, frame in enumerate(demo_clip(4, 64, 96)):
        from PIL import Image

        Image.fromarray((frame.permute(1, 2, 0).numpy() * 255).astype("uint8")).save(tmp_path / f"{n}.png")
    options = "data.options={height: 32, width: 48, num_frames: 8}"
    trained = train(mine(f"data.root={tmp_path}", "data.layout=stills", options), tmp_path / "run")
    assert trained.validation is not None


def test_a_sweep_trains_what_is_missing_and_draws(place, tmp_path, capsys):
    arguments = ["sweep", place / "mine.yaml", "--data", place / "clips", "--out", tmp_path, "training.steps=2"]
    command(*arguments, "--over", "loss.stability=0.1,0.4")
    found = Evaluation.read(tmp_path / "evaluation.json")
    assert {"base", "mine 0.1", "mine 0.4", "EMA 0.2", "truth"} == set(found.overall)
    for value in ("0.1", "0.4"):
        resolved = yaml.safe_load((tmp_path / f"loss.stability={value}" / "recipe.yaml").read_text())
        assert resolved["loss"]["stability"] == float(value)
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000 and "mine 0.4" in (tmp_path / "table.md").read_text()
    capsys.readouterr()
    run = tmp_path / "loss.stability=0.1"
    command(*arguments, "--over", "strength=0.5,2", "--adapter", run, "--clip", place / "clips" / "v2.mp4")
    assert {f"{run.name} 0.5", f"{run.name} 2"} <= set(Evaluation.read(tmp_path / "evaluation.json").overall)
    told = capsys.readouterr()
    assert "recommended" in told.out and "is the largest that loses at most 0.5 dB" in told.err
    for wrong, sentence in (
        (["--over", "strength"], "write KEY=V,V,..."),
        (["--over", "strength=a"], "'a' is no number"),
        (["--over", "loss.stability=0.1", "--adapter", "ema"], "are for a sweep over strength"),
    ):
        command(*arguments, *wrong, expect=2)
        assert sentence in capsys.readouterr().err


def test_what_the_commands_say_of_mistakes(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--data", place / "clips", "--out", tmp_path / "run"]
    for arguments, told in (
        (["train", "denoise-0.1-smal"], "There is no recipe 'denoise-0.1-smal' in the package"),
        (["train", place / "mine.yaml", *data, "data.length=90"], "no recording is long enough"),
        (["train", place / "mine.yaml", *data, "--model", "gone.py:make"], "There is no file gone.py"),
        (["train", place / "mine.yaml", "--data", tmp_path], "has neither video files"),
        (["evaluate", place / "mine.yaml", *data, "--adapter", "gone"], "has no adapter 'gone', and there is no such"),
        (["evaluate", place / "mine.yaml", *data, "--adapter", "ema", "--metric", "psnrr"], "'psnr'"),
    ):
        command(*arguments, expect=2)
        said = capsys.readouterr().err.strip()
        assert told in said and len(said.splitlines()) == 1, said
    assert not list(tmp_path.iterdir())  # nothing is begun before everything fits


def test_an_adapter_for_another_network_is_refused(mine, place, tmp_path, capsys):
    train(mine("training.steps=1"), tmp_path / "run")
    arguments = ["run", place / "clips" / "v0.mp4", tmp_path / "out.mp4", "--adapter", tmp_path / "run"]
    command(*arguments, "--task", "none", expect=2)
    assert "was made for another base, a Sequential" in capsys.readouterr().err
    command(*arguments, "--model", mine().base.network)
    assert (tmp_path / "out.mp4").exists()
