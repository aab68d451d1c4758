"""`sllm serve`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sllm.errors import OptionError

if TYPE_CHECKING:
    from sllm_router.registry import Registry
    from sllm_router.settings import Settings

NEEDED = ("aiohttp", "prometheus_client", "uvicorn")

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class NameValue(click.ParamType[tuple[str, str]]):
    """``name=value``"""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        return name, text


POSITIVE = click.FloatRange(min=0, min_open=True)

_OPTIONS: list[Callable[[Callable[..., None]], Callable[..., None]]] = [
    click.option("--engine", help="vllm, transformers, ...; default: the first that runs here."),
    click.option(
        "-o", "--engine-option", "engine_options", type=NameValue(), multiple=True,
        help="Handed to every engine; repeatable.",
    ),
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option(
        "--port", default=8000, show_default=True, type=click.IntRange(0, 65535),
        help="0 takes a free port.",
    ),
    click.option(
        "--max-instances", type=click.IntRange(min=1),
        help="Engines that may run at once; default: one for each model.",
    ),
    click.option(
        "--keep-alive", type=click.FloatRange(min=0), metavar="SECONDS",
        help="Stop an engine that was idle so long; default: when it is in the way.",
    ),
    click.option("--policy", default="startup-time", show_default=True, help="Who makes room."),
    click.option(
        "--start-timeout", default=600.0, show_default=True, type=POSITIVE, metavar="SECONDS",
        help="For an engine to become ready.",
    ),
    click.option(
        "--queue-timeout", default=900.0, show_default=True, type=POSITIVE, metavar="SECONDS",
        help="For a request to get an engine.",
    ),
    click.option(
        "--max-queue", default=1000, show_default=True, type=click.IntRange(min=1),
        help="Requests that may wait for one model.",
    ),
    click.option(
        "--read-timeout", default=600.0, show_default=True, type=POSITIVE, metavar="SECONDS",
        help="Silence from an engine after which a request is given up.",
    ),
    click.option(
        "--heartbeat", default=5.0, show_default=True, type=POSITIVE, metavar="SECONDS",
        help="Between signs of life to streaming clients that wait for a start.",
    ),
    click.option(
        "--stop-grace", default=15.0, show_default=True, type=click.FloatRange(min=0),
        metavar="SECONDS", help="For an engine to end by itself before it is killed.",
    ),
    click.option(
        "--drain", default=10.0, show_default=True, type=click.FloatRange(min=0),
        metavar="SECONDS", help="For running requests to finish when asked to end.",
    ),
    click.option(
        "--max-body", default=64, show_default=True, type=click.IntRange(min=1), metavar="MIB",
        help="Largest request body.",
    ),
    click.option(
        "--api-key", envvar="SLLM_API_KEY", show_envvar=True,
        help="Asked of clients; better set in the environment than on the command line.",
    ),
    click.option(
        "--log-dir", type=click.Path(file_okay=False, path_type=Path),
        help="Keep the engines' logs here.",
    ),
    click.option("--eager", is_flag=True, help="Start every model now, not at its first request."),
    click.option("--json-logs", is_flag=True, help="Log one JSON object a line."),
]  # fmt: skip


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]DIR...")
@_with_options
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve models behind one OpenAI-compatible endpoint.

    Each DIR is a model in Hugging Face layout, prepared by `sllm convert` or not. Its engine
    starts at the first request. The model's name is NAME, else the directory's.
    """
    _check_installed()
    from sllm import plugins
    from sllm_router import logs
    from sllm_router.registry import Registry, choose_engine, describe_model

    engine = choose_engine(options["engine"])
    engine_options = dict(options["engine_options"])
    registry = Registry(describe_model(model, engine, engine_options) for model in models)
    policy = plugins.named("sllm_placement_policies", options["policy"])
    settings = _settings(options, registry)
    logs.configure(as_json=options["json_logs"])
    _warn_if_open(options["host"], settings)
    _serve(registry, policy, settings, options)


def _check_installed() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise OptionError(
            f"the router needs packages that are not installed: {', '.join(missing)}",
            hint="pip install 'sllm[router]'",
        )


def _settings(options: dict[str, Any], registry: Registry) -> Settings:
    from sllm_router.settings import Settings

    log_directory: Path | None = options["log_dir"]
    if log_directory is not None:
        try:
            log_directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"cannot make the log directory: {error.strerror}", path=log_directory
            ) from error
        log_directory = log_directory.resolve()
    return Settings(
        capacity=options["max_instances"] or len(registry),
        keep_alive=options["keep_alive"],
        start_timeout=options["start_timeout"],
        queue_timeout=options["queue_timeout"],
        max_queue=options["max_queue"],
        heartbeat=options["heartbeat"],
        read_timeout=options["read_timeout"],
        stop_grace=options["stop_grace"],
        drain=options["drain"],
        body_limit=options["max_body"] << 20,
        api_key=options["api_key"] or None,
        log_directory=log_directory,
    )


def _warn_if_open(host: str, settings: Settings) -> None:
    if host not in LOOPBACK and settings.api_key is None:
        click.echo(
            f"warning: everybody who reaches {host} can use these models; set SLLM_API_KEY",
            err=True,
        )


def _serve(registry: Registry, policy: Any, settings: Settings, options: dict[str, Any]) -> None:
    from sllm_router.server import Router, handle_signals, listen, run_until_signalled

    listener = listen(options["host"], options["port"])
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def main() -> None:
        router = Router(registry, policy, settings)

        def on_signal(number: signal.Signals) -> None:
            router.ask_to_end()
            _say(f"\n{number.name}: stopping; once more to hurry")

        handle_signals(on_signal)
        await router.run(
            listener,
            eager=options["eager"],
            on_ready=lambda: _greet(url, registry, settings.api_key is not None),
        )

    with listener:
        run_until_signalled(main)
    _say("stopped; nothing is left running")


def _say(text: str) -> None:
    """To people, if they are still there: a closed terminal must not keep us from ending."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _greet(url: str, registry: Registry, needs_key: bool) -> None:
    """The line that says where, and something to paste."""
    click.echo(f"sllm serve: ready on {url}")
    for model in registry:
        size = f"{model.nbytes / 1e9:.2f} GB"
        click.echo(f"  {model.name}  ({model.engine.name}, {model.path}, {size})")
    key = " -H 'authorization: Bearer '$SLLM_API_KEY" if needs_key else ""
    name = next(iter(registry)).name
    click.echo(
        f"try:\n  curl -N {url}/v1/completions -H 'content-type: application/json'{key} "
        f"""-d '{{"model": "{name}", "prompt": "Hello", "max_tokens": 16, "stream": true}}'"""
    )
