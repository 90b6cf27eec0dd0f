"""As much of protocol buffers as telling the fields of a message apart takes."""

from collections.abc import Iterator


def varint(value: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def read_varint(data: bytes, at: int = 0) -> tuple[int, int]:
    """The number at an offset, and the offset after it. Errors: ValueError."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("there is no varint here")


def field(number: int, value: int | bytes) -> bytes:
    """One field of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, those of fixed length as bytes. Errors: ValueError."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = read_varint(data, at)
        else:
            size, at = (
                read_varint(data, at) if tag & 7 == 2 else ({1: 8, 5: 4}.get(tag & 7, -1), at)
            )
            if not 0 <= size <= len(data) - at:
                raise ValueError("a field is longer than its message, or of no known kind")
            value, at = data[at : at + size], at + size
        yield tag >> 3, value
