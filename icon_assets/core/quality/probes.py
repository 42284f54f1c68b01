"""Rules of the probes and of the base model, which everything is measured with."""

from collections import Counter
from collections.abc import Sequence

from icon_assets.core.digests import lines_digest
from icon_assets.core.model.prepare import files_unchanged, read_record
from icon_assets.core.probes.leakage import evaluation_references, probe_index
from icon_assets.core.quality.rule import EXAMPLES, REMAKE, Finding, Subject, judge, rule


@rule("probe_set", blocking=True, mend=REMAKE)
def probes_are_as_recorded(subject: Subject) -> Finding:
    """The selected probes are those that the ledger names, each once. Every score is a mean over this set. If the set
    changed under the same name, one ranking would mix scores that can't be compared."""
    ids = [row["probe_id"] for row in subject.rows("SELECT probe_id FROM probes ORDER BY probe_id")]
    return recorded(ids, lines_digest(ids) == subject.made.digest, "probes, but not the set that was drawn")


def recorded(ids: Sequence[str], same: bool, what: str) -> Finding:
    """Judge a set of ids as one thing. `same` says whether its digest is the recorded one; duplicates are named."""
    if same:
        return Finding(len(ids), 0, f"{len(ids):,} checked")
    doubled = [each for each, times in Counter(ids).items() if times > 1]
    return Finding(len(ids), 1, f"{len(ids):,} {what}", sorted(doubled)[:EXAMPLES])


@rule("probe_set", blocking=True, mend="materialize probe_set again: it leaves such probes out")
def no_probe_is_in_the_pool(subject: Subject) -> Finding:
    """No probe asks what a sample of the pool asks. A probe is easy to predict with its own text as context, so that
    sample would rank first regardless of its value."""
    prompt = r"trim(regexp_replace(lower(concat_ws(' ', turns, instruction, input)), '[^\p{L}\p{N}_]+', ' ', 'g'))"
    return subject.find(
        f"""
        SELECT file || ':' || "row" AS id, probe_id IN (SELECT sample_id FROM samples)
            OR ({prompt} <> '' AND {prompt} IN (SELECT {prompt} FROM samples)) AS wrong FROM probes
        """,  # noqa: S608  (our own text)
        "probes are in the pool",
    )


@rule("probe_set", blocking=True, mend="materialize probe_set again: it leaves such probes out")
def no_probe_is_in_the_evaluation_data(subject: Subject) -> Finding:
    """No probe asks what an evaluation item asks, or shares 13 words in a row of its answer. Otherwise samples would be
    selected for the test itself, and the leaderboard would reward that."""
    rows = subject.rows("FROM probes")
    met = {m.candidate: m.reference for m in probe_index(rows).meetings(evaluation_references(subject.workspace))}
    examples = sorted(f"{probe.file}:{probe.row} overlaps with {item}" for probe, item in met.items())
    return judge(len(rows), len(met), "probes overlap with an evaluation item", examples[:EXAMPLES])


@rule("base_model", blocking=True, mend="delete its directory below models/ and materialize base_model again")
def model_files_are_as_recorded(subject: Subject) -> Finding:
    """Weights, configuration and tokenizer on disk have the digest that scores and checkpoints name. If a model were
    replaced in place, its scores, checkpoints and results would be reported under the name of the old one."""
    same = subject.directory.is_dir() and files_unchanged(read_record(subject.directory))
    what = "model directories are missing or differ from the files that were prepared"
    return judge(1, int(not same), what, [subject.made.summary["path"]])
