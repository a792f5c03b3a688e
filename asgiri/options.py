"""How an option is declared, parsed and described. Knows no option by name (see `config`).

One dataclass field is one option. Its annotation carries an `Option` (flags, environment, range),
its docstring says what it does (first sentence, shown by --help) and what the default trades (the
rest, shown in the README). Command line, environment, config file and README are made from this.
"""

import ast
import dataclasses
import difflib
import enum
import functools
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, cast, get_args, get_origin

from asgiri.errors import ConfigError

__all__ = [
    "DeclaredOption",
    "Option",
    "Section",
    "Unit",
    "nearest",
    "options_of",
    "parse_duration",
    "parse_size",
]

ENVIRONMENT_PREFIX: Final = "ASGIRI_"


class Unit(enum.Enum):
    """What a number counts, so that people may write 5m, 16MiB or 10%."""

    NONE = ""
    SECONDS = "a duration such as 30, 30s, 5m or 500ms"
    BYTES = "a size such as 65536, 64KiB or 16MiB"
    SHARE = "a part of all such as 0.1 or 10%"


@dataclass(frozen=True, slots=True)
class Option:
    """How one field appears outside of Python."""

    flags: str = ""
    """Names on the command line, parted by blanks; the first names the option everywhere."""
    aliases: str = dataclasses.field(default="", kw_only=True)
    """What other servers call it: accepted, not shown by --help."""
    keys: str = dataclasses.field(default="", kw_only=True)
    """What other servers call it in their configuration files, when that is none of the above."""
    env: str = dataclasses.field(default="", kw_only=True)
    """Environment variable shared with other programs, read after ASGIRI_*."""
    metavar: str = dataclasses.field(default="", kw_only=True)
    unit: Unit = dataclasses.field(default=Unit.NONE, kw_only=True)
    minimum: float | None = dataclasses.field(default=None, kw_only=True)
    maximum: float | None = dataclasses.field(default=None, kw_only=True)
    parse: Callable[[str], Any] | None = dataclasses.field(default=None, kw_only=True)
    """Reads the text instead of the type's own parser; raises ValueError with the remedy."""
    separator: str = dataclasses.field(default=",", kw_only=True)
    """Parts the values of a repeatable option in the environment."""
    split_argument: bool = dataclasses.field(default=False, kw_only=True)
    """Whether one argument on the command line may hold several values, too."""
    secret: bool = dataclasses.field(default=False, kw_only=True)
    """Never shown: neither in an error nor by a listing."""
    pending: bool = dataclasses.field(default=False, kw_only=True)
    """Declared, but nothing obeys it yet: not offered outside of Python. A test checks the code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredOption:
    """One field of a section with everything that follows from its declaration."""

    section: str
    field: str
    option: Option
    default: Any
    base: type
    choices: tuple[str, ...]
    optional: bool
    repeated: bool
    owner: "type[Section]"

    # Names

    @property
    def name(self) -> str:
        """Where it is kept in a Config, such as `ring.size`."""
        return f"{self.section}.{self.field}"

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(self.option.flags.split())

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(self.option.aliases.split())

    @property
    def environment(self) -> tuple[str, ...]:
        """Variables that set it, strongest first."""
        if not self.flags:
            return tuple(self.option.env.split())
        own = self.flags[0].removeprefix("--").replace("-", "_").upper()
        return (ENVIRONMENT_PREFIX + own, *self.option.env.split())

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in a configuration file and in Python, our own first: flags without dashes."""
        names = [name for name in (*self.flags, *self.aliases) if name.startswith("--")]
        return (*(name[2:].replace("-", "_") for name in names), *self.option.keys.split())

    @property
    def metavar(self) -> str:
        if self.option.metavar:
            return self.option.metavar
        if self.choices:
            return "|".join(self.choices)
        if self.option.unit is Unit.SECONDS:
            return "DURATION"
        if self.option.unit is Unit.BYTES:
            return "SIZE"
        if self.option.unit is Unit.SHARE:
            return "SHARE"
        return {int: "N", float: "NUMBER"}.get(self.base, "TEXT")

    @property
    def pending(self) -> bool:
        return self.option.pending

    # Description

    @property
    def help(self) -> str:
        """Say what it does, in one sentence."""
        return self._sentences()[0]

    @property
    def reason(self) -> str:
        """Say what the default trades."""
        return self._sentences()[1]

    def _sentences(self) -> tuple[str, str]:
        text = _attribute_docstrings(cast("type", self.owner)).get(self.field, "")
        first, stop, rest = text.partition(". ")
        return (first + stop).rstrip(), rest

    def default_text(self) -> str:
        """Spell the default as a person would write it."""
        if self.default is None or self.default in ("", ()):
            return ""
        if self.repeated:
            return " ".join(self.default)
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return self._spell(self.default)

    def spell_toml(self, value: Any) -> str:
        """Spell a value as it is written in a configuration file."""
        if self.repeated:
            return f"[{', '.join(map(_quote_toml, value))}]"
        if isinstance(value, bool):
            return "true" if value else "false"
        text = self._spell(value)
        return text if type(value) in (int, float) and _is_number(text) else _quote_toml(text)

    def _spell(self, number: Any) -> str:
        if self.option.unit is Unit.BYTES:
            return _spell_quantity(number, {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "": 1})
        if self.option.unit is Unit.SECONDS:
            return _spell_quantity(number, {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 0.001})
        if self.option.unit is Unit.SHARE:
            return _spell_number(number)
        if self.option.metavar == "OCTAL":
            return f"0o{int(number):03o}"
        return str(number)

    # Values

    def parse(self, text: str) -> Any:
        """Turn what a person wrote into a value; raises ConfigError."""
        try:
            value = self._parse_text(text.strip())
        except ValueError as error:
            raise self.refuse(text, str(error)) from None
        problem = self.check(value)
        if problem is not None:
            raise self.refuse(text, problem.remedy)
        return value

    def parse_environment(self, text: str) -> Any:
        """Read a variable, in which a repeatable option's values are parted by its separator."""
        if not self.repeated:
            return self.parse(text)
        return self.parse_arguments(text.split(self.option.separator))

    def parse_arguments(self, texts: Sequence[str]) -> Any:
        """Read every occurrence on the command line; the last one wins unless all are kept."""
        if not self.repeated:
            return self.parse(texts[-1])
        if self.option.split_argument:
            texts = [part for text in texts for part in text.split(self.option.separator)]
        values = tuple(text.strip() for text in texts if text.strip())
        problem = self.check(values)
        if problem is not None:
            raise problem
        return values

    def parse_value(self, value: Any) -> Any:
        """Read a value that has a type already: from a configuration file, or a caller in Python.

        Numbers, switches and lists may be what they are; everything may also be written as text.
        """
        if self.repeated:
            return self._parse_list(value)
        if isinstance(value, str):
            return self.parse(value)
        # Before asking for a number, as Python takes True for one. IntEnums are numbers here.
        if isinstance(value, int) and self.base is int and not isinstance(value, bool):
            value = int(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            return self.parse(_spell_number(value))
        elif not isinstance(value, bool):
            raise self.refuse(value, f"must be {self._expected}")
        problem = self.check(value)
        if problem is not None:
            wrong_type = type(value) is not self.base
            raise self.refuse(value, f"must be {self._expected}") if wrong_type else problem
        return value

    def _parse_list(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.parse_arguments([value])
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return self.parse_arguments(value)
        raise self.refuse(value, "must be a text or a list of texts")

    @property
    def _expected(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.option.unit is not Unit.NONE:
            return str(self.option.unit.value)
        return {bool: "true or false", int: "a whole number"}.get(self.base, "a text")

    def from_json(self, value: Any) -> Any:
        """Undo what JSON does to a value: it has no tuples and may lose the point of a float."""
        if self.repeated and isinstance(value, list):
            return tuple(value)
        if self.base is float and type(value) is int:
            return float(value)
        return value

    def check(self, value: Any) -> ConfigError | None:
        """Compare with the declared type, choices and range."""
        if value is None:
            return None if self.optional else self.refuse(value, "must not be empty")
        if self.repeated:
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                return self.refuse(value, "must be a tuple of strings")
            return None
        if not self._has_base_type(value):
            return self.refuse(value, f"must be of type {self.base.__name__}")
        if self.choices and value not in self.choices:
            return self.refuse(value, _one_of(str(value), self.choices))
        return self._check_range(value)

    def refuse(self, value: object, remedy: str) -> ConfigError:
        shown = "***" if self.option.secret else value
        return ConfigError(self.name, shown, remedy)

    def _parse_text(self, text: str) -> Any:
        if self.option.parse is not None:
            return self.option.parse(text)
        if self.choices:
            return text
        if self.option.unit is Unit.SECONDS:
            return parse_duration(text)
        if self.option.unit is Unit.BYTES:
            return parse_size(text)
        if self.option.unit is Unit.SHARE:
            return parse_share(text)
        if self.base is bool:
            return _parse_bool(text)
        if self.base is int:
            return _parse_int(text)
        return text

    def _has_base_type(self, value: Any) -> bool:
        if self.base is float:
            return type(value) in (int, float)
        return type(value) is self.base

    def _check_range(self, value: Any) -> ConfigError | None:
        low, high = self.option.minimum, self.option.maximum
        too_low = low is not None and value < low
        too_high = high is not None and value > high
        if not (too_low or too_high):
            return None
        if low is not None and high is not None:
            return self.refuse(value, f"must be between {self._spell(low)} and {self._spell(high)}")
        limit = f"at least {self._spell(low)}" if too_low else f"at most {self._spell(high)}"
        return self.refuse(value, f"must be {limit}")


class Section:
    """Base of the frozen dataclasses that group options. Refuses invalid values, clamps none."""

    __slots__ = ()

    SECTION: ClassVar[str]
    TITLE: ClassVar[str]

    def __post_init__(self) -> None:
        values = ((declared, getattr(self, declared.field)) for declared in options_of(type(self)))
        problems = [problem for declared, value in values if (problem := declared.check(value))]
        # A rule about several values may rely on each of them being of its type.
        ConfigError.raise_all(problems or self.contradictions())

    def contradictions(self) -> Iterable[ConfigError]:
        """Yield what is wrong although each value is possible by itself."""
        return ()


_declared_options: Final[dict[type, tuple["DeclaredOption", ...]]] = {}


def options_of(section: type[Section]) -> tuple[DeclaredOption, ...]:
    """List the options that a section declares, in the order of its fields."""
    if section not in _declared_options:
        hints = typing.get_type_hints(section, include_extras=True)
        fields = dataclasses.fields(cast("Any", section))
        declared = tuple(_declared(section, field, hints[field.name]) for field in fields)
        _declared_options[section] = declared
    return _declared_options[section]


def _declared(section: type[Section], field: "dataclasses.Field[Any]", hint: Any) -> DeclaredOption:
    annotated, option = get_args(hint)
    choices: tuple[str, ...] = ()
    optional = repeated = False
    if get_origin(annotated) in (types.UnionType, typing.Union):
        (annotated,) = (arg for arg in get_args(annotated) if arg is not types.NoneType)
        optional = True
    if get_origin(annotated) is Literal:
        choices, annotated = get_args(annotated), str
    elif get_origin(annotated) is tuple:
        repeated, annotated = True, str
    return DeclaredOption(
        section=section.SECTION,
        field=field.name,
        option=option,
        default=None if field.default is dataclasses.MISSING else field.default,
        base=annotated,
        choices=choices,
        optional=optional,
        repeated=repeated,
        owner=section,
    )


@functools.cache
def _attribute_docstrings(owner: type) -> dict[str, str]:
    """Read the strings below the fields from the source: Python itself does not keep them."""
    try:
        source = inspect.getsource(owner)
    except (OSError, TypeError):  # no source at hand: everything works but the texts of --help
        return {}
    (class_node,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(class_node, ast.ClassDef)
    found = {}
    for statement, following in zip(class_node.body, class_node.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found


# Text

DURATION_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "k": 1 << 10, "m": 1 << 20, "g": 1 << 30,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip
QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)
TRUE_WORDS: Final = frozenset({"1", "on", "true", "yes"})
FALSE_WORDS: Final = frozenset({"0", "off", "false", "no"})


def parse_duration(text: str) -> float:
    """Read seconds, or a number with its unit; raises ValueError with the remedy."""
    number, factor = _parse_quantity(text, DURATION_UNITS, Unit.SECONDS)
    return number * factor


def parse_size(text: str) -> int:
    """Read bytes, or a number with its unit; raises ValueError with the remedy."""
    number, factor = _parse_quantity(text, SIZE_UNITS, Unit.BYTES)
    size = number * factor
    if size != int(size):
        raise ValueError("must be a whole number of bytes")
    return int(size)


def parse_share(text: str) -> float:
    """Read 0.25, or 25%; raises ValueError with the remedy."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)(%?)", text)
    if match is None:
        raise ValueError(f"must be {Unit.SHARE.value}")
    return float(match[1]) / (100 if match[2] else 1)


def _parse_quantity(text: str, units: dict[str, Any], unit: Unit) -> tuple[float, float]:
    match = QUANTITY.fullmatch(text)
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"must be {unit.value}")
    return float(match[1]), factor


def _parse_bool(text: str) -> bool:
    word = text.lower()
    if word in TRUE_WORDS or word in FALSE_WORDS:
        return word in TRUE_WORDS
    raise ValueError("must be true or false")


def _parse_int(text: str) -> int:
    # int() alone also takes 1_000 and the digits of other scripts.
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError("must be a whole number")
    return int(text)


def _spell_quantity(number: float, units: dict[str, float]) -> str:
    for unit, factor in units.items():
        # Not %, by which 0.05 is no multiple of 0.001.
        if number >= factor and (number / factor).is_integer():
            return f"{number / factor:.0f}{unit}"
    return _spell_number(number)


def _spell_number(number: float) -> str:
    """Without the point of 30.0, and never as 1e-05."""
    text = f"{number:f}" if isinstance(number, float) else str(int(number))
    return text.rstrip("0").rstrip(".") if "." in text else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+(\.[0-9]+)?|0o[0-7]+", text) is not None


def _quote_toml(text: str) -> str:
    # A basic string of TOML takes every escape that JSON writes, and all but DEL as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_of(value: str, choices: Sequence[str]) -> str:
    guess = nearest(value, choices)
    listed = ", ".join(choices)
    return f"must be one of {listed}" + (f"; did you mean {guess}?" if guess else "")


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Find what was probably meant, or nothing when that would be a wild guess."""
    matches = difflib.get_close_matches(word.lower(), list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None
