"""The mechanism of options: texts to values, and what declarations say about themselves."""

import re
import tomllib
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.errors import ConfigError
from asgiri.options import (
    Option,
    Section,
    Unit,
    nearest,
    options_of,
    parse_duration,
    parse_share,
    parse_size,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig(Section):
    """Options of every kind."""

    SECTION: ClassVar[str] = "sample"
    TITLE: ClassVar[str] = "Sample"

    wait: Annotated[float, Option("--wait -W", unit=Unit.SECONDS, minimum=1, maximum=60)] = 30.0
    """How long to wait. Longer than
    a breath."""

    size: Annotated[int, Option("--size", unit=Unit.BYTES, maximum=1 << 20)] = 65536
    """How large it may be."""

    count: Annotated[int, Option("--count", env="COUNT", minimum=1)] = 4
    """How many there are."""

    kind: Annotated[Literal["round", "square"], Option("--kind", aliases="--shape")] = "round"
    """Which form it has."""

    loud: Annotated[bool, Option("--loud")] = False
    """Whether it can be heard."""

    maybe: Annotated[bool | None, Option("--maybe")] = None
    """Whether it is decided. By default it is not."""

    names: Annotated[tuple[str, ...], Option("--name", separator=";")] = ("a", "b")
    """What it is called."""

    tags: Annotated[tuple[str, ...], Option("--tag", split_argument=True)] = ()
    """What is written on it."""

    password: Annotated[str, Option("--password", parse=lambda text: text + "!", secret=True)] = ""
    """What nobody may see."""

    undocumented: Annotated[int, Option("--undocumented")] = 0


DECLARED = {declared.field: declared for declared in options_of(SampleConfig)}


@pytest.mark.parametrize(
    ("text", "part"), [("0", 0), ("1", 1), ("0.25", 0.25), ("25%", 0.25), ("0.5%", 0.005)]
)
def test_parts_are_numbers_or_percents(text, part):
    assert parse_share(text) == part


@pytest.mark.parametrize("text", ["", "%", "-1", "half", "1e-3", ".5", "1/2", "25 %", "٢"])
def test_other_parts_are_refused(text):
    with pytest.raises(ValueError, match="must be a part of all"):
        parse_share(text)


def refusals(text):
    """Errors of those options that do not take this text."""
    for declared in DECLARED.values():
        try:
            declared.parse_environment(text)
        except ConfigError as error:
            yield declared, error


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("30s", 30),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
    ],
)
def test_durations_are_seconds_unless_they_name_a_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("16MiB", 16 << 20),
        ("64k", 64 << 10),
        ("1.5 KiB", 1536),
        ("2GB", 2 * 10**9),
        ("1gib", 1 << 30),
        ("7b", 7),
    ],
)
def test_sizes_are_bytes_unless_they_name_a_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "s", "-1", "1e3", "5 weeks", "1,5", "٣", "0x10", "1s 2s"])
def test_what_is_no_quantity_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as 30, 30s"):
        parse_duration(text)
    with pytest.raises(ValueError, match="such as 65536, 64KiB"):
        parse_size(text)


def test_half_a_byte_is_refused():
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("0.3k")


@given(st.text())
def test_no_text_makes_a_parser_fail_otherwise_than_by_its_remedy(text):
    for declared, error in refusals(text):
        assert error.option == declared.name
        assert error.remedy


@given(st.integers(1, 10**17))
def test_whole_numbers_round_trip(number):
    assert DECLARED["count"].parse(str(number)) == number


@pytest.mark.parametrize("text", ["1_000", "4.0", "four", "", "٤"])
def test_python_spellings_of_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="must be a whole number"):
        DECLARED["count"].parse(text)


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("YES", True), ("on", True), ("false", False), ("off", False)]
)
def test_switches_are_words_in_the_environment(text, value):
    assert DECLARED["loud"].parse_environment(text) is value


