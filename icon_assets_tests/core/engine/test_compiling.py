"""Compiled layers and the fused kernel: the same figures, and none of them where the compiler fails."""

import shutil
import sys
from typing import Any

import pytest
from torch._inductor.exc import InductorError

from icon_assets.core.engine.engine import Meter, ScoringEngine
from icon_assets.core.model.native import library
from icon_assets_tests.core.engine.test_engine import (
    ALL,
    CONTEXTS,
    PROBES,
    assert_as_plain,
    language_model,
    reference,
)
from icon_assets_tests.core.model.test_native import needs_units


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("kernel", ["segments", "flex"])
def test_compiled_layers_give_the_same_figures(kernel: Any) -> None:
    loaded = language_model("llama", head_dim=16)
    engine = ScoringEngine(loaded, 4096, kernel)
    assert not engine.compile_for(10), "too little work to pay for it"
    assert engine.compile_for(10**9)
    assert engine.meter == Meter()
    contexts = [*CONTEXTS, [30 + i % 300 for i in range(280)]]  # longer than two blocks of the flex kernel
    pairs = [pair for batch in engine.score(contexts, PROBES, [*ALL, ALL[0]]) for pair in batch]
    assert len(pairs) == 20
    for pair in pairs:
        expected = reference(loaded, contexts[pair.context], PROBES[pair.probe])
        assert abs(pair.nll_sum - expected) <= 1e-4 * pair.n_tokens
    assert engine.compiling.kernel == kernel, "the other kernel would give these figures, too"
    layer: Any = loaded.model.model.layers[0]
    assert "forward" not in vars(layer), "the model is as it came"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_shape_that_fails_to_compile_later_is_computed_without(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScoringEngine(language_model("llama"), 4096)
    assert engine.compile_for(10**9)
    layer = next(iter(engine.compiling.layers))

    def failing(*_: Any, **__: Any) -> Any:
        raise InductorError(RuntimeError("no space left"), sys._getframe())

    monkeypatch.setitem(engine.compiling.layers, layer, failing)
    assert_as_plain(engine, "packed")
    assert not engine.compiled


@needs_units
def test_much_work_on_a_cpu_with_matrix_units_takes_the_fused_kernel_with_the_same_figures() -> None:
    loaded = language_model("llama", head_dim=32)
    loaded.model.bfloat16()
    engine = ScoringEngine(loaded, 4096)
    plain = [pair for batch in engine.score(CONTEXTS, PROBES, ALL) for pair in batch]
    engine.compile_for(10)
    assert engine.description == "packed"
    engine.compile_for(10**9)
    assert engine.description == "packed, fused, compiled"
    fused = [pair for batch in engine.score(CONTEXTS, PROBES, ALL) for pair in batch]
    assert fused != plain, "another kernel rounds elsewhere"
    for a, b in zip(plain, fused, strict=True):
        assert abs(a.nll_sum - b.nll_sum) <= 0.1 * a.n_tokens


@pytest.mark.parametrize("fault", ["no compiler", "a compiler that fails", "a head size it does not take"])
def test_without_the_fused_kernel_the_figures_stay_what_they_are(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = language_model("llama", head_dim=8 if fault.startswith("a head") else 32)
    loaded.model.bfloat16()
    engine = ScoringEngine(loaded, 4096)
    plain = list(engine.score(CONTEXTS, PROBES, ALL))
    if fault == "no compiler":
        monkeypatch.setenv("PATH", "")
    elif fault == "a compiler that fails":
        monkeypatch.setenv("CXX", "/bin/false")
    library.cache_clear()
    engine.compiling.fuse(engine.packed_agrees)
    library.cache_clear()
    assert engine.description == "packed"
    assert list(engine.score(CONTEXTS, PROBES, ALL)) == plain
