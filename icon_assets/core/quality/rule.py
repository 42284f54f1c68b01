"""Rules, subjects and findings. No rule itself belongs here."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb

from icon_assets.core.digests import directory_digest
from icon_assets.core.errors import IconError
from icon_assets.core.store.ledger import recorded_summary
from icon_assets.core.store.tables import Store
from icon_assets.core.text import printable
from icon_assets.workspace import Workspace

EXAMPLES = 10
REMAKE = "run it again: what breaks this rule is made again"


@dataclass(frozen=True)
class Finding:
    """The result of a rule: how many things it checked, how many break it, and the ids of some of those."""

    looked_at: int
    wrong: int
    says: str
    examples: Sequence[str] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """The newest ledger row of a partition."""

    digest: str
    run_id: str
    summary: Mapping[str, Any]


class Subject:
    """One partition of an asset, in one snapshot of the store. Close it after use.

    `run_id` names the run that has just materialized the partition. It is empty when only rules are run.
    """

    def __init__(self, workspace: Workspace, asset: str, partition: str = "", run_id: str = "") -> None:
        self.workspace = workspace
        self.asset = asset
        self.partition = partition
        self.run_id = run_id
        self.store = Store(workspace.store_dir)

    @cached_property
    def _con(self) -> duckdb.DuckDBPyConnection:
        return self.store.connect()

    def close(self) -> None:
        if "_con" in self.__dict__:
            self._con.close()

    @property
    def name(self) -> str:
        return f"{self.asset} [{self.partition}]" if self.partition else self.asset

    @cached_property
    def made(self) -> Made:
        """Its newest row in the ledger.

        Raises:
            IconError: it has never been materialized.
        """
        rows = self.rows(
            """
            SELECT digest, run_id, summary FROM delta.events WHERE asset = $asset AND "partition" = $partition
            ORDER BY seq DESC LIMIT 1
            """,
            asset=self.asset,
            partition=self.partition,
        )
        if not rows:
            raise IconError(f"{self.name}: not materialized yet; materialize it first")
        return Made(rows[0]["digest"], rows[0]["run_id"], recorded_summary(rows[0]["summary"]))

    @cached_property
    def directory(self) -> Path:
        """The directory of the product's files."""
        return self.workspace.root / self.made.summary["path"]

    @cached_property
    def files(self) -> str:
        """Digest of these files as they are now; empty when the directory is missing."""
        return directory_digest(self.directory) if self.directory.is_dir() else ""

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        with self.store.damage_named():
            return self._con.sql(sql, params=parameters or None).pl().to_dicts()

    def find(self, sql: str, what: str, **parameters: Any) -> Finding:
        """Judge rows of `id` and `wrong`. A row whose `wrong` is NULL counts as wrong, because nothing shows that it is
        right."""
        judged = f"""
            SELECT count(*) AS looked_at, count(*) FILTER (wrong IS NOT FALSE) AS wrong,
                min(id, {EXAMPLES}) FILTER (wrong IS NOT FALSE) AS examples FROM ({sql})
        """  # noqa: S608  (our own text)
        (row,) = self.rows(judged, **parameters)
        return judge(row["looked_at"], row["wrong"], what, row["examples"] or ())

    def doubled(self, table: str, keys: str, where: str, **parameters: Any) -> Finding:
        """Judge that no two rows of a table share the keys."""
        counted = f"SELECT concat_ws(' ', {keys}) AS id, count(*) > 1 AS wrong FROM delta.{table}"  # noqa: S608
        sql = f"{counted} WHERE {where} GROUP BY {keys}"
        return self.find(sql, f"keys occur in {table} more than once", **parameters)


def judge(looked_at: int, wrong: int, what: str, examples: Iterable[object]) -> Finding:
    """A finding that reports how many of the things checked are `what`."""
    says = f"{wrong:,} of {looked_at:,} {what}" if wrong else f"{looked_at:,} checked"
    return Finding(looked_at, wrong, says, [str(example) for example in examples])


Look = Callable[[Subject], Finding]


@dataclass(frozen=True)
class Rule:
    """A rule of one asset. `warns`: a broken rule is only a warning. `verdict_of`: for an expensive rule, everything
    that its verdict depends on, so that the same thing is not judged twice."""

    asset: str
    look: Look
    mend: str
    blocking: bool
    warns: bool
    verdict_of: Callable[[Subject], str] | None

    @property
    def name(self) -> str:
        return self.look.__name__

    @property
    def why(self) -> str:
        return " ".join(inspect.cleandoc(self.look.__doc__ or "").split())

    def line(self, finding: Finding) -> str:
        """The finding in one line, with some examples and the fix."""
        if not finding.wrong:
            return printable(finding.says)
        some = f" ({', '.join(finding.examples[:3])})" if finding.examples else ""
        return printable(f"{finding.says}{some}; {self.mend}")


_BY_ROOM: defaultdict[str, list[Rule]] = defaultdict(list)


def rule(
    *assets: str,
    mend: str,
    blocking: bool = False,
    warns: bool = False,
    verdict_of: Callable[[Subject], str] | None = None,
) -> Callable[[Look], Look]:
    """Register a rule of these assets."""

    def register(look: Look) -> Look:
        _BY_ROOM[look.__module__].extend(Rule(asset, look, mend, blocking, warns, verdict_of) for asset in assets)
        return look

    return register


def rules_in(room: ModuleType) -> list[Rule]:
    """The rules that a module holds, in its order."""
    return _BY_ROOM[room.__name__]
