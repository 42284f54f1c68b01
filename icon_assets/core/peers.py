"""The control `peers`: a sample is held against what candidates of its own token length usually do to a probe.

From stored pairs alone, without a forward. Curves of log perplexity over log length are fitted on a bounded draw of
samples, one per probe; every pair is then held against them in SQL (sql/peers.sql), however many there are.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import polars as pl

from icon_assets.core.digests import draw_key
from icon_assets.core.errors import IconError
from icon_assets.core.probe_model import ProbeModel
from icon_assets.core.score_key import ScoreKey
from icon_assets.core.store import Store, sql_text

PEERS = "peers"
_MOST_SAMPLES, _MOST_PAIRS = 5_000, 2_000_000
_BENDS_FROM = 60  # samples; fewer say no more than a straight line
_KNOTS = 5


@dataclass(frozen=True)
class Draw:
    """Randomly drawn samples of the pool that were scored on every probe.

    Attributes:
        lengths: tokens as a context, [samples].
        nll: nats per token of each probe behind each sample, [samples, probes].
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
    """Draw samples in a seeded order of their ids, the one by which pilots are drawn, up to the first that lacks a probe:
    where only samples near the cut got every probe, the rest of them is no random choice.

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
    if not until:
        raise IconError(
            "control peers: no sample is scored on every probe; materialize sample_scores for every shard first"
        )
    ids, lengths = drawn["sample_id"][:until].to_list(), drawn["n_context_tokens"][:until].to_numpy()
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
    places = {
        name: pl.DataFrame({f"{name}_id": ids}).with_row_index(name)
        for name, ids in (("sample", sample_ids), ("probe", probe_ids))
    }
    placed = rows.join(places["sample"], on="sample_id").join(places["probe"], on="probe_id")
    nll = np.full((len(sample_ids), len(probe_ids)), np.nan)
    nll[placed["sample"].to_numpy(), placed["probe"].to_numpy()] = placed["nll"].to_numpy()
    return nll


def typical(lengths: np.ndarray, nll: np.ndarray, at: np.ndarray) -> np.ndarray:
    """What samples of the lengths `at` usually do: a smooth fit of `nll` over log length, flat outside the lengths seen.

    A cubic spline with few knots, by least squares; of few samples a straight line.

    Args:
        lengths: [samples].
        nll: [samples, probes].

    Returns:
        [at, probes].
    """
    from sklearn.preprocessing import SplineTransformer

    x, asked = np.log(lengths), np.log(np.clip(at, lengths.min(), lengths.max()))
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

    Of a sample that lacks probes (budgeted mode) it is the estimate that its known influences give, as for other controls.
    """
    drawn = draw(store, key, seed)
    known = _known(store, key, drawn.probe_ids)
    most = int(known["n_context_tokens"].max() or 1)  # pyright: ignore
    lengths = np.arange(1, most + 1)
    curves = np.exp(typical(drawn.lengths, drawn.nll, lengths))
    curve = pl.DataFrame({
        "probe_id": np.repeat(drawn.probe_ids, most), "n_context_tokens": np.tile(lengths, len(drawn.probe_ids)),
        "perplexity": curves.T.ravel(),
    })  # fmt: skip
    weights, constants = _weights(store, key, drawn, known)
    with closing(store.connect()) as con:
        for name, frame in (("curve", curve), ("weight", weights), ("known", known.join(constants, on="pattern"))):
            con.register(name, frame.to_arrow())
        return con.sql(sql_text("peers.sql"), params={"score_key": key.value}).pl()


def _known(store: Store, key: ScoreKey, probe_ids: Sequence[str]) -> pl.DataFrame:
    """Scored samples of the pool with their length and `pattern`, a name of the set of probes that each was scored on."""
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


def _weights(store: Store, key: ScoreKey, drawn: Draw, known: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """How the influences of a pattern's probes add up to the contribution: a weight for each, over the probe's perplexity
    without context, and a constant.
    """
    example = known.unique("pattern", keep="first", maintain_order=True)
    seen = ~np.isnan(_pairs(store, key, example["sample_id"].to_list(), drawn.probe_ids))
    model = None if seen.all() else ProbeModel.fit(*[peer_influences(drawn)] * 2)
    scale, rows, constants = 1 / (np.exp(drawn.base) + 1e-6), list[pl.DataFrame](), list[float]()
    for pattern, probes in zip(example["pattern"], seen, strict=True):
        if model is None:
            weight, constant = np.full(len(scale), 1 / len(scale)), 0.0
        else:
            weight, constant = model.weights(probes)
        ids = np.array(drawn.probe_ids)[probes]
        rows.append(pl.DataFrame({"pattern": [pattern] * len(ids), "probe_id": ids, "weight": weight * scale[probes]}))
        constants.append(constant)
    return pl.concat(rows), pl.DataFrame({"pattern": example["pattern"], "constant": constants})
