"""Values that came as JSON, as the dataclass that they are meant to be. Sans-IO.

Trust. The other process can write anything: what is missing or of another type than the field says
is refused; fields that the dataclass does not know are passed over, they are of newer code.
"""

import dataclasses
import types
import typing
from typing import Any, Literal

__all__ = ["MismatchError", "convert"]


class MismatchError(Exception):
    """A value that is not of its field's type."""


def convert(hint: Any, value: Any) -> Any:
    """Return `value`, from JSON, as the type that a field declares."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _convert_fields(hint, value)
    if origin is types.UnionType or origin is typing.Union:
        # All of ours are "something or None".
        return None if value is None else convert(arguments[0], value)
    if origin is tuple and isinstance(value, list):
        return tuple(convert(arguments[0], item) for item in value)
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is (origin or hint):
        return value
    raise MismatchError


def _convert_fields(message_type: Any, value: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(message_type)
    known = {name: convert(hints[name], item) for name, item in value.items() if name in hints}
    for declared in dataclasses.fields(message_type):
        if declared.default is dataclasses.MISSING and declared.name not in known:
            raise MismatchError
    return message_type(**known)
