"""When a worker stays awake between steps: only while a core is left over, and not for long."""

import os
import time

import pytest

from kwaai_lobe_llama.worker.waiting import AWAKE_SECONDS, Waiting, others

SLEEP = 0.1


class World:
    """A clock, and others who take ``share`` of a core while one waits."""

    def __init__(self, share: float, cores: int = 1) -> None:
        self.now = 100.0
        self.share = share
        self.ran = 1.0
        self.taken: float | None = 0.0
        self.waiting = Waiting(lambda: self.taken, cores, clock=lambda: self.now)

    def step(self, wait: float = 0.01, work: float = 0.01) -> float:
        """Wait, compute, and say for how long one would then sleep."""
        self.now += wait
        if self.taken is not None:
            self.taken += wait * self.share
        self.waiting.waited(wait, wait * self.ran)
        self.now += work
        self.waiting.worked()
        return self.waiting.asleep(SLEEP)

    def steps(self, count: int) -> float:
        return [self.step() for _ in range(count)][-1]


def test_one_who_is_alone_stays_awake_between_steps() -> None:
    world = World(share=0.1)
    assert world.step() == SLEEP  # nothing is known yet
    assert world.steps(100) == 0


def test_who_shares_the_core_sleeps() -> None:
    assert World(share=1.0).steps(100) == SLEEP
    assert World(share=2.0, cores=2).steps(100) == SLEEP
    assert World(share=1.0, cores=2).steps(100) == 0, "the other one has a core of its own"


def test_nobody_stays_awake_for_long_after_the_last_step() -> None:
    world = World(share=0.0)
    assert world.steps(100) == 0
    world.now += AWAKE_SECONDS / 2
    assert world.waiting.asleep(SLEEP) == 0
    world.now += AWAKE_SECONDS
    assert world.waiting.asleep(SLEEP) == SLEEP


def test_who_gets_company_goes_to_sleep() -> None:
    world = World(share=0.0)
    assert world.steps(100) == 0
    world.share = 1.0
    assert world.steps(100) == SLEEP


def test_who_is_awake_on_a_core_that_another_wants_goes_to_sleep() -> None:
    """Others then take less than they would, and a core seems to be left over."""
    world = World(share=0.0)
    assert world.steps(100) == 0
    world.ran, world.share = 0.5, 0.2
    assert SLEEP in [world.step() for _ in range(100)]


def test_a_pause_says_nothing_of_the_steps_after_it() -> None:
    """What others take while nobody asks anything is not held against the core."""
    world = World(share=0.0)
    world.steps(100)
    world.now += 60
    world.taken = 60.0
    assert world.steps(100) == 0


def test_where_nobody_can_tell_one_sleeps() -> None:
    world = World(share=0.0)
    world.taken = None
    assert world.steps(100) == SLEEP


def test_what_others_take_is_read_from_the_kernel() -> None:
    """Of no cores at all nothing is taken, and what one has taken oneself is left out."""
    own = time.process_time()
    assert others({10**6})() == pytest.approx(-own, abs=0.1)
    taken = others(os.sched_getaffinity(0))()
    assert taken is not None and taken > 0
