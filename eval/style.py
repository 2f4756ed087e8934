"""How every picture looks: inks and font, the same on every machine."""

from typing import Any

INK, FAINT, GRID = "#262626", "#6E6E6E", "#E6E6E6"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "path.simplify": False,
    "axes.unicode_minus": True,
}
