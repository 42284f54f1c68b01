"""Pages for people, from the templates of the package. The value of every expression in them is shown as plain text."""

from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from icon_assets.core.text import Markdown, code, markdown, printable, printable_lines


def page(template: str, **facts: Any) -> str:
    """Render a template of `templates/` with these facts. HTML, or Markdown (by the template's name), in a value is
    escaped, unless the value is `Markup` or `Markdown`."""
    is_markdown = template.endswith(".md")
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=not is_markdown,  # noqa: S701  (Markdown has an escaping of its own)
        finalize=_in_markdown if is_markdown else _in_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "code": code, "figure": figure, "number": number}
    return environment.get_template(template).render(facts)


def _in_html(value: Any) -> Any:
    """HTML itself is escaped after this."""
    return printable_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _in_markdown(value: Any) -> Any:
    return markdown(value) if isinstance(value, str) else value


def cell(value: Any, limit: int = 200) -> Markdown:
    """Text for a cell of a Markdown table, cut to so many characters."""
    text = printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return markdown(text if len(text) <= limit else text[: limit - 1] + "…")


def figure(value: float | None) -> Markdown:
    """A number with four significant digits."""
    return Markdown("-" if value is None else f"{value:,.4g}")


def number(value: float | None) -> Markdown:
    """A count, or a large amount with its unit: 1,234,567 or 1.23 T."""
    if value is None:
        return Markdown("-")
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if value >= size:
            return Markdown(f"{value / size:,.3g} {unit}")
    return Markdown(f"{value:,.0f}")


def _source(name: str) -> str:
    return (resources.files("icon_assets") / "templates" / name).read_text("utf-8")
