"""Faults at chosen points of a run, how often, and whether it held.

Kills, full disks, little memory, no rights, a ledger with holes.

Every fault meets real processes on a small workspace with a random model. It holds when nobody sees half of anything,
what is not killed says one line, and one normal run later every table is as in an undisturbed run, with no pair
computed twice."""

import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from polars.testing import assert_frame_equal

from icon_assets.core.store.tables import Store
from icon_assets.home import create_workspace
from icon_assets.workspace import Workspace
from icon_assets_tests.benchmarks.common import parser, report
from icon_assets_tests.conftest import POOL_A, POOL_B, lay_out, make_model, make_tokenizer, write_jsonl
from icon_assets_tests.e2e import faults
from icon_assets_tests.e2e.conftest import BUSY, questions, read_all_the_while
from icon_assets_tests.e2e.disks import Disk
from icon_assets_tests.e2e.processes import start
from icon_assets_tests.e2e.test_kills import SEEN, assert_equal, assert_tidy, assert_whole
from icon_assets_tests.e2e.test_ui import open_ui

PATIENCE_SECONDS = 900
STORE = "icon_assets.core.store.tables:Store"
RECORD = "icon_assets.core.store.ledger:record"
PAIRS = "SELECT count(*), count(DISTINCT (score_key, sample_id, probe_id)) FROM pair_scores"
READING = (["status"], ["sql", "SELECT count(*) FROM samples"], ["trust"], ["plan"])
Fault = Callable[[], None]


@dataclass
class Count:
    """How often a fault was tried, and what did not hold."""

    tried: int = 0
    broken: list[str] = field(default_factory=list)


class Ground:
    """Workspaces to spoil, and the one that nothing happened to."""

    def __init__(self, folder: Path, seed: int, most: int, minutes: float) -> None:
        self.folder = folder
        self.draw = random.Random(seed)
        self.most = most
        self.minutes = minutes
        self.model = folder / "model"
        make_model("llama").save_pretrained(self.model)
        make_tokenizer(bos=True).save_pretrained(self.model)
        self.undisturbed = self.new("undisturbed")
        code, said = self.run(self.undisturbed)
        if code:
            raise SystemExit(f"an undisturbed run fails: {said}")

    def new(self, name: str) -> Workspace:
        pool = {"a.jsonl": POOL_A, "b.jsonl": POOL_B, "c.jsonl": [*questions("c", 12), {"instruction": "No answer."}]}
        return lay_out(self.folder / name / "workspace", self.model, pool, **BUSY)

    def copy(self, name: str) -> Workspace:
        """Of the finished workspace."""
        root = self.folder / name / "workspace"
        shutil.copytree(self.undisturbed.root, root, symlinks=True)
        Store(root / "store").publish()
        return Workspace.load(root)

    def run(
        self, workspace: Workspace, *arguments: str, fault: Fault | None = None, disk: Disk | None = None
    ) -> tuple[int, str]:
        """Exit code (negative: the signal that ended it), and what was printed."""
        said = workspace.root.parent / "said.txt"
        process = start(
            workspace.root, *(arguments or ("run",)), out=said, fault=fault, disk=disk.pid if disk else None
        )
        process.join(PATIENCE_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"it did not end in {PATIENCE_SECONDS} s: {said.read_text()[-400:]}")
        return process.exitcode, said.read_text()

    def assert_whole_again(self, workspace: Workspace) -> None:
        """One normal run later all is as it would have been."""
        code, said = self.run(workspace)
        assert code == 0, said[-600:]
        store = Store(workspace.store_dir)
        assert_equal(store, Store(self.undisturbed.store_dir))
        assert_tidy(workspace)
        pairs = store.query(PAIRS).row(0)
        assert pairs[0] == pairs[1], "pairs are there twice"


@contextmanager
def noted(count: Count, what: str) -> Iterator[None]:
    """One try; what did not hold is noted, and the next one goes on."""
    count.tried += 1
    try:
        yield
    except AssertionError as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        count.broken.append(f"{what}: {line}: {' '.join(str(error).split())[-600:]}")


def killed_again_and_again(ground: Ground, name: str, fault: Callable[[int], Fault]) -> Count:
    """Runs of one new workspace, each killed a product or so later, until one comes through or enough have been
    killed."""
    workspace = ground.new(name)
    count = Count()
    for number in range(ground.most):
        code, said = ground.run(workspace, fault=fault(number))
        if code == 0:
            break
        with noted(count, f"kill {number}"):
            assert code == -9, said[-600:]
            assert_whole(workspace)
    with noted(count, "the run after"):
        ground.assert_whole_again(workspace)
    count.tried -= 1
    return count


