"""Real vLLM loads through sllm just what it loads by itself: parameter bytes and greedy tokens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from vllm_process import RemoteError, VllmProcess, no_shared_memory_left

import sllm
from sllm_bench.models import make_model

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ARCHITECTURES = ("llama", "opt", "qwen2", "qwen3")
PROMPTS = ["Natalia sold clips to 48 of her friends", "A checkpoint is", "Ångström 🙂"]


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the vLLM process looks for models of the Hub; it may not go online."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory, hub_cache: Path) -> Iterator[VllmProcess]:
    environment = {"HF_HUB_CACHE": str(hub_cache), "HF_HUB_OFFLINE": "1"}
    with VllmProcess(tmp_path_factory.mktemp("vllm") / "log", environment) as process:
        yield process


class Models:
    """Models made on demand, each once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.plain = cache(self._plain)
        self.prepared = cache(self._prepared)

    def _plain(self, arch: str, dtype: str, shards: int) -> Path:
        folder = self._root / f"{arch}-{dtype}-{shards}"
        return make_model(folder, arch, dtype=dtype, shards=shards)

    def _prepared(self, arch: str, dtype: str, shards: int) -> Path:
        source = self.plain(arch, dtype, shards)
        target = source.with_name(f"{source.name}-prepared")
        sllm.convert(source, target)
        assert (target / "sllm.json").is_file()
        return target


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 3)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameter_bytes(
    vllm: VllmProcess, models: Models, arch: str, dtype: str, shards: int
) -> None:
    plain = models.plain(arch, dtype, shards)
    assert len(list(plain.glob("*.safetensors"))) >= shards
    ask: dict[str, Any] = {"do": "filled", "dtype": dtype}
    stock = vllm.ask(model=str(plain), format="auto", **ask)
    assert len(stock) > 10
    assert vllm.ask(model=str(plain), format="sllm", **ask) == stock
    prepared = models.prepared(arch, dtype, shards)
    assert vllm.ask(model=str(prepared), format="sllm", **ask) == stock
    # What we write is an ordinary safetensors model to the stock loader too.
    assert vllm.ask(model=str(prepared), format="auto", **ask) == stock


@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 3)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_tokens(
    vllm: VllmProcess, models: Models, arch: str, dtype: str, shards: int
) -> None:
    ask: dict[str, Any] = {"do": "tokens", "dtype": dtype, "prompts": PROMPTS}
    plain, prepared = models.plain(arch, dtype, shards), models.prepared(arch, dtype, shards)
    stock = vllm.ask(model=str(plain), format="auto", **ask)
    assert all(len(answer) == 24 for answer in stock)
    assert len({token for answer in stock for token in answer}) > 10
    assert vllm.ask(model=str(plain), format="sllm", **ask) == stock
    assert vllm.ask(model=str(prepared), format="sllm", **ask) == stock


@pytest.mark.parametrize(
    "extra",
    [
        {"method": "map"},
        {"method": "uring", "queue_depth": 4, "block_size": 65536},
        {"method": "direct", "threads": 2},
        {"method": "buffered", "threads": 1, "huge_pages": False},
        {"verify": "always"},
        {"method": "buffered", "prefetch_files": 1},
        {"prefetch_files": 0},
    ],
)
def test_every_option_gives_the_same_bytes(
    vllm: VllmProcess, models: Models, extra: dict[str, Any]
) -> None:
    model = str(models.prepared("llama", "bfloat16", 3))
    stock = vllm.ask(do="filled", model=model, format="auto")
    assert vllm.ask(do="filled", model=model, format="sllm", extra=extra) == stock
    if "method" in extra:
        assert f" by {extra['method']}, " in vllm.output().splitlines()[-1]


def test_weights_can_be_loaded_again_into_the_same_model(vllm: VllmProcess, models: Models) -> None:
    model = str(models.plain("qwen2", "bfloat16", 3))
    stock = vllm.ask(do="filled", model=model, format="auto")
    assert vllm.ask(do="filled", model=model, format="sllm", reload=True) == stock


def test_files_no_index_names_are_left_out(
    vllm: VllmProcess, models: Models, tmp_path: Path
) -> None:
    """As in repositories that carry leftovers of an earlier upload beside the indexed shards."""
    source = models.plain("llama", "bfloat16", 3)
    model = shutil.copytree(source, tmp_path / "model")
    shutil.copy(
        models.plain("llama", "bfloat16", 1) / "model.safetensors", model / "old.safetensors"
    )
    stock = vllm.ask(do="filled", model=str(source), format="auto")
    assert vllm.ask(do="filled", model=str(model), format="sllm") == stock


def test_consolidated_files_are_preferred_as_auto_does(
    vllm: VllmProcess, models: Models, tmp_path: Path
) -> None:
    """Mistral's repositories hold the model twice; vLLM takes `consolidated*.safetensors`."""
    wanted = models.plain("llama", "bfloat16", 1)
    model = shutil.copytree(models.plain("llama", "bfloat16", 3), tmp_path / "model")
    other = make_model(tmp_path / "other", "llama", dtype="bfloat16", seed=5)
    shutil.copy(other / "model.safetensors", model / "consolidated.safetensors")
    stock = vllm.ask(do="filled", model=str(model), format="auto")
    assert stock != vllm.ask(do="filled", model=str(wanted), format="auto")
    assert vllm.ask(do="filled", model=str(model), format="sllm") == stock


