"""Access to the emulator's private parts, checked: another version must fail at start with one sentence, not later."""

from __future__ import annotations

import importlib
from typing import Any

EXPECTED_VERSION = "1.5.33"


class IncompatibleEmulatorError(RuntimeError):
    """The installed ministack lacks something this module replaces or calls."""


class Module:
    """A module of ministack whose attributes are looked up with a clear failure."""

    def __init__(self, name: str) -> None:
        self._name = name
        try:
            self._module = importlib.import_module(name)
        except ImportError as error:
            raise IncompatibleEmulatorError(
                f"ministack {EXPECTED_VERSION} is needed, but {name} cannot be imported ({error}): run `make setup`."
            ) from error

    def get(self, attribute: str) -> Any:
        try:
            return getattr(self._module, attribute)
        except AttributeError:
            raise IncompatibleEmulatorError(
                f"ministack {EXPECTED_VERSION} is needed: this one has no {self._name}.{attribute}; run `make setup`."
            ) from None

    def replace(self, attribute: str, value: Any) -> Any:
        """Put ``value`` in place of an attribute that must exist, and return the old one."""
        old = self.get(attribute)
        setattr(self._module, attribute, value)
        return old
