"""Where choosing should pay: a mixed pool in which one sample in twenty is of the task that one cares about.

    python -m icon_assets_tests.benchmarks.target --data MIXED --folder F [--train]

Every target has a workspace below `--folder`, which stays, so that a run goes on with what an earlier one finished.
Probes and the sealed test are in wordings that the pool does not have, and share no text with it. Without `--train` the
samples are only chosen: how many are of the target's family, or of its relatives? With it, every arm is trained and
measured on the sealed test."""

import csv
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icon_assets.core.inputs.sample import parse_row
from icon_assets.core.probes.overlap import Candidate, Index, Reference
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.runner import stages_before_training
from icon_assets.workspace import Workspace
from icon_assets_tests.benchmarks.common import parser, report
from icon_assets_tests.benchmarks.experiment.layout import write_settings
from icon_assets_tests.benchmarks.experiment.workspaces import copy, materialize

ARMS = (
    "random",
    "length_matched",
    "longest",
    "bm25",
    "rds",
    "ifd",
    "icon",
    "icon_in_turn",
    "icon_peers",
    "icon_selector",
    "combined",
    "oracle",
)
_MOST_LABELS = 20  # a task with more different answers is not classification
_MOST_CHARS = 4_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A family of tasks, and the families that are of the same kind."""

    kind: str
    family: str
    relatives: tuple[str, ...] = ()


TARGETS = {
    "topics": Target("classification", "dbpedia_14"),
    "summaries": Target("summarising", "xsum", ("gigaword", "cnn_dailymail", "multi_news")),
    "extraction": Target("extractive question answering", "adversarial_qa", ("ropes", "duorc")),
    "concepts": Target("generation from concepts", "common_gen"),
}


def main() -> None:
    options = parser(__doc__, data=False)
    options.add_argument("--data", type=Path, required=True, help=".jsonl of prompt, completion, family, template")
    options.add_argument("--folder", type=Path, required=True, help="where the workspaces are, or are to be laid out")
    options.add_argument("--model", default="bundled:smollm2-135m-instruct", help="as in the settings")
    options.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    options.add_argument("--samples", type=int, default=1000, help="of the pool")
    options.add_argument("--share", type=float, default=0.05, help="of the pool that is of the target's family")
    options.add_argument("--n-probes", type=int, default=12)
    options.add_argument("--test", type=int, default=80, help="samples of the sealed test")
    options.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.15])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=float, default=2)
    options.add_argument("--train", action="store_true", help="train and measure every arm, too")
    options.add_argument("--csv", type=Path, help="write one row per target, fraction, arm and seed there")
    arguments = options.parse_args()
    rows = [row for name in arguments.targets for row in _measured(name, arguments)]
    if arguments.csv:
        with arguments.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    report(arguments, {"rows": rows}, _lines)


# What is drawn


def _measured(name: str, arguments: Any) -> Iterator[Row]:
    first, *others = (arguments.folder / f"{name}-{100 * fraction:g}" for fraction in arguments.fractions)
    if not (first / "settings.yaml").is_file():
        _lay_out(first, TARGETS[name], arguments)
    for root, fraction in zip((first, *others), arguments.fractions, strict=True):
        if not root.exists():
            copy(first, root, {"fraction": fraction})
        workspace = Workspace.load(root)
        materialize(workspace, () if arguments.train else stages_before_training(build_assets(workspace)))
        yield from _figures(name, TARGETS[name], workspace)


def _lay_out(root: Path, target: Target, arguments: Any) -> None:
    draw = random.Random(arguments.seed)
    lines = arguments.data.read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if len(row["prompt"]) + len(row["completion"]) <= _MOST_CHARS]
    draw.shuffle(rows)
    own = [row for row in rows if row["family"] == target.family]
    wordings = sorted({row["template"] for row in own})
    draw.shuffle(wordings)
    sealed = set(wordings[: len(wordings) // 2])
    asked = [row for row in own if row["template"] in sealed]
    probes = asked[: 2 * arguments.n_probes]  # some are near-duplicates of others
    test = asked[2 * arguments.n_probes :][: arguments.test]
    free = _without_overlap([row for row in rows if row not in asked], [*probes, *test])
    wanted = round(arguments.share * arguments.samples)
    pool = [row for row in free if row["family"] == target.family][:wanted]
    pool += [row for row in free if row["family"] != target.family][: arguments.samples - len(pool)]
    draw.shuffle(pool)
    for path, part in (("pool/pool.jsonl", pool), ("probes/probes.jsonl", probes), ("eval/target.jsonl", test)):
        _write(root / path, [_sample(row) for row in part])
    items = _items(test)
    if items:
        _write(root / "eval" / "target_items.jsonl", items)
    write_settings(root, _settings(bool(items), arguments))


def _without_overlap(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Rows that share no prompt and no 13 words in a row with the answer of one of the others."""
    index = Index(Candidate(parse_row(_sample(row), _MOST_CHARS * 2)[0], "", "", 0) for row in others)
    found = {
        meeting.reference
        for meeting in index.meetings(
            Reference(str(place), row["prompt"], f"{row['prompt']} {row['completion']}")
            for place, row in enumerate(rows)
        )
    }
    return [row for place, row in enumerate(rows) if str(place) not in found]


