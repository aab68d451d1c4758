#!/bin/sh
# The C++ unit tests: tools/native_tests.sh [plain|asan|tsan|all]  (all by default)
#
# Needs cmake, ninja and GoogleTest (Debian: libgtest-dev). Build folders: build/native-*.
set -eu
cd "$(dirname "$0")/.."
# `make setup` puts cmake and ninja there, for machines without their own.
PATH=$PATH:$PWD/.venv/bin

one() {
    name=$1 sanitizer=$2
    build=build/native-$name
    # -O1: tests are as good as at -O2 and compile faster; assertions stay on.
    cmake -S core/csrc -B "$build" -G Ninja -DSLLM_BUILD_TESTS=ON -DSLLM_WERROR=ON \
        -DSLLM_SANITIZE="$sanitizer" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" \
        >"$build.log" 2>&1 || { cat "$build.log"; return 1; }
    ninja -C "$build" >>"$build.log" 2>&1 || { grep -v '^\[' "$build.log"; return 1; }
    echo "== native tests: $name"
    "$build/tests/native_tests" --gtest_brief=1
}

mkdir -p build
# A leak or a race fails the run; the kernel's own writes through io_uring are invisible to both
# sanitizers, so they neither excuse nor report anything about them.
export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

case ${1:-all} in
plain) one plain "" ;;
asan) one asan address,undefined ;;
tsan) one tsan thread ;;
all)
    one plain ""
    one asan address,undefined
    one tsan thread
    ;;
*)
    sed -n '2,4p' "$0"
    exit 2
    ;;
esac
