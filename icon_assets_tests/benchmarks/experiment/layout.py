"""The experiment's workspace: a draw of pool, probes, held-out samples and evaluation items from real data, by path."""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from icon_assets_tests.benchmarks.common import draw_lines

TASKS = ("arc_easy", "openbook_qa", "commonsense_qa", "piqa")
ARMS = (
    "full",
    "random",
    "length_matched",
    "longest",
    "icon",
    "rico",
    "icon_peers",
    "icon_selector",
    "icon_stratified",
    "lowest",
)
# Is it what is chosen, or how much of it there is to train on? Lengths are those of the arm that follows length least.
EQUAL_TOKENS = {
    "budget": "tokens",
    "reference": "icon_peers",
    "arms": ["full", "random", "length_matched", "longest", "icon", "icon_peers", "icon_stratified"],
}
SHARDS = 8
# What a later run may not ask for otherwise; arms and fraction are what a workspace's owner may change.
_COMPARED = {"model": ("name", "dtype"), "probes": ("count", "seed"), "training": ("seeds", "epochs", "batch_size")}


def lay_out(root: Path, arguments: argparse.Namespace) -> None:
    """Draw everything, once: a workspace that is there is gone on with, whatever the arguments say now, and a line says
    so."""
    if (root / "settings.yaml").is_file():
        if differing := differences(root, arguments):
            print(f"{root}: goes on with what is there: {'; '.join(differing)}", file=sys.stderr)
        return
    for name in ("pool", "probes", "eval"):
        (root / name).mkdir(parents=True, exist_ok=True)
    pool = draw_lines(arguments.pool, arguments.samples, arguments.seed)
    for index in range(SHARDS):
        _write(root / "pool" / f"part{index}.jsonl", pool[index::SHARDS])
    probes, held_out = _split(arguments)
    _write(root / "probes" / "probes.jsonl", probes)
    _write(root / "eval" / "held_out.jsonl", held_out)
    for task in TASKS:
        items = draw_lines(arguments.eval / f"{task}.jsonl", arguments.items, arguments.seed)
        _write(root / "eval" / f"{task}.jsonl", items)
    write_settings(root, settings(arguments))


def differences(root: Path, arguments: argparse.Namespace) -> list[str]:
    """What the workspace has otherwise than the arguments ask for."""
    there = {
        "samples": _n_lines(*(root / "pool").glob("*.jsonl")),
        "held out": _n_lines(root / "eval" / "held_out.jsonl"),
        "items": _n_lines(root / "eval" / f"{TASKS[0]}.jsonl"),
        **_choices(yaml.safe_load((root / "settings.yaml").read_text("utf-8"))),
    }
    asked = {
        "samples": arguments.samples,
        "held out": arguments.held_out,
        "items": arguments.items,
        **_choices(settings(arguments)),
    }
    return [f"{name} {there[name]}, not {asked[name]}" for name in asked if there[name] != asked[name]]


def _choices(values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": values[section].get(key) for section, keys in _COMPARED.items() for key in keys}


def _n_lines(*paths: Path) -> int:
    return sum(path.read_text("utf-8").count("\n") for path in paths)


def write_settings(root: Path, values: dict[str, Any]) -> None:
    (root / "settings.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": {"name": arguments.model, "dtype": arguments.dtype},
        "probes": {"count": arguments.n_probes, "seed": arguments.seed, "budget": "exact"},
        "selection": {"arms": list(ARMS), "fraction": arguments.fractions[0]},
        "training": {
            "seeds": list(range(arguments.seeds)),
            "epochs": arguments.epochs,
            "batch_size": arguments.batch_size,
            "max_tokens": 512,
        },
        "evaluation": {
            "multiple_choice": [{"name": task, "path": f"eval/{task}.jsonl"} for task in TASKS],
            "held_out": "eval/held_out.jsonl",
        },
        "automation": {"scoring": "off"},
    }


def _split(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Short candidates as probes (a CPU pays per token), further ones of up to twice the length as held-out samples."""
    lines = arguments.probes.read_text("utf-8").splitlines()
    random.Random(arguments.seed).shuffle(lines)
    short = [line for line in lines if len(line) <= arguments.probe_chars]
    probes = short[: round(1.1 * arguments.n_probes)]  # a few are near-duplicates of others
    rest = [line for line in lines if line not in set(probes) and len(line) <= 2 * arguments.probe_chars]
    return [_with_stratum(line) for line in probes], [_with_stratum(line) for line in rest[: arguments.held_out]]


def _with_stratum(line: str) -> str:
    row = json.loads(line)
    return json.dumps({"prompt": row["inputs"], "completion": row["response"], "stratum": row["dataset"]})


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", "utf-8")
