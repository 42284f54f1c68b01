"""How far packed scores of the bundled model are from exact ones: real samples, and every way this CPU can compute
them."""

import itertools
from pathlib import Path

import torch

from icon_assets.core.encoding.prompts import render_for_scoring
from icon_assets.core.encoding.tokens import Encoded, encode_context, encode_probe
from icon_assets.core.engine.attention import Kernel, can_fuse
from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.inputs.ingest import ingest
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.inputs.source_files import discover
from icon_assets.core.model.loading import LanguageModel, load_tokenizer
from icon_assets.core.model.native import compiler

Problem = tuple[list[list[int]], list[Encoded]]  # contexts and probes; every context goes with every probe
Nll = dict[tuple[int, int], torch.Tensor]  # by context and probe: nats of each response token
DATA = Path(__file__).parents[1] / "data"


class Refused(AssertionError):
    """The engine does not take the way that was asked for."""


def ways(dtype: torch.dtype) -> list[tuple[Kernel, bool]]:
    """Every kernel that this CPU can run, with the model's layers as they are, and compiled."""
    if compiler() is None:
        return [("segments", False)]
    kernels: list[Kernel] = ["segments", "flex"]
    if can_fuse(dtype, torch.device("cpu")):
        kernels.append("fused")
    return list(itertools.product(kernels, (False, True)))


def real_problem(model_dir: Path) -> Problem:
    """Candidates and probes of the shipped data: short and long ones, one-token responses among them."""
    tokenizer = load_tokenizer(model_dir)
    separator = tokenizer("\n\n\n", add_special_tokens=False).input_ids
    candidates = _samples("pool/assistant_seed.jsonl", range(0, 60, 15))
    contexts = [encode_context(tokenizer, render_for_scoring(s, "alpaca"), 2040).ids for s in candidates]
    probes = [
        encode_probe(tokenizer, render_for_scoring(s, "alpaca"), 1024, 1024)
        for s in _samples("probes/probes.jsonl", range(84))
    ]
    by_length = sorted(probes, key=lambda probe: len(probe.response_ids))
    return [[], *([*ids, *separator] for ids in contexts)], by_length[::10]


def _samples(name: str, rows: range) -> list[Sample]:
    found = ingest(discover(DATA / name)[0], 100_000).samples
    return [found[row].sample for row in rows]


def packed(loaded: LanguageModel, problem: Problem, kernel: Kernel, compiled: bool) -> Nll:
    """Every pair by one kernel, and by no other."""
    contexts, probes = problem
    engine = ScoringEngine(loaded, 4096, kernel)
    if engine.compile_for(10**9 if compiled else 0) != compiled:
        raise Refused(f"{kernel}: the engine's trial did not admit compiled layers")
    wanted = [range(len(probes))] * len(contexts)
    found = dict(pair for forward in engine.forwards(contexts, probes, wanted) for pair in forward.by_pair)
    notes = [kernel] * (kernel != "segments") + ["compiled"] * compiled
    assert engine.description == ", ".join(["packed", *notes]), "another way was taken than was asked for"
    return found


def plain(loaded: LanguageModel, problem: Problem) -> Nll:
    """One forward per pair through the unchanged model, every logit, no packing."""
    contexts, probes = problem
    found: Nll = {}
    for pair in itertools.product(range(len(contexts)), range(len(probes))):
        context = contexts[pair[0]]
        probe = probes[pair[1]]
        ids = [*context, *probe.prompt_ids, *probe.response_ids]
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([ids])).logits[0, -len(probe.response_ids) - 1 : -1]
        targets = torch.tensor(probe.response_ids)
        found[pair] = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
    return found


def errors(found: Nll, exact: Nll) -> torch.Tensor:
    """[response tokens of all pairs], absolute, in nats."""
    assert found.keys() == exact.keys()
    return torch.cat([(found[pair] - exact[pair]).abs() for pair in exact])
