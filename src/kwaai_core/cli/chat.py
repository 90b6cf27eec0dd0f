"""`kwaai chat`: talk to a model, through the node that runs or one of its own."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from kwaai_core.cli.setting_up import prepare
from kwaai_core.errors import KwaaiError, LobeFailed, leaf
from kwaai_core.local import answered

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
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    lobes: str | None,
    as_json: bool,
) -> None:
    """Talk to MODEL, by default the first there is that has weights.

    Asks PROMPT, or what comes from standard input, and ends; with neither it is a dialogue, in
    which Ctrl-C stops the answer and Ctrl-D ends. Uses the node that runs here, or opens one for
    the time being.
    """
    if words and prompt is not None:
        raise click.UsageError("there are two prompts: one after MODEL, and one with -p")
    prompt = " ".join(words) or prompt
    if prompt is None and not sys.stdin.isatty():
        try:
            prompt = sys.stdin.read()
            prompt.encode()
        except UnicodeError:
            raise click.UsageError("standard input is not UTF-8: convert it first") from None
        if not prompt.strip():
            raise click.UsageError("standard input is empty: give a prompt with -p, or type one")
    given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    config, chosen = prepare({"lobes": lobes})
    with _node(config, chosen) as client:
        if model and prompt == (" ".join(words) or None):  # "kwaai chat hello there"
            _require_model(client, model, words)
        dialogue = _Dialogue(client, _model(client, model or config.chat.model))
        dialogue.options = {key: value for key, value in given.items() if value is not None}
        if system:
            dialogue.messages.append({"role": "system", "content": system})
        if prompt is not None:
            dialogue.once(prompt, as_json=as_json)
        else:
            dialogue.talk()


def _model(client: httpx.Client, wanted: str) -> str:
    if wanted:
        return wanted
    models = answered(client.get("/v1/models"))["data"]
    if not any(model["kwaai"]["digest"] for model in models):
        for lobe in answered(client.get("/lobes")):
            if "executor" in lobe["role"] and lobe["state"] in ("failed", "waiting"):
                raise LobeFailed(lobe["lobe"], lobe["cause"])
    if not models:
        raise KwaaiError("there is no model here: pip install kwaai-lobe-llama kwaai-lobe-smollm2")
    return str(models[0]["id"])


def _require_model(client: httpx.Client, wanted: str, words: tuple[str, ...]) -> None:
    found = client.get(f"/v1/models/{quote(wanted)}")
    if found.status_code == 404 and answered(client.get("/v1/models"))["data"]:
        said, prompt = found.json()["error"]["message"], " ".join((wanted, *words))
        raise KwaaiError(f'{said}; a prompt alone goes with -p: kwaai chat -p "{prompt}"')


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
        for piece, facts in self._answer():  # noqa: B007 - the last of them are wanted below
            text += piece
            if not as_json:
                click.echo(piece, nl=False)
        if as_json:
            facts |= {"model": self.model, "text": text, "seconds": time.monotonic() - started}
            click.echo(json.dumps(facts, ensure_ascii=False))
        else:
            click.echo()

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
        text = ""
        try:
            for piece, _ in self._answer():
                text += piece
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            click.echo(" …", nl=False)
        except KwaaiError as error:
            click.echo(f"{click.style('error:', fg='red')} {error.message}", err=True)
        click.echo()
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
    from kwaai_core.local import node_client, node_runs

    if node_runs(config.state):
        with node_client(config.state, timeout=None) as client:
            yield client
        return
    with _own_node(config, lobes), node_client(config.state, timeout=None) as client:
        yield client


@contextmanager
def _own_node(config: Config, lobes: list[Lobe]) -> Iterator[None]:
    import trio

    from kwaai_core.logs import set_up
    from kwaai_core.node import open_node
    from kwaai_core.server import serve

    set_up("debug" if config.log.level == "debug" else "error", config.log.format)
    if config.log.level != "debug":  # what fails is said once, by whoever asked for it
        logging.getLogger("kwaai_core.supervise").setLevel("CRITICAL")
    news: SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.Event] | BaseException] = SimpleQueue()

    async def main() -> None:
        stop = trio.Event()
        token = trio.lowlevel.current_trio_token()
        server = replace(config.server, port=0, grace_seconds=0.0)
        async with open_node(config, lobes) as node:
            bound = lambda urls: news.put((token, stop))  # noqa: E731
            await serve(node, server, config.state, stop=stop, on_bound=bound)

    def thread() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 - for the thread that waits for this one
            news.put(leaf(error))

    node = threading.Thread(target=thread, daemon=True)
    node.start()
    first = news.get()
    if isinstance(first, BaseException):
        raise first
    token, stop = first
    try:
        yield
    finally:
        token.run_sync_soon(stop.set)
        node.join(20)
