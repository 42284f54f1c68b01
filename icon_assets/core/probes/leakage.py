"""The texts that must not overlap, ready to be compared: those of the pool, of the probes and of the evaluation data.

`overlap` has the rule for when two texts overlap. The callers decide which texts must not.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from icon_assets.core.digests import file_digest
from icon_assets.core.inputs.choice_items import read_choice_items
from icon_assets.core.inputs.evaluation_files import choice_files, evaluation_files, sample_files
from icon_assets.core.inputs.ingest import ingest
from icon_assets.core.inputs.sample import Sample, sample_of
from icon_assets.core.inputs.source_files import SourceFile
from icon_assets.core.probes.overlap import Candidate, Index, Reference
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace


def pool_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Rows of the table `samples`, shard by shard: the texts of a large pool need not all be in memory."""
    for shard in store.query("SELECT shard FROM shards ORDER BY file")["shard"]:
        rows = store.query('FROM delta.pool WHERE shard = $shard ORDER BY "row"', {"shard": shard})
        yield from rows.iter_rows(named=True)


def pool_references(rows: Iterable[Mapping[str, Any]]) -> Iterator[Reference]:
    """Rows of the table `samples` as texts to search. The last question of a chat is also searched separately."""
    for row in rows:
        sample = sample_of(row)
        name = f"{row['file']}:{row['row']}"
        yield Reference(name, sample.question, f"{sample.prompt_text} {sample.response}")
        if (alone := f"{sample.instruction}\n{sample.input}".strip()) != sample.question:
            yield Reference(name, alone, "")


def probe_index(rows: Iterable[Mapping[str, Any]]) -> Index:
    """Rows of the view `probes`, to search for in other texts."""
    return Index(Candidate(sample_of(row), row["stratum"], row["file"], row["row"]) for row in rows)


def evaluation_references(workspace: Workspace) -> Iterator[Reference]:
    """The evaluation data as texts to search; for a multiple-choice item, every choice."""
    for item, text in _evaluation_items(workspace):
        yield Reference(f"{item.file}:{item.row}", item.sample.question, text)


def evaluation_index(workspace: Workspace) -> Index:
    """The evaluation data, to search for in other texts. It is built once per process while the files are the same."""
    return _evaluation_index(workspace, tuple(file_digest(path) for _, _, path in evaluation_files(workspace)))


@lru_cache(maxsize=1)
def _evaluation_index(workspace: Workspace, digests: tuple[str, ...]) -> Index:
    return Index(item for item, _ in _evaluation_items(workspace))


def _evaluation_items(workspace: Workspace) -> Iterator[tuple[Candidate, str]]:
    """Every item with all of its text. The response of a multiple-choice item is the right choice.

    Right choices are only a few words, so a multiple-choice item is recognized by its question.
    """
    settings = workspace.settings.evaluation
    for task, path in choice_files(settings):
        for number, item in enumerate(read_choice_items(workspace.input_path(path)), 1):
            sample = Sample(item.question, "", item.choices[item.gold])
            passage = f"{item.question} {sample.response}"
            yield Candidate(sample, task, path, number, passage), " ".join([item.query, *item.choices])
    files = [(name, path, False) for name, path in sample_files(settings)]
    files += [(each.name, each.path, True) for each in (settings.pairwise.prompts if settings.pairwise else ())]
    for name, path, unanswered in files:
        source = SourceFile(path, path, workspace.input_path(path))
        for located in ingest(source, workspace.settings.pool.max_chars, unanswered=unanswered).samples:
            text = f"{located.sample.prompt_text} {located.sample.response}"
            yield Candidate(located.sample, name, path, located.row), text
