"""`import sllm` lies on every start-up path: it must stay small."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "vllm", "ray", "fastapi", "aiohttp", "numpy", "pydantic")


def modules_after(code: str) -> set[str]:
    """Top-level modules of a fresh interpreter after running `code`."""
    script = (
        f"{code}\nimport json, sys\nprint(json.dumps([m.partition('.')[0] for m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import sllm",
        "import sllm.loader",
        "import sllm.checkpoint",
        "from sllm.plugins import manager; manager()",
        "import sllm_vllm, sllm_transformers",
        "import sllm.cli",
    ],
)
def test_imports_pull_in_no_framework(code: str) -> None:
    assert not modules_after(code).intersection(HEAVY)


def test_import_sllm_pulls_in_almost_nothing() -> None:
    """A proxy for its time (< 100 ms) that no busy machine can falsify."""
    ours = modules_after("import sllm") - modules_after("pass")
    assert ours <= {"sllm", "typing", "importlib", "__future__", "collections", "functools"} | set(
        sys.stdlib_module_names
    )


def test_the_public_names_all_exist() -> None:
    import sllm

    for name in sllm.__all__:
        assert getattr(sllm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sllm.nonsense
