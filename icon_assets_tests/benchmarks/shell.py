"""What everything around the model costs as the pool grows: files, tables, SQL, runs, the UI. The NLLs are made up.

The engine, its tokenizer and the model's files are stand-ins; ingest, plan, scoring pass, Delta commits, scores,
selection and Dagster's runs are the real ones, in one workspace that grows to the whole pool in three steps."""

import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import dagster as dg
import polars as pl
import yaml

from icon_assets.assets.pool import pool_files
from icon_assets.core.engine.engine import Meter, Pair
from icon_assets.core.model.flops import ModelShape, Work
from icon_assets.core.model.prepare import ModelRecord
from icon_assets.core.planning.recipes import Recipes
from icon_assets.core.store import ledger
from icon_assets.core.store.schema import schemas
from icon_assets.definitions import build_assets
from icon_assets.home import open_instance
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import Outcome, run_stages
from icon_assets.sensors import build_sensors
from icon_assets_tests.benchmarks.common import parser, report

_STEPS = (1 / 16, 1 / 4, 1.0)
_TOP = "FROM current_scores ORDER BY contribution DESC LIMIT 10"
_VOCABULARY = [f"w{n}" for n in range(2_000)]


class MadeUpEngine:
    """Answers every pair at once, with a figure that only its place decides."""

    description = "packed"
    language_model = SimpleNamespace(device=SimpleNamespace(type="cpu"))

    def __init__(self) -> None:
        self.meter = Meter()
        self.language_model.tokenizer = Tokenizer()

    def compile_for(self, tokens: int) -> bool:
        return False

    def score(
        self, contexts: Sequence[Sequence[int]], probes: Sequence[Any], wanted: Sequence[Sequence[int]]
    ) -> Iterator[list[Pair]]:
        draw = random.Random(1)
        for index, needs in enumerate(wanted):
            self.meter.forwards += 1
            self.meter.pairs += len(needs)
            self.meter.work += Work(len(contexts[index]), len(contexts[index]), len(needs))
            yield [
                Pair(index, probe, draw.uniform(1, 3) * (n := len(probes[probe].response_ids)), n) for probe in needs
            ]


class Tokenizer:
    """One token per word."""

    bos_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[len(word) for word in text.split()])

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(_VOCABULARY)}


def main() -> None:
    arguments_of = parser(__doc__, data=False)
    arguments_of.add_argument("--samples", type=int, default=1_000_000)
    arguments_of.add_argument("--shards", type=int, default=200)
    arguments_of.add_argument("--count", type=int, default=16, help="probes")
    arguments_of.add_argument("--budget", default="exact", help="probes.budget: exact, auto or a share")
    arguments_of.add_argument(
        "--files", type=int, default=2_000, help="of the pool that discovery and the UI are timed on"
    )
    arguments = arguments_of.parse_args()
    with tempfile.TemporaryDirectory(prefix="icon-benchmark-") as folder, made_up_model():
        grown = Growth(arguments, Path(folder) / "grown")
        rows = [grown.step(share) for share in _STEPS]
        result = {
            "samples": arguments.samples,
            "shards": arguments.shards,
            "probes": arguments.count,
            "budget": arguments.budget,
            "steps": rows,
            "definitions_seconds": definitions_seconds(grown.root),
            "ui": ui_seconds(grown.root, "sample_scores"),
            "discovery": discovery(arguments, Path(folder) / "files"),
        }
    report(arguments, result, _lines)


@contextmanager
def made_up_model() -> Iterator[None]:
    """The stand-ins for whatever would load torch."""
    engine = MadeUpEngine()
    shape = ModelShape(10**8, 12, 768, 768, 2_000)
    with ExitStack() as stack:
        for module in ("resources", "core.planning.plan", "core.planning.estimate", "core.passes.costs"):
            for name, value in {
                "_cached_engine": lambda *_: engine,
                "model_shape": lambda _: shape,
                "load_tokenizer": lambda _: Tokenizer(),
                "choose_device": lambda _: "cpu",
                "matmul_peak": lambda *_: 1e12,
                "device_name": lambda _: "made up",
            }.items():
                if hasattr(sys.modules[f"icon_assets.{module}"], name):
                    stack.enter_context(patch(f"icon_assets.{module}.{name}", value))
        yield


