"""Texts that are read together, against one plain forward per text."""

from typing import Any

import pytest
import torch

from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.engine.reading import read_texts
from icon_assets.core.model.flops import Work
from icon_assets_tests.core.engine.test_engine import language_model

TEXTS = [list(range(100, 112)), [5, 6, 7], [8, 9]]
SCORED = [[1, 5, 11], [2], []]


# The second has a model that does more after its layers than a product with the head.
@pytest.mark.parametrize(("kind", "overrides"), [("llama", {}), ("gemma2", {"final_logit_softcapping": 3.0})])
def test_states_and_nll_are_those_of_plain_forwards(kind: str, overrides: dict[str, Any]) -> None:
    loaded = language_model(kind, **overrides)
    engine = ScoringEngine(loaded, 4096)
    assert engine.head.apart == (kind == "llama")
    states, nll = read_texts(engine, TEXTS, SCORED)
    assert (engine.meter.forwards, engine.meter.work) == (1, Work(17, 78 + 6 + 3, 4))
    for text, places, found, figures in zip(TEXTS, SCORED, states, nll, strict=True):
        with torch.no_grad():
            plain = loaded.model(torch.tensor([text]), output_hidden_states=True)
        assert torch.allclose(found, plain.hidden_states[-1][0], atol=1e-5)
        chances = plain.logits[0].double().log_softmax(-1)
        assert figures.tolist() == pytest.approx([-chances[i - 1, text[i]].item() for i in places], abs=1e-4)
        assert figures.dtype == torch.float64


def test_nothing_to_score_still_gives_states() -> None:
    for kind in ("llama", "cohere"):
        engine = ScoringEngine(language_model(kind), 4096)
        states, nll = read_texts(engine, [[3, 4]], [[]])
        assert [len(each) for each in (states[0], nll[0])] == [2, 0]
