"""`kwaai swarm`, from the router of a simulated node to what people read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio.testing
from simulated import Member, chat, town
from starlette.requests import Request

from kwaai_core import RequestError
from kwaai_core.testing import FakeHost, Line
from kwaai_lobe_router.commands import plan_lines, status_lines
from kwaai_lobe_router.routes import routes


async def ask(member: Member, folder: Path, what: str, more: str = "") -> dict[str, object]:
    host = FakeHost(folder, router=member.router)
    (route,) = [route for route in routes(host) if route.path == f"/{what}"]
    scope = {"type": "http", "query_string": f"model=toy/model{more}".encode(), "headers": []}
    response = await route.endpoint(Request(scope))
    found: dict[str, object] = json.loads(response.body)
    return found


async def test_status_and_plan(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with town(tmp_path, Line(latency=0.001)) as here:
        one = await here.add("0-5", unit=6)
        gateway = await here.add()
        found = await ask(gateway, tmp_path, "plan")
        assert found["route"] is None
        assert found["missing"] == [{"lo": 6, "hi": 12}]
        assert plan_lines(found) == [
            "no route: nobody in reach holds blocks 6–11 of model toy/model"
        ]
        assert status_lines(found)[-1] == "missing: 6-11"
        two = await here.add("6-11", unit=6)
        three = await here.add("6-11", unit=6)
        await trio.sleep(8)
        found = await ask(gateway, tmp_path, "plan")
        hops = [
            {"peer": one.peer, "lo": 0, "hi": 6},
            {"peer": two.peer, "lo": 6, "hi": 12},
        ]
        second = {"peer": three.peer, "lo": 6, "hi": 12}
        assert found["route"] in (hops, [hops[0], second])
        assert found["backup"] in (hops, [hops[0], second])
        assert found["route"] != found["backup"]
        assert found["holders"] == [1] * 6 + [2] * 6
        assert f"{one.peer} (0-5) → " in plan_lines(found)[0]
        assert plan_lines(found)[1].endswith(" to the first after 32 tokens")
        longer = await ask(gateway, tmp_path, "plan", "&prompt_tokens=2000")
        assert plan_lines(longer)[1].endswith(" to the first after 2000 tokens")
        for field in ("latency_ms", "first_token_ms"):
            assert isinstance(found[field], float) and isinstance(longer[field], float)
        assert longer["latency_ms"] == found["latency_ms"]
        assert longer["first_token_ms"] > found["first_token_ms"] + 1000
        for wrong in ("0", "-1", "x", "9" * 5000, "²"):
            with pytest.raises(RequestError, match="prompt_tokens must be a whole number"):
                await ask(gateway, tmp_path, "plan", f"&prompt_tokens={wrong}")
        found = await ask(gateway, tmp_path, "status")
        assert status_lines(found)[-1] == "every block is held"
        (first,) = [line for line in status_lines(found) if one.peer in line]
        assert "0-5  rtt 2.0 ms  step 2.00 ms" in first


async def test_status_shows_for_how_many_answers_room_is_reserved(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, Line(latency=0.001)) as here:
        hosts = [await here.add("0-11"), await here.add("0-11")]
        gateway = await here.add()
        shown: list[dict[str, object]] = []
        for host in hosts:
            host.executor.slowness = 50

        async def look() -> None:
            await trio.sleep(3)
            shown.append(await ask(gateway, tmp_path, "status"))

        async with trio.open_nursery() as nursery:
            found = await chat(gateway, at=1, then=lambda: nursery.start_soon(look))
        await trio.sleep(3)
        shown.append(await ask(gateway, tmp_path, "status"))
        during, after = (
            [line for line in status_lines(one) if "reserved" in line] for one in shown
        )
        (line,) = during
        (spare,) = [host.peer for host in hosts if [host.peer] != found.route]
        assert spare in line and line.endswith("reserved for 1 answers")
        assert not after
