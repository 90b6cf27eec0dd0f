"""``--swarms N``: on how many random swarms plans are compared with all there are."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--swarms", type=int, default=1000, help="random swarms to compare with brute force"
    )


@pytest.fixture(scope="session")
def swarms(request: pytest.FixtureRequest) -> int:
    """How many random swarms a test draws."""
    return int(request.config.getoption("--swarms", 1000))
