"""Loads a Lambda's modules by its folder: two handlers have files of the same names, and `lambda` is a keyword."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

FOLDERS = Path(__file__).parents[2] / "lambda"


def load(name: str, *modules: str) -> SimpleNamespace:
    """The modules of ``lambda/<name>/``, imported afresh; those of other handlers keep their names."""
    own = [path.stem for path in (FOLDERS / name).glob("*.py")]
    before = {module: sys.modules.pop(module) for module in own if module in sys.modules}
    sys.path.insert(0, str(FOLDERS / name))
    try:
        return SimpleNamespace(**{module: importlib.import_module(module) for module in modules})
    finally:
        sys.path.remove(str(FOLDERS / name))
        for module in own:
            sys.modules.pop(module, None)
        sys.modules.update(before)
