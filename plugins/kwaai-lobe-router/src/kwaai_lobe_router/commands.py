"""`kwaai swarm`: who holds which blocks of a model, and where an answer would go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from kwaai_core.config import load_config
from kwaai_core.local import answered, node_client
from kwaai_lobe_router.settings import MOST_PROMPT, PROMPT

_PATIENCE = 60.0
_JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_MODEL = click.argument("model")


@click.group()
def swarm() -> None:
    """Show which nodes run which parts of a model."""


@swarm.command()
@_MODEL
@_JSON
def status(model: str, as_json: bool) -> None:
    """Show who holds which blocks of MODEL, how far away and how fast, and what is missing."""
    found = _ask("status", model)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(status_lines(found)))


@swarm.command()
@_MODEL
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1, MOST_PROMPT),
    default=PROMPT,
    show_default=True,
    help="Predict the time to the first token after a prompt of so many.",
)
@_JSON
def plan(model: str, prompt_tokens: int, as_json: bool) -> None:
    """Show the route that an answer of MODEL would take now, and the one that stands by."""
    found = _ask("plan", model, prompt_tokens=prompt_tokens)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(plan_lines(found)))


def _ask(what: str, model: str, **more: int) -> Any:
    with node_client(load_config().state, timeout=_PATIENCE) as client:
        return answered(client.get(f"/lobes/router/{what}", params={"model": model, **more}))


def status_lines(found: dict[str, Any]) -> list[str]:
    """A status for people; blocks with both ends included."""
    alone = ", which this node runs whole, and asks nobody" if found["whole"] else ""
    lines = [f"{found['model']}: {found['blocks']} blocks{alone}"]
    for peer in found["peers"]:
        units = ", ".join(map(_range, peer["units"]))
        step = sum(unit["step_ms"] for unit in peer["units"])
        lines.append(
            f"  {peer['peer']}  {units}  rtt {peer['rtt_ms']:.1f} ms  step {step:.2f} ms"
            f"  room {peer['room']} tokens"
            + (f"  reserved for {peer['reserved']} answers" if peer["reserved"] else "")
            + ("" if peer["exact"] else "  not exact")
        )
    lines += [f"  not used: {words}" for words in found["contradictions"].values()]
    missing = ", ".join(map(_range, found["missing"]))
    lines.append(f"missing: {missing}" if missing else "every block is held")
    return lines


def plan_lines(found: dict[str, Any]) -> list[str]:
    """A plan for people."""
    if found["route"] is None:
        return [f"no route: {found['refused']}"]
    lines = [f"route    {_path(found['route'])}"]
    if found["whole"]:
        return [*lines, "         this node runs the model whole, and asks nobody"]
    lines.append(
        f"         {found['latency_ms']:.1f} ms a token, {found['first_token_ms']:.1f} ms to the "
        f"first after {found['prompt_tokens']} tokens"
    )
    spare = found["backup"]
    lines.append(f"backup   {_path(spare)}" if spare else "backup   none: nobody could stand in")
    if not found["same_text_guaranteed"]:
        lines.append("not everybody on it computes the same bits as this node")
    return lines


def _path(hops: Sequence[dict[str, Any]]) -> str:
    return " → ".join(f"{hop['peer']} ({_range(hop)})" for hop in hops)


def _range(span: dict[str, Any]) -> str:
    last = span["hi"] - 1
    return f"{span['lo']}-{last}" if last > span["lo"] else str(last)