def make_workspace(root: Path, probes: int, budget: str, seed: int) -> WorkspaceResource:
    """A workspace without a pool yet, whose base model counts as prepared."""
    (root / "pool").mkdir(parents=True)
    (root / "probes").mkdir()
    write_shard(root / "probes" / "probes.jsonl", 2 * probes, random.Random(f"probes {seed}"))
    share = budget if budget in ("exact", "auto") else float(budget)
    model = root / "models" / "stand-in"
    settings = {
        "model": {"name": str(model), "dtype": "float32", "device": "cpu"},
        "evaluation": {"held_out": None},
        "probes": {"count": probes, "seed": seed, "budget": share},
        "pool": {"settle_seconds": 0},
    }
    (root / "settings.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    model.mkdir(parents=True)
    (model / "model.safetensors").touch()
    record = ModelRecord("stand-in", "0", model, "0" * 32, 10**8, 12, 768, 2_000, 8192)
    values = {name: value for name, value in vars(record).items() if name != "directory"}
    (model / "icon_model.json").write_text(json.dumps(values), "utf-8")
    icon = WorkspaceResource(root=str(root))
    summary = {"name": "stand-in", "path": "models/stand-in", "dtype": "float32"}
    ledger.record(
        icon.store, Recipes(icon.workspace, icon.store, dtype="float32").of("base_model"), record.digest, "", summary
    )
    icon.store.append(
        "models",
        pl.DataFrame(
            [
                {
                    "model_digest": record.digest,
                    "name": "stand-in",
                    "revision": "0",
                    "path": "models/stand-in",
                    "dtype": "float32",
                    "device": "cpu",
                    "n_parameters": 10**8,
                    "prepared_at": datetime.now(UTC),
                }
            ]
        ),
    )
    return icon


def write_shard(path: Path, samples: int, draw: random.Random) -> None:
    """Made-up Alpaca rows of some 250 characters; no two are alike."""
    with path.open("w", encoding="utf-8") as file:
        for _ in range(samples):
            words = draw.choices(_VOCABULARY, k=draw.randint(25, 75))
            row = {
                "instruction": " ".join(words[:15]),
                "input": "",
                "output": " ".join(words[15:]),
                "source": "made up",
            }
            file.write(json.dumps(row) + "\n")


class Growth:
    """One workspace and its Dagster history; each step adds shards up to a share of the pool and takes every time
    again."""

    def __init__(self, arguments: Namespace, root: Path) -> None:
        self.root = root
        self._arguments = arguments
        self._shards = 0
        os.environ["DAGSTER_HOME"] = str(root / "dagster_home")
        self.icon = make_workspace(root, arguments.count, arguments.budget, arguments.seed)

    def step(self, share: float) -> dict[str, Any]:
        samples = self._add_shards(round(share * self._arguments.shards))
        row: dict[str, Any] = {"shards": self._shards, "samples_added": samples}
        ingest = self._run("raw_pool")
        row["ingest_rows_per_second"] = round(samples / sum(ingest))
        row |= first_and_last("ingest_seconds", ingest)
        row["probe_set_seconds"] = sum(self._run("probe_set"))
        self._run("probe_baseline")
        row["plan_seconds_to_score"], _ = timed(self.icon.plan)
        row |= first_and_last("scoring_seconds", self._run("sample_scores"))
        row["plan_seconds_unchanged"], plan = timed(self.icon.plan)
        assert plan.pairs == 0
        row["plan_seconds_one_edited"] = self._plan_with_one_edited()
        row["run_seconds_unchanged"], _ = timed(lambda: self._run("raw_pool", "sample_scores"))
        row["selection_seconds_per_arm"] = statistics.mean(self._run("selected_subset"))
        row["publish_seconds"], _ = timed(self.icon.store.publish)
        row["top_ten_seconds"], top = timed(lambda: self.icon.store.query_published(_TOP))
        assert top.height == 10
        row["files"] = {table: len(files) for table in schemas() if (files := self.icon.store.files(table))}
        row["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return row

    def _add_shards(self, up_to: int) -> int:
        each = self._arguments.samples // self._arguments.shards
        for number in range(self._shards, up_to):
            write_shard(self._file(number), each, random.Random(f"{self._arguments.seed} {number}"))
        added = up_to - self._shards
        self._shards = up_to
        return added * each

    def _file(self, number: int) -> Path:
        return self.root / "pool" / f"part{number:05}.jsonl"

    def _run(self, *stages: str) -> list[float]:
        """Seconds of each run, Dagster's own share included; partitions that were up to date take none."""
        seconds = list[float]()
        workspace = self.icon.workspace
        with open_instance(workspace) as instance:
            start = time.monotonic()
            for outcome in run_stages(build_assets(workspace), workspace, instance, stages):
                _check(outcome)
                if outcome.metadata.get("changed"):
                    seconds.append(time.monotonic() - start)
                start = time.monotonic()
        return seconds

    def _plan_with_one_edited(self) -> float:
        file = self._file(0)
        before = self._file(0).stat()
        text = file.read_bytes()
        write_shard(file, 100, random.Random("edited"))
        file.write_bytes(file.read_bytes() + text.split(b"\n", 100)[100])
        seconds, plan = timed(self.icon.plan)
        assert plan.pairs or self.icon.settings.probes.budget != "exact"
        file.write_bytes(text)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        return seconds


def _check(outcome: Outcome) -> None:
    if outcome.error:
        raise SystemExit(f"{outcome.name}: {outcome.error}")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def first_and_last(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Medians of the first and of the last three, so that one slow moment of the machine does not pass for growth."""
    return {f"{name}_first": statistics.median(seconds[:3]), f"{name}_last": statistics.median(seconds[-3:])}


def definitions_seconds(root: Path) -> float:
    """A fresh process that loads the code location."""
    environment = {**os.environ, "ICON_WORKSPACE": str(root)}
    return timed(
        lambda: subprocess.run([sys.executable, "-c", "import icon_assets.definitions"], env=environment, check=True)
    )[0]


_ASSET_PAGE = """query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    id description metadataEntries { label } staleStatus assetMaterializations(limit: 100) { runId partition timestamp }
    partitionKeysByDimension { name partitionKeys } partitionStats { numMaterialized numPartitions }
    assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } }
    dependedBy { asset { id } } latestMaterializationByPartition { timestamp partition } } } }"""


def ui_seconds(root: Path, asset: str) -> dict[str, float]:
    """A real webserver: until it answers, its page, and what the page of an asset asks for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "dagster_webserver",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-m",
        "icon_assets.definitions",
    ]
    environment = {**os.environ, "ICON_WORKSPACE": str(root), "DAGSTER_HOME": str(root / "dagster_home")}
    start = time.monotonic()
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/server_info", server)
        started = time.monotonic() - start
        page, _ = timed(lambda: _fetch(f"http://127.0.0.1:{port}/assets/{asset}"))
        query = json.dumps({"query": _ASSET_PAGE, "variables": {"key": {"path": [asset]}}}).encode()
        asked = [timed(lambda: _fetch(f"http://127.0.0.1:{port}/graphql", query)) for _ in range(3)]
        node = json.loads(asked[-1][1])["data"]["assetNodeOrError"]
        stats = node["partitionStats"]
    finally:
        server.terminate()
        server.wait()
    return {
        "partitions": stats["numPartitions"],
        "materialized": stats["numMaterialized"],
        "started_seconds": started,
        "page_seconds": page,
        "asset_query_seconds": statistics.median(seconds for seconds, _ in asked),
    }


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            _fetch(url)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"{url}: the webserver ended by itself")


