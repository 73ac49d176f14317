"""The floor plan of DESIGN.md, read from the imports: arrows run downward only."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "unflicker"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

FLOORS = [
    ["checks"],
    ["functional", "state"],
    ["layers", "flow", "video", "corruptions", "losses", "networks", "processes"],
    ["evidence", "guide", "outputs", "rendering"],
    ["recovery"],
    ["stabilizers", "controllers", "regularizers", "data", "metrics"],
    ["plans", "recipes", "kinds", "results", "pairs"],
    ["model"],
    ["checkpoint", "explain", "export", "report", "measure", "inspecting"],
    ["tasks", "scores", "sharing"],
    ["bases", "training", "finetuning", "evaluation", "run", "demo", "page"],
    ["sets", "tradeoff", "strength", "steadying"],
    ["experiments"],
    ["cli", "app"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}

# Wait until they are used; a room is listed where the library is its one purpose.
HEAVY = {
    "accelerate",
    "cv2",
    "gradio",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "OpenEXR",
    "openvino",
    "ray",
    "scenedetect",
    "scipy",
    "segmentation_models_pytorch",
    "skimage",
    "timm",
    "transformers",
}
ALLOWED_AT_TOP: dict[str, set[str]] = {}
MAY_PRINT = {"cli"}

every_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


class Import(NamedTuple):
    module: str
    name: str | None
    line: int
    at_top: bool


def imports(path: Path) -> list[Import]:
    """Every import of a file, wherever it stands; those for the type checker alone are left out."""
    found: list[Import] = []
    package = ["unflicker", *path.parent.relative_to(PACKAGE).parts]

    def visit(node: ast.AST, at_top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found.extend(Import(module, alias.name, node.lineno, at_top) for alias in node.names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, at_top and not inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def own(path: Path) -> list[Import]:
    return [each for each in imports(path) if each.module.split(".")[0] == "unflicker"]


def test_every_room_stands_on_a_floor():
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= FLOOR.keys(), f"not on the floor plan: {sorted(rooms - FLOOR.keys())}"


@every_file
def test_imports_run_downward(path):
    if path.parent == PACKAGE and path.stem in ("__init__", "__main__"):
        pytest.skip("the roof")
    room = room_of(path)
    for each in own(path):
        parts = each.module.split(".")[1:]
        if not parts or parts[0] == room:
            continue  # the package root and siblings have tests of their own
        floor = FLOOR.get(parts[0], 99)
        assert floor < FLOOR[room], (
            f"line {each.line}: {room} (floor {FLOOR[room]}) imports {parts[0]} (floor {floor}, 99 is not on the plan)"
        )


@every_file
def test_nothing_imports_the_package_root(path):
    """`from unflicker import room` runs the root as well: write `from unflicker.room import name`."""
    offenders = [f"line {each.line}: {each.name}" for each in own(path) if each.module == "unflicker"]
    assert not offenders


@every_file
def test_siblings_import_only_their_base(path):
    if path.parent == PACKAGE or path.stem == "__init__":
        pytest.skip("no siblings, or the list of them")
    folder = ".".join(["unflicker", *path.parent.relative_to(PACKAGE).parts])
    for each in own(path):
        full = f"{each.module}.{each.name}" if each.name else each.module
        if each.module == folder or each.module.startswith(folder + "."):
            assert full.startswith(f"{folder}.base.") or full == f"{folder}.base", (
                f"line {each.line} imports {full}; siblings share {folder}.base alone"
            )


def test_the_root_is_a_list_of_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert {each.module.split(".")[0] for each in imports(PACKAGE / "__init__.py")} <= {
        "__future__",
        "importlib",
        "typing",
    }
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))


def test_every_public_name_is_there():
    import unflicker

    rooms = {name: room for name, room in unflicker._ROOMS.items() if importlib.util.find_spec(f"unflicker.{room}")}
    assert "stabilize" in rooms
    for name, room in rooms.items():
        assert getattr(unflicker, name).__module__.split(".")[1] == room
    assert set(rooms) <= set(dir(unflicker))
    with pytest.raises(AttributeError, match="module 'unflicker' has no attribute 'stabilise'"):
        unflicker.stabilise  # noqa: B018


@every_file
def test_no_torchvision(path):
    assert not [each for each in imports(path) if each.module.split(".")[0] == "torchvision"]


@every_file
def test_heavy_imports_wait(path):
    allowed = ALLOWED_AT_TOP.get(str(path.relative_to(PACKAGE)), set())
    heavy = [
        f"line {each.line}: {each.module}"
        for each in imports(path)
        if each.at_top and each.module.split(".")[0] in HEAVY - allowed
    ]
    assert not heavy


@every_file
def test_the_ground_floor_needs_torch_alone(path):
    """Floor 1 is torch and safetensors; what a user saves a stream with."""
    if FLOOR.get(room_of(path)) != 1:
        pytest.skip("not on the ground floor")
    outside = {each.module.split(".")[0] for each in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "safetensors", "unflicker"}


@every_file
def test_no_open_keywords_in_public_signatures(path):
    """`**kwargs` hides what a function takes; functions inside functions and _private ones are not looked at."""
    offenders = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                public = not child.name.startswith("_") or child.name == "__init__"
                if public and child.args.kwarg:
                    offenders.append(f"line {child.lineno}: {child.name}")
            elif isinstance(child, ast.ClassDef):
                if not child.name.startswith("_"):
                    visit(child)
            else:
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    assert not offenders


@every_file
def test_no_print_in_the_library(path):
    if room_of(path) in MAY_PRINT:
        pytest.skip("commands speak")
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [f"line {c.lineno}" for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


@every_file
def test_nothing_is_unpickled(path):
    """pickle is not imported, and torch.load reads weights only."""
    assert not [each for each in imports(path) if each.module in ("pickle", "dill", "cloudpickle", "joblib")]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True", f"line {node.lineno}"


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc"])
def test_no_room_for_odds_and_ends(name):
    assert not [path for path in NAMES if name in Path(path).with_suffix("").parts]


@every_file
def test_every_file_says_what_it_is(path):
    if path.stat().st_size:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "a file begins with its one sentence"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m.split('.')[0] for m in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_is_quick():
    loaded = loaded_by("import unflicker; unflicker.__version__, dir(unflicker)")
    assert "unflicker" in loaded and not loaded & ({"torch", "numpy"} | HEAVY)


def test_the_three_lines_load_nothing_heavy():
    loaded = loaded_by("from unflicker import stabilize, load_adapter, save_adapter, EMA; import unflicker.export")
    assert "torch" in loaded and not loaded & (HEAVY | {"av", "torchvision"})
