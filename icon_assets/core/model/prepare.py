"""Preparing the model: a bundled GGUF, a local directory or a pinned hub revision becomes a safetensors directory in
the workspace, once, with a record.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from icon_assets.core.digests import files_digest
from icon_assets.core.errors import IconError
from icon_assets.core.files import disk_errors, new_directory, sole_writer
from icon_assets.core.model.bundled import BUNDLED, INSTALL, weights_file
from icon_assets.core.model.loading import load_config
from icon_assets.core.model.quiet import quiet_libraries
from icon_assets.core.model.weights import n_parameters
from icon_assets.settings import ModelSettings

CONVERSION_VERSION = 1
_RECORD = "icon_model.json"
_REVISION = re.compile(r"[0-9a-f]{40}")
_KEPT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
)


@dataclass(frozen=True)
class ModelRecord:
    """The model in the workspace. `digest` covers weights, configuration and tokenizer files."""

    name: str
    revision: str
    directory: Path
    digest: str
    n_parameters: int
    n_layers: int
    hidden_size: int
    vocabulary_size: int
    max_positions: int


@dataclass(frozen=True)
class ModelState:
    """Whether a model is at hand: `available` on this machine, `prepared` where in the workspace; `install` is the
    command that gets it."""

    name: str
    revision: str
    available: bool
    prepared: Path | None
    install: str | None


def source_revision(settings: ModelSettings) -> str:
    """What identifies the source before anything is loaded: package version, commit, or the digest of the local
    files."""
    if settings.name in BUNDLED:
        return f"{BUNDLED[settings.name].requirement} conversion {CONVERSION_VERSION}"
    if settings.name.startswith("bundled:"):
        raise IconError(f"model.name: {settings.name!r} is not bundled; known: {', '.join(BUNDLED)}")
    local = Path(settings.name)
    if local.is_dir():
        names = _model_files(local)
        if not any(name.endswith(".safetensors") for name in names):
            raise IconError(f"{local}: no *.safetensors file; convert the model with save_pretrained() first")
        return files_digest(local, names)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", settings.name):
        raise IconError(
            f"model.name: {settings.name!r} is neither a directory nor a Hugging Face id such as `Qwen/Qwen2.5-0.5B`; "
            f"for the bundled model set {next(iter(BUNDLED))}"
        )
    if not settings.revision or not _REVISION.fullmatch(settings.revision):
        raise IconError(
            f"model.revision: {settings.name} comes from a hub and needs its commit (40 hex digits), so that it never "
            "changes unnoticed; copy it from the model page's history"
        )
    return settings.revision


def model_files(settings: ModelSettings) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time (ns) of the files of a local model; empty for other models, which are pinned differently."""
    local = Path(settings.name)
    files = [(name, (local / name).stat()) for name in (_model_files(local) if local.is_dir() else ())]
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in files)


def prepare(settings: ModelSettings, models_dir: Path) -> ModelRecord:
    """Put the model into the workspace, once, as a safetensors directory. Later calls find it there.

    Raises:
        IconError: the model can't be loaded; the message says how to get it.
    """
    revision = source_revision(settings)
    target = _target(settings.name, revision, models_dir)
    if not (target / _RECORD).is_file():
        with sole_writer(target):
            if not (target / _RECORD).is_file():  # no other process has prepared it in the meantime
                with new_directory(target) as partial:
                    _fetch(settings, partial)
                    _write_record(settings.name, revision, partial)
    return read_record(target)


def state_of(settings: ModelSettings, models_dir: Path) -> ModelState:
    """Whether the model can be had, without loading or downloading anything.

    Raises:
        IconError: the settings name no model.
    """
    revision = source_revision(settings)
    target = _target(settings.name, revision, models_dir)
    prepared = target if (target / _RECORD).is_file() else None
    if settings.name in BUNDLED:
        available = prepared is not None or weights_file(settings.name) is not None
        return ModelState(settings.name, revision, available, prepared, None if available else INSTALL)
    return ModelState(settings.name, revision, prepared is not None or Path(settings.name).is_dir(), prepared, None)


def _target(name: str, revision: str, models_dir: Path) -> Path:
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name if Path(name).is_dir() else name)
    return models_dir / f"{slug.strip('-')}-{re.sub(r'[^A-Za-z0-9.]+', '-', revision)[:24].strip('-')}"


def read_record(directory: Path) -> ModelRecord:
    """The record that `prepare` wrote to a model directory."""
    values = json.loads((directory / _RECORD).read_text("utf-8"))
    return ModelRecord(directory=directory, **values)


def files_unchanged(record: ModelRecord) -> bool:
    """Whether weights, configuration and tokenizer are still those that were prepared."""
    return files_digest(record.directory, _model_files(record.directory)) == record.digest


def _fetch(settings: ModelSettings, target: Path) -> None:
    if settings.name in BUNDLED:
        _convert_bundled(settings.name, target)
    elif (local := Path(settings.name)).is_dir():
        for name in _model_files(local):
            shutil.copyfile(local / name, target / name)
    else:
        _download(settings, target)


def _convert_bundled(name: str, target: Path) -> None:
    """GGUF to safetensors in float32: the exact dequantized weights; the package itself is never imported."""
    weights = weights_file(name)
    if weights is None:
        raise IconError(f"{name}: not installed; run `{INSTALL}`, or set model.name")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = str(weights.parent)
    file = weights.name
    with quiet_libraries():
        # Without `dequantize` the model stays quantized in memory, and saving or training it is refused.
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)


def _download(settings: ModelSettings, target: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with disk_errors(str(target)):
            snapshot_download(
                settings.name, revision=settings.revision, local_dir=target, allow_patterns=list(_KEPT_FILES)
            )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise IconError(
            f"{settings.name}@{settings.revision}: could not be downloaded ({type(error).__name__}); check id, "
            "revision, network and HF_TOKEN, or download it elsewhere and set model.name to the directory"
        ) from error
    if not list(target.glob("*.safetensors")):
        raise IconError(
            f"{settings.name}@{settings.revision}: has no safetensors weights; choose a revision that has them"
        )


def _model_files(directory: Path) -> list[str]:
    return sorted({path.name for pattern in _KEPT_FILES for path in directory.glob(pattern) if path.name != _RECORD})


def _write_record(name: str, revision: str, directory: Path) -> None:
    text = load_config(directory)
    record = {
        "name": name,
        "revision": revision,
        "digest": files_digest(directory, _model_files(directory)),
        "n_parameters": n_parameters(directory),
        "n_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "vocabulary_size": text.vocab_size,
        "max_positions": text.max_position_embeddings,
    }
    (directory / _RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
