"""The states that a killed training goes on from: which one is whole, and whether it is of this very training."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from icon_assets.core.digests import digest, file_digest, lines_digest
from icon_assets.core.encoding.tokens import Encoded
from icon_assets.settings import TrainingSettings

_IDENTITY = "training_id"  # in work_dir: what its states were trained on
_MARK = "complete"  # written last into a state: without it the state is half a state
_STATE = re.compile(r"checkpoint-(\d+)")
# What changes how a training is run, not what comes out of it.
_NOT_IDENTITY = {"preset", "seeds", "save_every_steps"}


def identity(
    base_dir: Path, samples: Sequence[Encoded], settings: TrainingSettings, seed: int, dtype: str, device: str
) -> str:
    """Digest of all that a state depends on. `settings.processes` is a number here: each process has a part of a
    state."""
    weights = [[path.name, path.stat().st_size] for path in sorted(base_dir.glob("*.safetensors"))]
    ids = lines_digest(f"{sample.prompt_ids}{sample.response_ids}" for sample in samples)
    choices = settings.model_dump(mode="json", exclude=_NOT_IDENTITY)
    return digest([file_digest(base_dir / "config.json"), weights, ids, choices, seed, dtype, device])


def last_state(work_dir: Path, identity: str) -> Path | None:
    """The newest complete state of this very training. All others are removed, above all one cut short."""
    work_dir.mkdir(parents=True, exist_ok=True)
    note = work_dir / _IDENTITY
    states = {step_of(path): path for path in work_dir.iterdir() if _STATE.fullmatch(path.name)}
    own = note.is_file() and note.read_text("utf-8") == identity
    complete = [step for step, path in states.items() if own and (path / _MARK).is_file()]
    last = states.pop(max(complete)) if complete else None
    for path in states.values():
        shutil.rmtree(path)
    if not own:  # writing it anew could leave it empty, and every state with it
        note.write_text(identity, "utf-8")
    return last


def step_of(state: Path) -> int:
    return int(state.name.rpartition("-")[2])


def mark_complete(state: Path) -> None:
    os.sync()  # the mark must not reach the disk before what it vouches for
    (state / _MARK).touch()
