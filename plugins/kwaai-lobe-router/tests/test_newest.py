"""What a node remembers of peers does not grow with their number."""

from kwaai_lobe_router.newest import MOST, Newest


def test_only_those_that_were_set_last_are_remembered() -> None:
    memory = Newest[int, str]()
    for number in range(MOST):
        memory[number] = "once"
    memory[0] = "again"
    memory[MOST] = "once"
    assert len(memory) == MOST
    assert memory[0] == "again" and 1 not in memory and memory[MOST] == "once"
