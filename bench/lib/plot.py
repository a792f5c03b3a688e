"""How far each aim is, as text and as a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

ROW, BAR, LEFT, WIDTH, RIGHT = 26, 14, 430, 400, 130
SCALE = 2.0
"""Times the aim: the right end of the drawing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One aim, and what was measured."""

    title: str
    aim: str
    value: float | None
    limit: float

    @property
    def word(self) -> str:
        if self.value is None:
            return "not measured"
        return "reached" if self.value <= self.limit else "MISSED"

    @property
    def text(self) -> str:
        return f"{self.aim}: " + ("" if self.value is None else f"{self.value:.2f}, ") + self.word


def draw(verdicts: Sequence[Verdict]) -> str:
    """An SVG: a bar for each, shorter is better, the line is the aim."""
    height = ROW * (len(verdicts) + 1)
    aim = LEFT + WIDTH / SCALE
    size = f'width="{LEFT + WIDTH + RIGHT}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, verdict in enumerate(verdicts):
        top = ROW * number + ROW / 2
        name = f"{verdict.title} ({verdict.aim.removeprefix('aim: ')})"
        lines.append(f'<text x="8" y="{top + 11}">{escape(name)}</text>')
        if verdict.value is None:
            lines.append(f'<text x="{LEFT}" y="{top + 11}" fill="#888">not measured</text>')
            continue
        length = min(max(verdict.value / verdict.limit, 0.0), SCALE) / SCALE * WIDTH
        colour = "#3a8a5f" if verdict.word == "reached" else "#c2603c"
        lines.append(
            f'<rect x="{LEFT}" y="{top}" width="{length:.0f}" height="{BAR}" fill="{colour}"/>'
        )
        lines.append(f'<text x="{LEFT + WIDTH + 8}" y="{top + 11}">{verdict.value:.2f}</text>')
    lines.append(f'<path d="M{aim} 4V{height - 4}" stroke="#333" stroke-dasharray="4 3"/></svg>')
    return "\n".join(lines) + "\n"
