"""JSON objects as frozen dataclasses. A reader here survives anything: what it cannot use is one exception, a sentence.

The records of a run are written by programs of other versions, and some by a container that is not trusted. So nothing
is taken for granted that the type says: a number is finite, a time has a zone and lies in this century or the next.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from datetime import UTC, datetime
from enum import Enum
from typing import Any, ClassVar, Self

from training_image.core.errors import UserError

EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Times outside are no times of a run, and adding hours to them could leave the calendar."""
_LARGEST = 2**53
"""Whole numbers that JSON's readers agree on."""


class UnreadableError(UserError, ValueError):
    """An object is not what it should be. The message names the object, the field, and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Base of the records: ``read`` from what JSON gave, ``to_json`` back. Unknown fields are passed over."""

    NAME: ClassVar[str] = "the object"
    """What the operator knows it as."""
    SPARSE: ClassVar[bool] = False
    """What is None is not written: shell code on the instance asks whether a field is there."""
    LENIENT: ClassVar[bool] = False
    """For reports, not for orders: a field that cannot be read takes its default, if it has one."""

    @classmethod
    def read(cls, value: object) -> Self:
        """The record in ``value``, which may be anything.

        Raises:
            UnreadableError: it is not such a record.
        """
        return cls(**_fields(cls, value, cls.NAME))

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """As ``read``, from the object's bytes.

        Raises:
            UnreadableError: it is no JSON, or not such a record.
        """
        try:
            value = json.loads(body.decode())
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"{cls.NAME} is unreadable: it is no JSON ({error})") from None
        return cls.read(value)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON has it; times in UTC, whole seconds."""
        found = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if not (self.SPARSE and value is None)}


def moment(value: object) -> datetime | None:
    """An ISO time with its zone, between ``EARLIEST`` and ``LATEST``; else None."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
        return found if found.tzinfo and EARLIEST <= found < LATEST else None
    except (ValueError, OverflowError):
        return None


def _fields(cls: type[Record], value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnreadableError(f"{what} is unreadable: it is no object")
    hints, found = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name not in value:
            if needed:
                raise UnreadableError(f"{what} is unreadable: {field.name} is missing")
            continue
        kind = hints[field.name]
        try:
            found[field.name] = _value(kind, value[field.name], what)
        except (TypeError, ValueError) as error:
            if cls.LENIENT and not needed:
                continue
            if isinstance(error, UnreadableError):
                raise
            raise UnreadableError(f"{what} is unreadable: {field.name} is {error}") from None
    return found


def _value(kind: Any, value: object, what: str) -> Any:
    """``value`` as ``kind`` wants it; else a TypeError or ValueError that ends a sentence beginning "<field> is"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(each for each in arguments if each is not type(None)), value, what)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("no list")
        return tuple(_value(arguments[0], each, what) for each in value)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise TypeError("no object")
        return {key: _value(arguments[1], each, what) for key, each in value.items()}
    if kind is Any:
        return value
    if issubclass(kind, Record):
        return kind(**_fields(kind, value, what))
    return _scalar(kind, value)


def _scalar(kind: type, value: object) -> Any:
    if kind is datetime:
        if (found := moment(value)) is None:
            raise ValueError("no time with a zone, such as 2026-01-31T12:00:00+00:00")
        return found
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"none of {', '.join(str(each.value) for each in kind)}") from None
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        # The comparison first: float() of a whole number with hundreds of digits overflows.
        if not (-_LARGEST <= value <= _LARGEST and math.isfinite(value)):
            raise ValueError("no finite number")
        return float(value)
    if type(value) is not kind or (isinstance(value, int) and abs(value) > _LARGEST):
        raise TypeError(f"no {'number' if kind in (int, float) else 'text' if kind is str else kind.__name__}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
