"""Run at interpreter start by ``sllm-transformers.pth`` when one of its two variables is set.

``SLLM_TRANSFORMERS``: ``1`` (or ``true``, ``on``, ``yes``) enables with defaults; ``name=value``
pairs, comma-separated, enable with those options; ``0`` (or ``false``, ``off``, ``no``) does
nothing.

``SLLM_PREFETCH``: model directories, ``:``-separated, whose weights start being read at once.
The variable is taken out of the environment: child processes must not read the model again.
"""

from __future__ import annotations

import os

from sllm.errors import OptionError, SllmError

_ON = {"1", "true", "on", "yes"}
_OFF = {"", "0", "false", "off", "no"}


def _value(text: str) -> str | int | bool:
    if text.isdigit():
        return int(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def options_from(setting: str) -> dict[str, str | int | bool] | None:
    """The options `SLLM_TRANSFORMERS` asks for; None when it does not enable.

    Raises:
        sllm.errors.OptionError: neither a yes, a no, nor name=value pairs.
    """
    word = setting.strip().lower()
    if word in _OFF:
        return None
    if word in _ON:
        return {}
    options = {}
    for pair in setting.split(","):
        name, equals, text = pair.partition("=")
        if not equals:
            raise OptionError(
                f"SLLM_TRANSFORMERS={setting!r} is not understood",
                hint="set it to 1, to 0, or to options such as method=direct,threads=4",
            )
        options[name.strip()] = _value(text.strip())
    return options


def _warn(message: str, error: SllmError) -> None:
    """An interpreter must start all the same."""
    import logging

    logging.getLogger("sllm_transformers").warning(message, error)


def start() -> None:
    """Do what the environment asks for."""
    options = None
    try:
        options = options_from(os.environ.get("SLLM_TRANSFORMERS", ""))
        if options is not None:
            import sllm_transformers

            sllm_transformers.enable(**options)
    except SllmError as error:
        options = None
        _warn("not enabled: %s", error)
    for directory in filter(None, os.environ.pop("SLLM_PREFETCH", "").split(os.pathsep)):
        try:
            import sllm
            from sllm_transformers.switch import load_options

            sllm.prefetch(directory, options=load_options(options or {}))
        except SllmError as error:
            _warn("SLLM_PREFETCH: %s", error)


start()
