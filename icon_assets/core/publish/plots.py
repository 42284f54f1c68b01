"""Plots as SVG for pages. Text stays text, colours follow the page (light or dark), and nothing is loaded."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from icon_assets.core.text import printable_lines

# Placeholders for the colours of the page while matplotlib draws.
_INK = "#010101"
_LINE = "#020202"
_MUTED = "#030303"
_ACCENT = "#040404"
_GOOD = "#050505"
_BAD = "#060606"
_CSS = {
    _INK: "var(--ink)",
    _LINE: "var(--line)",
    _MUTED: "var(--grey)",
    _ACCENT: "var(--accent)",
    _GOOD: "var(--good)",
    _BAD: "var(--bad)",
}
_CYCLE = ["#3b78c2", "#d1762b", "#3f9a5f", "#b9508f", "#8a6fc7", "#8c7b4f", "#2a9da3", "#c2504a", "#6f8f2f", "#777f8c"]
_VERDICTS = {"better": _GOOD, "worse": _BAD}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "icon",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": _MUTED,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.unicode_minus": False,
}


def distribution(edges: Sequence[float], pool: Sequence[int], chosen: Sequence[int], label: str, arm: str) -> Markup:
    """A histogram of the pool, with the samples that an arm chose (no arm: the pool alone)."""
    with _style():
        figure, axes = _axes(4.6, 2.6, label, "samples")
        widths = [right - left for left, right in pairwise(edges)]
        axes.bar(edges[:-1], pool, widths, align="edge", color=_MUTED, alpha=0.45, linewidth=0, label="pool")
        if any(chosen):
            axes.bar(edges[:-1], chosen, widths, align="edge", color=_ACCENT, linewidth=0, label=f"chosen by {arm}")
        if edges[0] < 0 < edges[-1]:
            axes.axvline(0, color=_INK, linewidth=0.8)
        axes.legend(frameon=False, fontsize=8)
        return _svg(figure, f"Distribution of {label}")


def intervals(rows: Sequence[Mapping[str, Any]], label: str) -> Markup:
    """Differences with their intervals: one row each (`name`, `difference`, `low`, `high`, `verdict`), zero marked."""
    with _style():
        figure, axes = _axes(4.6, 0.9 + 0.24 * len(rows), label, "")
        for place, row in enumerate(reversed(rows)):
            colour = _VERDICTS.get(row["verdict"], _MUTED)
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([row["difference"]], [place], "o", color=colour, markersize=5)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        return _svg(figure, f"Differences: {label}")


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> Markup:
    """A line per name through its points."""
    with _style():
        figure, axes = _axes(5.0, 3.0, x, y)
        for number, (name, points) in enumerate(lines.items()):
            colour = _CYCLE[number % len(_CYCLE)]
            dashes = "-" if number < len(_CYCLE) else "--"
            axes.plot([p[0] for p in points], [p[1] for p in points], dashes, color=colour, linewidth=1.4, label=name)
        axes.grid(axis="y", color=_LINE, linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, ncols=1 + len(lines) // 6)
        return _svg(figure, f"{y} over {x}")


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)  # pyright: ignore[reportArgumentType]


def _axes(width: float, height: float, x: str, y: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any, title: str) -> Markup:
    """The drawing alone, without the XML header and without group ids, which would occur twice on a page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = printable_lines(buffer.getvalue())
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[a-z0-9.]+_[0-9]+"', "", re.sub(r"<!--.*?-->\n? *", "", text, flags=re.DOTALL))
    for stand_in, colour in _CSS.items():
        text = text.replace(stand_in, colour)
    return Markup(text.replace("<svg ", Markup('<svg role="img" aria-label="{}" ').format(title), 1))  # noqa: S704  (matplotlib escapes texts)
