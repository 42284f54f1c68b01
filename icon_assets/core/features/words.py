"""Words that prompts have in common: BM25, the usual measure of text retrieval (Robertson and Zaragoza 2009)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from icon_assets.core.inputs.sample import sample_of
from icon_assets.core.store.tables import Store

_ROWS_AT_ONCE = 20_000


def bm25(store: Store, sample_ids: Sequence[str], probe_ids: Sequence[str]) -> np.ndarray:
    """BM25 of the prompt of each sample for the prompt of each probe, [samples, probes] of float32.

    A word is a run of at least two letters or digits. In scripts without spaces between words, a whole clause counts as
    one word, so the measure says little there.
    """
    import bm25s

    prompts = dict[str, str]()
    for rows in store.batches("FROM delta.pool", {}, _ROWS_AT_ONCE):
        prompts |= {row["sample_id"]: sample_of(row).prompt_text for row in rows.iter_rows(named=True)}
    none = np.zeros(len(sample_ids), np.float32)
    words: Any = bm25s.tokenize([prompts[each] for each in sample_ids], stopwords=[], show_progress=False)
    if not words.vocab:
        return np.column_stack([none] * len(probe_ids))
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    probes = {row["probe_id"]: sample_of(row).prompt_text for row in store.query("FROM probes").iter_rows(named=True)}
    asked: Any = bm25s.tokenize(
        [probes[each] for each in probe_ids], stopwords=[], return_ids=False, show_progress=False
    )
    return np.column_stack([index.get_scores(query) if query else none for query in asked])
