"""Compares everything in the workspace with the ledger, for `icon-assets verify`."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from icon_assets.core.errors import IconError, StoreDamaged
from icon_assets.core.quality import rules_of
from icon_assets.core.quality.contents import ids_are_of_their_text
from icon_assets.core.quality.features import selector_is_as_recorded
from icon_assets.core.quality.probes import model_files_are_as_recorded
from icon_assets.core.quality.rule import Subject
from icon_assets.core.quality.training import files_are_as_recorded
from icon_assets.core.store import ledger
from icon_assets.core.store.inventory import differences, on_record
from icon_assets.core.store.schema import schemas
from icon_assets.core.store.tables import Store
from icon_assets.settings import ChecksSettings
from icon_assets.workspace import Workspace

# Rules that compare other things than table rows with the ledger.
_LOOKS = (ids_are_of_their_text, model_files_are_as_recorded, selector_is_as_recorded, files_are_as_recorded)


@dataclass
class Verified:
    """What was compared, and one line for each mismatch.

    Attributes:
        known_from_here: tables that an earlier version wrote without a record. Their contents were recorded just now.
    """

    mismatches: list[str]
    tables: int = 0
    rows: int = 0
    known_from_here: list[str] = field(default_factory=list)


def verify(workspace: Workspace) -> Verified:
    """Read all rows and all files that the ledger names. The only change is that tables without a record get one."""
    store = Store(workspace.store_dir)
    damages = {table: list(store.damages(table)) for table in schemas()}
    found = Verified([f"{damage.table}: {damage.part} {damage.why}" for each in damages.values() for damage in each])
    if damages["ledger"]:  # nothing to compare with
        return found
    found.known_from_here += ledger.take_in(store, "verify")
    for table in (table for table, each in damages.items() if not each):
        found.tables += 1
        found.rows += sum(each.rows for each in known.groups.values()) if (known := on_record(store).get(table)) else 0
        found.mismatches += map(str, differences(store, table, again=True))
    found.mismatches += _of_products(workspace, store)
    return found


def _of_products(workspace: Workspace, store: Store) -> Iterator[str]:
    """The newest products that break one of those rules, regardless of their size."""
    everything = workspace.settings.model_copy(update={"checks": ChecksSettings(content_rows=2**62)})
    for asset in sorted({"raw_pool", "probe_set", "base_model", "selector", "checkpoint"}):
        for partition in ledger.latest(store, asset):
            with closing(Subject(Workspace(workspace.root, everything), asset, partition)) as subject:
                yield from _broken(subject)


def _broken(subject: Subject) -> Iterator[str]:
    for rule in rules_of(subject.asset):
        if rule.look in _LOOKS:
            try:
                finding = rule.look(subject)
            except StoreDamaged:
                continue  # reported already
            except (IconError, OSError, ValueError) as error:
                yield f"{subject.name}: {rule.name}: {error}"
                continue
            if finding.wrong:
                yield f"{subject.name}: {rule.name}: {rule.line(finding)}"
