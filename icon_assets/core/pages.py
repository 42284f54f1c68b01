"""Pages that people read, from the templates of the package: everything that comes from data is escaped there."""

from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from icon_assets.core.ingest import printable


def page(template: str, **facts: Any) -> str:
    """A template of `templates/` with these facts. HTML in them becomes text, unless they are `Markup`."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"cell": cell, "figure": figure, "number": number}
    return environment.get_template(template).render(facts)


def cell(value: Any, limit: int = 200) -> str:
    """Text for a cell of a Markdown table: one line, nothing that ends the cell or begins a link, an image or code."""
    text = printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(f"\\{character}" if character in "\\|`*_[]#~" else character for character in text)


def figure(value: float | None) -> str:
    """A number with four significant digits."""
    return "-" if value is None else f"{value:,.4g}"


def number(value: float | None) -> str:
    """A count, or a large amount with its unit: 1,234,567 or 1.23 T."""
    if value is None:
        return "-"
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if value >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:,.0f}"


def _source(name: str) -> str:
    return (resources.files("icon_assets") / "templates" / name).read_text("utf-8")
