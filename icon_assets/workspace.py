"""A workspace: a directory with inputs, `settings.yaml` and everything that is produced from them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsError

from icon_assets.core.errors import IconError
from icon_assets.settings import ENV_DELIMITER, ENV_PREFIX, Settings
from icon_assets.strict_yaml import read_mapping

WORKSPACE_VARIABLE = "ICON_WORKSPACE"

_NEVER_SHOWN = {"api_key_variable"}  # where people put the key itself


@dataclass(frozen=True)
class Workspace:
    """A directory laid out like `data/`: the inputs, `settings.yaml`, and everything that is produced from them."""

    root: Path
    settings: Settings = field(hash=False)  # it may hold what has no hash

    @classmethod
    def load(cls, root: Path | str | None = None) -> "Workspace":
        """Read `<root>/settings.yaml`; `root` defaults to `ICON_WORKSPACE`, then `data`.

        Raises:
            IconError: no such file, not YAML, an unknown key or a value out of bounds, in the file or the environment.
        """
        root = Path(root or os.environ.get(WORKSPACE_VARIABLE) or "data").resolve()
        path = root / "settings.yaml"
        if not path.is_file():
            raise IconError(f"{path}: no such file; create a workspace with `icon-assets init {root}`")
        _refuse_unknown_variables()
        values = read_mapping(path)
        if unknown := sorted(values.keys() - Settings.model_fields):
            raise IconError(f"{path}: {unknown[0]}: unknown key; remove it or fix its spelling")
        try:
            workspace = cls(root, Settings(**values))
        except (ValidationError, SettingsError) as error:
            fault = _first_fault(error)
        else:
            workspace._refuse_produced_inputs(path)
            return workspace
        # Not from the error: its full text repeats values of the file, even a secret key.
        raise IconError(f"{path} (or {ENV_PREFIX}* variables): {fault}")

    @property
    def store_dir(self) -> Path:
        return self.root / "store"

    @property
    def models_dir(self) -> Path:
        return self.root / "models"

    @property
    def selectors_dir(self) -> Path:
        return self.root / "selectors"

    @property
    def checkpoints_dir(self) -> Path:
        return self.root / "checkpoints"

    @property
    def exports_dir(self) -> Path:
        return self.root / "exports"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster_home"

    def input_path(self, value: str) -> Path:
        """An input named in the settings: relative to the workspace, or an absolute path of the user."""
        return self.root / value

    def _refuse_produced_inputs(self, file: Path) -> None:
        """Refuse the platform's output as an input: it would be read back as data, and could change or disappear while
        it is read."""
        produced = [self.store_dir, self.models_dir, self.selectors_dir, self.checkpoints_dir, self.dagster_home]
        closed = [place.resolve() for place in produced]
        for key, value in self._inputs():
            try:
                real = self.input_path(value).resolve()
            except (
                ValueError,
                OSError,
                RuntimeError,
            ) as error:  # a null byte, a name that is too long, a circle of links
                raise IconError(f"{file}: {key}: is not a path ({error}); got {value[:80]!r}") from None
            if any(place.is_relative_to(real) for place in (self.root, self.exports_dir.resolve(), *closed)):
                what = "is or holds what the platform writes"
            elif place := next((place for place in closed if real.is_relative_to(place)), None):
                what = f"lies in {place.name}/, which the platform writes"
            else:
                continue
            raise IconError(f"{file}: {key}: {what}; use a separate folder, such as pool or eval; got {value!r}")

    def _inputs(self) -> Iterator[tuple[str, str]]:
        """Keys and values of the settings that name files or folders of data."""
        settings = self.settings
        evaluation = self.settings.evaluation
        yield "pool.path", settings.pool.path
        yield "probes.path", settings.probes.path
        if evaluation.held_out:
            yield "evaluation.held_out", evaluation.held_out
        yield from ((f"evaluation.multiple_choice.{i}.path", t.path) for i, t in enumerate(evaluation.multiple_choice))
        target = evaluation.target.model_dump() if evaluation.target else {}
        yield from ((f"evaluation.target.{key}", path) for key, path in target.items() if path)
        prompts = evaluation.pairwise.prompts if evaluation.pairwise else ()
        yield from ((f"evaluation.pairwise.prompts.{i}.path", each.path) for i, each in enumerate(prompts))


def _refuse_unknown_variables() -> None:
    """A misspelt override must not be ignored silently."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {WORKSPACE_VARIABLE}
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name.split(ENV_DELIMITER)[0].upper() not in known:
            raise IconError(
                f"{name}: no such setting; known are {', '.join(sorted(known))} (sub-keys after {ENV_DELIMITER})"
            )


def _first_fault(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return _one_line(error)
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key; remove it or fix its spelling{more}"
    if fault["loc"] == ("ui", "token") or (fault["loc"][-1:] and fault["loc"][-1] in _NEVER_SHOWN):
        return f"{where}: {fault['msg']}{more}"  # the given value may be a secret
    return f"{where}: {fault['msg']}; got {str(fault['input'])[:80]!r}{more}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
