"""Why one sample was chosen or not: its lines, its place in every ranking, what would change it, and its effect on
probes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.probes.leakage import evaluation_index, pool_references, probe_index
from icon_assets.core.publish.named_sample import named_sample
from icon_assets.core.publish.rankings import Rankings
from icon_assets.core.publish.standing import Standing, standing
from icon_assets.core.scoring.contribution import control_lengths, control_seeds
from icon_assets.core.scoring.peers import PEERS
from icon_assets.core.selection.arm import ranks_by
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.core.trust.figures import pool_strata
from icon_assets.workspace import Workspace

SHOWN_PROBES = 3
_TEXTS = ("instruction", "input", "response", "turns")


@dataclass(frozen=True)
class SampleFacts:
    """What is stored about a sample.

    Attributes:
        lines: file, row and is_duplicate of every source line, the first one first.
        context_tokens: its length in the context of a probe; estimated from characters where it is not scored.
        truncated: whether it was cut to scoring.max_context_tokens; None where it is not scored.
        response_tokens: None without features.
        texts: instruction, input, response, and turns: the earlier turns of a chat as JSON, or None.
    """

    sample_id: str
    lines: Sequence[Mapping[str, Any]]
    stratum: str
    characters: int
    context_tokens: int | None
    tokens_are_estimated: bool
    truncated: bool | None
    response_tokens: int | None
    texts: Mapping[str, str | None]


@dataclass(frozen=True)
class ProbeEffect:
    """What the sample does to one probe. NLL in nats per response token; perplexities are exp(NLL).

    Attributes:
        influence: the share of the perplexity without context that the sample takes away, as in the contribution.
        texts: those of the sample and of the probe, side by side.
    """

    probe_id: str
    stratum: str
    nll_without: float
    nll_with: float
    perplexity_without: float
    perplexity_with: float
    perplexity_change: float
    influence: float
    texts: Mapping[str, Mapping[str, str | None]]


@dataclass(frozen=True)
class Why:
    """The answer for one sample.

    Attributes:
        pool: number of unique samples in the pool.
        findings: overlaps with evaluation data or probes, one line each.
        arms: its standing in every arm and draw of the settings, or in the one that was asked for.
        control: what the effects on probes are measured against.
        scored_probes: number of probes that it was scored on; `helps`: most helpful first; `hurts`: most harmful first.
    """

    sample: SampleFacts
    pool: int
    findings: Sequence[str]
    arms: Sequence[Standing]
    control: str
    scored_probes: int
    probes: int
    helps: Sequence[ProbeEffect]
    hurts: Sequence[ProbeEffect]


def why(workspace: Workspace, named: str, arm: str | None = None) -> Why:
    """The reason for one sample.

    Args:
        named: an id, its beginning, or FILE:ROW; see `named_sample`.
        arm: only this arm and its draws; probes are then compared under its control.

    Raises:
        IconError: no single usable sample is meant, or the arm is not among those of the settings.
    """
    store = Store(workspace.store_dir)
    rankings = Rankings(workspace, store)
    names = _arms(rankings, arm)
    sample_id = named_sample(store, named, workspace.settings.pool.path)
    rows = store.query('FROM samples WHERE sample_id = $id ORDER BY file, "row"', {"id": sample_id}).to_dicts()
    facts = _facts(rankings, sample_id, rows)
    control = (ranks_by(arm) if arm else None) or "none"
    control = "none" if control == PEERS else control
    effects = _effects(workspace, rankings, facts, control)
    return Why(
        sample=facts,
        pool=rankings.pool.height,
        findings=_findings(workspace, store, rows),
        arms=[standing(rankings, name, sample_id, workspace.settings) for name in names],
        control=control,
        scored_probes=len(effects),
        probes=store.query("SELECT count(*) FROM probes").item(),
        helps=[each for each in effects[:SHOWN_PROBES] if each.influence > 0],
        hurts=[each for each in reversed(effects[-SHOWN_PROBES:]) if each.influence < 0],
    )


def _arms(rankings: Rankings, arm: str | None) -> list[str]:
    names = rankings.names()
    found = [name for name in names if arm in (None, name, name.partition(".")[0])]
    if not found:
        raise IconError(f"arm {arm}: is not among selection.arms: {', '.join(names)}")
    return found


def _facts(rankings: Rankings, sample_id: str, rows: Sequence[Mapping[str, Any]]) -> SampleFacts:
    """From its rows in the view `samples`, the first one first."""
    store = rankings.store
    asked = {"id": sample_id, "key": rankings.score_key}
    length = rankings.pool.filter(pl.col("sample_id") == sample_id)["n_tokens"]
    scored = store.query("SELECT truncated FROM contexts WHERE sample_id = $id AND score_key = $key LIMIT 1", asked)
    read = store.query("SELECT n_tokens FROM sample_features WHERE sample_id = $id AND score_key = $key LIMIT 1", asked)
    is_scored = "SELECT count(*) FROM sample_scores WHERE sample_id = $id AND score_key = $key"
    strata = pool_strata(store).filter(pl.col("sample_id") == sample_id)["stratum"]
    return SampleFacts(
        sample_id=sample_id,
        lines=[{name: row[name] for name in ("file", "row", "is_duplicate")} for row in rows],
        stratum=next(iter(strata), ""),
        characters=rows[0]["n_chars"],
        context_tokens=next(iter(length), None),
        tokens_are_estimated=not store.query(is_scored, asked).item(),
        truncated=next(iter(scored["truncated"]), None),
        response_tokens=next(iter(read["n_tokens"]), None),
        texts={name: rows[0][name] for name in _TEXTS},
    )


def _findings(workspace: Workspace, store: Store, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the checks of a subset would say of this sample: with a finding, an arm that chooses it is not trained."""
    references = list(pool_references(rows))
    kinds = [("evaluation item", "subset_holds_no_evaluation_item"), ("probe", "subset_holds_no_probe")]
    found = []
    for kind, check in kinds:
        try:
            index = (
                evaluation_index(workspace) if "item" in kind else probe_index(store.query("FROM probes").to_dicts())
            )
        except IconError as error:
            found.append(f"not compared with each {kind}: {error}")
            continue
        met = {f"{each.candidate.file}:{each.candidate.row}": each for each in index.meetings(references)}
        found += [
            f"overlaps with {kind} {place} ({'same prompt' if not each.words else 'words in a row'}): an arm that "
            f"chooses it is not trained (check {check})"
            for place, each in sorted(met.items())
        ]
    return found