def _fetch(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    with urllib.request.urlopen(request, timeout=300) as response:
        return response.read()


def discovery(arguments: Namespace, root: Path) -> dict[str, Any]:
    """Ticks of `discover_pool` over a folder of many small files, until all are reported and when nothing is new; then
    the UI."""
    os.environ["DAGSTER_HOME"] = str(root / "dagster_home")
    icon = make_workspace(root, arguments.count, "exact", arguments.seed)
    for number in range(arguments.files):
        write_shard(root / "pool" / f"part{number:05}.jsonl", 1, random.Random(number))
    sensor = next(sensor for sensor in build_sensors(icon.workspace) if sensor.name == "discover_pool")
    ticks = []
    writing = 0.0
    cursor = None
    reported = 0
    with open_instance(icon.workspace) as instance:
        while not ticks or reported:
            context = dg.build_sensor_context(instance, cursor=cursor, resources={"icon": icon})
            seconds, result = timed(lambda context=context: sensor(context))
            assert isinstance(result, dg.SensorResult)
            ticks.append(seconds)
            cursor = result.cursor
            reported = len(result.asset_events)
            writing += timed(lambda result=result: _apply(instance, result))[0]
    return {
        "files": arguments.files,
        "ticks": len(ticks),
        "first_tick_seconds": ticks[0],
        "unchanged_tick_seconds": ticks[-1],
        "reports_written_seconds": writing,
        "ui": ui_seconds(root, pool_files.key.to_user_string()),
    }


def _apply(instance: dg.DagsterInstance, result: dg.SensorResult) -> None:
    """What the daemon does with a tick's result."""
    for request in result.dynamic_partitions_requests or ():
        if isinstance(request, dg.AddDynamicPartitionsRequest):
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    for event in result.asset_events:
        assert isinstance(event, dg.AssetMaterialization)
        instance.report_runless_asset_event(event)


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{result['samples']:,} samples, {result['shards']} shards, {result['probes']} probes, budget "
        f"{result['budget']}"
    )
    for name in result["steps"][0]:
        if name != "files":
            yield f"{name:<28}" + "".join(f"{step[name]:>14,.2f}" for step in result["steps"])
    for table in result["steps"][-1]["files"]:
        counts = "".join(f"{step['files'].get(table, 0):>14,}" for step in result["steps"])
        yield f"files of {table:<19}{counts}"
    yield f"definitions load in {result['definitions_seconds']:.2f} s"
    discovery = result["discovery"]
    for ui in (result["ui"], discovery["ui"]):
        yield (
            f"UI with {ui['materialized']:,} of {ui['partitions']:,} partitions: up in {ui['started_seconds']:.1f} s, "
            f"page {ui['page_seconds']:.2f} s, asset query {ui['asset_query_seconds']:.2f} s"
        )
    yield (
        f"discovery of {discovery['files']:,} files: first tick {discovery['first_tick_seconds']:.2f} s, "
        f"{discovery['ticks']} ticks (+{discovery['reports_written_seconds']:.0f} s to write their reports), unchanged "
        f"{discovery['unchanged_tick_seconds']:.2f} s"
    )


if __name__ == "__main__":
    main()
