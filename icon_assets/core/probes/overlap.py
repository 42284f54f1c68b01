"""Overlap of two texts: the same prompt, common words in a row, or nearly the same words."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from icon_assets.core.inputs.sample import Sample

OVERLAP_WORDS = 13
_MARK_WORDS = 7  # of any 13 shared words, 7 in a row begin at a multiple of 7 of the text
_SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """A candidate probe and its place. `passage`: the text that must not occur elsewhere; by default the response."""

    sample: Sample
    stratum: str
    file: str
    row: int
    passage: str | None = None

    @property
    def probe_id(self) -> str:
        return self.sample.sample_id


@dataclass(frozen=True)
class Reference:
    """A text that probes must not overlap with: a pool sample or an evaluation item, with a name for the reason."""

    name: str
    prompt: str
    text: str


def words(text: str) -> list[str]:
    """Lower-case words, the unit of every comparison here."""
    return _WORD.findall(text.lower())


def _plain(text: str) -> str:
    """A text without case and punctuation. A text without words is returned unchanged."""
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
    """The texts of candidates, prepared for one pass over any number of references. Memory grows only with the
    candidates."""

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
        """Every overlapping pair of candidate and reference, once."""
        for reference in references:
            met = dict.fromkeys(self._prompts.get(_plain(reference.prompt), ()), "")
            for gram in self._shared(words(reference.text)):
                for candidate in self._grams[gram]:
                    met.setdefault(candidate, " ".join(gram))
            yield from (Meeting(candidate, reference.name, shared) for candidate, shared in met.items())

    def _shared(self, text: Sequence[str]) -> list[tuple[str, ...]]:
        """The runs of words that the text shares with candidates. Usually there are none, which takes a few
        comparisons."""
        places = range(0, len(text), _MARK_WORDS)
        if not any(tuple(text[place : place + _MARK_WORDS]) in self._marks for place in places):
            return []
        return sorted(_shingles(text, OVERLAP_WORDS) & self._grams.keys())


def overlaps(candidates: Iterable[Candidate], references: Iterable[Reference]) -> dict[str, str]:
    """Probe ids that occur in the references, with the reason: the same prompt, or 13 words of the response in a
    row."""
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
