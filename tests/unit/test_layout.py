"""The house rules that no type checker sees."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("app.py", "stacks", "constructs", "training_image", "lambda")


def product_files() -> list[Path]:
    found = [ROOT / "app.py"]
    for folder in PRODUCT[1:]:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_folder_constructs_is_no_package():
    assert not (ROOT / "constructs" / "__init__.py").exists(), "it would shadow the PyPI package and break aws_cdk"


def test_the_product_never_mentions_the_local_cloud():
    for path in product_files():
        text = path.read_text(errors="ignore").lower()
        for word in ("ministack", "emulator", "local cloud", "local_cloud", "localstack", "process engine"):
            assert word not in text, f"{path.relative_to(ROOT)} mentions {word!r}"


def test_imports_go_one_way_only():
    forbidden = {
        "stacks": {"app", "lab"},
        "constructs": {"app", "lab", "stacks"},
        "training_image": {"app", "lab", "stacks", "lab_constructs", "aws_cdk"},
        "lambda": {"app", "lab", "stacks", "lab_constructs", "aws_cdk", "pydantic"},
        "lab": {"app", "stacks", "lab_constructs", "aws_cdk"},
    }
    for folder, names in forbidden.items():
        for path in (ROOT / folder).rglob("*.py"):
            assert not imports(path) & names, f"{path.relative_to(ROOT)} imports {imports(path) & names}"


def test_only_app_py_reads_environment_or_context_in_the_cdk_part():
    for folder in ("stacks", "constructs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"os\.environ|getenv|try_get_context", path.read_text()), path.name


def test_app_py_stays_short():
    assert len((ROOT / "app.py").read_text().splitlines()) <= 60


def test_the_contract_needs_the_standard_library_only():
    """It is staged into Lambda assets, which have nothing else."""
    import sys

    assert imports(ROOT / "training_image" / "contract.py") <= set(sys.stdlib_module_names)
    assert imports(ROOT / "training_image" / "__init__.py") == set()
