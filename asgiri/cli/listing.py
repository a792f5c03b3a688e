"""The options as tables, for the README."""

from asgiri.cli.reading import offered_options
from asgiri.options import DeclaredOption

__all__ = ["options_markdown"]


def options_markdown() -> str:
    """Write the README's tables of options."""
    lines: list[str] = []
    section = ""
    for declared in offered_options():
        if not declared.flags:
            continue
        if section != declared.owner.TITLE:
            section = declared.owner.TITLE
            lines += [
                "",
                f"**{section}**",
                "",
                "| option | default | what and why |",
                "|---|---|---|",
            ]
        lines.append(_markdown_row(declared))
    return "\n".join(lines).strip() + "\n"


def _markdown_row(declared: DeclaredOption) -> str:
    names = ", ".join(f"`{flag}`" for flag in declared.flags)
    if declared.base is not bool:
        names += f" {declared.metavar}"
    also = [f"`{name}`" for name in (*declared.aliases, *declared.option.env.split())]
    default = declared.default_text()
    text = f"{declared.help} {declared.reason}".strip()
    if also:
        text += f" Also {', '.join(also)}."
    cells = (names, f"`{default}`" if default else "", text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
