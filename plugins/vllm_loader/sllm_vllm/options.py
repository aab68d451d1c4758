"""What may stand in `--model-loader-extra-config`. Imports neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches

from sllm.errors import OptionError
from sllm.loader.base import LoadOptions

DEFAULT_PREFETCH_FILES = 2

_WHERE = "--model-loader-extra-config"


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """The options of one loader.

    Attributes:
        load: how bytes leave the files.
        prefetch_files: how many files may be read ahead of the tensor being copied; 0 = all.
    """

    load: LoadOptions = field(default_factory=LoadOptions)
    prefetch_files: int = DEFAULT_PREFETCH_FILES


def valid_options() -> tuple[str, ...]:
    """Names that `--model-loader-extra-config` takes."""
    return (*(item.name for item in fields(LoadOptions)), "prefetch_files")


def parse(extra: object) -> LoaderOptions:
    """Check and convert the dictionary vLLM hands over.

    Args:
        extra: the decoded JSON of `--model-loader-extra-config`; None for none.

    Raises:
        OptionError: not a dictionary, an unknown name, or a value of the wrong type or range.
    """
    if extra is None:
        return LoaderOptions()
    if not isinstance(extra, Mapping):
        raise OptionError(
            f"{_WHERE} must be a JSON object, not {type(extra).__name__}",
            hint='for example {"method": "uring", "queue_depth": 16}',
        )
    valid = valid_options()
    if unknown := sorted(str(name) for name in extra if name not in valid):
        near = get_close_matches(unknown[0], valid, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise OptionError(
            f"unknown {'options' if len(unknown) > 1 else 'option'} "
            f"{', '.join(map(repr, unknown))} in {_WHERE}",
            hint=f"{meant}valid options: {', '.join(valid)}",
        )
    given = dict(extra)
    prefetch_files = _whole_number(given.pop("prefetch_files", DEFAULT_PREFETCH_FILES))
    huge_pages = given.get("huge_pages", True)
    if not isinstance(huge_pages, bool):
        raise OptionError(
            f"huge_pages in {_WHERE} must be true or false, not {huge_pages!r}",
            hint="JSON writes them without quotes",
        )
    return LoaderOptions(LoadOptions(**given), prefetch_files)


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(
            f"prefetch_files in {_WHERE} must be a whole number >= 0, not {value!r}",
            hint="0 reads all files ahead",
        )
    return value


def for_device(options: LoadOptions, device_type: str, ranks: int) -> LoadOptions:
    """Settle what `method="auto"` means for this worker; a method the user named is kept.

    - vLLM copies every weight into parameters of its own, and on CPU packs most of them once more.
      Reading into memory of ours would be one more copy of the model in RAM. A mapping costs none:
      its pages belong to the page cache, and the kernel can take them back at any time.
    - With several ranks on a machine each rank reads every file and slices out its part. Through
      the page cache the bytes leave the disk once for all of them; with O_DIRECT once per rank.

    Args:
        options: as the user gave them.
        device_type: of the model's parameters, e.g. ``"cpu"``, ``"cuda"``.
        ranks: workers that load this model, on this machine or another.
    """
    if options.method == "auto" and (device_type == "cpu" or ranks > 1):
        return replace(options, method="map")
    return options
