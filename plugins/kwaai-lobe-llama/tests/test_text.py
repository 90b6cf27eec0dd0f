"""Text that is shown is whole code points, and never any part of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from kwaai_lobe_llama.worker.text import TextAssembler

letters = st.text("abcé🙂", max_size=12)


def assemble(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[list[str], bool]:
    assembler = TextAssembler(stops)
    shown = []
    for piece in pieces:
        shown.append(assembler.push(piece))
        if assembler.stopped:
            return shown, True
    return [*shown, assembler.flush()], assembler.stopped


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(letters, st.lists(letters.filter(bool), max_size=4), st.lists(st.integers(0, 3)))
def test_any_cut_shows_what_stands_before_the_first_stop(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    shown, stopped = assemble(cut(text.encode(), sizes), tuple(stops))
    ends = [text.find(stop) for stop in stops if stop in text]
    if not ends:
        assert "".join(shown) == text and not stopped
        return
    whole = "".join(shown)
    # with several stop strings, cut bytes may complete a later one first
    assert stopped and text.startswith(whole) and not any(stop in whole for stop in stops)
    assert len(stops) > 1 or whole == text[: min(ends)]


def test_a_code_point_over_three_tokens_waits_for_its_last_byte() -> None:
    data = "🙂".encode()
    assembler = TextAssembler()
    assert [assembler.push(data[:1]), assembler.push(data[1:3]), assembler.push(data[3:])] == [
        "",
        "",
        "🙂",
    ]


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    assembler = TextAssembler()
    assert assembler.push(b"a\xffb") == "a\N{REPLACEMENT CHARACTER}b"
    assert assembler.push("é".encode()[:1]) + assembler.flush() == "\N{REPLACEMENT CHARACTER}"


def test_what_might_begin_a_stop_is_shown_when_it_turns_out_not_to() -> None:
    assembler = TextAssembler(("<|end|>",))
    assert assembler.push(b"x<|en") == "x"
    assert assembler.push(b"ough") == "<|enough"
    assert assembler.push(b"<|end") == ""
    assert assembler.push(b"|>tail") == ""
    assert assembler.stopped
    assert assembler.flush() == ""
