"""How options may be spelled: `--select A B C`, `-wDIR`, long names cut where one is meant, and texts that begin with a
dash but are none, such as a query that opens with a comment.
"""

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

import typer

_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")


def spelled_out(context: Any, command: Any, arguments: Sequence[str], *, until_positional: bool) -> list[str]:
    """Arguments in the one spelling that typer reads: options first, whole names, a value each after `=`.

    Of an option that is named twice the last one counts. With `until_positional` everything from the first positional
    argument on stays as it is: it belongs to a sub-command.

    Raises:
        typer.TyperException: an option without its value, or a name that could be several.
    """
    options = [each for each in command.get_params(context) if each.param_type_name == "option"]
    spelled: dict[str, list[str]] = {}
    positional: list[str] = []
    left = deque(arguments)
    while left:
        word = left.popleft()
        if word == "--" or (until_positional and not _is_option(word, options)):
            positional += left if word == "--" else [word, *left]
            break
        if not _is_option(word, options):
            positional.append(word)
            continue
        meant, value = _meant(word, options)
        if len(meant) > 1 and not context.resilient_parsing:
            names = " or ".join(each.opts[-1] for each in meant)
            context.fail(f"{word} could be {names}: write it out")
        if len(meant) != 1 or (meant[0].is_flag and value is not None):
            spelled[word] = [word]  # typer says what is wrong with it
            continue
        option = meant[0]
        name = option.opts[-1]
        if option.is_flag:
            spelled[name] = [name]
            continue
        values = [value] if value is not None else _values(left, options, several=option.multiple)
        if not values and not context.resilient_parsing:
            raise typer.BadParameter(f"needs a value, {option.metavar}", ctx=context, param=option)
        spelled[name] = [f"{name}={each}" for each in values] or [name]
    return [*(each for values in spelled.values() for each in values), *(["--", *positional] if positional else [])]


def _values(left: deque[str], options: Sequence[Any], *, several: bool) -> list[str]:
    values: list[str] = []
    while left and (several or not values) and left[0] != "--" and not _is_option(left[0], options):
        values.append(left.popleft())
    return values


def _is_option(word: str, options: Sequence[Any]) -> bool:
    if len(word) < 2 or not word.startswith("-"):
        return False
    return bool(_meant(word, options)[0]) or not (" " in word or _NEGATIVE.fullmatch(word))


def _meant(word: str, options: Sequence[Any]) -> tuple[list[Any], str | None]:
    """The options that a word can mean, and the value within it."""
    name, given, value = word.partition("=")
    exact = [each for each in options if name in each.opts]
    if not exact and word.startswith("--") and len(name) > 2:
        exact = [each for each in options if any(whole.startswith(name) for whole in each.opts)]
    if exact:
        return exact, value if given else None
    return [each for each in options if word[:2] in each.opts], word[2:]
