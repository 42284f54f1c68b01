"""Features of a sample from one pass of the model over it alone, stored once per sample: the NLL of its response with
and without its prompt, and its embedding. For probes: the embedding.

The embedding is the mean of the last hidden states over prompt and response, weighted by position 1, 2, ..., n, as in
RDS+ (arXiv 2503.01807); not normalised. Nothing is computed twice, and a killed run loses at most `commit_seconds` of
work."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import polars as pl

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.engine.reading import read_texts
from icon_assets.core.errors import IconError
from icon_assets.core.features.stored import CHUNK_ROWS
from icon_assets.core.model.flops import ModelShape
from icon_assets.core.model.memory import freed_memory_kept, in_halves
from icon_assets.core.passes.committing import Committing, OnProgress
from icon_assets.core.passes.costs import Spent, engine_bill
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.settings import ScoringSettings

if TYPE_CHECKING:
    import torch


WORK = "features"  # in the table scoring_costs
SAMPLE_KEY = ("score_key", "sample_id")
PROBE_KEY = ("score_key", "probe_id")


@dataclass(frozen=True)
class Reading:
    """The features of one text; NLL in nats, summed over the `n_tokens` response tokens."""

    n_tokens: int
    nll_sum: float
    nll_alone: float
    embedding: list[float]


class Reader:
    """Reads samples and probes of one store with one engine, which is loaded when the first of them needs it."""

    def __init__(
        self,
        store: Store,
        key: ScoreKey,
        load: Callable[[], ScoringEngine],
        shape: Callable[[], ModelShape],
        settings: ScoringSettings,
        on_progress: OnProgress = lambda _: None,
    ) -> None:
        self._store = store
        self._key = key
        self._load = load
        self._shape = shape
        self._settings = settings
        self._on_progress = on_progress

    @cached_property
    def _engine(self) -> ScoringEngine:
        return self._load()

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._engine.language_model.tokenizer, self._key)

    def complete_shard(self, shard: str) -> Spent:
        """Read the samples of one shard that are not stored under the key."""
        missing = self._store.query(sql_text("missing_features.sql"), {"score_key": self._key.value, "shard": shard})
        # By rows of the file, so that a resumed run has the same chunks.
        chunks = missing.with_columns(chunk=pl.col("row") // CHUNK_ROWS).partition_by("chunk", maintain_order=True)

        def commit(
            rows: Sequence[Mapping[str, Any]], encoded: Sequence[Encoded], found: Sequence[tuple[int, Reading]]
        ) -> None:
            frame = [
                {
                    "score_key": self._key.value,
                    "origin": shard,
                    "sample_id": rows[i]["sample_id"],
                    "truncated": encoded[i].truncated,
                    **vars(reading),
                }
                for i, reading in found
            ]
            self._store.append_new("sample_features", _frame(frame), SAMPLE_KEY)

        return self._complete((self._rows(shard, chunk) for chunk in chunks), missing.height, commit)

    def complete_probes(self) -> Spent:
        """Read the probes that are not stored under the key."""
        stored = "SELECT probe_id FROM probe_features WHERE score_key = $key"
        rows = self._store.query(
            f"FROM probes WHERE probe_id NOT IN ({stored}) ORDER BY probe_id",
            {"key": self._key.value},
        ).to_dicts()

        def commit(
            rows: Sequence[Mapping[str, Any]], _: Sequence[Encoded], found: Sequence[tuple[int, Reading]]
        ) -> None:
            frame = [
                {"score_key": self._key.value, "probe_id": rows[i]["probe_id"], "embedding": reading.embedding}
                for i, reading in found
            ]
            self._store.append_new("probe_features", _frame(frame), PROBE_KEY)

        return self._complete(iter([rows]), len(rows), commit)

    def _rows(self, shard: str, chunk: pl.DataFrame) -> list[dict[str, Any]]:
        """The texts of some samples. Because of the range of rows, other texts are not read."""
        rows = self._store.query(
            """
            SELECT "row", sample_id, instruction, "input", response, turns FROM delta.pool
            WHERE shard = $shard AND "row" BETWEEN $first AND $last ORDER BY "row"
            """,
            {"shard": shard, "first": chunk["row"].min(), "last": chunk["row"].max()},
        )
        return rows.join(chunk.select("row"), on="row", how="semi").to_dicts()

    def _complete(self, chunks: Iterator[list[dict[str, Any]]], total: int, commit: Callable[..., None]) -> Spent:
        """Read chunk by chunk, and keep what is read."""
        if not total:
            return Spent()
        bill = engine_bill(self._store, self._key, self._shape(), self._engine, WORK)
        committing = Committing(bill, total, "samples", self._settings.commit_seconds, self._on_progress)
        for rows in chunks:
            encoded = [self._encoder.probe(row) for row in rows]
            together = (found.items() for found in read(self._engine, encoded))
            committing.keep(together, partial(commit, rows, encoded))
        return committing.spent


def read(engine: ScoringEngine, encoded: Sequence[Encoded]) -> Iterator[dict[int, Reading]]:
    """Read texts, shortest first, as many per forward as the engine's budget of tokens allows.

    Yields: The texts that were read together, by index. A later run groups the remaining texts as this one would have.

    Raises:
        IconError: a single text does not fit into the device's memory, or the model gives no finite figures.
    """
    device = engine.language_model.device.type
    compute = partial(_read, engine)
    halves = partial(_halves, engine)
    lengths = [(0, index, len(_whole(engine, text))) for index, text in enumerate(encoded)]
    with freed_memory_kept(device):
        for group in engine.grouped(lengths):
            indices = [index for _, index in group]
            found = list(in_halves([encoded[index] for index in indices], compute, halves, device))
            engine.meter.pairs += len(indices)
            yield dict(zip(indices, found, strict=True))


def _whole(engine: ScoringEngine, text: Encoded) -> list[int]:
    return [*engine.language_model.leading, *text.prompt_ids, *text.response_ids]


def _halves(engine: ScoringEngine, texts: Sequence[Encoded]) -> list[Sequence[Encoded]]:
    if len(texts) == 1:
        raise IconError(
            f"out of memory on one sample of {len(_whole(engine, texts[0]))} tokens; lower scoring.max_prompt_tokens "
            "and scoring.max_response_tokens, use a smaller model, or a device with more memory"
        ) from None
    middle = len(texts) // 2
    return [texts[:middle], texts[middle:]]


def _read(engine: ScoringEngine, texts: Sequence[Encoded]) -> list[Reading]:
    import torch

    whole = [_whole(engine, text) for text in texts]
    n_leading = len(engine.language_model.leading)
    responses = [len(text.response_ids) for text in texts]
    scored = [range(len(ids) - n, len(ids)) for ids, n in zip(whole, responses, strict=True)]
    states, behind_prompt = read_texts(engine, whole, scored)
    embeddings = [_pooled(each[n_leading:]) for each in states]
    del states  # before the next forward needs the memory
    readings = []
    for n, given, alone, embedding in zip(responses, behind_prompt, _alone(engine, texts), embeddings, strict=True):
        # Without a BOS nothing predicts the first token: both NLLs get the same figure for it.
        unpredicted = given[: n - len(alone)].sum().item()
        readings.append(Reading(n, given.sum().item(), alone.sum().item() + unpredicted, embedding.tolist()))
    figures = torch.tensor([[r.nll_sum, r.nll_alone, *r.embedding] for r in readings])
    if not torch.isfinite(figures).all():
        raise IconError(
            "the model gives infinite or undefined figures for a sample; set model.dtype to float32, or use a "
            "different model"
        )
    return readings


def _alone(engine: ScoringEngine, texts: Sequence[Encoded]) -> list["torch.Tensor"]:
    """NLL, without the prompt, of the response tokens that have a token before them."""
    ids = [[*engine.language_model.leading, *text.response_ids] for text in texts]
    first = max(1, len(engine.language_model.leading))
    _, nll = read_texts(engine, ids, [range(first, len(each)) for each in ids])
    return nll


def _pooled(states: "torch.Tensor") -> "torch.Tensor":
    """Mean over positions, weighted by 1, 2, ..., n, in float32."""
    import torch

    weights = torch.arange(1, len(states) + 1, device=states.device, dtype=torch.float32)
    return (weights @ states.float() / weights.sum()).cpu()


def _frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides={"embedding": pl.List(pl.Float32)})
