"""The definitions as users see them: a snapshot, and what loading them costs."""

import json
import subprocess
import sys
from collections.abc import Callable

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion

from icon_assets.core.errors import IconError
from icon_assets.definitions import build_defs
from icon_assets.metadata import column_schema
from icon_assets.workspace import Workspace

MakeWorkspace = Callable[..., Workspace]


def test_the_graph_is_the_one_of_the_snapshot(make_workspace: MakeWorkspace, snapshot: SnapshotAssertion) -> None:
    defs = build_defs(make_workspace())
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    specs = [graph.get_check_spec(key) for key in sorted(graph.asset_check_keys)]
    shown = {
        key.to_user_string(): {
            "group": node.group_name,
            "depends_on": sorted(parent.to_user_string() for parent in node.parent_keys),
            "partitions": type(node.partitions_def).__name__,
            "kinds": sorted(node.kinds),
            "owners": list(node.owners),
            "pools": sorted(node.pools or []),
            "columns": [column.name for column in node.metadata["dagster/column_schema"].columns]
            if "dagster/column_schema" in node.metadata
            else None,
            "checks": [f"{s.name}{' (blocking)' if s.blocking else ''}" for s in specs if s.asset_key == key],
        }
        for key in sorted(graph.get_all_asset_keys())
        for node in [graph.get(key)]
    }
    assert shown == snapshot
    assert sorted(job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")) == [
        "nightly",
        "score_pool",
        "whole_graph",
    ]
    assert [sensor.name for sensor in defs.sensors or ()] == ["discover_pool", "discover_probes", "report_freshness"]
    assert [schedule.name for schedule in defs.schedules or ()] == ["nightly"]


def _with_judge(**more: object) -> dict[str, object]:
    judge = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    sets = [{"name": "talk", "path": "eval/talk.jsonl"}]
    return {"held_out": None, "pairwise": {"prompts": sets, "judge": judge, **more}}


def test_the_comparison_of_answers_is_in_the_graph_when_the_settings_ask_for_it(make_workspace: MakeWorkspace) -> None:
    plain = build_defs(make_workspace()).resolve_asset_graph()
    assert not {dg.AssetKey("answers"), dg.AssetKey("pairwise_results")} & plain.get_all_asset_keys()
    graph = build_defs(make_workspace(evaluation=_with_judge())).resolve_asset_graph()
    results = graph.get(dg.AssetKey("pairwise_results"))
    answers = graph.get(dg.AssetKey("answers"))
    assert results.partitions_def is not None
    assert answers.partitions_def is not None
    assert sorted(results.partitions_def.get_partition_keys()) == ["full|0", "icon|0"], "not against itself"
    upstream = results.partition_mappings[answers.key].get_upstream_mapped_partitions_result_for_partitions(
        results.partitions_def.subset_with_partition_keys(["icon|0"]), results.partitions_def, answers.partitions_def
    )
    assert sorted(upstream.partitions_subset.get_partition_keys()) == ["icon|0", "random|0"]
    with pytest.raises(IconError, match=r"'best' is not among selection\.arms"):
        build_defs(make_workspace(evaluation=_with_judge(against="best")))


def test_every_asset_is_described(make_workspace: MakeWorkspace) -> None:
    graph = build_defs(make_workspace()).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.code_version or node.is_external, key
    for key in graph.asset_check_keys:
        assert graph.get_check_spec(key).description, key


def test_a_wrong_arm_stops_the_code_location_with_one_line(make_workspace: MakeWorkspace) -> None:
    with pytest.raises(IconError, match="'best' is not an arm"):
        build_defs(make_workspace(selection={"arms": ["best"]}))


def test_loading_the_definitions_imports_no_heavy_library(make_workspace: MakeWorkspace) -> None:
    code = (
        "import sys, json; from icon_assets.definitions import defs; defs.resolve_asset_graph();"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    env = {"ICON_WORKSPACE": str(make_workspace().root), "PATH": ""}
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, env=env
    ).stdout
    heavy = {
        "torch",
        "transformers",
        "peft",
        "trl",
        "datasets",
        "lm_eval",
        "matplotlib",
        "accelerate",
        "sklearn",
        "ray",
        "gguf",
    }
    assert not heavy & set(json.loads(output))


def test_columns_say_in_the_ui_what_they_say_in_sql() -> None:
    shown = {
        column.name: column.description for column in column_schema("sample_scores")["dagster/column_schema"].columns
    }
    assert shown["consistency"] == "Share of the scored probes with influence > 0."
    assert shown["shard"] is None
