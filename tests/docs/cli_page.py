"""Writes docs/reference/cli.md from the help of the command line itself.

    python tests/docs/cli_page.py

A test compares the page with what this would write.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from kwaai_core.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
HEAD = """# Commands

What `kwaai` says of itself. Commands that lobes add, such as `kwaai models`, are in their README.

What a command is asked for goes to standard output, and everything else to standard error:
warnings, logs, progress, errors. An error is one line (a wrong `kwaai.toml` may have several),
after `--json` one object: `{"error": {"message": "…"}}`. With `--json` standard output then has the
one document, or nothing where the command fails.

| exit code | when |
|---|---|
| 0 | it did what it was asked for |
| 1 | it could not, or the machine refused it: a full disk, a missing right |
| 2 | wrong usage, or a wrong setting |
| 70 | a bug in kwaai |
| 130 | Ctrl-C |

`kwaai run` prints one line to standard output once it listens: “kwaai listens on
http://127.0.0.1:8000/v1 (stop with Ctrl-C)”. With `--log-format json` it is an object like every
line of the log: `{"message": "…", "url": "http://127.0.0.1:8000/v1"}`.
"""


def page() -> str:
    return "\n".join([HEAD, *_sections(cli, "kwaai", None)])


def _sections(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, parent, name, **command.context_settings)
    yield f"## {context.command_path}\n\n```text\n{_help(command, context)}\n```\n"
    for child_name, child in sorted(getattr(command, "commands", {}).items()):
        if _of_core(child):
            yield from _sections(child, child_name, context)


def _help(command: click.Command, context: click.Context) -> str:
    formatter = click.HelpFormatter(width=88)
    command.format_help(context, formatter)
    lines = formatter.getvalue().rstrip().splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _of_core(command: click.Command) -> bool:
    return getattr(command.callback, "__module__", "kwaai_core").startswith("kwaai_core")


if __name__ == "__main__":
    PAGE.write_text(page())
