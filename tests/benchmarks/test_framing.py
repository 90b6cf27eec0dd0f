"""The measurement of frames measures an echo of both kinds."""

from benchmarks.framing import measure


async def test_both_kinds_are_measured() -> None:
    below, above = await measure(rounds=2, echoes=20)
    assert len(below) == len(above) == 2
    assert all(time > 0 for time in (*below, *above))
