"""The house rules that no type checker sees: which room imports which, and what must not be known where."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("app.py", "stacks", "constructs", "training_image", "lambda")
LIGHT = ("training_image.config", "training_image.core")
ROOMS = {
    "training_image/core": (),
    "training_image/config": ("training_image.core",),
    "training_image/data": LIGHT,
    "training_image/storage": ("training_image.core",),
    "training_image/supervisor": ("training_image.core", "training_image.storage"),
    "training_image/train": (*LIGHT, "training_image.data", "training_image.storage"),
    "lambda": ("training_image.core",),
    "constructs/lab_constructs": LIGHT,
    "stacks": ("lab_constructs", *LIGHT),
    "local_cloud": LIGHT,
    "lab/operator": (*LIGHT, "training_image.storage"),
    "lab/demo": ("lab.chaos", "lab.operator", "local_cloud", "training_image"),
    "lab/chaos": ("lab.operator", "local_cloud", "training_image"),
    "lab/smoke": ("lab.demo", "lab.operator", "training_image"),
}
"""What each room may import of this project, besides itself. docs/architecture.md draws it."""
OURS = ("app", "lab", "lab_constructs", "local_cloud", "stacks", "training_image")


def product_files() -> list[Path]:
    found = [ROOT / "app.py"]
    for folder in PRODUCT[1:]:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return found


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Dotted names that the file imports; ``top_only``: not those inside functions or for type checkers alone."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_the_folder_constructs_is_no_package():
    assert not (ROOT / "constructs" / "__init__.py").exists(), "it would shadow the PyPI package and break aws_cdk"


def test_the_product_never_mentions_the_local_cloud():
    for path in product_files():
        text = path.read_text(errors="ignore").lower()
        for word in ("ministack", "emulator", "local cloud", "local_cloud", "localstack", "process engine"):
            assert word not in text, f"{path.relative_to(ROOT)} mentions {word!r}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    own = {"constructs/lab_constructs": "lab_constructs"}.get(room, room.replace("/", "."))
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            assert not within(name, OURS) or within(name, (own, *ROOMS[room])), f"{path.relative_to(ROOT)}: {name}"


def test_every_room_of_the_run_is_held():
    rooms = {f"training_image/{path.name}" for path in (ROOT / "training_image").iterdir() if path.is_dir()}
    assert {room for room in rooms if not room.endswith("__pycache__")} <= set(ROOMS)
    loose = {path.name for path in (ROOT / "training_image").glob("*.py")}
    assert loose == {"__init__.py"}, "a module lies in a room"


def test_no_import_goes_in_a_circle():
    modules = {}
    for folder in ("training_image", "lab", "local_cloud", "stacks", "constructs/lab_constructs"):
        for path in (ROOT / folder).rglob("*.py"):
            dotted = path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("constructs/").replace("/", ".")
            modules[dotted.removesuffix(".__init__")] = path
    graph = {}
    for name, path in modules.items():
        wanted = imports(path, top_only=True)
        graph[name] = {found for each in wanted for found in (each, each.rpartition(".")[0]) if found in modules}
        graph[name].discard(name)
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_only_app_py_reads_environment_or_context_in_the_cdk_part():
    for folder in ("stacks", "constructs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"os\.environ|getenv|try_get_context", path.read_text()), path.name


def test_app_py_stays_short():
    assert len((ROOT / "app.py").read_text().splitlines()) <= 60


def test_what_the_functions_stage_needs_the_standard_library_and_boto3_only():
    """Lambda assets have nothing else; and the run's contract not even boto3."""
    known = {*sys.stdlib_module_names, "boto3", "botocore", "s3transfer", "training_image"}
    for path in (ROOT / "training_image" / "core").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= known, path.name
    contract = {name.split(".")[0] for name in imports(ROOT / "training_image" / "core" / "contract.py")}
    assert contract <= set(sys.stdlib_module_names)
    assert imports(ROOT / "training_image" / "__init__.py") == set()


def test_what_the_cdk_app_and_the_data_commands_import_brings_no_heavy_package():
    program = (
        "import sys\n"
        "import training_image.config.lab_settings, training_image.config.zones, training_image.data.split\n"
        "print(*({'torch', 'transformers', 'datasets', 'boto3', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
