"""Lines of the log: for people, and for machines."""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import datetime

import pytest

from kwaai_core.logs import set_up

log = logging.getLogger("kwaai.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


pytestmark = pytest.mark.usefixtures("kept_logging")


def lines(
    monkeypatch: pytest.MonkeyPatch, level: str, layout: str, stream: io.StringIO
) -> list[str]:
    monkeypatch.setattr(sys, "stderr", stream)
    set_up(level, layout)
    log.debug("quiet")
    log.warning("the disk is %s full", "almost")
    return stream.getvalue().splitlines()


def test_a_line_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = lines(monkeypatch, "info", "text", io.StringIO())
    assert line.endswith(" WARNING the disk is almost full")


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    (line,) = lines(monkeypatch, "info", "text", Terminal())
    assert line.startswith("\x1b[33m")
    monkeypatch.setenv("NO_COLOR", "1")
    (line,) = lines(monkeypatch, "info", "text", Terminal())
    assert "\x1b" not in line


def test_a_line_for_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, line = map(json.loads, lines(monkeypatch, "debug", "json", io.StringIO()))
    assert quiet["level"] == "debug"
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert line == {
        "level": "warning",
        "logger": "kwaai.test",
        "message": "the disk is almost full",
    }


def test_a_traceback_is_part_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up("info", "json")
    try:
        raise OSError("no disk")
    except OSError:
        log.exception("it failed")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line["message"] == "it failed"
    assert line["exception"].endswith("OSError: no disk")


def test_the_noise_of_others_is_turned_down(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up("debug", "text")
    logging.getLogger("httpx").info("GET /")
    assert stream.getvalue() == ""
