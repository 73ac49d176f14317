"""Recipes: files, parts that are joined, options, and what is said of mistakes."""

import re
from pathlib import Path

import pytest
import yaml

from unflicker.checks import InputError
from unflicker.data import LAYOUTS
from unflicker.recipes import Recipe, list_recipes, load_recipe

NAMES = list(list_recipes())


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_in_the_package_is_sound(name):
    recipe = load_recipe(name)
    assert recipe.about
    assert Recipe.model_validate(yaml.safe_load(recipe.text())) == recipe
    assert recipe.data.layout in ("folder", "stills", "scenes", *LAYOUTS)


@pytest.mark.parametrize("name", [name for name in NAMES if re.fullmatch(r"(denoise|weather)-.*(?<!-small)", name)])
def test_every_experiment_has_a_small_twin_with_the_same_corruption(name):
    big, small = load_recipe(name), load_recipe(f"{name}-small")
    assert small.training.steps <= 200 and small.base.network in ("denoise", "denoise-heavy")
    if name.startswith("denoise"):
        assert small.data.corruptions == big.data.corruptions
        assert (small.data.length, small.loss) == (big.data.length, big.loss)


def test_the_published_settings():
    """Instant Video Models, section 3 of our specification: 20 epochs of 2,000 clips, tenths at 10 and 15."""
    recipe = load_recipe("denoise-0.1")
    training = recipe.training
    assert (training.steps, training.schedule, training.batch, training.learning_rate) == (
        40_000,
        (20_000, 30_000),
        1,
        1e-4,
    )
    assert (recipe.data.length, recipe.data.crop, recipe.loss.distance, recipe.loss.stability) == (8, 256, "rmse", 0.2)
    assert load_recipe("denoise-0.1+learned").training.learning_rate == 1e-2
    assert load_recipe("denoise-0.6-tau16").data.length == 16
    assert {name for name in NAMES if name.startswith("denoise") and not name.endswith("-small")} == {
        "denoise-0.1",
        "denoise-0.2",
        "denoise-0.6",
        "denoise-0.6-tau16",
        "denoise-davis",
        "denoise-patch-drop",
        "denoise-elastic",
        "denoise-frame-drop",
        "denoise-jpeg",
        "denoise-impulse",
    }


def test_parts_are_joined_in_order(tmp_path):
    mine = write(tmp_path, "like: denoise-0.1+small\ntraining: {steps: 7}\n")
    recipe = load_recipe(f"{mine}+controlled", ["training.steps=9", "loss.stability=0.4"])
    assert recipe.training.steps == 9 and recipe.loss.stability == 0.4
    assert recipe.adapter.plan == {"paper": {"kind": "controlled", "hidden": 64}}
    assert recipe.data.crop == 48 and recipe.data.corruptions == ("gaussian_noise:ivm-moderate",)


def test_a_plan_is_replaced_and_the_rest_is_merged(tmp_path):
    write(tmp_path, "adapter: {plan: {a: {kind: ema}}}\ndata: {crop: 32, length: 3}\n", "old.yaml")
    new = write(tmp_path, "like: old.yaml\nadapter: {plan: {b: {kind: ema}}}\ndata: {crop: 64}\n")
    recipe = load_recipe(new)
    assert list(recipe.adapter.plan) == ["b"] and (recipe.data.crop, recipe.data.length) == (64, 3)


@pytest.mark.parametrize(
    "text, told",
    [
        ("loss:\n  stabilty: 0.3\n", "mine.yaml, line 2: there is no setting loss.stabilty; did you mean 'stability'?"),
        ("data:\n  crop: 8\n  length: 0\n", "mine.yaml, line 3: data.length cannot be 0: input should be greater"),
        ("los: 3\n", "mine.yaml, line 1: there is no setting los; did you mean 'loss'?"),
        ("data:\n  corruptions: [snoww]\n", "line 2: data.corruptions: There is no corruption 'snoww'; did you mean"),
        ("adapter:\n  plan:\n    '': {kind: emma}\n", "line 2: adapter.plan: There is no stabilizer of kind 'emma'"),
        ("loss: {distance: rsme}\n", "line 1: loss.distance: There is no distance 'rsme'; did you mean 'rmse'?"),
        ("training:\n  schedule: linear\n", "line 2: training.schedule cannot be 'linear': input should be 'cosine'"),
        (
            "adapter:\n  controllers:\n  - widht: 3\n",
            "line 3: there is no setting adapter.controllers.0.widht; did you",
        ),
        ("data: {train: 3}\n", "line 1: data.train cannot be 3: input should be a valid dictionary"),
        ("loss: {stability: 0.1}\ndata: {crop: 8}\nloss: {}\n", "mine.yaml, line 3: loss is set twice; keep one."),
        ("a: [\n", "mine.yaml, line 2: this is no YAML: "),
        ("just a text\n", "mine.yaml is no recipe: it must have keys"),
        ("like: denoise-0.11\n", "There is no recipe 'denoise-0.11' in the package, and it names no .yaml file; did"),
        ("like: mine.yaml\n", "is like itself, by way of mine.yaml"),
        ("like: other.yaml\n", "There is no recipe file"),
    ],
)
def test_what_a_wrong_recipe_is_told(tmp_path, text, told):
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        load_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_mistake_is_placed_in_the_file_it_was_made_in(tmp_path):
    write(tmp_path, "loss: {stability: -1}\n", "old.yaml")
    new = write(tmp_path, "like: old.yaml\nabout: new\n")
    with pytest.raises(InputError, match=r"old.yaml, line 1: loss.stability cannot be -1"):
        load_recipe(new)
    with pytest.raises(InputError, match=r"The option loss.stability=x: loss.stability cannot be 'x'"):
        load_recipe(new, ["loss.stability=x"])
    with pytest.raises(InputError, match=r"'loss.stability' is no change to a recipe: write KEY=VALUE"):
        load_recipe(new, ["loss.stability"])
    with pytest.raises(InputError, match=r"The option a=\[: the value is no YAML"):
        load_recipe(new, ["a=["])


def test_a_network_trains_first_by_the_distance_of_its_target():
    assert load_recipe("depth+base").loss.distance == "inverse_depth_rmse"
    assert load_recipe("segment+base").loss.distance == "cross_entropy"
    assert load_recipe("enhance-moderate+base+mse").loss.distance == "mse"