def test_another_word_is_no_switch():
    with pytest.raises(ConfigError, match="true or false"):
        DECLARED["loud"].parse("perhaps")


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("wait", 0.5, "must be between 1s and 1m"),
        ("wait", 61, "must be between 1s and 1m"),
        ("size", 1 << 21, "must be at most 1MiB"),
        ("count", 0, "must be at least 1"),
        ("count", True, "must be of type int"),
        ("count", "4", "must be of type int"),
        ("wait", "30", "must be of type float"),
        ("count", None, "must not be empty"),
        ("kind", "squar", "must be one of round, square; did you mean square?"),
        ("kind", "xyz", "must be one of round, square"),
        ("names", ["a"], "must be a tuple of strings"),
        ("names", (1,), "must be a tuple of strings"),
        ("loud", 1, "must be of type bool"),
    ],
)
def test_a_value_out_of_range_or_type_is_refused_with_what_is_allowed(field, value, remedy):
    with pytest.raises(ConfigError) as caught:
        SampleConfig(**{field: value})
    assert (caught.value.option, caught.value.remedy) == (f"sample.{field}", remedy)


def test_every_wrong_field_is_reported_not_only_the_first():
    with pytest.raises(ConfigError) as caught:
        SampleConfig(wait=0.1, count=0, kind="flat")  # type: ignore[arg-type]
    options = [problem.option for problem in caught.value.problems()]
    assert options == ["sample.wait", "sample.count", "sample.kind"]
    assert len(str(caught.value).splitlines()) == 3


def test_an_optional_value_may_be_none():
    assert SampleConfig(maybe=None).maybe is None


def test_a_secret_is_never_shown():
    with pytest.raises(ConfigError) as caught:
        SampleConfig(password=5)  # type: ignore[arg-type]
    assert str(caught.value) == "sample.password=***: must be of type str"


def test_an_own_parser_takes_the_place_of_the_types():
    assert DECLARED["password"].parse("x") == "x!"


def test_repeatable_options_are_parted_in_the_environment_only():
    assert DECLARED["names"].parse_environment("a; b;;") == ("a", "b")
    assert DECLARED["names"].parse_arguments(["a;b", "c"]) == ("a;b", "c")
    assert DECLARED["tags"].parse_arguments(["x,y", "z"]) == ("x", "y", "z")


def test_of_repeated_arguments_the_last_one_wins():
    assert DECLARED["count"].parse_arguments(["1", "2"]) == 2


def test_the_first_sentence_of_the_docstring_is_the_help_and_the_rest_the_reason():
    assert DECLARED["wait"].help == "How long to wait."
    assert DECLARED["wait"].reason == "Longer than a breath."
    assert (DECLARED["size"].help, DECLARED["size"].reason) == ("How large it may be.", "")
    assert DECLARED["undocumented"].help == ""


def test_a_section_made_without_a_source_file_has_no_texts_but_works():
    namespace = {"Section": Section, "Option": Option, "Annotated": Annotated, "ClassVar": ClassVar}
    source = (
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\n"
        "class Bare(Section):\n"
        "    SECTION: ClassVar[str] = 'bare'\n"
        "    TITLE: ClassVar[str] = 'Bare'\n"
        "    depth: Annotated[int, Option('--depth')] = 1\n"
    )
    exec(source, namespace)
    (declared,) = options_of(namespace["Bare"])
    assert (declared.flags, declared.help) == (("--depth",), "")


def test_names_follow_from_the_flag():
    assert DECLARED["count"].flags == ("--count",)
    assert DECLARED["wait"].flags == ("--wait", "-W")
    assert DECLARED["count"].environment == ("ASGIRI_COUNT", "COUNT")
    assert DECLARED["kind"].aliases == ("--shape",)


@pytest.mark.parametrize(
    ("field", "metavar", "default"),
    [
        ("wait", "DURATION", "30s"),
        ("size", "SIZE", "64KiB"),
        ("count", "N", "4"),
        ("kind", "round|square", "round"),
        ("loud", "TEXT", "off"),
        ("maybe", "TEXT", ""),
        ("names", "TEXT", "a b"),
        ("tags", "TEXT", ""),
    ],
)
def test_defaults_are_spelled_as_people_write_them(field, metavar, default):
    assert (DECLARED[field].metavar, DECLARED[field].default_text()) == (metavar, default)


def test_what_a_default_says_can_be_given_back():
    for field in ("wait", "size", "count", "kind", "loud"):
        declared = DECLARED[field]
        assert declared.parse(declared.default_text()) == declared.default


