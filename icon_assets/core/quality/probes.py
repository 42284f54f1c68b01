"""Rules of the probes and of the base model: what everything is measured with."""

from collections import Counter
from collections.abc import Sequence

from icon_assets.core.digests import lines_digest
from icon_assets.core.model.prepare import files_unchanged, read_record
from icon_assets.core.probes.leakage import evaluation_references, probe_index
from icon_assets.core.quality.rule import EXAMPLES, REMAKE, Finding, Subject, judge, rule


@rule("probe_set", blocking=True, mend=REMAKE)
def probes_are_as_recorded(subject: Subject) -> Finding:
    """The selected probes are those that the ledger names, each once. Every score is a mean over this set: with another
    set under the same name, scores that can't be compared would stand in one ranking."""
    ids = [row["probe_id"] for row in subject.rows("SELECT probe_id FROM probes ORDER BY probe_id")]
    return recorded(ids, lines_digest(ids) == subject.made.digest, "probes, and not the set that was drawn")


def recorded(ids: Sequence[str], same: bool, what: str) -> Finding:
    """Ids that together are one thing, whose digest tells whether it is still the same; doubled ones are named."""
    if same:
        return Finding(len(ids), 0, f"{len(ids):,} looked at")
    doubled = [each for each, times in Counter(ids).items() if times > 1]
    return Finding(len(ids), 1, f"{len(ids):,} {what}", sorted(doubled)[:EXAMPLES])


@rule("probe_set", blocking=True, mend="materialize probe_set again: it leaves such probes out")
def no_probe_is_in_the_pool(subject: Subject) -> Finding:
    """No probe asks what a sample of the pool asks. Behind its own text as context every probe is easy, and that sample
    would rank first whatever it is worth."""
    prompt = r"trim(regexp_replace(lower(concat_ws(' ', turns, instruction, input)), '[^\p{L}\p{N}_]+', ' ', 'g'))"
    return subject.find(
        f"""
        SELECT file || ':' || "row" AS id, probe_id IN (SELECT sample_id FROM samples)
            OR ({prompt} <> '' AND {prompt} IN (SELECT {prompt} FROM samples)) AS wrong FROM probes
        """,  # noqa: S608  (our own text)
        "probes stand in the pool",
    )


@rule("probe_set", blocking=True, mend="materialize probe_set again: it leaves such probes out")
def no_probe_is_in_the_evaluation_data(subject: Subject) -> Finding:
    """No probe asks what an evaluation item asks, or shares 13 words in a row of its answer. Samples would be selected
    for the test itself, and the leaderboard would praise the selection for it."""
    rows = subject.rows("FROM probes")
    met = {m.candidate: m.reference for m in probe_index(rows).meetings(evaluation_references(subject.workspace))}
    examples = sorted(f"{probe.file}:{probe.row} meets {item}" for probe, item in met.items())
    return judge(len(rows), len(met), "probes meet an evaluation item", examples[:EXAMPLES])


@rule("base_model", blocking=True, mend="delete its directory below models/ and materialize base_model again")
def model_files_are_as_recorded(subject: Subject) -> Finding:
    """Weights, configuration and tokenizer on disk have the digest that scores and checkpoints name. A model that was
    swapped in place would be scored with, trained and reported under the name of another."""
    same = subject.directory.is_dir() and files_unchanged(read_record(subject.directory))
    what = "model directories are gone or hold other files than were prepared"
    return judge(1, int(not same), what, [subject.made.summary["path"]])
