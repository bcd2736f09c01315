"""The reference of the command line, made from the commands themselves."""

import inspect
import re
from typing import Any

from pages import heading, write_page
from sphinx.application import Sphinx
from typer.main import get_command

from otus.cli import app as command_line


def _option(option: Any, context: Any) -> list[str]:
    names, text = option.get_help_record(context) or (option.name, option.help or "")
    text = re.sub(r"\[default: \(?(.*?)\)?\]$", r"Default: \1.", " ".join(text.split()))
    text = text.replace("[required]", "Required.")
    return [f"``{names}``", f"    {text or '…'}", ""]


def _command(command: Any, path: str, parent: Any, line: str) -> list[str]:
    context = command.context_class(command, info_name=path, parent=parent)
    lines = [f".. _{path.replace(' ', '-')}:", "", *heading(path, line)]
    lines += [inspect.cleandoc(command.help or ""), ""]
    if hasattr(command, "commands"):
        for name, one in command.commands.items():
            lines += _command(one, f"{path} {name}", None, "~" if line == "-" else "-")
        return lines
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [".. code-block:: text", "", f"   {path} {usage}", ""]
    for option in command.params:
        if not getattr(option, "hidden", False):
            lines += _option(option, context)
    examples = [text for text in (command.epilog or "").split("\n\n") if text and text != "Examples:"]
    if examples:
        lines += ["Examples:", "", ".. code-block:: console", "", *(f"   $ {text}" for text in examples), ""]
    return lines


def _write(app: Sphinx) -> None:
    lines = [
        *heading("Command line"),
        "Made from the commands when this page is built: what stands here is what ``--help`` says. Every command answers on",
        "stdout, with ``--json`` as one JSON document; progress and notes go to stderr. It exits with 0 when "
        "done, 1 when the",
        "work failed, 2 when the command was wrong.",
        "",
    ]
    for name, command in get_command(command_line).commands.items():
        lines += _command(command, f"otus {name}", None, "-")
    write_page(app, "commands", lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
