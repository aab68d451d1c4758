"""``python -m sllm_transformers.server DIR``: the engine process."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import click

import sllm
from sllm.errors import SllmError
from sllm.trace import mark
from sllm_transformers.switch import load_options

logger = logging.getLogger("sllm_transformers")

DTYPES = ("auto", "float32", "bfloat16", "float16")
GRACE_SECONDS = 5
"""How long open connections may take to end after SIGTERM; generations end at the next token."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--served-model-name", help="Name that clients use; by default the directory's.")
@click.option("--dtype", default="auto", show_default=True, type=click.Choice(DTYPES))
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="CPU threads for computing.")
@click.option("--trust-remote-code", is_flag=True, help="Run the model's own Python code.")
def main(
    directory: Path,
    host: str,
    port: int,
    served_model_name: str | None,
    dtype: str,
    device: str,
    threads: int | None,
    trust_remote_code: bool,
) -> None:
    """Serve the model in DIRECTORY with OpenAI's API."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    mark("transformers-started")
    try:
        # First of all: the weights are read while Python imports torch and transformers.
        sllm.prefetch(directory, options=load_options({}))
        run(
            directory,
            host,
            port,
            served_model_name or directory.resolve().name,
            dtype=dtype,
            device=device,
            threads=threads,
            trust_remote_code=trust_remote_code,
        )
    except SllmError as error:
        logger.error("%s", error)
        sys.exit(1)


def run(
    directory: Path,
    host: str,
    port: int,
    name: str,
    *,
    dtype: str,
    device: str,
    threads: int | None,
    trust_remote_code: bool,
) -> None:
    """Load, then listen: the port answers only when the model can."""
    import torch
    import uvicorn

    from sllm_transformers.generation import LanguageModel, Worker
    from sllm_transformers.server.app import make_app
    from sllm_transformers.server.shutdown import PromptServer

    mark("transformers-imported")
    if threads is not None:
        torch.set_num_threads(threads)
    model = LanguageModel.load(
        directory, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    mark("transformers-loaded")
    worker = Worker(model)
    logger.info("serving %s on http://%s:%d", name, host, port)
    config = uvicorn.Config(
        make_app(worker, name),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    # uvicorn raises the signal that ended it once more: a clean end is no death by signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        PromptServer(config, worker).run()
    finally:
        worker.close()


if __name__ == "__main__":
    main()
