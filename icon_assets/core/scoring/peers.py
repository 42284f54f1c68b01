"""The control `peers`: a sample is compared with the usual effect of candidates of the same token length on a probe.

It uses stored pairs only, without a forward. For each probe, a curve of log perplexity over log length is fitted on a
bounded draw of samples. All pairs are then compared with these curves in a stream.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import polars as pl

from icon_assets.core.digests import draw_key
from icon_assets.core.errors import IconError
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.contribution import placed
from icon_assets.core.scoring.probe_model import ProbeModel
from icon_assets.core.store.tables import Store

PEERS = "peers"
_MOST_SAMPLES = 5_000
_MOST_PAIRS = 2_000_000
_BENDS_FROM = 60  # samples; fewer allow only a straight line
_KNOTS = 5
_STREAMED_AT_ONCE = 500_000
_HIGHEST_NLL = 27.0
_LARGEST = 4096.0
_UNIT = 2.0**40


@dataclass(frozen=True)
class Draw:
    """Randomly drawn samples of the pool that were scored on every probe.

    Attributes:
        lengths: tokens as a context, [samples].
        nll: nats per token of each probe after each sample, [samples, probes].
        base: the same without context, [probes].
    """

    sample_ids: list[str]
    probe_ids: list[str]
    lengths: np.ndarray
    nll: np.ndarray
    base: np.ndarray

    def influences(self, against: np.ndarray) -> np.ndarray:
        """[samples, probes], compared with `against`, nats per token of the same shape or of one row."""
        return (np.exp(against) - np.exp(self.nll)) / (np.exp(self.base) + 1e-6)


def draw(store: Store, key: ScoreKey, seed: int, most: int = _MOST_SAMPLES) -> Draw:
    """Draw samples in a seeded order of their ids, which is also the order of pilots, up to the first one that lacks a
    probe. Later complete samples may be near the cut, and are therefore not a random draw.

    Raises:
        IconError: no sample was scored on every probe.
    """
    base = store.query(
        """
        SELECT probe_id, nll_sum / n_tokens AS nll FROM control_scores SEMI JOIN probes USING (probe_id)
        WHERE score_key = $key AND control = 'none' ORDER BY probe_id
        """,
        {"key": key.value},
    )
    asked = {"key": key.value, "seed": str(seed), "n": min(most, max(1, _MOST_PAIRS // max(1, base.height)))}
    drawn = store.query(
        """
        SELECT sample_id, n_context_tokens FROM contexts SEMI JOIN delta.sample_scores USING (score_key, sample_id)
        SEMI JOIN delta.pool USING (sample_id) WHERE score_key = $key ORDER BY md5($seed || sample_id) LIMIT $n
        """,
        asked,
    )
    nll = _pairs(store, key, drawn["sample_id"].to_list(), base["probe_id"].to_list())
    whole = ~np.isnan(nll).any(axis=1)
    until = int(np.argmin(whole)) if not whole.all() else drawn.height
    if not until or base.is_empty():
        raise IconError(
            "control peers: no sample is scored on every probe; materialize sample_scores for every shard first"
        )
    ids = drawn["sample_id"][:until].to_list()
    lengths = drawn["n_context_tokens"][:until].to_numpy()
    return Draw(ids, base["probe_id"].to_list(), lengths, nll[:until], base["nll"].to_numpy())


def _pairs(store: Store, key: ScoreKey, sample_ids: Sequence[str], probe_ids: Sequence[str]) -> np.ndarray:
    """[samples, probes]; NaN where a pair is not stored."""
    rows = store.query(
        """
        SELECT sample_id, probe_id, nll_sum / n_tokens AS nll FROM pair_scores SEMI JOIN probes USING (probe_id)
        WHERE score_key = $key AND sample_id IN (SELECT unnest($ids::VARCHAR[]))
        """,
        {"key": key.value, "ids": list(sample_ids)},
    )
    found = placed(rows, sample_ids, probe_ids)
    nll = np.full((len(sample_ids), len(probe_ids)), np.nan)
    nll[found["sample"].to_numpy(), found["probe"].to_numpy()] = found["nll"].to_numpy()
    return nll


def typical(lengths: np.ndarray, nll: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The usual NLL after samples of the lengths `at`: a smooth fit of `nll` over log length, constant outside of the
    observed lengths.

    A cubic spline with few knots, by least squares; for few samples, a straight line.

    Args:
        lengths: [samples].
        nll: [samples, probes].

    Returns:
        [at, probes].
    """
    from sklearn.preprocessing import SplineTransformer

    x = np.log(lengths)
    asked = np.log(np.clip(at, lengths.min(), lengths.max()))
    knots = np.unique(np.quantile(x, np.linspace(0, 1, _KNOTS if len(x) >= _BENDS_FROM else 2)))
    if len(knots) < 2:
        return np.repeat(nll.mean(axis=0, keepdims=True), len(asked), axis=0)
    degree = 3 if len(x) >= _BENDS_FROM else 1
    spline = SplineTransformer(degree=degree, knots=knots[:, None])  # pyright: ignore[reportArgumentType]
    spline.fit(x[:, None])
    weights = np.linalg.lstsq(spline.transform(x[:, None]), nll, rcond=None)[0]
    return spline.transform(asked[:, None]) @ weights


def peer_influences(drawn: Draw) -> np.ndarray:
    """Influences of drawn samples against their peers, [samples, probes]."""
    return drawn.influences(typical(drawn.lengths, drawn.nll, drawn.lengths))


