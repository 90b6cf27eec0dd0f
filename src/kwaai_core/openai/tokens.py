"""Texts and tokens, in the form of vLLM's server, which lm-eval's remote tokenizer asks."""

from dataclasses import dataclass

from kwaai_core.errors import RequestError
from kwaai_core.openai.fields import Fields, filled, flag, text
from kwaai_core.openai.prompts import messages_up_to, read_tokens
from kwaai_core.openai.strict import load_object
from kwaai_core.types import Message, TokenIds, Tokenizer, Tokens

_NEUTRAL_MESSAGES: dict[str, tuple[object, ...]] = {
    "chat_template": (),  # only the model's own: one of a request would be a program of anybody's
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "tools": ([],),
}


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """A call of ``/tokenize``; ``model`` None is the only one there is."""

    model: str | None
    prompt: str | tuple[Message, ...]
    special: bool
    opened: bool = True
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Detokenizing:
    """A call of ``/detokenize``."""

    model: str | None
    tokens: TokenIds


def parse_tokenize(body: bytes, *, max_messages: int = 2048) -> Tokenizing:
    """A call of ``/tokenize``; errors as of :func:`kwaai_core.openai.parse_chat`."""
    return read_tokenize(load_object(body), max_messages)


def read_tokenize(body: dict[str, object], max_messages: int) -> Tokenizing:
    """As :func:`parse_tokenize`, of a body that is JSON already."""
    fields = Fields(body)
    model = fields.take("model", filled, None)
    messages = fields.take("messages", messages_up_to(max_messages), None)
    raw = fields.take("prompt", text, None)
    if (messages is None) == (raw is None):
        raise RequestError("give either a prompt or messages", param="prompt")
    special = fields.take("add_special_tokens", flag, messages is None)
    shown = fields.take("return_token_strs", flag, False)
    if messages is None:
        fields.refuse_but({})
        return Tokenizing(model, raw or "", special, shown=shown)
    opened = fields.take("add_generation_prompt", flag, True)
    fields.refuse_but(_NEUTRAL_MESSAGES)
    return Tokenizing(model, messages, special, opened, shown)


def parse_detokenize(body: bytes) -> Detokenizing:
    """A call of ``/detokenize``; errors as of :func:`kwaai_core.openai.parse_chat`."""
    return read_detokenize(load_object(body))


def read_detokenize(body: dict[str, object]) -> Detokenizing:
    """As :func:`parse_detokenize`, of a body that is JSON already."""
    fields = Fields(body)
    model = fields.take("model", filled, None)
    tokens = fields.require("tokens", read_tokens)
    fields.refuse_but({})
    return Detokenizing(model, tokens)


def tokenized(call: Tokenizing, tokens: Tokens) -> dict[str, object]:
    """The answer of ``/tokenize``."""
    return {
        "count": len(tokens.ids),
        "max_model_len": tokens.context,
        "tokens": tokens.ids,
        "token_strs": tokens.shown if call.shown else None,
    }


def tokenizer_info(model: str, tokenizer: Tokenizer) -> dict[str, object]:
    """The answer of ``/tokenizer_info``: the keys of a ``tokenizer_config.json`` that are known."""
    return {
        "model": model,
        "tokenizer_class": "llama.cpp",
        "bos_token": tokenizer.bos or None,
        "eos_token": tokenizer.eos or None,
        "pad_token": tokenizer.pad or None,
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": tokenizer.adds_eos,
        "chat_template": tokenizer.template or None,
        "vocab_size": tokenizer.tokens,
        "model_max_length": tokenizer.context,
    }
