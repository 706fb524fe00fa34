"""What pydantic finds wrong with somebody's settings, in plain words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from neurtransformer.errors import shortened

_WHOLE, _NUMBER, _TRUTH = "a whole number", "a number", "true or false"
_WANTED = {
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_type", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_parsing", "float_type"), _NUMBER),
    "finite_number": _NUMBER,
    **dict.fromkeys(("bool_parsing", "bool_type"), _TRUTH),
    "string_type": "text",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "string_too_long": "at most {max_length} characters long",
}
"""pydantic's type of error -> what a setting must be, of the error's own numbers."""

_LISTS = ("tuple_type", "list_type")
_GROUPS = ("model_type", "model_attributes_type", "dict_type")


def told(error: ValidationError, model: type[BaseModel], explained: str | None = None) -> str:
    """The first thing that is wrong with values for `model`, in one line.

    explained: the file that lists all settings, for one that there is not.
    """
    first = error.errors()[0]
    kind, name = first["type"], ".".join(map(str, first["loc"]))
    if kind == "extra_forbidden":
        where = f" ({explained} lists all)" if explained else ""
        return f'there is no setting "{shortened(name, 80)}"{where}'
    if kind == "missing":
        return f"{name} is missing"
    if kind == "value_error":
        return _ours(name, first)
    must, got = _must(first, model), _got(first["input"])
    if must is None:
        return f"{name}: {first['msg']}{got}"
    return f"{name or 'this'} must {must}{got}"


def _must(first: ErrorDetails, model: type[BaseModel]) -> str | None:
    """What the setting must be or have; None where nothing better is known than pydantic's text."""
    kind, given, numbers = first["type"], first["input"], first.get("ctx", {})
    if kind in _WANTED:
        return (
            f"be {_WANTED[kind].format(**{key: _short(number) for key, number in numbers.items()})}"
        )
    if kind == "literal_error":
        # 'a', 'b' or 'c'
        choices = re.sub(r"'([^']*)'", r"\1", str(numbers["expected"]))
        return f"be one of {choices}" if "," in choices else f"be {choices}"
    if kind == "string_too_short":
        return "not be empty"
    if kind in _LISTS:
        example = f", such as [{shortened(given, 60)}]" if isinstance(given, str | int) else ""
        return f"be a list{example}"
    if kind == "too_short":
        least = numbers["min_length"]
        return f"name at least {'one' if least == 1 else least}"
    if kind in _GROUPS:
        settings = ", ".join(_settings(model, first["loc"]))
        return f"be a group of settings{f' ({settings})' if settings else ''}"
    return None


def _short(number: Any) -> Any:
    """1 for 1.0."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _got(given: object) -> str:
    """What was given, if a line has room for it."""
    if isinstance(given, bool):
        return f", not {str(given).lower()}"
    if isinstance(given, int | float):
        return f", not {given}"
    return f", not '{shortened(given, 80)}'" if isinstance(given, str) and given else ""


def _ours(name: str, first: ErrorDetails) -> str:
    """A message of our own checks, which say `must be ...` of a setting, or a sentence of all."""
    message = first["msg"].removeprefix("Value error, ")
    if not message.startswith("must "):
        return f"{name}: {message}" if name else message
    return f"{name} {message}{_got(first['input'])}"


def _settings(model: type[BaseModel], loc: Sequence[int | str]) -> Iterator[str]:
    """The names of the settings in the group at `loc`."""
    found: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int) or found is None:
            continue
        fields: Mapping[str, Any] = found.model_fields
        found = _group(fields[part].annotation) if part in fields else None
    yield from found.model_fields if found is not None else ()


def _group(annotation: Any) -> type[BaseModel] | None:
    """The first group of settings that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_group, get_args(annotation))), None)
