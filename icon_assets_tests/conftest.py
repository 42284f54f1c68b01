"""What tests share: tiny random models with a real tokenizer, and workspaces made of a few rows."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import settings as hypothesis_settings

from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.inputs.ingest import Ingested, shard_row
from icon_assets.core.inputs.source_files import SourceFile
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.browser import browser as browser

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests share the cores: each with all of them for torch would be slower
    os.environ["OMP_NUM_THREADS"] = "1"
# How long an example takes says more about the machine than about the code.
hypothesis_settings.register_profile("untimed", deadline=None)
hypothesis_settings.load_profile("untimed")

TEXTS = [
    "### Instruction:\nName three rivers of Europe.\n\n### Response:The Rhine, the Danube and the Loire.",
    "### Instruction:\nTranslate into German.\n\n### Input: good morning\n\n### Response:Guten Morgen",
    "What is 12 times 12? It is 144, because 12 times 10 is 120 and 12 times 2 is 24.",
    "def double(x):\n    return x * 2\n",
]


def make_tokenizer(bos: bool) -> Any:
    """A byte-level BPE tokenizer of 400 entries; with `bos` it opens every text with a BOS, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_model(kind: str, **overrides: Any) -> Any:
    """A random causal model of the named shape, two small layers, weights large enough that contexts matter."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(7)
    values = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.25,
        "head_dim": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if kind == "gpt_neox":
        values = {name: value for name, value in values.items() if name not in {"num_key_value_heads", "head_dim"}}
    config = CONFIG_MAPPING[kind](**{**values, **overrides})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with its tokenizer, saved as safetensors."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    make_model("llama").save_pretrained(folder)
    make_tokenizer(bos=True).save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def alpaca(instruction: str, output: str, input: str = "", **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "input": input, "output": output, **more}


def put_shards(store: Store, *shards: str) -> None:
    """Put shards on record, so that their rows are in the pool."""
    for shard in shards:
        source = SourceFile(shard, f"{shard}.jsonl", Path())
        store.replace("shards", shard_row(source, Ingested("d", 1, 1)), shard=shard)


def put_embeddings(
    store: Store, samples: Mapping[str, np.ndarray], probes: Mapping[str, np.ndarray] | None = None
) -> Embeddings:
    """Put vectors of samples and probes into a store, with what makes them part of the pool and of the probe set."""
    text = {**dict.fromkeys(("file", "instruction", "input", "response"), "x"), "turns": None, "metadata": None}
    nulls = {"turns": pl.String, "metadata": pl.String}
    rows = [{"shard": "a", "row": i, "sample_id": name, "n_chars": 1, **text} for i, name in enumerate(samples)]
    put_shards(store, "a")
    store.replace("samples", pl.DataFrame(rows, schema_overrides=nulls), shard="a")
    figures = {"score_key": "key", "origin": "a", "n_tokens": 4, "nll_sum": 2.0, "nll_alone": 3.0, "truncated": False}
    store.append(
        "sample_features",
        pl.DataFrame(
            [{**figures, "sample_id": name, "embedding": vector.tolist()} for name, vector in samples.items()]
        ),
    )
    if probes:
        chosen = {**text, "status": "selected", "stratum": "x", "detail": "", "row": 1}
        store.replace(
            "probe_candidates", pl.DataFrame([{**chosen, "probe_id": name} for name in probes], schema_overrides=nulls)
        )
        store.replace(
            "probe_features",
            pl.DataFrame(
                [
                    {"score_key": "key", "probe_id": name, "embedding": vector.tolist()}
                    for name, vector in probes.items()
                ]
            ),
        )
    return Embeddings(store, "key")


POOL_A = [
    alpaca("Name a river in France.", "The Loire is the longest river in France."),
    alpaca("Add the numbers.", "The sum is 12.", "5 and 7"),
    alpaca("Write one line of Python that doubles x.", "x = x * 2"),
    alpaca("What colour is the sky on a clear day?", "Blue."),
]
POOL_B = [
    alpaca("What colour is the sky on a clear day?", "Blue."),
    alpaca("Say good morning in German.", "Guten Morgen"),
    alpaca("Give a synonym of quick.", "Fast"),
]
PROBES = [
    alpaca("How many legs has a spider?", "Eight.", stratum="facts"),
    alpaca("Which planet is closest to the sun?", "Mercury is the closest planet to the sun.", stratum="facts"),
    alpaca("Make this polite.", "Could you please close the door?", "close the door", stratum="rewrite"),
    alpaca("Shorten this.", "It rained.", "There was a lot of rain yesterday.", stratum="rewrite"),
    alpaca("What is 3 times 4?", "12", stratum="math"),
]
HELD_OUT = [
    alpaca("Name a bird that cannot fly.", "The ostrich cannot fly.", stratum="facts"),
    alpaca("Make this shorter.", "He ran home.", "He was running to his home.", stratum="rewrite"),
]
CHOICES = [{"query": f"What is {n} plus 1?", "choices": [str(n + 1), str(n + 5)], "gold": 0} for n in range(6)]


STAGES = (
    "raw_pool",
    "probe_set",
    "base_model",
    "probe_baseline",
    "sample_scores",
    "sample_features",
    "probe_features",
    "selector",
    "predicted_scores",
    "selected_subset",
    "selection_trust",
    "checkpoint",
    "base_eval",
    "eval_results",
    "answers",
    "pairwise_results",
    "leaderboard",
    "report",
)
SCORING_STAGES = STAGES[: STAGES.index("sample_features")]
TRAINING = {"seeds": [0], "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "max_tokens": 128}
TWO_SHARDS = {"a.jsonl": POOL_A, "b.jsonl": POOL_B}


def lay_out(
    root: Path, model_dir: Path, files: dict[str, list[dict[str, Any]]] = TWO_SHARDS, **sections: Any
) -> Workspace:
    """A workspace of a few rows on the given model; keyword arguments replace whole settings sections."""
    for name, rows in files.items():
        write_jsonl(root / "pool" / name, rows)
    write_jsonl(root / "probes" / "probes.jsonl", PROBES)
    write_jsonl(root / "eval" / "held_out.jsonl", HELD_OUT)
    write_jsonl(root / "eval" / "sums.jsonl", CHOICES)
    settings = {
        "model": {"name": str(model_dir), "dtype": "float32", "device": "cpu"},
        "pool": {"settle_seconds": 0},
        "probes": {"count": 4},
        "scoring": {"max_context_tokens": 128, "max_prompt_tokens": 64, "max_response_tokens": 64},
        "controls": {"lengths": [8, 32], "draws": 2},
        "selection": {"arms": ["full", "random", "icon"], "fraction": 0.5},
        "training": TRAINING,
        "evaluation": {
            "multiple_choice": [{"name": "sums", "path": "eval/sums.jsonl"}],
            "held_out": "eval/held_out.jsonl",
        },
    }
    (root / "settings.yaml").write_text(yaml.safe_dump({**settings, **sections}), "utf-8")
    return Workspace.load(root)


@pytest.fixture
def make_workspace(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., Workspace]:
    """Lay out a workspace, as `lay_out` does."""

    def make(**sections: Any) -> Workspace:
        return lay_out(tmp_path / "workspace", tiny_model_dir, **sections)

    return make


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    from icon_assets.definitions import build_assets
    from icon_assets.runner import run_stages

    root = tmp_path_factory.mktemp("finished") / "workspace"
    workspace = lay_out(root, tiny_model_dir, selection={"arms": ["icon"], "fraction": 0.5})
    with dg.DagsterInstance.ephemeral() as instance, pytest.MonkeyPatch.context() as patch:
        patch.setattr("icon_assets.core.selector.learning.LEAST_SAMPLES", 4)
        outcomes = list(run_stages(build_assets(workspace), workspace, instance, STAGES, asked=STAGES))
    assert [(o.name, o.error or o.warning) for o in outcomes if o.error or o.warning] == []
    return root


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Workspace], Workspace]:
    """Copy a workspace that several tests start from."""

    def copy(workspace: Workspace) -> Workspace:
        shutil.copytree(workspace.root, tmp_path / "copy")
        return Workspace.load(tmp_path / "copy")

    return copy


@pytest.fixture
def finished(_finished: Path, copy_of: Callable[[Workspace], Workspace]) -> Workspace:
    """A workspace in which the whole graph was materialized for one arm and one seed: a copy to spoil."""
    return copy_of(Workspace.load(_finished))


def change(workspace: Workspace, section: str, values: dict[str, Any]) -> None:
    """Replace a section of a workspace's settings.yaml."""
    path = workspace.root / "settings.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, section: values}))
