"""The plan of the house, held against the code: who may import whom, and what starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dermalyze

PACKAGE = Path(dermalyze.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}

# A module, or a whole package, may import what stands on floors below its own, never upwards.
# Rooms on one floor (packages, and modules beside them) do not know each other; files of one
# package do. What is not named here has no place yet: give it one, as low as it can stand.
FLOORS = (
    # 0: words and chance
    {"allocation", "config_part", "errors", "files", "machine", "quick_yaml", "randomness"}
    | {"redaction", "taxonomy"},
    # 1: numbers without torch: tables, pictures, metrics, and what a run's folder says
    {"config", "contradictions", "data", "evaluation", "evaluation_options"}
    | {"frequency_correction", "launch", "multirun_folder", "run_folder", "sweep_folder"},
    # 2: tensors, and checks of values that need the floor below
    {"augmentation", "checkpoint_file", "composition_errors", "compute", "data.batches"}
    | {"distributed", "losses", "models", "optim"}
    | {"reporting", "schema"},
    # 3: what is done with a model, and a config's data read for all commands
    {"dataset", "engine", "inference", "tracking"},
    # 4: from a run's config to what it trains with; what predicts, and what it is judged on
    {"compared_runs", "judged_images", "members", "prediction", "recipe", "run_data"}
    | {"validation_fit"}
    | {"exporting"}
    | {"search"},
    # 5: what wires a command together
    {"assessment", "benchmarks", "comparison", "experiment", "exporting.export_run", "served_model"}
    | {"run_report", "serving"},
    # 6: many runs as one, and none
    {"fresh_folder", "sweeps"},
    # 7: what commands share
    {"command"},
    # 8: the commands
    {"benchmark", "compare", "evaluate", "predict", "prepare", "show_augmentation", "show_schedule"}
    | {"export", "report", "serve", "train"},
)
COMMANDS = sorted(FLOORS[-1])
FLOORS_WITHOUT_TORCH = 2
LONGEST_FILE = 330


def floor_of(module: str) -> int:
    """The floor of the longest name in the plan that the module is, or lies in."""
    name = module
    while name:
        for floor, rooms in enumerate(FLOORS):
            if name in rooms:
                return floor
        name = name.rpartition(".")[0]
    raise LookupError(module)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, those in functions and for type checkers too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports here are absolute"
            # `from package import name` may mean the module package.name or a name in it.
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def own_imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of this project's modules that a file imports."""
    found = []
    for line, name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        top, _, rest = name.partition(".")
        if top != "dermalyze" or not rest:
            continue
        module = rest if rest in MODULES else rest.rpartition(".")[0]
        found.append((line, module))
    return found


def forbidden(module: str, imports: list[tuple[int, str]]) -> list[str]:
    """The imports that the plan does not allow to a module."""
    wrong = []
    for line, other in imports:
        here, there = floor_of(module), floor_of(other)
        neighbour = here == there and room_of(module) != room_of(other)
        if there > here or neighbour:
            direction = "its neighbour on" if neighbour else "upwards to"
            wrong.append(
                f"{module}.py:{line}: floor {here} imports {other}, {direction} floor {there}"
            )
    return wrong


def test_every_module_has_its_place_on_one_floor() -> None:
    for module in MODULES:
        floor_of(module)
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms))
    assert {room for room in rooms if room not in MODULES} == set()


def test_no_import_runs_upwards_or_between_neighbours() -> None:
    wrong = []
    for module, path in MODULES.items():
        wrong += forbidden(module, own_imports(path))
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {other for _, other in own_imports(path)} for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_every_own_import_names_a_module_that_is_there() -> None:
    """So that the tests above miss none."""
    for path in MODULES.values():
        for line, module in own_imports(path):
            assert module in MODULES, f"{path}:{line}: {module}"
    assert len(own_imports(MODULES["experiment"])) > 20


@pytest.mark.parametrize(
    ("module", "statement", "allowed"),
    [
        ("losses.focal", "from dermalyze.losses.class_weights import class_weights", True),
        ("losses.focal", "import dermalyze.errors", True),
        ("losses.focal", "from dermalyze import errors, taxonomy", True),
        ("losses.focal", "from dermalyze.models.classifier import Classifier", False),
        ("losses.focal", "from dermalyze import compute", False),
        ("data.batches", "from dermalyze.data.cache import open_images", True),
        ("data.cache", "from dermalyze.data.batches import ImageStore", False),
        ("data.table", "def f():\n    from dermalyze.engine.loop import fit", False),
        ("errors", "if TYPE_CHECKING:\n    from dermalyze.config import plain", False),
        ("assessment", "from dermalyze.experiment import run_training", False),
        ("train", "from dermalyze.experiment import run_training", True),
    ],
)
def test_the_plan_tells_good_imports_from_bad(
    module: str, statement: str, allowed: bool, tmp_path: Path
) -> None:
    (tmp_path / "new.py").write_text(statement)
    assert (forbidden(module, own_imports(tmp_path / "new.py")) == []) is allowed


def test_a_module_without_a_place_is_noticed() -> None:
    with pytest.raises(LookupError, match="helpers"):
        floor_of("helpers.strings")


def low_modules() -> list[str]:
    return [name for name in MODULES if floor_of(name) < FLOORS_WITHOUT_TORCH]


def test_the_lower_floors_name_no_torch() -> None:
    heavy = ("torch", "torchvision", "timm", "mlflow")
    for module in low_modules():
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        names = {name.partition(".")[0] for _, name in imported(tree)}
        assert names.isdisjoint(heavy), module


def test_the_lower_floors_load_no_torch() -> None:
    """Nor may a library that they use load it behind their back."""
    script = f"""
import importlib, sys
for name in {low_modules()}:
    importlib.import_module("dermalyze." + name)
print(sorted({{"torch", "timm", "mlflow"}} & sys.modules.keys()))
"""
    assert output_of(script).endswith("[]\n")


def output_of(script: str, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


RUN_AND_LIST = """
import atexit, runpy, sys
heavy = {"torch", "torchvision", "timm", "mlflow", "pandas", "sklearn", "scipy", "matplotlib"}
atexit.register(lambda: print("heavy:", *sorted(heavy & sys.modules.keys())))
sys.argv = sys.argv[1:]
runpy.run_module("dermalyze." + sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job")], ids=["help", "cfg"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_config_answer_without_the_heavy_libraries(
    command: str, arguments: tuple[str, ...]
) -> None:
    *shown, last = output_of(RUN_AND_LIST, command, *arguments).splitlines()
    assert last == "heavy:"
    text = "\n".join(shown)
    assert (f"python -m dermalyze.{command}" if arguments == ("--help",) else "outputs:") in text


@pytest.mark.parametrize(
    "word", ["training.sede=1", "loss=focl", "training.epochs=0", "training.epochs=few"]
)
def test_train_refuses_a_wrong_word_without_the_heavy_libraries(word: str, tmp_path: Path) -> None:
    """A key, an option, a value out of its range, and one that is no number."""
    run = f"hydra.run.dir={tmp_path}"
    *_, last = output_of(RUN_AND_LIST, "train", word, run, expect=2).splitlines()
    assert last == "heavy:"


def test_no_file_is_called_utils() -> None:
    names = {part for module in MODULES for part in module.split(".")}
    assert names.isdisjoint({"utils", "util", "helpers", "misc", "common"})


def test_no_file_is_longer_than_a_person_reads_at_once() -> None:
    lengths = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in MODULES.items()
    }
    assert {module: length for module, length in lengths.items() if length > LONGEST_FILE} == {}
