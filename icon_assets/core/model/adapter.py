"""LoRA adapters: a new one on a model, a saved one on it, and the files of one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from icon_assets.core.errors import IconError
from icon_assets.core.model.quiet import quiet_libraries

ADAPTER_CONFIG = "adapter_config.json"


def with_new_adapter(
    model: Any,
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str] | str,
    setting: str,
    trained_too: Sequence[str] | None = None,
    classes: Mapping[Any, Any] | None = None,
) -> Any:
    """The model with a fresh adapter, drawn by torch's generator.

    Args:
        targets: names of modules, or `all-linear`; `setting`: where a user wrote them.
        trained_too: modules that are trained and saved whole.
        classes: what adapts a module of which class, in place of peft's own.

    Raises:
        IconError: the model has no such module.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=None if trained_too is None else list(trained_too),
    )
    if classes:
        config._register_custom_module(dict(classes))
    try:
        with quiet_libraries():
            return get_peft_model(model, config)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise IconError(f"{setting}: {targets!r} ({reason}); name modules of it, or all-linear") from error


def with_saved_adapter(model: Any, directory: Path) -> Any:
    """The model with what `save_adapter` wrote, for inference."""
    from peft import PeftModel

    with quiet_libraries():
        return PeftModel.from_pretrained(model, str(directory), is_trainable=False)


def save_adapter(model: Any, directory: Path, base_name: str) -> None:
    """Write the adapter as safetensors, byte for byte the same from run to run, and with no path of this machine."""
    model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    # peft notes the base model's absolute path, and the targets in an order that differs from run to run.
    path = directory / ADAPTER_CONFIG
    config = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": base_name}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
