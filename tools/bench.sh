#!/usr/bin/env bash
# Measure loading against other loaders: on this disk, and on a fast tier (ext4 on a loop device over
# memory, root only). Results: benchmarks/results/{disk,fast}.{json,png} and README.md there.
#
# BENCH_SIZE=1.5b  BENCH_FAST_SIZE=1b  model sizes of `sllm bench make-model`
# BENCH_TIERS="disk fast"              which of the two
# BENCH_ROUNDS=5   rounds per mode
# BENCH_OPTIONS=   more options for `sllm bench load`, e.g. --drop-caches
# TORCH_INDEX=URL  a package index to look for PyTorch on (say, one with CPU builds)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
MAKER=${VENV:-.venv}/bin/sllm
ENVIRONMENT=.venv-bench
SIZE=${BENCH_SIZE:-1.5b}
FAST_SIZE=${BENCH_FAST_SIZE:-1b}
TIERS=${BENCH_TIERS:-disk fast}
ROUNDS=${BENCH_ROUNDS:-5}
RESULTS=benchmarks/results
failed=0

# Peers get an environment of their own: what they pull in must not change what the tests run on.
install() {
    [ -x "$ENVIRONMENT/bin/python" ] || "$PYTHON" -m venv "$ENVIRONMENT"
    local pip=("$ENVIRONMENT/bin/python" -m pip install -q --disable-pip-version-check)
    if ! command -v nvidia-smi >/dev/null; then
        "${pip[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0
    fi
    "${pip[@]}" -r tools/requirements-bench.txt "scikit-build-core>=1.0" "nanobind>=2.9"
    # A build folder of its own, so that an editable install elsewhere is not rebuilt underneath.
    "${pip[@]}" --no-build-isolation --force-reinstall --no-deps \
        -C build-dir="$ENVIRONMENT/build" .
    "${pip[@]}" "click>=8.1" "pluggy>=1.5" "rich>=13"
}

# Prints the model's directory. Made once, and whole: it gets its name at the end.
model() {
    local directory=.models/bench-llama-$1
    if [ ! -d "$directory" ]; then
        rm -rf "$directory.part"
        "$MAKER" bench make-model "$directory.part" --arch llama --size "$1" --dtype bfloat16 >&2
        mv "$directory.part" "$directory"
    fi
    echo "$directory"
}

# measure NAME DIRECTORY
measure() {
    echo "== $1: $(du -sh "$2" | cut -f1) on $(df --output=fstype,source "$2" | tail -1)"
    # shellcheck disable=SC2086 - options are words
    "$ENVIRONMENT/bin/sllm" bench load "$2" --rounds "$ROUNDS" --json "$RESULTS/$1.json" \
        --plot "$RESULTS/$1.png" ${BENCH_OPTIONS:-} || failed=1
}

image='' device='' mounted=''
take_down() {
    [ -z "$mounted" ] || { umount "$mounted" && rmdir "$mounted"; }
    [ -z "$device" ] || losetup -d "$device"
    [ -z "$image" ] || rm -f "$image"
    image='' device='' mounted=''
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Twice the model (one peer needs a copy in its own format) and some.
fast_tier() {
    local source nbytes available
    [ "$(id -u)" = 0 ] || { echo "== fast: left out, a loop device takes root"; return; }
    for tool in mkfs.ext4 losetup mount; do
        command -v "$tool" >/dev/null || { echo "== fast: left out, no $tool here"; return; }
    done
    source=$(model "$FAST_SIZE")
    nbytes=$(du -sb "$source" | cut -f1)
    available=$(($(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo) * 1024))
    if [ "$available" -lt $((nbytes * 6)) ]; then
        echo "== fast: left out, needs $((nbytes * 6 >> 30)) GiB of memory, $((available >> 30)) GiB free"
        return
    fi
    image=$(mktemp /dev/shm/sllm-bench.XXXXXX)
    truncate -s "$(((nbytes * 22 / 10 >> 20) + 256))M" "$image"
    mkfs.ext4 -q -F -m 0 "$image"
    device=$(losetup --find --show "$image") || { device=''; echo "== fast: left out, no loop device"; return; }
    mounted=$(mktemp -d)
    mount -o noatime "$device" "$mounted" ||
        { rmdir "$mounted"; mounted=''; echo "== fast: left out, cannot mount"; return; }
    cp -r "$source" "$mounted/model"
    measure fast "$mounted/model"
}

summary() {
    echo "# Loading, measured"
    echo
    echo "Written by \`make bench\`; docs/benchmarks.md says how to read it."
    for name in disk fast; do
        [ -f "$RESULTS/$name.json" ] || continue
        echo
        case $name in
            disk) echo "## This machine's disk" ;;
            fast) echo "## A fast tier: ext4 on a loop device over memory" ;;
        esac
        echo
        "$ENVIRONMENT/bin/sllm" bench show --markdown "$RESULTS/$name.json"
        echo
        echo "![$name]($name.png)"
    done
}

install
mkdir -p "$RESULTS" .models
for tier in $TIERS; do
    rm -f "$RESULTS/$tier".{json,png}
    case $tier in
        disk) measure disk "$(model "$SIZE")" ;;
        fast) fast_tier ;;
        *) echo "no tier called $tier: disk or fast" >&2; exit 2 ;;
    esac
done
take_down
summary >"$RESULTS/README.md"
echo "== results: $RESULTS/README.md"
exit "$failed"
