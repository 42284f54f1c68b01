"""The files of evaluation data and probes that the settings name."""

from pathlib import Path

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.source_files import SourceFile, discover
from icon_assets.workspace import Workspace

HELD_OUT = "held_out"

PROMPT_FILE = "prompt_file"


def probe_inputs(workspace: Workspace) -> list[tuple[str, SourceFile]]:
    """The files besides the pool that determine the probe set, each with its kind."""
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
