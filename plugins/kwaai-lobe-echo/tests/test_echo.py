"""The lobe keeps what an executor has to keep."""

import kwaai_lobe_echo
from kwaai_core.testing.conformance import check_executor, open_role
from kwaai_core.testing.fakes import FakeHost


async def test_it_is_an_executor(kwaai_host: FakeHost) -> None:
    async with open_role(kwaai_lobe_echo, "executor", kwaai_host) as echo:
        await check_executor(echo)
