"""A workspace in which everything is on record and nothing was computed, and a second value for every setting.

Whatever decides what is stale reads records, files and settings alone: with those at hand no model is needed.
"""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import polars as pl
import yaml

from icon_assets.core.digests import digest
from icon_assets.core.inputs.ingest import ingest, sample_frame, shard_row
from icon_assets.core.inputs.source_files import SourceFile, discover, shard_key
from icon_assets.core.selection.arm import draws
from icon_assets.core.store.schema import schemas
from icon_assets.core.store.tables import Store
from icon_assets.settings import Section, Settings
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import CHOICES, HELD_OUT, POOL_A, POOL_B, PROBES, alpaca, write_jsonl

ARMS = (
    "full",
    "random",
    "length_matched",
    "longest",
    "rds",
    "perplexity",
    "ifd",
    "icon",
    "rico",
    "rico_chars",
    "icon_peers",
    "lowest",
    "icon_selector",
    "icon_stratified",
)
JUDGE = {"url": "http://127.0.0.1:9/v1", "model": "m"}
# Every part of the settings has a say here: a budget of probes, one of tokens, all arms, a judge.
RICH: Mapping[str, Any] = {
    "model": {"name": "bundled:smollm2-135m-instruct", "dtype": "float32", "device": "cpu"},
    "pool": {"settle_seconds": 0},
    "probes": {"count": 4, "budget": 0.5},
    "controls": {"kinds": ["none", "random_tokens", "random_chars"], "lengths": [8, 32]},
    "selection": {"arms": list(ARMS), "fraction": 0.5, "budget": "tokens", "diversity": 0.9},
    "training": {"seeds": [0, 1], "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "max_tokens": 128},
    "evaluation": {
        "multiple_choice": [{"name": "sums", "path": "eval/sums.jsonl"}],
        "pairwise": {"prompts": [{"name": "talk", "path": "eval/talk.jsonl"}], "judge": JUDGE},
    },
    "automation": {"scoring": "on_change", "train": True},
}
# A target, and the arms for one.
TARGET_KEYS: Mapping[str, Any] = {
    "selection.arms": [*ARMS, "icon_in_turn", "bm25", "combined", "oracle"],
    "evaluation.target": {"samples": "eval/target.jsonl", "choices": "eval/target_items.jsonl"},
}
# The other ways: every pair up to a limit, the other kind of selector, a budget of samples.
PLAIN_KEYS: Mapping[str, Any] = {
    "probes.budget": "auto",
    "probes.exact_pairs": 1000,
    "selector.kind": "lora",
    "selection.budget": "samples",
    "selection.diversity": None,
}
# A second valid value of every setting; where that needs a further key, both.
SECOND: Mapping[str, Mapping[str, Any]] = {
    "model.name": {"model.name": "owner/model", "model.revision": "1" * 40},
    "model.revision": {"model.revision": "1" * 40},
    "model.dtype": {"model.dtype": "bfloat16"},
    "model.device": {"model.device": "auto"},
    "pool.path": {"pool.path": "same_pool"},
    "pool.max_chars": {"pool.max_chars": 99_999},
    "pool.settle_seconds": {"pool.settle_seconds": 0.001},
    "probes.path": {"probes.path": "probes/probes.jsonl"},
    "probes.count": {"probes.count": 3},
    "probes.seed": {"probes.seed": 1},
    "probes.near_duplicate": {"probes.near_duplicate": 0.7},
    "probes.budget": {"probes.budget": "exact"},
    "probes.exact_pairs": {"probes.exact_pairs": 3},
    "probes.error_rate": {"probes.error_rate": 0.2},
    "scoring.template": {"scoring.template": "chat"},
    "scoring.separator": {"scoring.separator": "\n"},
    "scoring.max_context_tokens": {"scoring.max_context_tokens": 100},
    "scoring.max_prompt_tokens": {"scoring.max_prompt_tokens": 100},
    "scoring.max_response_tokens": {"scoring.max_response_tokens": 100},
    "scoring.tokens_per_forward": {"scoring.tokens_per_forward": 512},
    "scoring.commit_seconds": {"scoring.commit_seconds": 1},
    "scoring.direct_share": {"scoring.direct_share": 0.9},
    "controls.kinds": {"controls.kinds": ["none", "random_chars", "random_tokens"]},
    "controls.primary": {"controls.primary": "random_tokens"},
    "controls.seed": {"controls.seed": 1},
    "controls.draws": {"controls.draws": 3},
    "controls.lengths": {"controls.lengths": [8, 16]},
    "selector.kind": {"selector.kind": "lora"},
    "selector.control": {"selector.control": "random_tokens"},
    "selector.top_fraction": {"selector.top_fraction": 0.2},
    "selector.samples": {"selector.samples": 100},
    "selector.folds": {"selector.folds": 3},
    "selector.seed": {"selector.seed": 1},
    "selector.lora.rank": {"selector.lora.rank": 4},
    "selector.lora.alpha": {"selector.lora.alpha": 4},
    "selector.lora.dropout": {"selector.lora.dropout": 0.1},
    "selector.lora.targets": {"selector.lora.targets": "all-linear"},
    "selector.lora.epochs": {"selector.lora.epochs": 2},
    "selector.lora.learning_rate": {"selector.lora.learning_rate": 1e-4},
    "selector.lora.warmup_fraction": {"selector.lora.warmup_fraction": 0.1},
    "selector.lora.batch_size": {"selector.lora.batch_size": 8},
    "selector.lora.micro_batch_size": {"selector.lora.micro_batch_size": 8},
    "selection.arms": {"selection.arms": list(reversed(ARMS))},
    "selection.fraction": {"selection.fraction": 0.4},
    "selection.seed": {"selection.seed": 1},
    "selection.budget": {"selection.budget": "samples"},
    "selection.diversity": {"selection.diversity": None},
    "selection.aggregate": {"selection.aggregate": "in_turn"},
    "selection.turns": {"selection.turns": "strata"},
    "selection.combined.rankings": {"selection.combined.rankings": ["icon", "bm25"]},
    "selection.combined.ifd_below": {"selection.combined.ifd_below": None},
    "selection.length_strata": {"selection.length_strata": 3},
    "selection.reference": {"selection.reference": "longest"},
    "selection.length_warning": {"selection.length_warning": 0.9},
    "training.preset": {"training.preset": "paper"},
    "training.seeds": {"training.seeds": [0, 2]},
    "training.method": {"training.method": "full"},
    "training.template": {"training.template": "chat"},
    "training.epochs": {"training.epochs": 2},
    "training.learning_rate": {"training.learning_rate": 1e-4},
    "training.batch_size": {"training.batch_size": 8},
    "training.micro_batch_size": {"training.micro_batch_size": 2},
    "training.packing": {"training.packing": False},
    "training.gradient_checkpointing": {"training.gradient_checkpointing": True},
    "training.processes": {"training.processes": 1},
    "training.warmup_fraction": {"training.warmup_fraction": 0.1},
    "training.scheduler": {"training.scheduler": "linear"},
    "training.max_tokens": {"training.max_tokens": 96},
    "training.lora_rank": {"training.lora_rank": 4},
    "training.lora_alpha": {"training.lora_alpha": 4},
    "training.lora_dropout": {"training.lora_dropout": 0.1},
    "training.lora_targets": {"training.lora_targets": ["q_proj"]},
    "training.save_every_steps": {"training.save_every_steps": 5},
    "evaluation.multiple_choice.path": {
        "evaluation.multiple_choice": [{"name": "sums", "path": "eval/other_sums.jsonl"}]
    },
    "evaluation.multiple_choice.name": {"evaluation.multiple_choice": [{"name": "adds", "path": "eval/sums.jsonl"}]},
    "evaluation.held_out": {"evaluation.held_out": None},
    "evaluation.target.samples": {
        "evaluation.target": {"samples": "eval/other_target.jsonl", "choices": "eval/target_items.jsonl"}
    },
    "evaluation.target.choices": {"evaluation.target": {"samples": "eval/target.jsonl", "choices": "eval/sums.jsonl"}},
    "evaluation.tasks": {"evaluation.tasks": ["arc_easy"]},
    "evaluation.limit": {"evaluation.limit": 3},
    "evaluation.batch_size": {"evaluation.batch_size": 2},
    "evaluation.bootstrap_draws": {"evaluation.bootstrap_draws": 500},
    "evaluation.confidence": {"evaluation.confidence": 0.9},
    "evaluation.pairwise.prompts.path": {
        "evaluation.pairwise.prompts": [{"name": "talk", "path": "eval/other_talk.jsonl"}]
    },
    "evaluation.pairwise.prompts.name": {"evaluation.pairwise.prompts": [{"name": "chat", "path": "eval/talk.jsonl"}]},
    "evaluation.pairwise.judge.url": {"evaluation.pairwise.judge.url": "http://127.0.0.1:8/v1"},
    "evaluation.pairwise.judge.model": {"evaluation.pairwise.judge.model": "n"},
    "evaluation.pairwise.judge.api_key_variable": {"evaluation.pairwise.judge.api_key_variable": "PATH"},
    "evaluation.pairwise.judge.options": {"evaluation.pairwise.judge.options": {"temperature": 1}},
    "evaluation.pairwise.judge.requests_at_once": {"evaluation.pairwise.judge.requests_at_once": 2},
    "evaluation.pairwise.against": {"evaluation.pairwise.against": "longest"},
    "evaluation.pairwise.max_new_tokens": {"evaluation.pairwise.max_new_tokens": 64},
    "evaluation.pairwise.limit": {"evaluation.pairwise.limit": 1},
    "evaluation.pairwise.timeout_seconds": {"evaluation.pairwise.timeout_seconds": 5},
    "automation.scoring": {"automation.scoring": "nightly"},
    "automation.cron": {"automation.cron": "0 3 * * *"},
    "automation.time_zone": {"automation.time_zone": "Europe/Berlin"},
    "automation.discover_seconds": {"automation.discover_seconds": 60},
    "automation.train": {"automation.train": False},
    "checks.content_rows": {"checks.content_rows": 7},
    "sql.timeout_seconds": {"sql.timeout_seconds": 5},
    "sql.memory": {"sql.memory": "1GB"},
    "sql.threads": {"sql.threads": 1},
    "sql.temp_space": {"sql.temp_space": "1GB"},
    "ui.host": {"ui.host": "0.0.0.0"},
    "ui.allowed_hosts": {"ui.allowed_hosts": ["icon.example.com"]},
    "ui.token": {"ui.token": "never"},
}


def every_setting(section: type[Any] = Settings, prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting, down to those of sections in lists and of sections that may be left out."""
    for name, field in section.model_fields.items():
        inner = list(sections_in(field.annotation))
        for each in inner:
            yield from every_setting(each, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field may hold, in lists too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def flipped(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with some dotted keys set otherwise."""
    result: dict[str, Any] = deepcopy(dict(values))
    for dotted, value in keys.items():
        *sections, last = dotted.split(".")
        place = result
        for name in sections:
            place = place.setdefault(name, {})
        place[last] = value
    return result


def with_settings(root: Path, values: Mapping[str, Any]) -> Workspace:
    (root / "settings.yaml").write_text(yaml.safe_dump(dict(values)), "utf-8")
    return Workspace.load(root)


def _pool_files(root: Path) -> list[SourceFile]:
    """Under the keys of 8 digits that files were given at the time of `recipes_before.json`."""
    names = [source.file for source in discover(root / "pool")]
    return discover(root / "pool", on_record={shard_key(name)[: 8 - len(digest(name))]: name for name in names})


def furnish(root: Path, values: Mapping[str, Any] = RICH) -> Workspace:
    """Lay out the workspace and put every product on record, as if it were made by a recipe that nobody has any
    more."""
    _write_inputs(root)
    workspace = with_settings(root, values)
    store = Store(workspace.store_dir)
    for source in _pool_files(root):
        ingested = ingest(source, workspace.settings.pool.max_chars)
        store.replace("samples", sample_frame(source, ingested), shard=source.shard)
        store.replace("shards", shard_row(source, ingested), shard=source.shard)
    store.replace("probe_candidates", _probes())
    put_on_record(store, every_product(workspace))
    return workspace


def _write_inputs(root: Path) -> None:
    for pool in ("pool", "same_pool"):
        write_jsonl(root / pool / "a.jsonl", POOL_A)
        write_jsonl(root / pool / "b.jsonl", POOL_B)
    write_jsonl(root / "probes" / "probes.jsonl", PROBES)
    for name in ("held_out", "target", "other_target"):
        write_jsonl(root / "eval" / f"{name}.jsonl", HELD_OUT)
    for name in ("sums", "other_sums", "target_items"):
        write_jsonl(root / "eval" / f"{name}.jsonl", CHOICES)
    for name in ("talk", "other_talk"):
        write_jsonl(root / "eval" / f"{name}.jsonl", [alpaca("Name a lake.", "")])
    figures = {"n_parameters": 1, "n_layers": 1, "hidden_size": 1, "vocabulary_size": 1, "max_positions": 8192}
    record = {"name": "m", "revision": "r", "digest": "weights", **figures}
    (root / "models" / "m").mkdir(parents=True)
    (root / "models" / "m" / "icon_model.json").write_text(json.dumps(record))


def _probes() -> pl.DataFrame:
    names = schemas()["probe_candidates"].names
    rows = [{"probe_id": f"p{n}", "status": "selected"} for n in range(4)]
    return pl.DataFrame(rows, schema={name: pl.Int64 if name == "row" else pl.String for name in names})


def every_product(workspace: Workspace) -> list[tuple[str, str]]:
    """Asset and partition of everything on record, draws of arms among them, in the order in which they are made."""
    settings = workspace.settings
    shards = [source.shard for source in _pool_files(workspace.root)]
    arms = settings.selection.arms
    seeds = settings.training.seeds
    runs = [f"{arm}|{seed}" for arm in arms for seed in seeds]
    pairwise = settings.evaluation.pairwise
    judged = [f"{arm}|{seed}" for arm in arms for seed in seeds if pairwise and arm != pairwise.against]
    parts = {
        "raw_pool": shards,
        "probe_set": [""],
        "base_model": [""],
        "probe_baseline": [""],
        "sample_scores": shards,
        "sample_features": shards,
        "probe_features": [""],
        "selector": [""],
        "predicted_scores": shards,
        "selected_subset": [name for arm in arms for name in draws(arm, seeds)],
        "selection_trust": arms,
        "checkpoint": runs,
        "base_eval": [""],
        "eval_results": runs,
        "answers": runs if pairwise else [],
        "pairwise_results": judged,
        "leaderboard": [""],
        "report": [""],
    }
    return [(asset, part) for asset, names in parts.items() for part in names]


def put_on_record(store: Store, products: list[tuple[str, str]]) -> None:
    """One ledger row for each, with a digest that is its name's and a fingerprint that is nobody's."""
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    summary = {"base_model": {"path": "models/m", "dtype": "float32"}}
    rows = [
        {
            "event_id": f"{number:06}",
            "created_at": begin + timedelta(seconds=number),
            "asset": asset,
            "partition": part,
            "digest": digest([asset, part]),
            "fingerprint": "",
            "inputs": "[]",
            "settings": "{}",
            "seed": None,
            "code_version": "",
            "run_id": "",
            "summary": json.dumps(summary.get(asset, {"checkpoint_id": part})),
        }
        for number, (asset, part) in enumerate(products)
    ]
    store.append("ledger", pl.DataFrame(rows, schema_overrides={"seed": pl.Int64}).select(schemas()["ledger"].names))
