"""The states from which a killed training resumes: which one is complete, and whether it belongs to this training."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from icon_assets.core.digests import digest, file_digest, lines_digest
from icon_assets.core.encoding.tokens import Encoded
from icon_assets.settings import TrainingSettings

_IDENTITY = "training_id"  # in work_dir: the training of its states
_MARK = "complete"  # written last into a state: without it the state is incomplete
_STATE = re.compile(r"checkpoint-(\d+)")
# Settings that change how a training is run, but not its result.
_NOT_IDENTITY = {"preset", "seeds", "save_every_steps"}


def identity(
    base_dir: Path, samples: Sequence[Encoded], settings: TrainingSettings, seed: int, dtype: str, device: str
) -> str:
    """Digest of everything that a state depends on. `settings.processes` is a number here, because each process has a
    part of a state."""
    weights = [[path.name, path.stat().st_size] for path in sorted(base_dir.glob("*.safetensors"))]
    ids = lines_digest(f"{sample.prompt_ids}{sample.response_ids}" for sample in samples)
    choices = settings.model_dump(mode="json", exclude=_NOT_IDENTITY)
    return digest([file_digest(base_dir / "config.json"), weights, ids, choices, seed, dtype, device])


def last_state(work_dir: Path, identity: str) -> Path | None:
    """The newest complete state of this training. All others are removed, in particular incomplete ones."""
    work_dir.mkdir(parents=True, exist_ok=True)
    note = work_dir / _IDENTITY
    states = {step_of(path): path for path in work_dir.iterdir() if _STATE.fullmatch(path.name)}
    own = note.is_file() and note.read_text("utf-8") == identity
    complete = [step for step, path in states.items() if own and (path / _MARK).is_file()]
    last = states.pop(max(complete)) if complete else None
    for path in states.values():
        shutil.rmtree(path)
    if not own:  # writing it again could leave it empty, which would void every state
        note.write_text(identity, "utf-8")
    return last


def step_of(state: Path) -> int:
    return int(state.name.rpartition("-")[2])


def mark_complete(state: Path) -> None:
    os.sync()  # the mark must not reach the disk before the files that it marks as complete
    (state / _MARK).touch()
