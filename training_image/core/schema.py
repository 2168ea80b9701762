"""Records that say by which version they were written: older ones are migrated, newer ones refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from training_image.core.codec import Record, UnreadableError
from training_image.core.contract import SCHEMA_VERSION, Actor


class NewerSchemaError(UnreadableError):
    """Written by a version of this product that is newer than the one that reads."""


@dataclass(frozen=True)
class Versioned(Record):
    """A record that says by which schema it was written; without a word it is the first.

    Raises (``read``):
        NewerSchemaError: it is of a later schema than this version knows.
        UnreadableError: it is of none, or not such a record.
    """

    @classmethod
    def read(cls, value: object) -> Self:
        if not isinstance(value, dict):
            return super().read(value)
        schema = value.get("schema", 1)
        if type(schema) is not int or schema < 1:
            raise UnreadableError(f"{cls.NAME} is unreadable: schema is {schema!r}, not a number from 1 on")
        if schema > SCHEMA_VERSION:
            raise NewerSchemaError(
                f"{cls.NAME} has schema {schema}, and this version of the lab reads up to {SCHEMA_VERSION}: use a "
                "newer version (git pull, make setup), or an image as new as the stack"
            )
        migrated = dict(value)
        for older in range(schema, SCHEMA_VERSION):
            migrated = _MIGRATIONS[older](migrated)
        return super().read(migrated)


def _from_1(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 called the instance a box."""
    return {**record, "schema": 2} | ({"by": Actor.INSTANCE} if record.get("by") == "box" else {})


_MIGRATIONS = {1: _from_1}
