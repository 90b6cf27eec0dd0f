"""An executor that says what it was told, word by word."""

from contextlib import asynccontextmanager

from kwaai_core import Delta, ModelCard, ModelNotFound, Offer, Usage, hookimpl

CARD = ModelCard(id="echo", source="kwaai-lobe-echo")


class Echo:
    async def models(self):
        return [CARD]

    def ready(self):
        return True

    @asynccontextmanager
    async def generate(self, request):
        import trio

        if request.model != CARD:
            raise ModelNotFound(request.model.id, [CARD.id])
        prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
        words = prompt.split()
        said = words[: request.max_tokens]
        text = " ".join(said)
        ends = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        finish = "stop" if ends or len(said) == len(words) else "length"
        pieces = text[: min(ends, default=len(text))].split(" ")
        send, receive = trio.open_memory_channel(len(pieces) + 1)
        async with send, receive:
            for number, piece in enumerate(pieces):
                send.send_nowait(Delta(" " * (number > 0) + piece, 1))
            usage = Usage(len(words), len(pieces) if text else 0)
            send.send_nowait(Delta("", finish=finish, usage=usage))
            send.close()
            yield receive


@asynccontextmanager
async def open_echo(host):
    yield Echo()


@hookimpl
def provide_executor():
    return Offer("echo", open_echo)
