"""Choosing the probe set: evenly over strata, seeded, without near-duplicates, and without anything the pool or the
evaluation data already holds, so that neither a score nor a result measures memory.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from icon_assets.core.digests import draw_key
from icon_assets.core.inputs.sample import Sample

OVERLAP_WORDS = 13
_MARK_WORDS = 7  # whatever 13 words are shared, 7 of them begin at a multiple of 7 of the text
_SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """A candidate probe and where it stands. `passage`: what must not be read elsewhere; the response unless told."""

    sample: Sample
    stratum: str
    file: str
    row: int
    passage: str | None = None

    @property
    def probe_id(self) -> str:
        return self.sample.sample_id


@dataclass(frozen=True)
class Verdict:
    """What became of a candidate: `selected`, `spare`, `duplicate`, `near_duplicate`, `in_pool` or `in_evaluation`."""

    candidate: Candidate
    status: str
    detail: str = ""


@dataclass(frozen=True)
class Reference:
    """A text that probes must not share: a pool sample or an evaluation item, with its name for the reason."""

    name: str
    prompt: str
    text: str


def words(text: str) -> list[str]:
    """Lower-case words, the unit of every comparison here."""
    return _WORD.findall(text.lower())


def _plain(text: str) -> str:
    """A text without case and punctuation; one that has no words stays as it is."""
    return " ".join(words(text)) or text


def _shingles(items: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(items[i : i + size]) for i in range(len(items) - size + 1)}


@dataclass(frozen=True)
class Meeting:
    """A candidate and a reference that share the prompt, or `words` in a row of the candidate's passage."""

    candidate: Candidate
    reference: str
    words: str = ""

    @property
    def reason(self) -> str:
        return f'shares "{self.words}" with {self.reference}' if self.words else f"same prompt as {self.reference}"


class Index:
    """The texts of candidates, prepared for one pass over any number of references; memory grows with the candidates only."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self._prompts: dict[str, list[Candidate]] = defaultdict(list)
        self._grams: dict[tuple[str, ...], list[Candidate]] = defaultdict(list)
        self._marks: set[tuple[str, ...]] = set()
        for candidate in candidates:
            self._prompts[_plain(candidate.sample.question)].append(candidate)
            passage = words(candidate.sample.response if candidate.passage is None else candidate.passage)
            for gram in _shingles(passage, OVERLAP_WORDS):
                self._grams[gram].append(candidate)
            self._marks |= _shingles(passage, _MARK_WORDS)

    def meetings(self, references: Iterable[Reference]) -> Iterator[Meeting]:
        """Every candidate and reference that meet, once."""
        for reference in references:
            met = dict.fromkeys(self._prompts.get(_plain(reference.prompt), ()), "")
            for gram in self._shared(words(reference.text)):
                for candidate in self._grams[gram]:
                    met.setdefault(candidate, " ".join(gram))
            yield from (Meeting(candidate, reference.name, shared) for candidate, shared in met.items())

    def _shared(self, text: Sequence[str]) -> list[tuple[str, ...]]:
        """The runs of words that the text shares with candidates; nearly always none, told by a few comparisons."""
        places = range(0, len(text), _MARK_WORDS)
        if not any(tuple(text[place : place + _MARK_WORDS]) in self._marks for place in places):
            return []
        return sorted(_shingles(text, OVERLAP_WORDS) & self._grams.keys())


def overlaps(candidates: Iterable[Candidate], references: Iterable[Reference]) -> dict[str, str]:
    """Probe ids that occur in the references, with the reason: the same prompt, or 13 words of the response in a row."""
    found: dict[str, str] = {}
    for meeting in Index(candidates).meetings(references):
        found.setdefault(meeting.candidate.probe_id, meeting.reason)
    return found


def near_duplicates(candidates: Sequence[Candidate], threshold: float) -> dict[str, str]:
    """Probe ids whose text is nearly that of an earlier candidate (Jaccard of word 3-grams), with that one's id."""
    kept: dict[str, set[tuple[str, ...]]] = {}
    holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    found: dict[str, str] = {}
    for candidate in candidates:
        own = _shingles(words(f"{candidate.sample.prompt_text} {candidate.sample.response}"), _SHINGLE_WORDS)
        rivals = {holder for shingle in own for holder in holders[shingle]}
        twin = next((r for r in sorted(rivals) if len(own & kept[r]) >= threshold * len(own | kept[r])), None)
        if twin is not None:
            found[candidate.probe_id] = f"nearly the same as probe {twin}"
            continue
        kept[candidate.probe_id] = own
        for shingle in own:
            holders[shingle].append(candidate.probe_id)
    return found


def select_probes(
    candidates: Sequence[Candidate],
    count: int,
    seed: int,
    threshold: float,
    in_pool: Mapping[str, str],
    in_evaluation: Mapping[str, str],
) -> list[Verdict]:
    """Decide every candidate, in a seeded order that depends on the probe alone; then draw `count` evenly over strata.

    Args:
        count: probes to draw; with fewer usable ones all of them are taken.
        threshold: Jaccard similarity from which two probes count as the same.
        in_pool, in_evaluation: probe ids with the reason, from `overlaps`.

    Returns:
        One verdict per candidate: the selected first, in drawing order.
    """
    ordered = sorted(candidates, key=lambda c: (draw_key(seed, c.probe_id), c.file, c.row))
    unique: dict[str, Candidate] = {}
    verdicts: list[Verdict] = []
    for candidate in ordered:
        if candidate.probe_id in unique:
            first = unique[candidate.probe_id]
            verdicts.append(Verdict(candidate, "duplicate", f"the same as {first.file}:{first.row}"))
        else:
            unique[candidate.probe_id] = candidate
    usable = []
    twins = near_duplicates(list(unique.values()), threshold)
    for probe_id, candidate in unique.items():
        reasons = (("in_pool", in_pool), ("in_evaluation", in_evaluation), ("near_duplicate", twins))
        status = next((name for name, found in reasons if probe_id in found), None)
        if status is None:
            usable.append(candidate)
        else:
            verdicts.append(Verdict(candidate, status, dict(reasons)[status][probe_id]))
    drawn = _round_robin(usable)
    chosen = [Verdict(c, "selected" if i < count else "spare") for i, c in enumerate(drawn)]
    return [*chosen, *verdicts]


def _round_robin(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One of each stratum in turn, so that every prefix is as even over strata as it can be."""
    strata: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        strata[candidate.stratum].append(candidate)
    longest = max(map(len, strata.values()), default=0)
    return [strata[name][turn] for turn in range(longest) for name in sorted(strata) if turn < len(strata[name])]
