"""TLS over a data channel: each side shows the one certificate that the other was told of."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kwaai_core import DataChannel, PeerLost
from kwaai_core.span.secure import secure
from kwaai_core.testing.network.channels import _pair

Pair = tuple[DataChannel, DataChannel]
SECONDS = 5.0


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = _pair(first_is_client=True)
    yield ours, theirs
    ours.socket.close()
    theirs.socket.close()


def both(ours: DataChannel, theirs: DataChannel) -> list[str | PeerLost]:
    """What comes of a handshake at the client and at the server: a version of TLS at best."""
    got: dict[bool, str | PeerLost] = {}

    def shake(channel: DataChannel) -> None:
        try:
            with secure(channel, seconds=SECONDS) as secured:
                secured.sendall(b"hello")
                assert isinstance(secured, ssl.SSLSocket) and secured.recv(5) == b"hello"
                got[channel.server] = secured.version() or ""
        except PeerLost as error:
            got[channel.server] = error
        except OSError as error:  # the other side has refused meanwhile
            got[channel.server] = str(error)

    thread = threading.Thread(target=shake, args=(theirs,))
    thread.start()
    shake(ours)
    thread.join()
    return [got[False], got[True]]


def test_both_sides_know_each_other(pair: Pair) -> None:
    assert both(*pair) == ["TLSv1.3", "TLSv1.3"]


@pytest.mark.parametrize("side", [0, 1])
def test_whoever_shows_another_certificate_gets_nothing(pair: Pair, side: int) -> None:
    stranger, other = _pair(first_is_client=True)
    stranger.socket.close()
    other.socket.close()
    channels = list(pair)
    channels[side] = replace(channels[side], certificate=stranger.certificate, key=stranger.key)
    got = both(*channels)
    assert isinstance(got[1 - side], PeerLost)
    assert "TLSv1.3" not in got


@pytest.mark.parametrize("trusted", [b"", b"\xff\xfe", b"no certificate"])
def test_a_certificate_that_is_none_is_refused(pair: Pair, trusted: bytes) -> None:
    ours, _ = pair
    with pytest.raises(PeerLost, match="handshake of a data channel failed"):
        secure(replace(ours, trusted=trusted), seconds=SECONDS)
    assert ours.socket.fileno() == -1


def test_one_who_says_nothing_is_not_waited_for_long(pair: Pair) -> None:
    ours, _ = pair
    with pytest.raises(PeerLost, match="timed out"):
        secure(ours, seconds=0.05)
    assert ours.socket.fileno() == -1


def test_what_another_process_carries_is_spoken_to_in_the_clear(pair: Pair) -> None:
    ours, _ = pair
    assert secure(replace(ours, certificate=b""), seconds=SECONDS) is ours.socket
