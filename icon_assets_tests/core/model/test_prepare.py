"""Where models come from: pinned, converted once, and with an error that says how to get them."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.model.loading import choose_device, choose_dtype, load
from icon_assets.core.model.prepare import prepare, read_record, source_revision
from icon_assets.settings import ModelSettings


def settings(**values: Any) -> ModelSettings:
    return ModelSettings(**values)


def test_a_local_directory_is_copied_once_and_its_digest_covers_the_weights(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model_dir, source)
    first = prepare(settings(name=str(source)), tmp_path / "models")
    again = prepare(settings(name=str(source)), tmp_path / "models")
    assert first == again == read_record(first.directory)
    assert (first.n_layers, first.hidden_size, first.vocabulary_size, first.max_positions) == (
        2,
        32,
        400,
        512,
    )

    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (source / "model.safetensors").write_bytes(weights)
    changed = prepare(settings(name=str(source)), tmp_path / "models")
    assert changed.digest != first.digest
    assert changed.directory != first.directory, "the old model stays for what was made with it"


def test_the_prepared_model_loads_for_inference_and_holds_no_pickle(tiny_model_dir: Path, tmp_path: Path) -> None:
    record = prepare(settings(name=str(tiny_model_dir)), tmp_path / "models")
    loaded = load(record.directory, "bfloat16", "cpu")
    assert not loaded.model.training
    assert sum(p.numel() for p in loaded.model.parameters()) == record.n_parameters
    assert loaded.leading == (0,)
    assert {path.suffix for path in record.directory.iterdir()} <= {".safetensors", ".json", ".jinja"}
    assert str(tmp_path) not in json.dumps(json.loads((record.directory / "icon_model.json").read_text())["revision"])


def test_a_directory_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(IconError, match=r"no \*\.safetensors file"):
        prepare(settings(name=str(tmp_path / "m")), tmp_path / "models")


def test_a_hub_id_needs_its_commit() -> None:
    with pytest.raises(IconError, match=r"model\.revision: .* needs its commit"):
        source_revision(settings(name="some/model"))
    with pytest.raises(IconError, match=r"model\.revision"):
        source_revision(settings(name="some/model", revision="main"))
    assert source_revision(settings(name="some/model", revision="a" * 40)) == "a" * 40


def test_a_hub_model_that_cannot_be_had_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(IconError, match="could not be downloaded") as caught:
        prepare(settings(name="some/model", revision="a" * 40), tmp_path / "models")
    assert "set model.name to the directory" in str(caught.value)
    left = [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"]
    assert left == [], "nothing half-written stays"


def test_a_missing_bundled_model_says_exactly_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(IconError, match=r"run `icon-assets model --install`, or set model\.name"):
        prepare(settings(), tmp_path / "models")


@pytest.mark.parametrize("name", ["bundled:other", "no such directory", "a/b/c"])
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(IconError, match=r"model\.name"):
        source_revision(settings(name=name))


def test_device_and_dtype_follow_the_machine_unless_set() -> None:
    import torch

    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(IconError, match=r"model\.device"):
            choose_device("cuda")
    assert choose_dtype("float32", "cpu") == "float32"
    assert choose_dtype("auto", "cpu") in {"float32", "bfloat16"}
