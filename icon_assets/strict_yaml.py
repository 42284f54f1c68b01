"""YAML without silent losses: a duplicate key is refused, where YAML would take the last one."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from icon_assets.core.errors import IconError


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; none when it is empty.

    Raises:
        IconError: it can't be read, is not YAML, is not a mapping, or has a duplicate key.
    """
    try:
        values = yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506  (a SafeLoader)
    except OSError as error:
        raise IconError(f"{path}: can't be read ({error.strerror}); fix its permissions") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8, dates there are none, nested without end
        raise IconError(f"{path}: not valid YAML ({' '.join(str(error).split())}); fix the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise IconError(f"{path}: must hold keys such as `model:`, not {_kind(values)}")
    return values


def _kind(values: object) -> str:
    if not isinstance(values, dict):
        return type(values).__name__
    return f"the key {next(key for key in values if not isinstance(key, str))!r}"


class _Loader(yaml.SafeLoader):
    """Refuses a mapping with equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        counts = Counter((key.tag, key.value) for key in keys if isinstance(key, yaml.ScalarNode))
        for key in keys:
            if isinstance(key, yaml.ScalarNode) and counts[key.tag, key.value] > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice; keep one", key.start_mark
                )
        return super().construct_mapping(node, deep)
