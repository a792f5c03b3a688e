"""Write the README's tables of options and metrics anew: `python -m tests.support.readme`."""

from __future__ import annotations

from pathlib import Path

from asgiri.admin.prometheus import metrics_markdown
from asgiri.cli.listing import options_markdown

README = Path(__file__).parents[2] / "README.md"


def split(text: str, name: str = "options") -> tuple[str, str, str]:
    """Part the README into what stands before, in and after its tables of this name."""
    before, rest = text.split(f"<!-- {name}: begin -->\n")
    table, after = rest.split(f"<!-- {name}: end -->\n")
    return before, table, after


def main() -> None:
    text = README.read_text()
    for name, table in (("options", options_markdown()), ("metrics", metrics_markdown())):
        before, _, after = split(text, name)
        marks = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        text = f"{before}{marks[0]}\n{table}\n{marks[1]}{after}"
    README.write_text(text)


if __name__ == "__main__":
    main()
