"""Write what the README says about options anew: `python -m tests.support.readme`."""

from __future__ import annotations

from pathlib import Path

from asgiri.cli.listing import options_markdown

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- options: begin -->\n", "<!-- options: end -->"


def split(text: str) -> tuple[str, str, str]:
    """Part the README into what stands before, in and after its tables of options."""
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    return before, table, after


def main() -> None:
    before, _, after = split(README.read_text())
    README.write_text(f"{before}{BEGIN}\n{options_markdown()}\n{END}{after}")


if __name__ == "__main__":
    main()
