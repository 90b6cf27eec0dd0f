"""A byte-level BPE vocabulary of any size, made of syllables; every one of its tokens is reachable.

All texts can be written in it, since the 256 bytes come first. The other tokens are words such as
``ba`` or ``Ġbaha`` (with a space) with one merge rule each, and at the end three special tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product

from gguf import GGUFWriter, TokenType

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPACE = "Ġ"  # how byte-level BPE writes it


def add_vocabulary(writer: GGUFWriter, size: int, template: str = CHAT_TEMPLATE) -> None:
    """Add a vocabulary of ``size`` tokens, at least 259 of them, and a chat template."""
    if size < 256 + len(SPECIAL):
        raise ValueError(f"a vocabulary of {size} tokens cannot hold the 256 bytes and {SPECIAL}")
    merges = list(islice(_merges(), size - 256 - len(SPECIAL)))
    if len(merges) < size - 256 - len(SPECIAL):
        raise ValueError(f"there are not enough syllables for {size} tokens")
    words = [left + right for left, right in merges]
    types = [TokenType.NORMAL] * (256 + len(words)) + [TokenType.CONTROL] * len(SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*map(_byte_token, range(256)), *words, *SPECIAL])
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(size - 3)
    writer.add_eos_token_id(size - 1)
    writer.add_eot_token_id(size - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


def _merges() -> Iterator[tuple[str, str]]:
    """Rules in order of rank; what they join was made by rules before them.

    Each place in a word has syllables of its own, so a word grows from the left and in no other
    way, and is one token in the end.
    """
    places = [
        [consonant + vowel for consonant, vowel in product(consonants, "aeiou")]
        for consonants in ("bcdfg", "hjklm", "npqrs", "tvwxz")
    ]
    for place in places:
        yield from ((syllable[0], syllable[1]) for syllable in place)
    yield from ((_SPACE, syllable) for syllable in places[0])
    words = [*places[0], *(_SPACE + syllable for syllable in places[0])]
    for place in places[1:]:
        yield from product(words, place)
        words = [word + syllable for word, syllable in product(words, place)]


def _byte_token(byte: int) -> str:
    """How byte-level BPE writes a byte: itself where it is printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))
