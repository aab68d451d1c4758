"""What people install: a wheel and a source distribution that work without any framework."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"sllm", "sllm_vllm", "sllm_transformers", "sllm_triton", "sllm_router", "sllm_bench"}


def call(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows, as they are now: what a clean clone would hold."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in call("git", "ls-files", cwd=ROOT).splitlines():
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    build = "from scikit_build_core.build import build_sdist; print(build_sdist('dist'))"
    name = call(sys.executable, "-c", build, cwd=checkout).splitlines()[-1]
    return checkout / "dist" / name


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that a file missing there is noticed."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["-q", "--no-deps", "--no-build-isolation"]
    call(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, sdist)
    return next(folder.glob("sllm-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[str | Path]:
    """An interpreter that has sllm and its own dependencies, and no framework."""
    venv = tmp_path_factory.mktemp("venv")
    call(sys.executable, "-m", "venv", venv)
    call(venv / "bin" / "pip", "install", "-q", wheel)
    return [venv / "bin" / "python"]


def test_the_source_distribution_holds_every_component(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in ("core/csrc/CMakeLists.txt", "core/sllm/py.typed", "core/sllm/_native.pyi"):
        assert wanted in names
    assert not [name for name in names if name.startswith((".ci/", ".venv"))]


def test_the_wheel_holds_every_package_and_type_information(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} >= PACKAGES
    assert "sllm/py.typed" in names
    assert "sllm/_native.pyi" in names
    assert "sllm-transformers.pth" in names
    assert not [name for name in names if name.endswith((".cpp", ".hpp"))]


def test_the_native_module_links_neither_torch_nor_cuda(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if "_native" in n and n.endswith(".so"))
        library = Path(archive.extract(name, tmp_path))
    needed = call("readelf", "-d", library)
    libraries = {line.split("[")[1].rstrip("]") for line in needed.splitlines() if "NEEDED" in line}
    allowed = ("libc.", "libm.", "libstdc++.", "libgcc_s.", "ld-linux", "libpthread.")
    assert all(name.startswith(allowed) for name in libraries), libraries


def test_a_wheel_works_without_any_framework(python: Sequence[str | Path]) -> None:
    script = (
        "import sys, sllm, sllm._native; sllm.__version__; sllm.hookimpl;"
        "from sllm.plugins import manager; manager();"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules);"
        "print(sllm._native.crc32c(b'123456789'))"
    )
    assert int(call(*python, "-c", script)) == 0xE3069283
    rows = json.loads(call(*python, "-m", "sllm", "hooks", "--json"))
    assert all(row["plugins"] for row in rows)


def test_a_checkpoint_can_be_prepared_without_any_framework(
    python: Sequence[str | Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "model").mkdir()
    save_file({"a": torch.arange(100)}, tmp_path / "model" / "model.safetensors")
    call(*python, "-m", "sllm", "convert", tmp_path / "model", tmp_path / "prepared")
    call(*python, "-m", "sllm", "verify", tmp_path / "prepared")
    shown = json.loads(call(*python, "-m", "sllm", "inspect", "--json", tmp_path / "prepared"))
    assert shown["prepared"] is True


def test_an_editable_install_sees_edits(checkout: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    # The build tools of the environment that runs the tests.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    env = {**os.environ, "PYTHONPATH": site}
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e"]
    done = subprocess.run(
        [str(a) for a in [*install, checkout]], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (checkout / "core" / "sllm" / "edited.py").write_text("VALUE = 42\n")
    show = "import sllm.edited; print(sllm.edited.VALUE, sllm.edited.__file__)"
    value, _, file = call(python, "-S", "-c", f"import site; site.main(); {show}").partition(" ")
    assert value == "42"
    assert file.strip() == str(checkout / "core" / "sllm" / "edited.py")
