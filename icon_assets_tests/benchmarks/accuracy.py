"""How far from exact arithmetic every way to score is in bfloat16, on this CPU and on it with instructions taken away.

The problem is the test suite's own, of shipped data; each set of instructions has a process of its own. A way that the
engine's trial refuses has no row.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from icon_assets.core.model.loading import load
from icon_assets.core.model.prepare import prepare
from icon_assets.settings import ModelSettings
from icon_assets_tests.accuracy import Nll, Refused, errors, packed, plain, real_problem, ways
from icon_assets_tests.benchmarks.common import in_a_process, parser, report

INSTRUCTIONS = {
    "all of this CPU": {},
    "no AMX": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX2 only": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def main() -> None:
    arguments = parser(__doc__, data=False).parse_args()
    with tempfile.TemporaryDirectory(prefix="icon-benchmark-") as folder:
        model_dir = prepare(ModelSettings(), Path(folder)).directory
        rows = [row for name in INSTRUCTIONS for row in _with_instructions(name, model_dir)]
    report(arguments, {"rows": rows}, _lines)


def _with_instructions(name: str, model_dir: Path) -> list[dict[str, Any]]:
    os.environ.update(INSTRUCTIONS[name])
    try:
        return [{"instructions": name, **row} for row in in_a_process(_measure, model_dir)]
    finally:
        for variable in INSTRUCTIONS[name]:
            del os.environ[variable]


def _measure(model_dir: Path) -> list[dict[str, Any]]:
    problem, loaded, same_weights = real_problem(model_dir), *(load(model_dir, "bfloat16", "cpu") for _ in range(2))
    same_weights.model.float()
    exact = plain(same_weights, problem)
    found = {"plain": plain(loaded, problem)}
    for kernel, compiled in ways(torch.bfloat16):
        with suppress(Refused):
            found[f"{kernel}{', compiled' * compiled}"] = packed(loaded, problem, kernel, compiled)
    return [{"way": way, **_figures(nll, exact)} for way, nll in found.items()]


def _figures(found: Nll, exact: Nll) -> dict[str, float]:
    """Absolute errors in nats: of tokens, and of the means of pairs."""
    tokens = errors(found, exact)
    pairs = torch.stack([(found[pair] - exact[pair]).mean().abs() for pair in exact])
    figures = {
        "mean": tokens.mean(),
        "hundredth": tokens.quantile(0.99),
        "largest": tokens.max(),
        "pairs_sum": pairs.sum(),
        "pairs_largest": pairs.max(),
    }
    return {name: round(value.item(), 5) for name, value in figures.items()}


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"{'instructions':16} {'way':20} {'mean':>8} {'p99':>7} {'largest':>8} {'pairs: sum':>11} {'largest':>8}"
    for row in result["rows"]:
        yield (
            f"{row['instructions']:16} {row['way']:20} {row['mean']:8.4f} {row['hundredth']:7.3f} "
            f"{row['largest']:8.3f} {row['pairs_sum']:11.3f} {row['pairs_largest']:8.3f}"
        )


if __name__ == "__main__":
    main()
