r"""Files of environment variables, as `--env-file` names them, in the manner of python-dotenv.

    # a comment
    export NAME=value             # the rest of the line, without blanks around it
    NAME='as it is, $NOTHING \n'  # may go over several lines, so may the next one
    NAME="with \n, \t, \\, \" and ${OTHER} or ${OTHER:-a default}"

A variable that the environment has already keeps its value there, for ${NAME} as well.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["EnvFileError", "Variable", "parse_env_file"]

NAME: Final = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*")
SINGLE_QUOTED: Final = re.compile(r"'([^'\\]*(?:\\.[^'\\]*)*)'", re.DOTALL)
DOUBLE_QUOTED: Final = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
UNQUOTED: Final = re.compile(r"(?:(?![ \t]+#)[^\n])*")
END: Final = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
BLANK: Final = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)|[ \t]+")
ESCAPE: Final = re.compile(r"""\\([\\'"abfnrtv])""")
ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
REFERENCE: Final = re.compile(r"\$\{([^}:]*)(?::-([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Variable:
    """One of a file, and the line that it begins in."""

    name: str
    value: str
    line: int


class EnvFileError(ValueError):
    """A line that is no assignment."""

    def __init__(self, line: int, remedy: str) -> None:
        super().__init__(line, remedy)
        self.line = line
        self.remedy = remedy


def parse_env_file(text: str, environ: Mapping[str, str]) -> list[Variable]:
    """Read the variables of a file. `environ` says what ${NAME} means. Raises EnvFileError."""
    text = text.replace("\r\n", "\n")
    variables: dict[str, Variable] = {}
    for name, value, expands, line in _assignments(text):
        if "\0" in value:
            raise EnvFileError(line, f"{name}: must not have a NUL in its value")
        if expands:
            known = {name: variable.value for name, variable in variables.items()} | dict(environ)
            value = REFERENCE.sub(
                lambda match, known=known: known.get(match[1], match[2] or ""),  # type: ignore[misc]
                value,
            )
        variables[name] = Variable(name, value, line)
    return list(variables.values())


def _assignments(text: str) -> Iterator[tuple[str, str, bool, int]]:
    """Yield name, value, whether references in it are meant, and line."""
    position = 0
    while position < len(text):
        if match := BLANK.match(text, position):
            position = match.end()
            continue
        line = text.count("\n", 0, position) + 1
        name = NAME.match(text, position)
        if name is None:
            raise EnvFileError(line, "must be NAME=VALUE")
        value, expands, position = _value(text, name.end())
        end = END.match(text, position)
        if end is None:
            raise EnvFileError(line, f"{name[1]}: must have its closing quote at the end")
        yield name[1], value, expands, line
        position = end.end()


def _value(text: str, position: int) -> tuple[str, bool, int]:
    if match := SINGLE_QUOTED.match(text, position):
        value = re.sub(r"\\(['\\])", r"\1", match[1])
        return value, False, match.end()
    if match := DOUBLE_QUOTED.match(text, position):
        value = ESCAPE.sub(lambda escape: ESCAPES.get(escape[1], escape[1]), match[1])
        return value, True, match.end()
    match = UNQUOTED.match(text, position)
    assert match is not None
    if match[0][:1] in ("'", '"'):  # it has no end
        return "", False, position
    return match[0].strip(), True, match.end()