def test_a_model_of_the_hub(vllm: VllmProcess, models: Models, hub_cache: Path) -> None:
    """By its id, from the Hub's cache, where every file is a link to a blob named by its hash."""
    source = models.plain("qwen3", "bfloat16", 3)
    repository = hub_cache / "models--someone--something"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for folder in (snapshot, repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for number, file in enumerate(sorted(source.iterdir())):
        blob = shutil.copy(file, repository / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(blob)
    stock = vllm.ask(do="filled", model=str(source), format="auto")
    assert vllm.ask(do="filled", model="someone/something", format="sllm") == stock


def test_tensor_parallel_ranks_get_their_slices(
    models: Models, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two processes, one rank each, no engine around them: each holds the stock loader's part."""
    scratch = tmp_path_factory.mktemp("ranks")
    cases = [
        (models.plain("llama", "bfloat16", 3), "sllm"),
        (models.prepared("llama", "bfloat16", 3), "sllm"),
        (models.plain("qwen2", "bfloat16", 1), "sllm"),
        (models.prepared("opt", "bfloat16", 3), "sllm"),
    ]
    with ExitStack() as stack:
        stack.enter_context(no_shared_memory_left())
        ranks = [stack.enter_context(VllmProcess(scratch / f"log{rank}")) for rank in range(2)]

        def both(number: int, model: Path, load_format: str) -> list[Any]:
            meeting = scratch / f"{scratch.parent.name}-{number}-{load_format}"
            for rank, process in enumerate(ranks):
                process.send(
                    do="filled",
                    model=str(model),
                    format=load_format,
                    ranks=2,
                    rank=rank,
                    rendezvous=str(meeting),
                )
            return [process.receive() for process in ranks]

        for number, (model, load_format) in enumerate(cases):
            stock = both(number, model, "auto")
            assert stock[0] != stock[1]
            assert both(number, model, load_format) == stock


class TestRefusals:
    """Each must end with our words, not with wrong weights or a wait for ever."""

    @pytest.fixture
    def copy(self, models: Models, tmp_path: Path) -> Path:
        return shutil.copytree(models.plain("llama", "bfloat16", 3), tmp_path / "model")

    @staticmethod
    def refused(vllm: VllmProcess, model: Path, kind: str, **more: Any) -> str:
        with pytest.raises(RemoteError) as caught:
            vllm.ask(do="filled", model=str(model), format="sllm", **more)
        assert kind in caught.value.kinds, caught.value
        return str(caught.value)

    def test_truncated_shard(self, vllm: VllmProcess, copy: Path) -> None:
        shard = sorted(copy.glob("*.safetensors"))[1]
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size - 1000)
        message = self.refused(vllm, copy, "CorruptCheckpointError")
        assert shard.name in message

    def test_missing_shard(self, vllm: VllmProcess, copy: Path) -> None:
        shard = sorted(copy.glob("*.safetensors"))[1]
        shard.unlink()
        assert shard.name in self.refused(vllm, copy, "CheckpointError")

    def test_pickle_only(self, vllm: VllmProcess, copy: Path) -> None:
        for file in copy.glob("*.safetensors*"):
            file.unlink()
        (copy / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
        assert "pytorch_model.bin" in self.refused(vllm, copy, "UnsupportedFormatError")

    def test_unknown_option(self, vllm: VllmProcess, copy: Path) -> None:
        message = self.refused(vllm, copy, "OptionError", extra={"concurrency": 16})
        assert "'concurrency'" in message
        assert "queue_depth" in message

    def test_wrong_bytes_in_a_prepared_model(
        self, vllm: VllmProcess, models: Models, tmp_path: Path
    ) -> None:
        model = shutil.copytree(models.prepared("llama", "bfloat16", 3), tmp_path / "model")
        data = sorted(model.glob("*.safetensors"))[0]
        with data.open("r+b") as file:
            file.seek(data.stat().st_size - 100)
            file.write(b"\xa5\x5a")
        message = self.refused(vllm, model, "ChecksumError", extra={"verify": "always"})
        assert data.name in message

    def test_a_tensor_too_few(self, vllm: VllmProcess, copy: Path) -> None:
        """vLLM's own check that every parameter was initialised stays in force."""
        from safetensors.torch import load_file, save_file

        merged = {}
        for file in copy.glob("*.safetensors*"):
            if file.suffix == ".safetensors":
                merged.update(load_file(file))
            file.unlink()
        del merged["model.norm.weight"]
        save_file(merged, copy / "model.safetensors")
        with pytest.raises(
            RemoteError, match=r"not initialized from checkpoint.*model\.norm\.weight"
        ):
            vllm.ask(do="filled", model=str(copy), format="sllm")

    def test_the_process_still_loads_afterwards(self, vllm: VllmProcess, models: Models) -> None:
        model = str(models.plain("llama", "bfloat16", 3))
        stock = vllm.ask(do="filled", model=model, format="auto")
        assert vllm.ask(do="filled", model=model, format="sllm") == stock
