"""`kwaai chat`: talk to a model, through the node that runs or one of its own."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from kwaai_core.cli.setting_up import prepare
from kwaai_core.config import ChatSettings
from kwaai_core.errors import KwaaiError, LobeFailed, leaf
from kwaai_core.local import answered, node_client, node_runs

if TYPE_CHECKING:
    import httpx

    from kwaai_core.config import Config
    from kwaai_core.lobes import Lobe


@click.command()
@click.argument("model", required=False)
@click.argument("words", metavar="[PROMPT]...", nargs=-1)
@click.option("-p", "--prompt", help="The same, where no MODEL is named.")
@click.option("-s", "--system", help="What the model is told before the conversation.")
@click.option("-t", "--temperature", type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Of each answer.")
@click.option("--seed", type=int, help="For an answer that can be repeated.")
@click.option("--lobes", metavar="A,B", help="The lobes of a node of its own.")
@click.option("--json", "as_json", is_flag=True, help="One answer as one JSON object.")
def chat(
    model: str | None,
    words: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    lobes: str | None,
    as_json: bool,
    **sampling: float | None,
) -> None:
    """Talk to MODEL, by default the first there is that has weights.

    Asks PROMPT, or what comes from standard input, and ends; with neither it is a dialogue, in
    which Ctrl-C stops the answer and Ctrl-D ends. Uses the node that runs here, or opens one for
    the time being.
    """
    prompt = _prompt(model, words, prompt)
    config, chosen = prepare({"lobes": lobes})
    name, source = (model, "") if model else config.sourced("chat", ChatSettings)["model"]
    hint = f"; [chat] model names it, in {source}"
    if model:
        hint = f"; {_alone(model, *words)}" * (bool(words) or prompt is None)
    with _node(config, chosen) as client:
        if name:
            _require_model(client, name, hint)
        dialogue = _Dialogue(client, name or _first_model(client))
        dialogue.options = {key: value for key, value in sampling.items() if value is not None}
        if system:
            dialogue.messages.append({"role": "system", "content": system})
        if prompt is not None:
            dialogue.once(prompt, as_json=as_json)
        else:
            dialogue.talk()


def _alone(*words: str) -> str:
    return f'a prompt alone goes with -p: kwaai chat -p "{" ".join(words)}"'


def _prompt(model: str | None, words: tuple[str, ...], prompt: str | None) -> str | None:
    """What is asked, or None for a dialogue."""
    if words and prompt is not None:
        raise click.UsageError("there are two prompts: one after MODEL, and one with -p")
    prompt, what = " ".join(words) if words else prompt, "the prompt"
    if prompt is None and not sys.stdin.isatty():
        try:
            prompt, what = sys.stdin.read(), "standard input"
            prompt.encode()
        except UnicodeError:
            raise click.UsageError("standard input is not UTF-8: convert it first") from None
    if prompt is not None and not prompt.strip():
        if model and not words and what == "standard input":
            read = f"{what} is empty, and “{model}” was read as MODEL"
            raise click.UsageError(f"{read}: {_alone(model)}")
        raise click.UsageError(f"{what} is empty: give a prompt with -p, or type one")
    return prompt


def _first_model(client: httpx.Client) -> str:
    listed = answered(client.get("/v1/models"))["data"]
    models = [model for model in listed if not model["kwaai"]["dimensions"]]  # what makes text
    if not any(model["kwaai"]["digest"] for model in models):
        for lobe in answered(client.get("/lobes")):
            if "executor" in lobe["role"] and lobe["state"] in ("failed", "waiting"):
                raise LobeFailed(lobe["lobe"], lobe["cause"])
    if not models:
        raise KwaaiError("there is no model here: pip install kwaai-lobe-llama kwaai-lobe-smollm2")
    return str(models[0]["id"])


def _require_model(client: httpx.Client, wanted: str, hint: str) -> None:
    found = client.get(f"/v1/models/{quote(wanted)}")
    if found.status_code == 404 and answered(client.get("/v1/models"))["data"]:
        raise KwaaiError(found.json()["error"]["message"] + hint)


@dataclass
class _Dialogue:
    """A conversation over the node's API."""

    client: httpx.Client
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def once(self, prompt: str, *, as_json: bool) -> None:
        """Ask one question and print the answer."""
        self.messages.append({"role": "user", "content": prompt})
        started = time.monotonic()
        text = ""
        facts: dict[str, Any] = {}
        try:
            for piece, facts in self._answer():  # noqa: B007 - the last of them are wanted below
                text += piece
                if not as_json:
                    click.echo(piece, nl=False)
        finally:  # an error has a line of its own
            if text and not as_json:
                click.echo()
        if as_json:
            facts |= {"model": self.model, "text": text, "seconds": time.monotonic() - started}
            click.echo(json.dumps(facts, ensure_ascii=False))

    def talk(self) -> None:
        """Read questions until the end of input."""
        import readline  # noqa: F401  # line editing and history for input()

        click.echo(f"{self.model} – Ctrl-C stops an answer, Ctrl-D ends", err=True)
        while True:
            try:
                prompt = input("> ")
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo("  (Ctrl-D ends)", err=True)
                continue
            if prompt.strip():
                self._turn(prompt)

    def _turn(self, prompt: str) -> None:
        self.messages.append({"role": "user", "content": prompt})
        text = failed = ""
        try:
            for piece, _ in self._answer():
                text += piece
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            click.echo(" …", nl=False)
        except KwaaiError as error:
            failed = error.message
        finally:
            click.echo()
        if failed:
            click.echo(f"{click.style('error:', fg='red')} {failed}", err=True)
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def _answer(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The answer in pieces, with what is known of it; closing ends it on the node too."""
        body = {"model": self.model, "messages": self.messages, "stream": True, **self.options}
        body["stream_options"] = {"include_usage": True}
        facts: dict[str, Any] = {}
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
                answered(response)
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise KwaaiError(event["error"]["message"])
                facts |= {key: event[key] for key in ("usage", "kwaai") if event.get(key)}
                for choice in event["choices"]:
                    if choice["finish_reason"]:
                        facts["finish_reason"] = choice["finish_reason"]
                    yield choice["delta"].get("content") or "", facts
        yield "", facts


@contextmanager
def _node(config: Config, lobes: list[Lobe]) -> Iterator[httpx.Client]:
    """A client of the running node, or of one in a thread of this process."""
    own = nullcontext() if node_runs(config.state) else _own_node(config, lobes)
    with own, node_client(config.state, timeout=None) as client:
        yield client


@contextmanager
def _own_node(config: Config, lobes: list[Lobe]) -> Iterator[None]:
    import trio

    from kwaai_core.http.server import serve
    from kwaai_core.logs import set_up
    from kwaai_core.node import open_node

    set_up("debug" if config.log.level == "debug" else "error", config.log.format)
    if config.log.level != "debug":  # what fails is said once, by whoever asked for it
        logging.getLogger("kwaai_core.supervise").setLevel("CRITICAL")
    up: Future[tuple[trio.lowlevel.TrioToken, trio.Event]] = Future()

    async def main() -> None:
        stop = trio.Event()
        token = trio.lowlevel.current_trio_token()
        server = replace(config.server, grace_seconds=0.0)
        async with open_node(config, lobes) as node, trio.open_nursery() as nursery:
            await nursery.start(partial(serve, node, server, config.state, port=False, stop=stop))
            up.set_result((token, stop))

    def thread() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 - for the thread that waits for this one
            if not up.done():
                up.set_exception(leaf(error))

    node = threading.Thread(target=thread, daemon=True)
    node.start()
    token, stop = up.result()
    try:
        yield
    finally:
        token.run_sync_soon(stop.set)
        node.join(20)
