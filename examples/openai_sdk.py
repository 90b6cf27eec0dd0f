"""The openai SDK against a node: blocking, streamed, and asynchronous.

    pip install openai && python examples/openai_sdk.py [BASE_URL]

Without a base URL it starts a node of its own, as examples/stream.py does.
"""

import asyncio
import sys

from openai import AsyncOpenAI, OpenAI
from stream import node

QUESTION = "Name three rivers in Europe."


def blocking(url: str) -> str:
    """One answer in one piece; returns the model's id for what follows."""
    with OpenAI(base_url=f"{url}/v1", api_key="none needed on loopback") as client:
        model = client.models.list().data[0].id
        done = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=60
        )
        print(f"{model}: {done.choices[0].message.content}\n")
        return model


def streamed(url: str, model: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none needed on loopback") as client:
        for chunk in client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=60,
            stream=True,
        ):
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print("\n")


async def together(url: str, model: str) -> None:
    """Two requests at once: the node computes them in one batch."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none needed on loopback") as client:
        asked = [
            client.completions.create(model=model, prompt=prompt, max_tokens=20, temperature=0)
            for prompt in ("The capital of France is", "Water boils at")
        ]
        for done in await asyncio.gather(*asked):
            print(done.choices[0].text.strip())


def show(url: str) -> None:
    model = blocking(url)
    streamed(url, model)
    asyncio.run(together(url, model))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        show(sys.argv[1].removesuffix("/").removesuffix("/v1"))
    else:
        with node() as started:
            show(started)
