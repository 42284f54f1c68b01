"""JSON that every parser accepts. Values without a JSON form are written as text, in the same way in every command."""

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(value: Any) -> str:
    """`value` as one line of JSON in ASCII, so that it can't control a terminal.

    NaN and the infinities are the texts `NaN`, `Infinity` and `-Infinity`, because null would mean that there is no
    value. Times, decimals, paths and other values without a JSON form are texts.
    """
    return json.dumps(_finite(value), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {_key(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _key(name: Any) -> Any:
    return name if isinstance(name, str | int | bool | None) else str(name)
