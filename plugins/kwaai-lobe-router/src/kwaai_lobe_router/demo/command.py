"""`kwaai demo`: what a newcomer sees."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from kwaai_core import Span
from kwaai_core.config import load_config

PROMPT = "Tell me a short story about two old laptops that became friends."


@click.command()
@click.option("--nodes", type=click.IntRange(2, 8), default=3, show_default=True, help="How many.")
@click.option("--model", default="smollm2-135m-instruct", show_default=True, help="A model's id.")
@click.option("--prompt", default=PROMPT, help="What is asked.")
@click.option("--no-kill", is_flag=True, help="Let every node live.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as one JSON object.")
def demo(nodes: int, model: str, prompt: str, no_kill: bool, as_json: bool) -> None:
    """One model over several nodes of this machine; one of them is killed in mid-answer.

    The nodes are real processes with temporary folders, joined over libp2p. None holds the whole
    model. The answer is compared with that of the untouched model in one process.
    """
    if not prompt.strip():
        raise click.UsageError("--prompt is empty: give a question, or leave it out")
    if nodes == 2 and not no_kill:
        raise click.UsageError(
            "with two nodes, each holds a half that nobody else has, so nobody could replace the "
            "one that is killed: add --no-kill, or --nodes 3"
        )
    from kwaai_lobe_router.demo.story import Script, tell

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the nodes end with it

    def say(words: str) -> None:
        click.echo(click.style(words, dim=True), err=True)

    def show(text: str) -> None:
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="kwaai-demo-") as folder:
        models = load_config().state / "lobes" / "models"
        script = Script(model, prompt, nodes, not no_kill, models)
        told = tell(script, Path(folder), say, show)
    click.echo(json.dumps(told, ensure_ascii=False) if as_json else _words(told))
    if not told["same_text"]:
        sys.exit(1)


def _words(told: dict[str, Any]) -> str:
    names = told["names"]
    lines = ["", "", "route before: " + _route(told["route_before"], names)]
    if told["killed"]:
        lines.append(
            f"killed:       {names[told['killed']]}, after {told['tokens_before_kill']} tokens; "
            f"{told['replayed_tokens']} were replayed elsewhere"
        )
        lines.append("route after:  " + _route(told["route_after"], names))
    lines.append(
        f"longest gap:  {told['longest_gap_ms']:.0f} ms; {told['tokens_per_second']:.1f} tokens/s, "
        f"against {told['baseline_tokens_per_second']:.1f} of the whole model in one process with "
        "as many threads as each node"
    )
    same = "equal, to the byte" if told["same_text"] else "NOT equal"
    lines.append(f"text:         {same}, to that of the untouched model in one process")
    return "\n".join(lines)


def _route(hops: list[dict[str, Any]], names: dict[str, str]) -> str:
    from kwaai_lobe_router.refusals import blocks

    return " → ".join(f"{names[hop['peer']]} {blocks(Span(hop['lo'], hop['hi']))}" for hop in hops)
