"""The paper's selector: a LoRA classifier of the top fraction (arXiv 2505.05327), its head trained, its classes
balanced.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.model.flops import model_shape
from icon_assets.core.model.prepare import ModelRecord
from icon_assets.core.passes.costs import Bill, Spent
from icon_assets.core.passes.encoder import Encoder, pool_rows
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.selector.classifier import Classifier, OnEpoch
from icon_assets.core.selector.learning import SELECTOR, Trained, is_top, part_of
from icon_assets.core.store.tables import Store
from icon_assets.settings import SelectorSettings

_PARTS = 10  # of the scored samples: one for the reported metrics, one to choose the epoch, the others for training
_PREDICTED_TOGETHER = 4096


def train_classifier(
    store: Store,
    key: ScoreKey,
    base: ModelRecord,
    encoder: Encoder,
    scored: pl.DataFrame,
    settings: SelectorSettings,
    directory: Path,
    dtype: str,
    device: str,
    on_epoch: OnEpoch,
) -> Trained:
    """Train on eight tenths of the scored samples, which are labelled 1 in the top fraction, keep the epoch that is
    best on a further tenth, and write the model. The last tenth is used for the reported metrics only.

    Raises:
        IconError: one of the three parts holds one label only.
    """
    top = is_top(scored["contribution"], settings.top_fraction)
    parts = np.array([part_of(i, settings.seed, _PARTS) for i in scored["sample_id"]])
    held = parts == 0
    choosing = parts == 1
    learned = parts > 1
    for labels in (top[held], top[choosing], top[learned]):
        if len(set(labels)) < 2:
            raise IconError(
                f"selector: of {len(top)} scored samples, the {len(labels)} in one part are all of one class; score "
                "more samples directly (scoring.direct_share), or set selector.kind to light"
            )
    texts = _texts(store, encoder, scored["sample_id"].to_list())
    train, others = ([texts[i] for i in scored["sample_id"].filter(pl.Series(part))] for part in (learned, choosing))
    model = Classifier.new(base.directory, settings.lora, settings.seed, dtype, device)
    bill = _bill(store, key, base, model, device)

    def settle(epoch: int, precision: float) -> None:
        bill.settle()
        on_epoch(epoch, precision)

    precision = model.train(train, top[learned], others, top[choosing], settings.lora, settings.seed, settle)
    model.save(directory, base.name)
    figures = {"best_epoch": 1 + max(range(len(precision)), key=lambda e: (precision[e], e))}
    unseen, seen = (predicted_by(model, scored["sample_id"].filter(pl.Series(part)), texts) for part in (held, learned))
    bill.settle()
    return Trained(unseen, len(train), figures, seen)


def predicted_by(model: Classifier, sample_ids: pl.Series, texts: Mapping[str, Sequence[int]]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": sample_ids, "score": model.predict([texts[i] for i in sample_ids])})


def _bill(store: Store, key: ScoreKey, base: ModelRecord, model: Classifier, device: str) -> Bill:
    """The costs of a classifier, in training and in prediction."""
    shape = model_shape(base.directory)
    adapter = model.adapter_parameters

    def total() -> Spent:
        done = model.passes
        flops = shape.training_flops(done.learned, adapter) + shape.flops(done.read)
        return Spent(
            done.texts, 0, done.forwards, done.learned.tokens + done.read.tokens, flops, engine="classifier, padded"
        )

    return Bill(store, key, SELECTOR, device, total)


def _texts(store: Store, encoder: Encoder, sample_ids: Sequence[str]) -> dict[str, list[int]]:
    """The token ids of whole samples, as contexts, for the classifier."""
    rows = pool_rows(store, sample_ids)
    return {row["sample_id"]: [*encoder.leading, *encoder.context(row).ids] for row in rows}


def predict_by_classifier(
    store: Store,
    key: ScoreKey,
    shard: str,
    base: ModelRecord,
    encoder: Encoder,
    directory: Path,
    dtype: str,
    device: str,
) -> Iterator[pl.DataFrame]:
    """sample_id and score of the samples of a shard, in chunks. Samples that the classifier was trained on get its own
    scores, which are too high. `crowding` measures by how much."""
    ids = store.query("SELECT DISTINCT sample_id FROM delta.pool WHERE shard = $shard ORDER BY ALL", {"shard": shard})
    if ids.is_empty():
        return
    model = Classifier.load(base.directory, directory, dtype, device)
    bill = _bill(store, key, base, model, device)
    for part in ids.iter_slices(_PREDICTED_TOGETHER):
        texts = _texts(store, encoder, part["sample_id"].to_list())
        predicted = predicted_by(model, part["sample_id"], texts)
        bill.settle()
        yield predicted
