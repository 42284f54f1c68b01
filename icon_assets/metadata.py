"""The metadata of assets in the UI: column schemas, small tables and plots, never training text.

Dagster renders Markdown metadata, descriptions and check results as Markdown, with links and images. Texts from data
are therefore escaped here. In all other texts Dagster turns addresses into links.
"""

import base64
import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import dagster as dg
import polars as pl

from icon_assets.core.store.schema import column_comments, schemas
from icon_assets.core.text import markdown, printable, unlinked

Draw = TypeVar("Draw", bound=Callable[..., dg.MarkdownMetadataValue])
OWNERS = ["team:data"]
_BLUE = "#3b6fb6"
_GREY = "#8a8f98"
_VERDICTS = {"better": _BLUE, "worse": "#b6433b"}


def column_schema(table: str) -> dict[str, Any]:
    """Definition metadata with the columns of a store table and their comments in schema.sql."""
    comments = column_comments()
    columns = [dg.TableColumn(f.name, str(f.type), comments.get((table, f.name))) for f in schemas()[table]]
    return {"dagster/column_schema": dg.TableSchema(columns), "table": table}


def markdown_table(frame: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """A small frame as a Markdown table; floats with four significant digits."""
    head = "| " + " | ".join(map(markdown, frame.columns)) + " |\n|" + "---|" * frame.width
    rows = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in frame.iter_rows()]
    return dg.MetadataValue.md("\n".join([head, *rows]))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float):
        return f"{value:,.4g}" if isinstance(value, float) else str(value)
    return markdown(" ".join(value.split()) if isinstance(value, str) else value)


def markdown_list(lines: Iterable[str], nothing: str = "nothing") -> dg.MarkdownMetadataValue:
    """A list of sentences; `nothing` if there are none."""
    return dg.MetadataValue.md("\n".join(f"- {markdown(line)}" for line in lines) or nothing)


def named_list(lines: Mapping[str, str]) -> dg.MarkdownMetadataValue:
    """A sentence for each name."""
    return dg.MetadataValue.md("\n".join(f"- **{markdown(name)}**: {markdown(line)}" for name, line in lines.items()))


def description(line: str) -> str:
    """The description of a check result, in one line."""
    return markdown(line)


def visible(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata whose strings contain no invisible characters and no links."""
    return {unlinked(name): _visible(value) for name, value in metadata.items()}


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return unlinked(value)
    return [_visible(each) for each in value] if isinstance(value, list) else value


def _plain_texts(draw: Draw) -> Draw:
    """Escape `$` in texts of a plot, which would start a formula."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> dg.MarkdownMetadataValue:
        import matplotlib as mpl

        with mpl.rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawn  # pyright: ignore[reportReturnType]


@_plain_texts
def histogram(values: Sequence[float], title: str, label: str) -> dg.MarkdownMetadataValue:
    """Distribution of a figure, with its median and zero marked."""
    figure, axes = _axes(title, label, "samples")
    axes.hist(values, bins=min(40, max(8, len(values) // 5)), color=_BLUE, edgecolor="white", linewidth=0.4)
    axes.axvline(0, color=_GREY, linewidth=1)
    axes.axvline(float(pl.Series(values).median() or 0), color="black", linewidth=1, linestyle="--")  # pyright: ignore
    return _picture(figure, title)


@_plain_texts
def curve(points: Sequence[tuple[float, float]], title: str, x: str, y: str) -> dg.MarkdownMetadataValue:
    """A line through (x, y) points."""
    figure, axes = _axes(title, x, y)
    axes.plot([p[0] for p in points], [p[1] for p in points], color=_BLUE, marker="o", markersize=2.5)
    return _picture(figure, title)


@_plain_texts
def scatter(points: Sequence[tuple[float, float]], title: str, x: str, y: str) -> dg.MarkdownMetadataValue:
    """One dot per (x, y)."""
    figure, axes = _axes(title, x, y)
    axes.scatter([p[0] for p in points], [p[1] for p in points], s=4, color=_BLUE, alpha=0.4, linewidths=0)
    return _picture(figure, title)


@_plain_texts
def bars(values: Mapping[str, tuple[float, float]], title: str, label: str) -> dg.MarkdownMetadataValue:
    """One horizontal bar per name: (mean, spread); the axis starts near the smallest value so that differences are
    visible."""
    figure, axes = _axes(title, label, "")
    names = list(values)[::-1]
    means = [values[name][0] for name in names]
    spread = [values[name][1] for name in names]
    axes.errorbar(means, range(len(names)), xerr=spread, fmt="o", color=_BLUE, ecolor=_GREY, capsize=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", color="#e6e8eb")
    return _picture(figure, title)


@_plain_texts
def intervals(
    panels: Mapping[str, Mapping[str, tuple[float, float, float, str]]], title: str
) -> dg.MarkdownMetadataValue:
    """Panels side by side; in each one horizontal interval per name, (middle, low, high, verdict), around a line at
    zero."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))[::-1]
    figure = Figure(figsize=(1.5 + 3.2 * len(panels), 1.3 + 0.22 * len(names)), dpi=72, layout="constrained")
    figure.suptitle(f"{title}\nblue: better, red: worse, grey: not distinguishable", fontsize=9)
    for axes, (label, panel) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        for name, (middle, low, high, verdict) in panel.items():
            reach = [[middle - low], [high - middle]]
            color = _VERDICTS.get(verdict, _GREY)
            axes.errorbar([middle], [names.index(name)], xerr=reach, fmt="o", markersize=4, color=color, capsize=3)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel(printable(label), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", color="#e6e8eb")
        axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure, title)


def _axes(title: str, x: str, y: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.set_title(printable(title), fontsize=10)
    axes.set_xlabel(printable(x), fontsize=9)
    axes.set_ylabel(printable(y), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: Any, title: str) -> dg.MarkdownMetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return dg.MetadataValue.md(
        f"![{markdown(title)}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
    )
