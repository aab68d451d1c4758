"""Which files of a directory make the model, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from checkpoint_files import assert_agrees, entry, write
from safetensors.torch import save_file

from sllm.checkpoint import read_checkpoint
from sllm.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    SllmError,
    UnsupportedFormatError,
)

INDEX = "model.safetensors.index.json"


def shard(path: Path, *names: str, fill: int = 1) -> Path:
    """A file with a small tensor of each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.full((3, 5), fill, dtype=torch.int16) for name in names}, path)
    return path


def index(directory: Path, weight_map: object, name: str = INDEX) -> None:
    """An index; `weight_map` may be anything."""
    document = {"metadata": {"total_size": 1.5e9}, "weight_map": weight_map}
    (directory / name).write_text(json.dumps(document))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards with tensors a, b and c, and their index."""
    shard(tmp_path / "model-00001-of-00002.safetensors", "a", "b")
    shard(tmp_path / "model-00002-of-00002.safetensors", "c")
    weight_map = dict.fromkeys("ab", "model-00001-of-00002.safetensors")
    index(tmp_path, {**weight_map, "c": "model-00002-of-00002.safetensors"})
    return tmp_path


def test_sharded_with_index(sharded: Path) -> None:
    checkpoint = read_checkpoint(sharded)
    assert checkpoint.names == ("a", "b", "c")
    assert list(checkpoint.files) == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert not checkpoint.prepared
    assert checkpoint.nbytes == sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    assert_agrees(checkpoint)


def test_sharded_without_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert read_checkpoint(sharded).names == ("a", "b", "c")
    (sharded / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CorruptCheckpointError, match=r"00001-of-00002.*missing"):
        read_checkpoint(sharded)


def test_single_file_and_its_directory(tmp_path: Path) -> None:
    path = shard(tmp_path / "model.safetensors", "a")
    for where in (tmp_path, str(tmp_path), path, str(path)):
        assert read_checkpoint(where).names == ("a",)
    assert read_checkpoint(path).directory == tmp_path


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "m" / "model.safetensors", "a")
    monkeypatch.chdir(tmp_path)
    for where in ("m", "m/model.safetensors", "./m/"):
        checkpoint = read_checkpoint(where)
        assert checkpoint.directory == tmp_path / "m"
        assert checkpoint.files["model.safetensors"].path == tmp_path / "m" / "model.safetensors"


@pytest.mark.parametrize(
    "beside",
    [
        "consolidated.safetensors",
        "consolidated-00001-of-00001.safetensors",
        "adapter_model.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.bin",
    ],
)
def test_other_copies_beside_model_safetensors_do_not_count(beside: str, tmp_path: Path) -> None:
    shard(tmp_path / "model.safetensors", "a")
    shard(tmp_path / beside, "a", fill=2)
    assert list(read_checkpoint(tmp_path).files) == ["model.safetensors"]


def test_the_index_decides_as_in_vllm(sharded: Path) -> None:
    shard(sharded / "consolidated.safetensors", "a", "b", "c")
    shard(sharded / "stale.safetensors", "a")
    assert len(read_checkpoint(sharded).files) == 2


def test_a_lone_consolidated_file_is_the_model(tmp_path: Path) -> None:
    shard(tmp_path / "consolidated.safetensors", "a")
    assert list(read_checkpoint(tmp_path).files) == ["consolidated.safetensors"]


def test_a_lone_adapter_is_read(tmp_path: Path) -> None:
    shard(tmp_path / "adapter_model.safetensors", "a")
    assert list(read_checkpoint(tmp_path).files) == ["adapter_model.safetensors"]


def test_an_index_of_another_name_is_used(sharded: Path) -> None:
    (sharded / INDEX).rename(sharded / "model.safetensors.index.fp16.json")
    shard(sharded / "stale.safetensors", "a")
    assert len(read_checkpoint(sharded).files) == 2


def test_two_indexes_and_nothing_to_choose_by(sharded: Path) -> None:
    (sharded / INDEX).rename(sharded / "one.safetensors.index.json")
    (sharded / "two.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="several indexes"):
        read_checkpoint(sharded)


def test_hub_cache_of_symbolic_links(tmp_path: Path) -> None:
    shard(tmp_path / "blobs" / "0a1b2c", "a")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/0a1b2c")
    assert read_checkpoint(snapshot).names == ("a",)
    assert read_checkpoint(tmp_path / "blobs" / "0a1b2c").names == ("a",)
    (tmp_path / "blobs" / "0a1b2c").unlink()
    with pytest.raises(CheckpointNotFoundError, match="leads nowhere"):
        read_checkpoint(snapshot)


def test_the_same_tensor_in_two_files(tmp_path: Path) -> None:
    shard(tmp_path / "one.safetensors", "a")
    shard(tmp_path / "two.safetensors", "a", "b", fill=2)
    with pytest.raises(CorruptCheckpointError, match="in two files") as error:
        read_checkpoint(tmp_path)
    assert error.value.tensor == "a"


def test_index_naming_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CorruptCheckpointError, match=r"model-00002-of-00002.*not there") as error:
        read_checkpoint(sharded)
    assert error.value.path == sharded / INDEX
    assert error.value.tensor == "c"


def test_index_naming_a_tensor_its_shard_lacks(sharded: Path) -> None:
    index(
        sharded,
        {
            "a": "model-00002-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
        },
    )
    with pytest.raises(CorruptCheckpointError, match="it is in 'model-00001") as error:
        read_checkpoint(sharded)
    assert error.value.tensor == "a"


def test_tensors_the_index_forgot_are_kept_as_everywhere_else(sharded: Path) -> None:
    index(
        sharded,
        {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"},
    )
    assert read_checkpoint(sharded).names == ("a", "b", "c")


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "", ".", "a\0b", 7, None,
     ["x"], "..\\x.safetensors", "a//b.safetensors", "./x.safetensors"],
)  # fmt: skip
def test_index_pointing_elsewhere(place: object, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    shard(tmp_path / "x.safetensors", "a")
    index(directory, {"a": place})
    with pytest.raises(CorruptCheckpointError) as error:
        read_checkpoint(directory)
    assert error.value.tensor == "a"


def test_index_naming_pickles(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    index(tmp_path, {"a": "pytorch_model.bin"})
    with pytest.raises(UnsupportedFormatError, match="not a safetensors file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map":[]}', '{"weight_map":{}}', "\xff", "{" * 5000,
     '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', '{"weight_map":{"a":NaN}}'],
)  # fmt: skip
def test_broken_index(text: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(CorruptCheckpointError) as error:
        read_checkpoint(sharded)
    assert error.value.path == sharded / INDEX


def test_an_index_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / INDEX).mkdir()
    with pytest.raises(CheckpointError, match="a directory where a file"):
        read_checkpoint(tmp_path)


def test_a_weights_file_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="a directory where a file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_pickles_only(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(UnsupportedFormatError, match=f"only pickled.*{name}.*save_pretrained"):
        read_checkpoint(tmp_path)


def test_another_frameworks_weights_only(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedFormatError, match=r"only model.gguf"):
        read_checkpoint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="empty"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointNotFoundError, match=r"no \*.safetensors"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="no such"):
        read_checkpoint(tmp_path / "missing")


def test_one_damaged_shard_spoils_the_model(sharded: Path) -> None:
    path = sharded / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match="truncated") as error:
        read_checkpoint(sharded)
    assert error.value.path == path
    assert error.value.tensor == "c"


_UNPRIVILEGED = """
import os, sys
from sllm.checkpoint import read_checkpoint
from sllm.errors import CheckpointError
if os.getuid() == 0:  # root reads everything
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    read_checkpoint(sys.argv[1])
except CheckpointError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("what", ["model-00001-of-00002.safetensors", INDEX, "."])
def test_no_permission(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lies where only we may enter
        directory = Path(folder)
        directory.chmod(0o755)
        names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        for tensor, name in zip("ab", names, strict=True):
            shard(directory / name, tensor)
        index(directory, dict(zip("ab", names, strict=True)))
        locked = directory / what
        mode = locked.stat().st_mode
        locked.chmod(0)
        command = [sys.executable, "-c", _UNPRIVILEGED, str(directory)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        finally:
            locked.chmod(mode)
    assert "CheckpointError: no permission" in done.stdout, done.stdout + done.stderr
    assert str(locked) in done.stdout


def test_many_descriptors_stay_free(sharded: Path) -> None:
    """Reading, failing or not, leaks no descriptor."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        read_checkpoint(sharded)
        with pytest.raises(SllmError):
            read_checkpoint(write(sharded / "bad", {"a": entry("U8", [1], 0, 2)}))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_importing_needs_neither_torch_nor_native_code() -> None:
    script = (
        "import sys; from sllm.checkpoint import read_checkpoint\n"
        "assert not {'torch', 'numpy', 'sllm._native'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
