"""Group `probes`: the probe set that contributions are measured on."""

import dagster as dg
import polars as pl

from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged
from icon_assets.assets.pool import raw_pool
from icon_assets.core.digests import lines_digest
from icon_assets.core.errors import IconError
from icon_assets.core.planning.recipes import CODE_VERSIONS
from icon_assets.core.probes.draw import read_candidates, select_probes, verdict_rows
from icon_assets.core.probes.leakage import evaluation_references, pool_references, pool_rows
from icon_assets.core.probes.overlap import overlaps
from icon_assets.metadata import OWNERS, column_schema, markdown_table
from icon_assets.resources import WorkspaceResource

probe_files = dg.AssetSpec(
    "probe_files",
    group_name="probes",
    kinds={"file"},
    owners=OWNERS,
    description="Files of candidate probes, and the evaluation data that no probe may share text with. The sensor "
    "`discover_probes` reports new versions.",
)


@dg.asset(
    deps=[raw_pool, probe_files],
    group_name="probes",
    kinds={"python", "deltalake"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["probe_set"],
    metadata=column_schema("probe_candidates"),
)
@mendable
def probe_set(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """M probes drawn evenly over strata, seeded, without near-duplicates, and without any that overlap with the pool or
    the evaluation data (the same prompt, or 13 words of the response in a row). The reason for each rejection is
    stored.
    """
    workspace = icon.workspace
    store = icon.store
    settings = workspace.settings.probes
    recipe = icon.recipes.of("probe_set")
    if event := kept(context, icon, recipe):
        return unchanged(event)
    candidates, quarantined = read_candidates(workspace)
    verdicts = select_probes(
        candidates,
        settings.count,
        settings.seed,
        settings.near_duplicate,
        overlaps(candidates, pool_references(pool_rows(store))),
        overlaps(candidates, evaluation_references(workspace)),
    )
    chosen = sorted(v.candidate.probe_id for v in verdicts if v.status == "selected")
    if not chosen:
        raise IconError(f"{workspace.input_path(settings.path)}: no usable probe among {len(candidates)}; add probes")
    if len(chosen) < settings.count:
        context.log.warning(f"{len(chosen)} probes are usable, {settings.count} were asked for (probes.count)")
    frame = verdict_rows(verdicts, quarantined)
    store.replace("probe_candidates", frame)
    counts = frame.group_by("status").len().sort("status")
    strata = frame.filter(pl.col("status") == "selected").group_by("stratum").len().sort("stratum")
    summary = {"probes": len(chosen), "strata": strata.height, "candidates": frame.height}
    return finish(
        context,
        store,
        recipe,
        lines_digest(chosen),
        summary,
        {
            "dagster/row_count": len(chosen),
            "candidates_by_status": markdown_table(counts),
            "probes_by_stratum": markdown_table(strata),
            "left_out": markdown_table(
                frame.filter(~pl.col("status").is_in(["selected", "spare"]))
                .select("file", "row", "status", "detail")
                .head(20)
            ),
        },
    )
