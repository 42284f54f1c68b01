"""What a user gets without this repository: builds the wheel, installs it into a new virtual environment, makes a
workspace there and scores a few samples with the bundled model.

`python -m icon_assets_tests.wheel [--python python3.13]`; exit code 1 and the output of the command that failed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
SAMPLES = 6
SELECT = ("raw_pool", "probe_set", "base_model", "probe_baseline", "sample_scores", "selected_subset")
SECTIONS = {
    "probes": {"count": 4, "budget": "exact"},
    "controls": {"lengths": [16], "draws": 1},
    "scoring": {"max_context_tokens": 128, "max_prompt_tokens": 64, "max_response_tokens": 64},
    "selection": {"arms": ["icon"], "fraction": 0.5},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--python", default=sys.executable, help="what the virtual environment is made with")
    python = arguments.parse_args().python
    with tempfile.TemporaryDirectory(prefix="icon-wheel-") as folder:
        where = Path(folder)
        call(
            where, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(REPOSITORY)
        )
        (wheel,) = where.glob("*.whl")
        call(where, python, "-m", "venv", "venv")
        lock = REPOSITORY / "requirements.lock"
        call(where, "venv/bin/python", "-m", "pip", "install", "--quiet", "--constraint", str(lock), str(wheel))
        print(f"{call(where, 'venv/bin/python', '--version')}, {wheel.name}: {scored(where):,} samples scored")


def scored(where: Path) -> int:
    """Samples with a score, in a workspace that the installed command made and ran."""
    command = ("venv/bin/icon-assets", "-w", "workspace")
    call(where, *command, "model", "--install")
    call(where, command[0], "init", "workspace")
    shorten(where / "workspace")
    call(where, *command, "run", "--select", *SELECT)
    found = json.loads(call(where, *command, "sql", "--json", "SELECT count(*) AS n FROM current_scores"))
    if found != [{"n": 2 * SAMPLES}]:
        raise SystemExit(f"{SAMPLES} samples have no scores under two controls: {found}")
    return SAMPLES


def shorten(workspace: Path) -> None:
    """Leave a few samples in the pool, and settings for a short run."""
    pool = workspace / "pool"
    lines = next(pool.glob("*.jsonl")).read_text("utf-8").splitlines(keepends=True)
    shutil.rmtree(pool)
    pool.mkdir()
    (pool / "few.jsonl").write_text("".join(lines[:SAMPLES]), "utf-8")
    path = workspace / "settings.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text("utf-8")), **SECTIONS}), "utf-8")


def call(where: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