def peer_contributions(store: Store, key: ScoreKey, seed: int) -> pl.DataFrame:
    """Contribution against peers of every scored sample of the pool: sample_id and `peers`.

    For a sample that lacks probes (budgeted mode), it is estimated from its known influences, as for other controls."""
    drawn = draw(store, key, seed)
    known = _known(store, key, drawn.probe_ids)
    lengths = known["n_context_tokens"].to_numpy()
    pattern = known["pattern"].rank("dense").to_numpy() - 1
    curves = np.exp(typical(drawn.lengths, drawn.nll, np.arange(1, lengths.max() + 1)))
    weights, constants = _weights(drawn, _seen(store, key, drawn.probe_ids, known))
    totals = np.zeros(known.height, np.int64)  # sums of integers: equal pairs give equal bits in any order
    for sample, probe, nll in _stream(store, key, drawn.probe_ids, known):
        gains = (curves[lengths[sample] - 1, probe] - np.exp(np.minimum(nll, _HIGHEST_NLL))) * weights[
            pattern[sample], probe
        ]
        np.add.at(totals, sample, np.rint(np.clip(gains, -_LARGEST, _LARGEST) * _UNIT).astype(np.int64))
    return known.select("sample_id", peers=pl.Series(totals / _UNIT + constants[pattern]))


def peer_gains(
    store: Store, key: ScoreKey, seed: int, sample_ids: Sequence[str], probe_ids: Sequence[str]
) -> np.ndarray:
    """Nats per response token that each sample saves against its peers, on each probe. [samples, probes] of float32;
    NaN where a pair is not stored.

    Args:
        sample_ids, probe_ids: sorted.
    """
    drawn = draw(store, key, seed)
    known = _known(store, key, drawn.probe_ids)
    lengths = known["n_context_tokens"].to_numpy()
    curves = typical(drawn.lengths, drawn.nll, np.arange(1, lengths.max() + 1))
    rows = np.searchsorted(np.array(sample_ids, dtype=np.bytes_), known["sample_id"].to_numpy().astype(np.bytes_))
    columns = np.searchsorted(np.array(probe_ids), np.array(drawn.probe_ids))
    gains = np.full((len(sample_ids), len(probe_ids)), np.nan, np.float32)
    for sample, probe, nll in _stream(store, key, drawn.probe_ids, known):
        gains[rows[sample], columns[probe]] = curves[lengths[sample] - 1, probe] - nll
    return gains


def _stream(
    store: Store, key: ScoreKey, probe_ids: Sequence[str], known: pl.DataFrame
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every pair as the row of its sample in `known`, the place of its probe, and nats per token."""
    with closing(store.connect()) as con:
        con.register("known", known.select("sample_id").with_row_index("sample").to_arrow())
        con.register("listed", pl.DataFrame({"probe_id": probe_ids}).with_row_index("probe").to_arrow())
        pairs = con.sql(
            """
            SELECT sample, probe, nll_sum / n_tokens AS nll FROM pair_scores
            JOIN known USING (sample_id) JOIN listed USING (probe_id) WHERE score_key = $key
            """,
            params={"key": key.value},
        )
        for batch in pairs.to_arrow_reader(_STREAMED_AT_ONCE):
            sample, probe, nll = (
                batch.column(name).to_numpy(zero_copy_only=False) for name in ("sample", "probe", "nll")
            )
            yield sample, probe, nll


def _known(store: Store, key: ScoreKey, probe_ids: Sequence[str]) -> pl.DataFrame:
    """Scored samples of the pool with their length and `pattern`, a name of the set of probes that each was scored
    on."""
    codes = pl.DataFrame({"probe_id": probe_ids, "code": [int(draw_key(0, each)[:15], 16) for each in probe_ids]})
    with closing(store.connect()) as con:
        con.register("probe_code", codes.to_arrow())
        return con.sql(
            """
            SELECT sample_id, any_value(n_context_tokens) AS n_context_tokens, sum(code)::VARCHAR AS pattern
            FROM pair_scores JOIN probe_code USING (probe_id) JOIN contexts USING (score_key, sample_id)
            SEMI JOIN delta.sample_scores USING (score_key, sample_id) SEMI JOIN delta.pool USING (sample_id)
            WHERE score_key = $key GROUP BY sample_id
            """,
            params={"key": key.value},
        ).pl()


def _seen(store: Store, key: ScoreKey, probe_ids: Sequence[str], known: pl.DataFrame) -> np.ndarray:
    """The probes of each pattern, [patterns, probes], in the order of the patterns."""
    example = known.unique("pattern", keep="any").sort("pattern")
    return ~np.isnan(_pairs(store, key, example["sample_id"].to_list(), probe_ids))


def _weights(drawn: Draw, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The linear map from the influences of a pattern's probes to the contribution: a weight for each, divided by the
    probe's perplexity without context, [patterns, probes], and a constant, [patterns]."""
    weights = np.zeros(seen.shape)
    constants = np.zeros(len(seen))
    model = None if seen.all() else ProbeModel.fit(*[peer_influences(drawn)] * 2)
    for place, probes in enumerate(seen):
        if probes.all() or model is None:
            weights[place] = 1 / len(probes)
        else:
            weights[place, probes], constants[place] = model.weights(probes)
    return weights / (np.exp(drawn.base) + 1e-6), constants
