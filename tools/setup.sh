#!/usr/bin/env bash
# Make .venv: a build of sllm and everything that the demo and the tests need.
# TORCH_INDEX=URL adds a package index to look for PyTorch on (say, one with CPU builds).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

# Headers for io_uring and the C++ tests: optional for a build, so a failure is only a remark.
needs_header() { ! echo "#include <$1>" | c++ -x c++ -E - >/dev/null 2>&1; }
if needs_header liburing.h || needs_header gtest/gtest.h; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq liburing-dev libgtest-dev; } >/dev/null ||
            echo "setup: could not install liburing-dev and libgtest-dev"
    else
        echo "setup: install liburing-dev and libgtest-dev for io_uring and the C++ tests"
    fi
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { quiet "$VENV/bin/python" -m pip "$@"; }
quiet() { "$@" 2> >(grep -v '^WARNING: Location' >&2); }

pip install -q packaging cmake ninja "scikit-build-core>=1.0" "nanobind>=2.9"
# Without a GPU the CPU build of PyTorch is right, and must be there before anything asks for torch.
if ! command -v nvidia-smi >/dev/null; then
    pip install -q ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0
fi
quiet "$VENV/bin/python" tools/install_vllm.py
pip install -q --no-build-isolation -e '.[transformers,router]' accelerate peft
pip install -q --requirement tools/requirements-dev.txt
# A first start otherwise spends a minute compiling bytecode. (Some files of torch need a newer Python.)
"$VENV/bin/python" -m compileall -q -j 0 "$VENV/lib" >/dev/null || true
