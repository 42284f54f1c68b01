"""What each product up to the scores is made from: shared by the assets, which make it, and the plan, which foretells it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from icon_assets.core.budget import Budget
from icon_assets.core.errors import IconError
from icon_assets.core.ingest import SourceFile, discover, source_digest
from icon_assets.core.language_model import source_revision
from icon_assets.core.ledger import Event, Input, Recipe
from icon_assets.core.score_key import ScoreKey
from icon_assets.settings import ControlSettings, ModelSettings, PoolSettings, Settings, Workspace

# Raise a number when a change of the code makes the product another one: what is stored then counts as stale.
CODE_VERSIONS: Mapping[str, str] = {
    "raw_pool": "2", "probe_set": "2", "base_model": "1", "probe_baseline": "1", "sample_scores": "2",
    "sample_features": "1", "probe_features": "1", "selector": "2", "predicted_scores": "1",
}  # fmt: skip

PROMPT_FILE = "prompt_file"


def raw_pool_recipe(source: SourceFile, digest: str, settings: PoolSettings) -> Recipe:
    """The samples of one source file with this content."""
    return Recipe(
        "raw_pool", source.shard, (Input("file", source.file, digest),), {"max_chars": settings.max_chars},
        code_version=CODE_VERSIONS["raw_pool"],
    )  # fmt: skip


def probe_set_recipe(workspace: Workspace, pool: Iterable[Event]) -> Recipe:
    """The probe set, from the files of candidates, what it must not share with, and the pool as last ingested."""
    settings, inputs = workspace.settings.probes, probe_inputs(workspace)
    return Recipe(
        "probe_set", "",
        (*(Input(kind, source.file, source_digest(source)) for kind, source in inputs),
         *(event.as_input() for event in pool)),
        settings.model_dump(), settings.seed, CODE_VERSIONS["probe_set"],
    )  # fmt: skip


def probe_inputs(workspace: Workspace) -> list[tuple[str, SourceFile]]:
    """The files that decide the probe set besides the pool, each with its kind."""
    sources = discover(workspace.input_path(workspace.settings.probes.path), "probes.path")
    evaluation = [(kind, SourceFile(name, name, path)) for kind, name, path in evaluation_files(workspace)]
    return [*(("probe_file", source) for source in sources), *evaluation]


def evaluation_files(workspace: Workspace) -> list[tuple[str, str, Path]]:
    """The evaluation data named in the settings: (kind, name, path), prompts of the pairwise comparison among them.

    Raises:
        IconError: one of them is missing.
    """
    settings = workspace.settings.evaluation
    names = [task.path for task in settings.multiple_choice] + ([settings.held_out] if settings.held_out else [])
    prompts = [each.path for each in settings.pairwise.prompts] if settings.pairwise else []
    paths = [("evaluation_file", name, workspace.input_path(name)) for name in names]
    paths += [(PROMPT_FILE, name, workspace.input_path(name)) for name in prompts]
    for _, name, path in paths:
        if not path.is_file():
            raise IconError(f"{path}: no such file; create it or take {name!r} out of the evaluation settings")
    return paths


def base_model_recipe(settings: ModelSettings, dtype: str) -> Recipe:
    """The prepared model, whose `dtype` is already chosen."""
    return Recipe(
        "base_model", settings={"name": settings.name, "revision": source_revision(settings), "dtype": dtype},
        code_version=CODE_VERSIONS["base_model"],
    )  # fmt: skip


def probe_baseline_recipe(probe_set: Event, base_model: Event, key: ScoreKey) -> Recipe:
    """The probes without context."""
    return Recipe(
        "probe_baseline", "", (probe_set.as_input(), base_model.as_input()), {"score_key": key.settings()},
        code_version=CODE_VERSIONS["probe_baseline"],
    )  # fmt: skip


def sample_scores_recipe(
    shard: str, upstream: Iterable[Event], key: ScoreKey, controls: ControlSettings, budget: Budget | None,
    direct_share: float,
) -> Recipe:  # fmt: skip
    """The scores of one shard. `upstream`: its raw_pool, probe_set, base_model and probe_baseline."""
    drawn = {"direct_share": direct_share} if direct_share < 1 else {}
    settings = {"score_key": key.settings(), "controls": controls.model_dump(), **drawn}
    return Recipe(
        "sample_scores", shard, tuple(event.as_input() for event in upstream),
        {**settings, **({"budget": asdict(budget)} if budget else {})}, controls.seed, CODE_VERSIONS["sample_scores"],
    )  # fmt: skip


def sample_features_recipe(shard: str, raw_pool: Event, base_model: Event, key: ScoreKey) -> Recipe:
    """What one pass says of the samples of one shard."""
    return Recipe(
        "sample_features", shard, (raw_pool.as_input(), base_model.as_input()), {"score_key": key.settings()},
        code_version=CODE_VERSIONS["sample_features"],
    )  # fmt: skip


def probe_features_recipe(probe_set: Event, base_model: Event, key: ScoreKey) -> Recipe:
    """The embeddings of the probes."""
    return Recipe(
        "probe_features", "", (probe_set.as_input(), base_model.as_input()), {"score_key": key.settings()},
        code_version=CODE_VERSIONS["probe_features"],
    )  # fmt: skip


def selector_recipe(
    learned_from: Iterable[Event], base_model: Event, key: ScoreKey, settings: Settings, control: str
) -> Recipe:
    """The selector. `learned_from`: scores and, of the light one, features of every shard."""
    chosen = settings.selector.model_dump(
        exclude={"control", "seed", "folds" if settings.selector.kind == "lora" else "lora"}
    )
    return Recipe(
        "selector", "", (*(event.as_input() for event in learned_from), base_model.as_input()),
        {**chosen, "control": control, "score_key": key.settings()},
        settings.selector.seed, CODE_VERSIONS["selector"],
    )  # fmt: skip


def predicted_scores_recipe(shard: str, seen: Event, selector: Event) -> Recipe:
    """What the selector says of one shard. `seen`: the shard's features or texts, whichever it looks at."""
    return Recipe(
        "predicted_scores",
        shard,
        (seen.as_input(), selector.as_input()),
        code_version=CODE_VERSIONS["predicted_scores"],
    )
