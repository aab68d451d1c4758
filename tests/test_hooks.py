"""Hooks are documented and typed, and the built-ins come through the same door as anybody's."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sllm import hookspecs
from sllm.cli import main
from sllm.errors import OptionError
from sllm.interfaces import Device, Engine, Estimator, PlacementPolicy, Source
from sllm.plugins import each, manager, named

DOCS = Path(__file__).parent.parent / "docs"
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("sllm_"))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_parameters(hook: str) -> None:
    signature = inspect.signature(getattr(hookspecs, hook))
    parameters = ", ".join(signature.parameters)
    text = (DOCS / "hooks.md").read_text()
    assert f"`{hook}({parameters})" in text


def test_no_hook_is_documented_that_does_not_exist() -> None:
    headings = [
        line for line in (DOCS / "hooks.md").read_text().splitlines() if "## `sllm_" in line
    ]
    assert sorted(line.split("`")[1].split("(")[0] for line in headings) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_one_clear_line_of_documentation_and_types(hook: str) -> None:
    specification = getattr(hookspecs, hook)
    assert len((specification.__doc__ or "").strip().splitlines()) == 1
    signature = inspect.signature(specification)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_built_in_implementation(hook: str) -> None:
    assert getattr(manager().hook, hook).get_hookimpls()


@pytest.mark.parametrize(
    ("hook", "interface", "names"),
    [
        ("sllm_sources", Source, {"file"}),
        ("sllm_devices", Device, {"cpu", "cuda"}),
        ("sllm_engines", Engine, {"vllm", "transformers"}),
        ("sllm_estimators", Estimator, {"median"}),
        ("sllm_placement_policies", PlacementPolicy, {"startup-time", "random"}),
    ],
)
def test_built_ins_fulfil_their_interface(hook: str, interface: type, names: set[str]) -> None:
    found = list(each(hook))
    assert names <= {item.name for item in found}
    for item in found:
        assert isinstance(item, interface)


def test_commands_come_from_plugins() -> None:
    commands = list(each("sllm_cli_commands"))
    assert all(isinstance(command, click.Command) for command in commands)
    assert {"bench", "convert", "hooks", "inspect", "serve", "verify"} <= {
        command.name for command in commands
    }


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(OptionError, match=r"available: .*cpu"):
        named("sllm_devices", "abacus")


def test_the_hooks_command_lists_every_hook() -> None:
    result = CliRunner().invoke(main, ["hooks", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["hook"] for row in rows] == HOOKS
    assert all(row["about"] and row["plugins"] for row in rows)
    table = CliRunner().invoke(main, ["hooks"])
    assert table.exit_code == 0
    assert "sllm_devices" in table.output
