"""The answer of `why` as lines for a terminal. Every text of data is shown in one line without invisible characters."""

from collections.abc import Iterator, Mapping, Sequence

from icon_assets.core.publish.standing import Standing
from icon_assets.core.publish.why import ProbeEffect, SampleFacts, Why
from icon_assets.core.text import printable

_TEXT_CHARS = 100
_SHOWN_LINES = 20


def why_lines(why: Why) -> Iterator[str]:
    """The lines of the answer, without line ends."""
    yield from _sample(why.sample)
    yield from (f"! {printable(line)}" for line in why.findings)
    yield ""
    yield from _table([("arm", "score", "95 % interval", "rank", "chosen", "why"), *map(_arm, why.arms)])
    yield ""
    yield "What would have to change"
    yield from _table([(f"  {each.arm}", printable(each.change)) for each in why.arms])
    yield ""
    if not why.scored_probes:
        yield "No probe was measured with this sample."
        return
    on = f"control {why.control}, {why.scored_probes:,} of {why.probes:,} probes; NLL in nats per response token"
    yield from _effects(f"The probes it helps most ({on})", why.helps)
    yield from _effects("The probes it hurts most", why.hurts)


def _sample(sample: SampleFacts) -> Iterator[str]:
    lines = [
        f"{printable(line['file'])}:{line['row']}{' (duplicate)' if line['is_duplicate'] else ''}"
        for line in sample.lines[:_SHOWN_LINES]
    ]
    if more := len(sample.lines) - len(lines):
        lines.append(f"{more:,} more duplicates")
    tokens = "unknown" if sample.context_tokens is None else f"{sample.context_tokens:,} tokens as a context"
    tokens += " (estimated from its characters)" if sample.tokens_are_estimated else ""
    tokens += " (cut to scoring.max_context_tokens)" if sample.truncated else ""
    response = "" if sample.response_tokens is None else f", {sample.response_tokens:,} response tokens"
    yield f"sample   {sample.sample_id}"
    yield f"lines    {', '.join(lines)}"
    yield f"stratum  {printable(sample.stratum) or '-'}"
    yield f"length   {tokens}{response}, {sample.characters:,} characters"
    yield f"text     {_short(sample.texts)}"


def _arm(each: Standing) -> tuple[str, ...]:
    interval = "-" if each.low is None or each.high is None else f"{each.low:.4g} to {each.high:.4g}"
    rank = "-" if each.rank is None else f"{each.rank:,} of {each.of:,}"
    chosen = "no" if each.chosen_rank is None else "yes"
    return each.arm, _figure(each.score), interval, rank, chosen, printable(each.reason)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"


def _effects(head: str, effects: Sequence[ProbeEffect]) -> Iterator[str]:
    yield head
    rows = [
        (
            f"  {each.nll_without:.3f} -> {each.nll_with:.3f}",
            f"perplexity {each.perplexity_change:+,.3g} ({each.perplexity_change / each.perplexity_without:+.1%})",
            printable(each.stratum) or "-",
            _short(each.texts["probe"]),
        )
        for each in effects
    ]
    yield from _table(rows or [("  none",)])


def _short(texts: Mapping[str, str | None]) -> str:
    """Instruction, input and response in one line, cut."""
    asked = " ".join(filter(None, (texts["instruction"], texts["input"])))
    return f"{_cut(asked)} => {_cut(texts['response'] or '')}"


def _cut(text: str) -> str:
    text = printable(" ".join(text[: 4 * _TEXT_CHARS].split()))
    return text if len(text) <= _TEXT_CHARS else f"{text[: _TEXT_CHARS - 1]}…"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their longest cell; the last one as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()