def between_ledger_row_and_publish(ground: Ground) -> Count:
    return killed_again_and_again(
        ground, "publish", lambda n: partial(faults.die_around, f"{STORE}.publish", 1, "before")
    )


def between_product_and_ledger_row(ground: Ground) -> Count:
    return killed_again_and_again(ground, "record", lambda n: partial(faults.die_around, RECORD, 1, "before"))


def while_publishing(ground: Ground) -> Count:
    def fault(number: int) -> Fault:
        return partial(faults.die_around, f"{STORE}.publish", 1, "within", ground.draw.uniform(0, 0.3))

    return killed_again_and_again(ground, "publishing", fault)


def in_compaction(ground: Ground) -> Count:
    def fault(number: int) -> Fault:
        return partial(faults.die_in_compaction, number % 3, ground.draw.uniform(0, 0.05))

    return killed_again_and_again(ground, "compaction", fault)


def at_each_change(part: str, *select: str) -> Callable[[Ground], Count]:
    """Killed before each renaming below `part`, and before other changes of files that Python makes there, evenly; each
    time on a copy of what was there before."""

    def scenario(ground: Ground) -> Count:
        count = Count()
        before = ground.new(f"{part}-before")
        if part != "dagster_home":
            ground.run(before, "run", "--select", *STAGES_BEFORE)
        changes = _changes(ground, before, part, select)
        moves = {number for number, change in enumerate(changes) if change.startswith("os.rename")}
        others = range(0, len(changes), max(1, len(changes) // ground.most))
        for number in sorted(moves.union(others)):
            root = ground.folder / f"{part}-{number}" / "workspace"
            shutil.copytree(before.root, root, symlinks=True)
            workspace = Workspace.load(root)
            with noted(count, changes[number]):
                fault = partial(faults.die_at_change, number, str(root / part))
                code, said = ground.run(workspace, "run", "--select", *select, fault=fault)
                assert code == -9, said[-600:]
                assert_whole(workspace)
                if part == "dagster_home" or "os.rename" in changes[number]:
                    ground.assert_whole_again(workspace)
                else:
                    code, said = ground.run(workspace, "run", "--select", *select)
                    assert code == 0, said[-600:]
            shutil.rmtree(root.parent)
        return count

    return scenario


STAGES_BEFORE = ("raw_pool", "probe_set", "base_model", "probe_baseline", "sample_scores", "selected_subset")


def _changes(ground: Ground, before: Workspace, part: str, select: tuple[str, ...]) -> list[str]:
    """What happens to files below `part` in an undisturbed run."""
    root = ground.folder / f"{part}-counted" / "workspace"
    log = ground.folder / f"{part}.txt"
    shutil.copytree(before.root, root, symlinks=True)
    counted = partial(faults.count_changes, str(log), str(root / part))
    code, said = ground.run(Workspace.load(root), "run", "--select", *select, fault=counted)
    assert code == 0, said
    return log.read_text().splitlines()


def in_init(ground: Ground) -> Count:
    count = Count()
    whole = ground.folder / "init" / "whole"
    log = ground.folder / "init.txt"
    whole.parent.mkdir()
    assert faults.forked(partial(create_workspace, whole), partial(faults.count_changes, str(log), str(whole))) == 0
    for number, change in enumerate(log.read_text().splitlines()):
        root = whole.with_name(str(number))
        with noted(count, change):
            assert (
                faults.forked(partial(create_workspace, root), partial(faults.die_at_change, number, str(root))) == -9
            )
            if not (root / "settings.yaml").exists():
                create_workspace(root)
            assert {path.name for path in root.glob("[!.]*")} == {path.name for path in whole.iterdir()}
    return count


def no_room_for_temporary_files(ground: Ground) -> Count:
    """`TMPDIR` is a disk that is full."""
    count = Count()
    place = ground.folder / "tmp"
    place.mkdir()
    with Disk(place, 1) as disk:
        disk.fill()
        workspace = ground.new("tmpdir")
        with noted(count, "TMPDIR"):
            code, said = ground.run(workspace, fault=partial(faults.put_temporary_files, str(place)), disk=disk)
            assert_ended_well(code, said)
            ground.assert_whole_again(workspace)
    return count


def a_whole_workspace_on_a_full_disk(ground: Ground) -> Count:
    """Everything, settings and history too, on one disk that gets full a moment after a run has begun."""
    count = Count()
    workspace = ground.new("full")
    with Disk(workspace.root, 48) as disk:
        for _ in range(6):
            with noted(count, "full"):
                process = start(workspace.root, "run", out=workspace.root.parent / "said.txt", disk=disk.pid)
                until = time.monotonic() + ground.draw.uniform(0.5, 12)
                while process.is_alive() and time.monotonic() < until:
                    time.sleep(0.01)
                while process.is_alive():
                    disk.fill()
                    time.sleep(0.01)
                process.join()
                assert_ended_well(process.exitcode, (workspace.root.parent / "said.txt").read_text())
            disk.empty()
        disk.shown()
    with noted(count, "the run after"):
        ground.assert_whole_again(workspace)
    count.tried -= 1
    return count


def files_of_limited_size(ground: Ground) -> Count:
    """`ulimit -f`, from one block to more than anything needs."""
    count = Count()
    workspace = ground.new("limited")
    for size in (4 << 10, 8 << 10, 64 << 10, 200 << 10, 400 << 10, 1 << 20, 4 << 20):
        with noted(count, f"{size} bytes"):
            code, said = ground.run(workspace, fault=partial(faults.limit_files, size))
            assert_ended_well(code, said)
            assert_whole(workspace)
    with noted(count, "the run after"):
        ground.assert_whole_again(workspace)
    count.tried -= 1
    return count


def little_memory(*select: str) -> Callable[[Ground], Count]:
    """`ulimit -v`: nothing to spare, up to enough, while these assets are made."""

    def scenario(ground: Ground) -> Count:
        count = Count()
        workspace = ground.new(f"memory-{select[-1]}")
        ground.run(workspace, "run", "--select", *STAGES_BEFORE[: 3 if select[0] == "probe_baseline" else None])
        for mebibytes in (96, 128, 192, 256, 384, 512, 1024, 2048):
            with noted(count, f"{mebibytes} MiB"):
                limit = partial(faults.limit_memory, mebibytes)
                code, said = ground.run(workspace, "run", "--select", *select, fault=limit)
                assert code < 0 or "Traceback" not in said, f"exit code {code}: {said}"  # a library may end the process
                assert_whole(workspace)
        with noted(count, "the run after"):
            ground.assert_whole_again(workspace)
        count.tried -= 1
        return count

    return scenario


def a_workspace_of_somebody_else(part: str) -> Callable[[Ground], Count]:
    """An ordinary user who may read everything and not write to `part`: reading goes on, a run says one line."""

    def scenario(ground: Ground) -> Count:
        count = Count()
        workspace = ground.copy(f"closed-{part or 'all'}")
        faults.belong_to_somebody_else(workspace.root / part)
        for command in READING:
            with noted(count, command[0]):
                code, said = ground.run(workspace, *command, fault=faults.give_up_privileges)
                assert code == 0, said[-400:]
        for command in (
            ["run"],
            ["report"],
            ["export", "--arm", "icon", "--format", "alpaca"],
            ["init", str(workspace.root / part / "new")],
        ):
            with noted(count, command[0]):
                assert_ended_well(*ground.run(workspace, *command, fault=faults.give_up_privileges))
        return count

    return scenario


def ledger_rows_are_deleted(ground: Ground) -> Count:
    """A part of the ledger's rows, and all of them: what they were of is found again or made again, no pair is
    computed."""
    count = Count()
    for number, share in enumerate((0.1, 0.3, 0.5, 0.8, 1.0)):
        workspace = ground.copy(f"ledger{number}")
        store = Store(workspace.store_dir)
        rows = store.query("FROM delta.ledger ORDER BY created_at")
        store.replace("ledger", rows.sample(round(rows.height * (1 - share)), seed=number))
        with noted(count, f"{share:.0%}"):
            spent = store.query(
                "SELECT coalesce(sum(pairs), 0) FROM delta.scoring_costs WHERE \"work\" = 'pairs'"
            ).item()
            ground.assert_whole_again(workspace)
            now = store.query("SELECT coalesce(sum(pairs), 0) FROM delta.scoring_costs WHERE \"work\" = 'pairs'").item()
            assert now == spent, f"{now - spent} pairs were computed again"
    return count


def beside_ui_and_daemon(ground: Ground) -> Count:
    """Runs, one after the other, on a pool that changes before each, while the daemon starts runs by itself, a reader
    asks the published views without a pause, and the web interface has to answer."""
    count = Count()
    automation = {"scoring": "on_change", "discover_seconds": 5}
    root = ground.folder / "beside" / "workspace"
    workspace = lay_out(root, ground.model, {"a.jsonl": POOL_A}, automation=automation, **BUSY)
    ui = open_ui(workspace)
    answers = 0
    until = time.monotonic() + 60 * ground.minutes
    try:
        ui.address = ui.wait_until(ui.find_address)
        while count.tried == 0 or time.monotonic() < until:
            shard = "bcd"[count.tried % 3]
            write_jsonl(root / "pool" / f"{shard}.jsonl", questions(shard, ground.draw.randint(3, 12)))
            time.sleep(ground.draw.uniform(0, 10))  # the daemon may be faster
            with noted(count, f"run {count.tried}"):
                with read_all_the_while(Store(workspace.store_dir), SEEN) as seen:
                    code, said = ground.run(workspace)
                assert code == 0, said[-600:]
                assert all(found == n and scored in (0, own) for answer in seen for n, found, own, scored in answer)
                answers += len(seen)
                assert ui.post("/graphql", {"query": "{ version }"})[0] == 200
                assert ui.process.poll() is None, ui.said()[-600:]
    finally:
        ui.process.terminate()
        ui.process.wait(120)
    print(f"{answers} answers of the published views, all whole", file=sys.stderr)
    with noted(count, "the run after"):
        _assert_as_if_made_alone(ground, workspace)
    count.tried -= 1
    return count


def _assert_as_if_made_alone(ground: Ground, workspace: Workspace) -> None:
    """The same as in a new workspace with the same inputs, and no pair twice."""
    root = ground.folder / "alone" / "workspace"
    for part in ("pool", "probes", "eval", "settings.yaml"):
        source = workspace.root / part
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, root / part)
    alone = Workspace.load(root)
    for each in (workspace, alone):
        code, said = ground.run(each)
        assert code == 0, said[-600:]
    for sql in (
        "FROM samples",
        "FROM quarantine",
        'SELECT file, "row", control, contribution FROM current_scores',
    ):
        ours, theirs = (Store(each.store_dir).query(f"{sql} ORDER BY ALL") for each in (workspace, alone))
        assert_frame_equal(ours, theirs, abs_tol=1e-5)
    pairs = Store(workspace.store_dir).query(PAIRS).row(0)
    assert pairs[0] == pairs[1], "pairs are there twice"


def assert_ended_well(code: int | None, said: str) -> None:
    """It came through, or stopped by itself and said so without a traceback."""
    assert code in (0, 1), f"exit code {code}: {said}"
    assert "Traceback" not in said, said
    assert code == 0 or any(line.startswith(("icon-assets:", "✗")) for line in said.splitlines()), said


SCENARIOS: dict[str, Callable[[Ground], Count]] = {
    "kill -9 between ledger row and publish": between_ledger_row_and_publish,
    "kill -9 between product and ledger row": between_product_and_ledger_row,
    "kill -9 while publishing": while_publishing,
    "kill -9 in compaction": in_compaction,
    "kill -9 at renamings and other changes of files of checkpoints": at_each_change("checkpoints", "checkpoint"),
    "kill -9 while Dagster's home is made": at_each_change("dagster_home", "raw_pool"),
    "kill -9 before each change of a file in init": in_init,
    "TMPDIR is full": no_room_for_temporary_files,
    "the whole workspace is on a disk that gets full": a_whole_workspace_on_a_full_disk,
    "files of limited size (ulimit -f)": files_of_limited_size,
    "little memory (ulimit -v) while scoring": little_memory("probe_baseline", "sample_scores"),
    "little memory (ulimit -v) while training": little_memory("checkpoint"),
    "an ordinary user who may not write to the store": a_workspace_of_somebody_else("store"),
    "an ordinary user who may not write to the workspace": a_workspace_of_somebody_else(""),
    "ledger rows are deleted": ledger_rows_are_deleted,
    "runs beside UI and daemon on a pool that changes": beside_ui_and_daemon,
}


def main() -> None:
    arguments_of = parser(__doc__, data=False)
    arguments_of.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="faults whose name holds one of these"
    )
    arguments_of.add_argument("--keep", type=Path, metavar="DIR", help="leave the workspaces there")
    arguments_of.add_argument("--most", type=int, default=12, help="tries of a fault that could be tried without end")
    arguments_of.add_argument("--minutes", type=float, default=5, help="how long runs go on beside UI and daemon")
    arguments = arguments_of.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="icon-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        report(
            arguments,
            _measure(Ground(folder, arguments.seed, arguments.most, arguments.minutes), arguments.only),
            _lines,
        )
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _measure(ground: Ground, words: list[str]) -> dict[str, Any]:
    rows = []
    for name, scenario in SCENARIOS.items():
        if any(word in name for word in words):
            start_ = time.monotonic()
            count = scenario(ground)
            held = count.tried - min(count.tried, len(count.broken))
            rows.append(
                {
                    "fault": name,
                    "tried": count.tried,
                    "held": held,
                    "broken": count.broken,
                    "seconds": round(time.monotonic() - start_),
                }
            )
            print(f"{name}: {held} of {count.tried} held", *count.broken, sep="\n    ", file=sys.stderr, flush=True)
    return {"faults": rows}


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for row in result["faults"]:
        yield f"{row['fault']:<70} {row['tried']:>4} tried, {row['held']:>4} held"
        yield from (f"    {what}" for what in row["broken"])


if __name__ == "__main__":
    main()
