"""Rules of checkpoints."""

from importlib.metadata import version

from icon_assets.core.errors import IconError
from icon_assets.core.model.fine_tuned import load_fine_tuned
from icon_assets.core.quality.rule import Finding, Subject, judge, rule


@rule("checkpoint", blocking=True, mend="delete its directory and materialize it again: it is trained again")
def files_are_as_recorded(subject: Subject) -> Finding:
    """The checkpoint's directory holds exactly the files that training wrote. Otherwise a different model would be
    evaluated, exported or served than the lineage describes."""
    what = "checkpoint directories are missing or differ from the files that training wrote"
    return judge(1, int(subject.files != subject.made.digest), what, [subject.made.summary["path"]])


def _base_model(subject: Subject) -> dict[str, str]:
    """Digest and directory of the model that the checkpoint was made from."""
    asked = {"checkpoint": subject.made.summary["checkpoint_id"]}
    if not subject.rows("FROM delta.checkpoints WHERE checkpoint_id = $checkpoint", **asked):
        raise IconError(
            f"{subject.name}: the table checkpoints has no row of {asked['checkpoint']}, which the ledger names: an "
            "entry of its log was lost; `icon-assets repair` shows what can be restored, or delete its directory and "
            "materialize it again"
        )
    rows = subject.rows(
        """
        SELECT m.model_digest AS digest, m.path FROM delta.checkpoints c JOIN delta.models m USING (model_digest)
        WHERE c.checkpoint_id = $checkpoint ORDER BY m.prepared_at DESC LIMIT 1
        """,
        **asked,
    )
    if not rows:
        raise IconError(f"{subject.name}: its base model is not in the table models; materialize it again")
    return rows[0]


def _loaded_with(subject: Subject) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"checkpoint {subject.files}, base model {_base_model(subject)['digest']}, {libraries}"


@rule(
    "checkpoint", blocking=True, mend="check its files; delete its directory to train it again", verdict_of=_loaded_with
)
def checkpoint_loads(subject: Subject) -> Finding:
    """Base model and checkpoint load with transformers and peft on a CPU, and return finite logits. Otherwise the fault
    would show at the first use, long after the money was spent. The same files are loaded again only when this check is
    run alone."""
    import torch
    from safetensors import SafetensorError

    base = subject.workspace.root / _base_model(subject)["path"]
    try:
        model, tokenizer = load_fine_tuned(base, subject.directory, "float32", "cpu")
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer("Hello.").input_ids or [0]])).logits
    except (IconError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        return Finding(
            1, 1, f"the checkpoint does not load ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        )
    finite = bool(torch.isfinite(logits).all())
    return Finding(1, int(not finite), "it loads and answers" if finite else "it loads, but its logits are not finite")


@rule("checkpoint", blocking=True, mend="delete its directory and materialize it again: it is trained again")
def manifest_names_the_subset(subject: Subject) -> Finding:
    """The checkpoint's manifest names all samples of its subset and no others, each source line once. It shows which
    lines a model was trained on."""
    return subject.find(
        """
        WITH manifest AS (
            SELECT sample_id, count(*) = count(DISTINCT (shard, "row")) AS once FROM delta.checkpoint_samples
            WHERE checkpoint_id = $checkpoint GROUP BY sample_id
        ), subset AS (SELECT DISTINCT sample_id, true AS chosen FROM delta.selections WHERE subset_id = $subset)
        SELECT sample_id AS id, NOT (once AND chosen) AS wrong FROM manifest FULL JOIN subset USING (sample_id)
        """,
        "samples differ between manifest and subset",
        checkpoint=subject.made.summary["checkpoint_id"],
        subset=subject.made.summary["subset_id"],
    )