def _sample(row: Row) -> Row:
    return {"prompt": row["prompt"], "completion": row["completion"], "stratum": row["family"]}


def _items(test: Sequence[Row]) -> list[Row]:
    """Multiple-choice items where the wordings have few different answers; none otherwise."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in test:
        labels[row["template"]].add(row["completion"])
    if any(len(each) > _MOST_LABELS or len(each) < 2 for each in labels.values()):
        return []
    return [
        {
            "query": row["prompt"],
            "choices": (known := sorted(labels[row["template"]])),
            "gold": known.index(row["completion"]),
        }
        for row in test
    ]


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _settings(has_items: bool, arguments: Any) -> Row:
    target = {"samples": "eval/target.jsonl", **({"choices": "eval/target_items.jsonl"} if has_items else {})}
    return {
        "model": {"name": arguments.model},
        "probes": {"count": arguments.n_probes, "seed": arguments.seed, "budget": "exact"},
        "controls": {"kinds": ["none"], "primary": "none"},
        "selection": {"arms": list(ARMS), "fraction": arguments.fractions[0]},
        "training": {
            "seeds": list(range(arguments.seeds)),
            "epochs": arguments.epochs,
            "batch_size": 16,
            "max_tokens": 512,
        },
        "evaluation": {"held_out": None, "target": target},
        "automation": {"scoring": "off"},
    }


# What is found


def _figures(name: str, target: Target, workspace: Workspace) -> Iterator[Row]:
    """One row per arm and seed, or per arm and draw where nothing was trained."""
    store = Store(workspace.store_dir)
    chosen = store.query(
        """
        WITH known AS (
            SELECT DISTINCT sample_id, metadata->>'stratum' = $family AS own,
                list_contains($relatives::VARCHAR[], metadata->>'stratum') AS related FROM samples
        )
        SELECT arm, subset_id, count(*) AS chosen, count(*) FILTER (own) AS found,
            (SELECT count(*) FROM known WHERE own) AS found_of, count(*) FILTER (related) AS relatives,
            (SELECT count(*) FROM known WHERE related) AS relatives_of
        FROM selections SEMI JOIN subsets USING (arm, subset_id) JOIN known USING (sample_id) GROUP BY ALL ORDER BY arm
        """,
        {"family": target.family, "relatives": list(target.relatives)},
    )
    measured = store.query(
        """
        SELECT c.subset_id, r.arm, r.seed, c.n_tokens AS training_tokens, c.seconds AS training_seconds,
            max(r.value) FILTER (r.metric = 'perplexity') AS perplexity,
            max(r.value) FILTER (r.metric = 'acc') AS accuracy
        FROM current_results r LEFT JOIN checkpoints c USING (checkpoint_id) WHERE r.task = 'target' GROUP BY ALL
        """
    )
    empty = dict.fromkeys(("seed", "training_tokens", "training_seconds", "perplexity", "accuracy"))
    by_subset = {row["subset_id"]: row for row in chosen.to_dicts()}
    runs = measured.sort("arm", "seed").to_dicts() or [{"subset_id": each, **empty} for each in by_subset]
    for run in runs:
        about = by_subset.get(run["subset_id"], dict.fromkeys(chosen.columns) | {"arm": run.get("arm")})
        figures = {key: value for key, value in {**about, **run, "arm": about["arm"]}.items() if key != "subset_id"}
        yield {"target": name, "kind": target.kind, "fraction": workspace.settings.selection.fraction, **figures}


def _lines(result: Row) -> Iterator[str]:
    yield "| target | fraction | arm | found | relatives | perplexity | accuracy | training tokens |"
    yield "|---|---|---|---|---|---|---|---|"
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in result["rows"]:
        grouped[row["target"], row["fraction"], str(row["arm"]).split(".")[0]].append(row)
    for (target, fraction, arm), rows in grouped.items():
        found = f"{_each(rows, 'found')} of {rows[0]['found_of']}" if rows[0]["found"] is not None else "-"
        yield (
            f"| {target} | {fraction:g} | {arm} | {found} | {_each(rows, 'relatives')} | {_mean(rows, 'perplexity')} "
            f"| {_mean(rows, 'accuracy')} | {_mean(rows, 'training_tokens', 0)} |"
        )


def _each(rows: Sequence[Row], key: str) -> str:
    return ", ".join(dict.fromkeys(str(row[key]) for row in rows if row[key] is not None)) or "-"


def _mean(rows: Sequence[Row], key: str, digits: int = 3) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return "-"
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
    return f"{mean:,.{digits}f}" + (f" ± {spread:,.{digits}f}" if spread is not None else "")


if __name__ == "__main__":
    main()