def _effects(workspace: Workspace, rankings: Rankings, facts: SampleFacts, control: str) -> list[ProbeEffect]:
    """Its effect on every probe that it was scored on, most helpful first."""
    controls = workspace.settings.controls
    if not rankings.score_key:
        return []
    lengths = control_lengths(rankings.key, controls) if rankings.key else list(controls.lengths)
    asked = {
        "score_key": rankings.score_key,
        "shard": None,
        "samples": [facts.sample_id],
        "controls": [control],
        "seeds": control_seeds(controls),
        "lengths": lengths,
        "ceiling": None,
    }
    rows = rankings.store.query(sql_text("influence.sql") + sql_text("sample_on_probes.sql"), asked)
    return [_effect(row, facts.texts) for row in rows.iter_rows(named=True)]


def _effect(row: Mapping[str, Any], sample: Mapping[str, str | None]) -> ProbeEffect:
    without, behind = (float(np.exp(row[name])) for name in ("nll_without", "nll_with"))
    return ProbeEffect(
        probe_id=row["probe_id"],
        stratum=row["stratum"],
        nll_without=row["nll_without"],
        nll_with=row["nll_with"],
        perplexity_without=without,
        perplexity_with=behind,
        perplexity_change=behind - without if math.isfinite(behind) else behind,
        influence=row["influence"],
        texts={"sample": sample, "probe": {name: row[name] for name in _TEXTS}},
    )
