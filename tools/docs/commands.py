"""Reference pages of the commands: what `--help` says, for every command and subcommand."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import typer

__all__ = ["command_pages"]


def command_pages(root: Path) -> dict[str, str]:
    """Return a page for each command that the project installs, by the command's name."""
    with (root / "apps" / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    return {name: _page(name, target) for name, target in scripts.items()}


def _page(name: str, target: str) -> str:
    module = import_module(target.partition(":")[0])
    command = typer.main.get_command(module.app)
    return "\n".join([f"# {name}", "", *_lines(command, name, level=2)]) + "\n"


def _lines(command: typer.core.TyperCommand, name: str, level: int) -> Iterator[str]:
    children = getattr(command, "commands", {})
    yield from _text(command.help or "")
    if not children:
        yield from _usage(command, name)
    for key, child in children.items():
        yield from (f"{'#' * level} {name} {key}", "")
        yield from _lines(child, f"{name} {key}", level + 1)


def _usage(command: typer.core.TyperCommand, name: str) -> Iterator[str]:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    words = [_argument(p) for p in arguments]
    yield from ("```text", " ".join([name, *words, "[OPTIONS]"]), "```", "")
    yield from ("| argument or option | meaning | default |", "| --- | --- | --- |")
    for parameter in shown:
        meaning = _cell(getattr(parameter, "help", None) or "")
        yield f"| {_named(parameter)} | {meaning} | {_default(parameter)} |"
    yield ""


def _argument(parameter: typer.core.TyperArgument) -> str:
    name = parameter.metavar or (parameter.name or "").upper()
    return name if parameter.required else f"[{name.strip('[]')}]"


def _named(parameter: typer.core.TyperArgument | typer.core.TyperOption) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`".replace("|", "\\|")
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else f" {parameter.metavar or _kind(parameter)}"
    return f"`{names}{value}`".replace("|", "\\|")


def _kind(parameter: typer.core.TyperOption) -> str:
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(
        parameter.type_descriptor.annotation, "TEXT"
    )


def _default(parameter: typer.core.TyperArgument | typer.core.TyperOption) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if callable(value) or value in (None, False, (), []):
        return ""
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _text(text: str) -> Iterator[str]:
    """Yield a help text as Markdown: what is indented, or kept as it stands, becomes a block."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        kept = paragraph.lstrip("\n").startswith("\b")
        if kept or paragraph.startswith("  "):
            lines = [line for line in paragraph.split("\n") if line.strip() not in ("", "\b")]
            yield from ("```text", *(line if kept else line.strip() for line in lines), "```", "")
        else:
            yield from (paragraph.replace("<", "&lt;"), "")