def test_json_has_no_tuples_and_may_lose_the_point_of_a_float():
    assert DECLARED["names"].from_json(["x"]) == ("x",)
    restored = DECLARED["wait"].from_json(5)
    assert restored == 5
    assert type(restored) is float


def test_a_misspelling_is_recognised_a_wild_guess_is_not_made():
    assert nearest("--wrokers", ["--workers", "--bind"]) == "--workers"
    assert nearest("--zzz", ["--workers", "--bind"]) is None


def test_remedies_are_phrases_for_the_end_of_a_line():
    errors = [error for text in ("x", "", "-1") for _, error in refusals(text)]
    assert errors
    for error in errors:
        assert re.match(r"(must|is|needs|cannot) ", error.remedy)
        assert not error.remedy.endswith(".")


@pytest.mark.parametrize(
    ("field", "value", "parsed"),
    [
        ("wait", 30, 30.0),
        ("wait", 1.5, 1.5),
        ("wait", "1m", 60.0),
        ("size", 1024, 1024),
        ("size", "1KiB", 1024),
        ("count", 3, 3),
        ("count", "3", 3),
        ("kind", "square", "square"),
        ("loud", True, True),
        ("loud", "on", True),
        ("maybe", False, False),
        ("names", "a;b", ("a;b",)),
        ("names", ["a", "b"], ("a", "b")),
        ("tags", ("a,b", "c"), ("a", "b", "c")),
        ("password", 5, "5!"),
    ],
)
def test_values_that_have_a_type_already_are_taken_as_they_are_or_as_text(field, value, parsed):
    assert DECLARED[field].parse_value(value) == parsed


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("wait", [], "must be a duration such as 30, 30s, 5m or 500ms"),
        ("wait", True, "must be a duration such as 30, 30s, 5m or 500ms"),
        ("wait", 61, "must be between 1s and 1m"),
        ("size", None, "must be a size such as 65536, 64KiB or 16MiB"),
        ("count", {}, "must be a whole number"),
        ("count", False, "must be a whole number"),
        ("count", 0, "must be at least 1"),
        ("count", 1.5, "must be a whole number"),
        ("kind", b"round", "must be one of round, square"),
        ("kind", 3, "must be one of round, square"),
        ("loud", [], "must be true or false"),
        ("names", [1], "must be a text or a list of texts"),
        ("names", {"a": 1}, "must be a text or a list of texts"),
        ("password", object, "must be a text"),
    ],
)
def test_values_of_another_type_are_refused_with_what_is_allowed(field, value, remedy):
    with pytest.raises(ConfigError) as caught:
        DECLARED[field].parse_value(value)
    assert caught.value.remedy == remedy


@given(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates(),
        st.lists(st.text()), st.dictionaries(st.text(), st.integers()),
    )
)  # fmt: skip
def test_no_value_makes_a_parser_fail_otherwise_than_by_its_remedy(value):
    for declared in DECLARED.values():
        try:
            parsed = declared.parse_value(value)
        except ConfigError:
            continue
        assert declared.check(parsed) is None


@pytest.mark.parametrize("field", ["wait", "size", "count", "kind", "loud", "names"])
def test_what_is_spelled_for_a_file_is_read_as_the_same(field):
    declared = DECLARED[field]
    text = f"x = {declared.spell_toml(declared.default)}"
    assert declared.parse_value(tomllib.loads(text)["x"]) == declared.default


@given(st.lists(st.text(), min_size=1))
def test_every_text_is_spelled_so_that_toml_reads_it_back(texts):
    written = DECLARED["names"].spell_toml(texts)
    try:
        content = f"x = {written}".encode()
    except UnicodeEncodeError:  # a lone surrogate is no text for a file
        return
    assert tomllib.loads(content.decode())["x"] == texts


@given(st.floats(1, 60))
def test_durations_are_spelled_so_that_they_are_read_back(seconds):
    declared = DECLARED["wait"]
    value = tomllib.loads(f"x = {declared.spell_toml(seconds)}")["x"]
    assert declared.parse_value(value) == pytest.approx(seconds, abs=1e-5)


def test_keys_of_a_file_are_the_names_without_dashes():
    assert DECLARED["wait"].keys == ("wait",)
    assert DECLARED["kind"].keys == ("kind", "shape")
