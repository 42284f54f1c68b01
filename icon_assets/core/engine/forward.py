"""The input of a forward: contexts and the probes after them, one after the other without padding."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.engine.attention import Kernel, Layout, Segment
from icon_assets.core.engine.packing import Row
from icon_assets.core.model.flops import Work


@dataclass
class Packed:
    """One forward's input: ids, positions, the layout, and for each pair its scored rows and targets."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)  # context, probe, response tokens
    layout: Layout = field(default_factory=Layout)

    @property
    def work(self) -> Work:
        return Work(len(self.ids), self.layout.attended, len(self.scored))

    def add_context(self, prefix: Sequence[int]) -> tuple[int, int]:
        """Append a context and return its token range."""
        start = len(self.ids)
        self.ids.extend(prefix)
        self.positions.extend(range(len(prefix)))
        if prefix:
            self.layout.contexts.append((start, len(self.ids)))
        return start, len(self.ids)

    def add_probe(self, pair: tuple[int, int], probe: Encoded, context: tuple[int, int]) -> None:
        """Append a probe after the context at this token range. Its positions continue after the context."""
        start = len(self.ids)
        before = context[1] - context[0]
        self.ids.extend([*probe.prompt_ids, *probe.response_ids[:-1]])
        self.positions.extend(range(before, before + probe.n_input))
        self.layout.segments.append(Segment(*context, start, len(self.ids)))
        # Each response token is predicted by the token before it, the first one by the end of the prompt.
        first = start + len(probe.prompt_ids) - 1
        self.scored.extend(range(first, first + len(probe.response_ids)))
        self.targets.extend(probe.response_ids)
        self.pairs.append((*pair, len(probe.response_ids)))


@dataclass(frozen=True)
class Batch:
    """The contexts (ids before a probe's prompt, including BOS) and probes that rows refer to."""

    prefixes: list[list[int]]
    probes: Sequence[Encoded]

    def tokens(self, rows: Sequence[Row]) -> int:
        return sum(len(self.prefixes[r.context]) + sum(self.probes[p].n_input for p in r.probes) for r in rows)

    def pack(self, rows: Sequence[Row], kernel: Kernel) -> Packed:
        packed = Packed(layout=Layout(kernel))
        for row in rows:
            context = packed.add_context(self.prefixes[row.context])
            for probe in row.probes:
                packed.add_probe((row.context, probe), self.probes[probe], context)
        return packed
