"""`kwaai swarm`, from the router of a simulated node to what people read."""

from __future__ import annotations

import json
from pathlib import Path

import trio.testing
from simulated import Member, chat, town
from starlette.requests import Request

from kwaai_core.testing import FakeHost, Line
from kwaai_lobe_router.commands import plan_lines, status_lines
from kwaai_lobe_router.routes import routes


async def ask(member: Member, folder: Path, what: str) -> dict[str, object]:
    host = FakeHost(folder, router=member.router)
    (route,) = [route for route in routes(host) if route.path == f"/{what}"]
    scope = {"type": "http", "query_string": b"model=toy/model", "headers": []}
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
