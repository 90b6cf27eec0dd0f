"""The owner's side: steps over hops, and what becomes of them when hops are lost."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from kwaai_core.span.chain import ANSWER_SECONDS, STAND_SECONDS, Chain, Settings
from kwaai_core.span.frames import FaultCode, Flags, Frame, Kind
from kwaai_core.span.hop import Blame, Place
from kwaai_core.span.journal import Budget
from kwaai_core.span.watch import SILENCE_SECONDS
from kwaai_core.testing.toy import WIDTH, chosen, embed, plain
from kwaai_core.types import Span
from tests.span.rigs import CHUNK, LIMITS, ChainRig

PROMPT = list(range(2 * CHUNK + 5))
LENGTH = 12


def answering(hosts: str = "abc", *, route: str = "abc", budget: int = 1 << 20) -> ChainRig:
    rig = ChainRig(hosts, budget=budget)
    rig.route(route)
    rig.chain.add(PROMPT, rig.now)
    return rig


def finished(rig: ChainRig, length: int = LENGTH) -> None:
    """It ends with the text of the whole model, and leaves nothing behind."""
    rig.run(length)
    assert rig.text == plain(PROMPT, len(rig.text))
    rig.chain.close()
    assert rig.budget.used == 0 and not rig.chain.trouble
    for host, cache in rig.hosts.values():
        assert not host.sessions and not any(cache.rows.values())


def sent(rig: ChainRig, kind: Kind, link: str | None = None) -> list[Frame]:
    return [f for to, f in rig.told if f.kind is kind and link in (None, to)]


def replay_rows(rig: ChainRig, link: str) -> list[tuple[int, bool]]:
    """Rows of each step that was sent, and whether anybody wanted its output."""
    return [(f.rows, not f.flags & Flags.SILENT) for f in sent(rig, Kind.STEP, link)]


# -- without faults


@pytest.mark.parametrize("route", ["abc", "adec", "w", "af"])
def test_the_text_is_that_of_the_whole_model(route: str) -> None:
    finished(answering(route, route=route))


def test_a_prompt_goes_in_chunks_through_all_hops_at_once() -> None:
    rig = answering()
    rig.deliver()
    assert [f.rows for f in sent(rig, Kind.STEP, "a")] == [CHUNK, CHUNK, 5]
    rig.compute("a")
    rig.deliver()
    assert [f.rows for f in sent(rig, Kind.STEP, "b")] == [CHUNK]
    rig.compute("a", "b")
    rig.deliver()
    assert len(sent(rig, Kind.STEP, "b")) == 2 and len(sent(rig, Kind.STEP, "c")) == 1


def test_only_so_many_steps_are_under_way_at_one_host() -> None:
    rig = ChainRig()
    rig.route("abc")
    rig.chain.add(list(range(6 * CHUNK)), 0.0)
    rig.deliver()
    assert len(rig.hop("a").flying) == 4
    rig.compute("a")
    rig.deliver()
    assert len(sent(rig, Kind.STEP, "a")) == 5


def test_only_the_last_hop_answers_and_only_where_the_head_needs_it() -> None:
    rig = answering()
    rig.run(3)
    assert [wanted for _, wanted in replay_rows(rig, "a")] == [True] * 6
    assert [wanted for _, wanted in replay_rows(rig, "c")] == [False, False, True, True, True]


def test_of_a_prompt_the_last_hop_is_asked_for_the_last_row_alone() -> None:
    rig = answering()
    rig.run(3)
    for link, flags in (("a", [Flags.NONE] * 5), ("c", [Flags.SILENT] * 2 + [Flags.LAST])):
        steps = sent(rig, Kind.STEP, link)
        expected = [*flags, *[Flags.NONE] * (len(steps) - len(flags))]
        assert [f.flags & ~Flags.FLOAT32 for f in steps] == expected
    assert rig.text == plain(PROMPT, 3)


def test_nothing_is_sent_before_every_host_has_acknowledged() -> None:
    rig = answering()
    rig.chain.receive(rig.hop("a").session, rig.to_owner.popleft()[1], 0.0)
    assert not rig.chain.settled and not sent(rig, Kind.STEP)
    rig.deliver()
    assert rig.chain.settled and sent(rig, Kind.STEP)


def test_timings_are_counted() -> None:
    rig = answering()
    rig.run(2)
    timing = rig.hop("b").timing
    assert (timing.steps, timing.rows, timing.replayed) == (4, len(PROMPT) + 1, 0)
    assert timing.total > timing.computed == pytest.approx(4 * 0.002)
    assert timing.waited == pytest.approx(4 * 0.001)
    assert list(rig.chain.tokens) == PROMPT + rig.text


# -- a hop is lost


@pytest.mark.parametrize(("lost", "spare"), [("a", "A"), ("b", "B"), ("c", "C")])
@pytest.mark.parametrize("when", [0, 1, 5])
@pytest.mark.parametrize("budget", [0, 700, 1 << 20])
def test_a_lost_hop_is_replaced(lost: str, spare: str, when: int, budget: int) -> None:
    rig = answering("abc" + spare, budget=budget)
    rig.run(when)
    rig.kill(lost)
    (trouble,) = rig.chain.trouble
    assert (trouble.blame, trouble.place.link) == (Blame.LOST, lost)
    rig.route("abc".replace(lost, spare))
    finished(rig)


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_several_hosts_take_the_place_of_one(budget: int) -> None:
    rig = answering("abcde", budget=budget)
    rig.run(4)
    rig.kill("b")
    rig.route("adec")
    finished(rig)


@pytest.mark.parametrize("budget", [0, 1 << 20])
@pytest.mark.parametrize("lost", ["ab", "bc", "abc"])
def test_neighbours_that_are_lost_together_rebuild_each_other(lost: str, budget: int) -> None:
    rig = answering("abcABC", budget=budget)
    rig.run(4)
    rig.kill(*lost)
    rig.route("".join(name.upper() if name in lost else name for name in "abc"))
    finished(rig)


def test_one_host_takes_the_place_of_two() -> None:
    rig = answering("abcf")
    rig.run(4)
    rig.kill("b", "c")
    rig.route("af")
    finished(rig)


def test_a_second_fault_while_the_first_is_mended() -> None:
    rig = answering("abcABC")
    rig.run(4)
    rig.kill("b")
    rig.route("aBc")
    rig.turn()
    assert not rig.chain.recovered
    rig.kill("c")
    rig.route("aBC")
    rig.turn()
    rig.kill("B")
    rig.add_host("b")
    rig.chain.route([rig.place("a"), Place("b", Span(4, 8)), rig.place("C")], rig.now)
    assert [t.blame for t in rig.chain.trouble] == [Blame.LOST]  # that link stays lost
    rig.add_host("f")
    rig.route("af")
    finished(rig)


def test_a_replay_is_silent_and_touches_nobody_else() -> None:
    rig = answering("abcB")
    rig.run(5)
    rig.compute("a")
    rig.deliver()  # the step in flight waits at the second hop
    before = [len(sent(rig, Kind.STEP, link)) for link in "ac"]
    rig.kill("b")
    rig.route("aBc")
    while not rig.chain.recovered:
        assert [len(sent(rig, Kind.STEP, link)) for link in "ac"] == before
        rig.compute()
        rig.deliver()
    assert [wanted for _, wanted in replay_rows(rig, "B")] == [False] * 7 + [True]
    assert rig.hop("B").timing.replayed == len(PROMPT) + 5
    assert not rig.hop("a").timing.replayed
    finished(rig)


def test_replays_ask_for_no_output_that_somebody_has() -> None:
    rig = answering("abcABC")
    rig.run(5)
    rig.kill("b", "c")
    rig.route("aBC")
    rig.run(6)
    assert [wanted for _, wanted in replay_rows(rig, "B")] == [False] * 7 + [True]
    assert [wanted for _, wanted in replay_rows(rig, "C")] == [False] * 7 + [True]
    finished(rig)


def test_the_first_hop_is_replayed_from_the_tokens_alone() -> None:
    rig = answering("abcA", budget=0)
    rig.run(5)
    rig.kill("a")
    rig.route("Abc")
    rig.run(6)
    assert [wanted for _, wanted in replay_rows(rig, "A")] == [False] * 7 + [True] * 2
    assert rig.hop("b").timing.replayed == 0
    finished(rig)


def test_a_second_fault_does_not_make_what_is_missing_forgotten() -> None:
    rig = answering("abcABC", budget=0)
    rig.run(5)
    rig.kill("b", "c")
    rig.route("aBC")
    rig.deliver()
    rig.kill("a", "B", "C")
    rig.add_host("w")
    rig.route("w")
    while rig.hop("w").done < 6:
        assert not rig.chain.recovered
        rig.compute()
        rig.deliver()
    finished(rig)


def test_a_journal_goes_with_its_boundary() -> None:
    rig = answering("abcw")
    rig.run(5)
    assert rig.budget.used
    rig.route("w")
    assert not rig.budget.used
    finished(rig)


def test_lone_rows_are_not_replayed_together_with_a_later_prompt() -> None:
    rig = ChainRig("abcB", replay_rows=7)
    rig.route("abc")
    rig.chain.add(PROMPT, 0.0)
    rig.run(3)
    rig.chain.add(list(range(5)), rig.now)
    for _ in range(10):
        rig.compute()
        rig.deliver()
    rig.kill("b")
    rig.route("aBc")
    for _ in range(10):
        rig.compute()
        rig.deliver()
    assert rig.chain.recovered
    assert [rows for rows, _ in replay_rows(rig, "B")] == [CHUNK, CHUNK, 5, 3, 5]


def test_shapes_are_replayed_as_they_were() -> None:
    rig = answering("abcB")
    rig.run(4)
    shapes = [rows for rows, _ in replay_rows(rig, "b")]
    rig.kill("b")
    rig.route("aBc")
    rig.run(5)
    assert [rows for rows, _ in replay_rows(rig, "B")][: len(shapes)] == shapes


def test_lone_rows_are_replayed_together_where_that_changes_no_bit() -> None:
    rig = ChainRig("abcB", replay_rows=4)
    rig.route("abc")
    rig.chain.add(PROMPT, 0.0)
    rig.run(8)
    rig.kill("b")
    rig.route("aBc")
    finished(rig)
    rows = [rows for rows, _ in replay_rows(rig, "B")]
    assert rows[:6] == [CHUNK, CHUNK, 5, 4, 3, 1]


def test_each_host_is_replayed_in_calls_that_it_has_found_to_be_exact() -> None:
    rig = ChainRig("abcAB", replay_rows=7)
    rig.replay_rows = {"A": 2, "B": 3}
    rig.route("abc")
    rig.chain.add(PROMPT, 0.0)
    rig.run(8)
    rig.kill("a", "b")
    rig.route("ABc")
    finished(rig)
    for link, most in rig.replay_rows.items():
        rows = [rows for rows, _ in replay_rows(rig, str(link))]
        assert rows[:3] == [CHUNK, CHUNK, 5] and max(rows[3:]) == most


def test_a_hop_without_a_journal_has_the_one_before_compute_again() -> None:
    rig = answering("abcB", budget=0)
    rig.run(5)
    rig.kill("b")
    rig.route("aBc")
    rig.run(6)
    again = replay_rows(rig, "a")[8:]
    assert again[:3] == [(CHUNK, True), (CHUNK, True), (5, True)]
    assert rig.hop("a").timing.replayed == len(PROMPT) + 5
    assert not rig.hop("c").timing.replayed
    finished(rig)


def test_an_output_that_was_lost_with_its_epoch_is_asked_for_again() -> None:
    """The last host has computed the step, and its answer comes too late."""
    rig = answering("abcA")
    rig.run(3)
    for name in "abc":
        rig.compute(name)
        if name != "c":
            rig.deliver()
    ((link, late),) = rig.to_owner
    assert link == "c" and late.kind is Kind.RESULT
    rig.to_owner.clear()
    rig.route("abc")
    rig.chain.receive(rig.hop("c").session, late, rig.now)
    assert not rig.chain.outputs
    rig.deliver()
    assert rig.chain.outputs, "the host answered from its memory"
    finished(rig)


def test_a_route_that_leaves_out_a_living_host_frees_it() -> None:
    rig = answering("abcB")
    rig.run(3)
    rig.route("aBc")
    assert not rig.hosts["b"][0].sessions
    finished(rig)


def test_a_route_over_a_link_that_is_lost_meanwhile_is_trouble_at_once() -> None:
    rig = answering("abcB")
    rig.run(2)
    rig.kill("b")
    rig.kill("B")
    rig.route("aBc")
    (trouble,) = rig.chain.trouble
    assert trouble.place == rig.place("B") and trouble.reason == "it was killed"
    assert not rig.chain.settled


def test_tokens_that_come_while_nothing_goes_are_kept() -> None:
    rig = answering("abcB")
    rig.run(2)
    rig.chain.lose("b", "gone")
    rig.chain.lose("b", "gone")
    assert len(rig.chain.trouble) == 1
    rig.chain.add([5], rig.now)
    assert list(rig.chain.tokens)[-1] == 5
    rig.route("aBc")
    rig.compute()
    rig.deliver()
    for _ in range(20):
        rig.compute()
        rig.deliver()
    first, second = rig.chain.outputs
    assert chosen(first) != chosen(second)


@pytest.mark.parametrize("lost", ["", "a", "b", "bc"])
def test_all_rows_of_a_prompt_come_out_if_all_are_wanted(lost: str) -> None:
    def states(hosts: str) -> list[bytes]:
        rig = ChainRig("abcABC")
        rig.route("abc")
        rig.chain.add(PROMPT, rig.now, every=True)
        for turn in range(30):
            rig.compute()
            rig.deliver()
            if turn == 2 and hosts:
                rig.kill(*hosts)
                rig.route("".join(n.upper() if n in hosts else n for n in "abc"))
        assert rig.chain.recovered
        return list(rig.chain.outputs)

    outputs = states(lost)
    assert [len(output) // (4 * WIDTH) for output in outputs] == [CHUNK, CHUNK, 5]
    assert outputs == states("")
    assert chosen(outputs[-1][-4 * WIDTH :]) == plain(PROMPT, 1)[0]


def test_a_closed_chain_hears_nothing() -> None:
    rig = answering()
    rig.run(1)
    session = rig.hop("a").session
    rig.chain.close()
    rig.chain.receive(session, Frame(Kind.RESULT, session, rig.chain.epoch, 5), 1.0)
    rig.chain.add([1], 1.0)
    rig.chain.tick(99.0)
    rig.chain.close()
    assert not rig.chain.trouble and not rig.chain.outputs and not rig.chain.settled


# -- hosts that refuse


def test_a_host_that_has_forgotten_is_brought_back() -> None:
    rig = answering()
    rig.run(3)
    rig.hosts["b"][0].tick(1e6)
    rig.hosts["b"][0].tick(1e6)
    finished(rig)
    assert len(sent(rig, Kind.OPEN, "b")) == 2


def test_all_hosts_may_forget_at_once() -> None:
    rig = answering(budget=0)
    rig.run(3)
    for host, _ in rig.hosts.values():
        host.tick(1e6)
    finished(rig)


def test_a_fence_finds_out_who_has_forgotten() -> None:
    rig = answering("abcC")
    rig.run(3)
    for name in "ab":
        rig.hosts[name][0].tick(1e6)
    rig.kill("c")
    rig.route("abC")
    finished(rig)


def test_a_host_that_lacks_rows_is_sent_them_again() -> None:
    rig = answering()
    rig.run(3)
    hop = rig.hop("b")
    lacking = Frame(Kind.FAULT, hop.session, rig.chain.epoch, 9, CHUNK, rows=FaultCode.NEED_REPLAY)
    rig.chain.receive(hop.session, lacking, rig.now)
    assert len(sent(rig, Kind.FENCE, "b")) == 1 and len(sent(rig, Kind.OPEN, "b")) == 1
    finished(rig)


def test_a_host_that_asks_for_a_third_replay_in_a_row_is_at_fault() -> None:
    rig = answering()
    rig.run(2)
    hop = rig.hop("b")
    for _ in range(3):
        assert not rig.chain.trouble
        fault = Frame(Kind.FAULT, hop.session, rig.chain.epoch, rows=FaultCode.NEED_REPLAY)
        rig.chain.receive(hop.session, fault, rig.now)
    (trouble,) = rig.chain.trouble
    assert trouble.blame is Blame.LOST and "3 replays in a row" in trouble.reason


def test_a_step_that_is_done_between_two_replays_makes_good_for_it() -> None:
    rig = answering()
    for _ in range(5):
        rig.run(len(rig.text) + 1)
        hop = rig.hop("b")
        fault = Frame(Kind.FAULT, hop.session, rig.chain.epoch, rows=FaultCode.NEED_REPLAY)
        rig.chain.receive(hop.session, fault, rig.now)
    finished(rig)


def test_steps_of_a_replay_do_not_make_good_for_the_next_one() -> None:
    rig = answering()
    rig.run(4)
    hop, text, asked = rig.hop("b"), len(rig.text), 1
    furthest = hop.sent
    fault = Frame(Kind.FAULT, hop.session, rows=FaultCode.NEED_REPLAY)
    rig.chain.receive(hop.session, fault._replace(epoch=rig.chain.epoch), rig.now)
    for _ in range(100):
        rig.turn()
        if rig.chain.settled and 0 < hop.done < furthest:  # it answers some steps of each replay
            asked += 1
            rig.chain.receive(hop.session, fault._replace(epoch=rig.chain.epoch), rig.now)
    (trouble,) = rig.chain.trouble
    assert (asked, trouble.place, trouble.blame) == (3, rig.place("b"), Blame.LOST)
    assert len(rig.text) == text
    rig.add_host("B")
    rig.route("aBc")
    finished(rig)


def test_a_full_host_says_when_to_try_again() -> None:
    rig = ChainRig("ac")
    rig.add_host("b", replace(LIMITS, streams=0))
    rig.route("abc")
    rig.deliver()
    (trouble,) = rig.chain.trouble
    assert trouble.blame is Blame.FULL and trouble.retry_after == 1.0
    rig.add_host("b")
    rig.route("abc")
    rig.chain.add(PROMPT, rig.now)
    finished(rig)


@pytest.mark.parametrize(
    ("code", "blame"),
    [
        (FaultCode.REQUEST, Blame.REFUSED),
        (FaultCode.HOST, Blame.LOST),
        (77, Blame.LOST),
    ],
)
def test_faults_are_told_apart(code: int, blame: Blame) -> None:
    rig = answering()
    rig.run(1)
    hop = rig.hop("b")
    words = b"\xff so it is\n\x1b[31m" + bytes(1000)
    fault = Frame(Kind.FAULT, hop.session, rig.chain.epoch, rows=code, payload=words)
    rig.chain.receive(hop.session, fault, rig.now)
    (trouble,) = rig.chain.trouble
    assert trouble.blame is blame and "so it is" in trouble.reason
    assert len(trouble.reason) <= 512 and trouble.reason.isprintable()


def test_a_host_whose_engine_fails_falls_out() -> None:
    rig = answering("abcB")
    rig.run(2)
    host, _ = rig.hosts["a"]
    ((session, _),) = host.ready()
    host.start(session)
    host.fail(session, "out of memory")
    rig.deliver()
    (trouble,) = rig.chain.trouble
    assert (trouble.place.link, trouble.blame, trouble.reason) == ("a", Blame.LOST, "out of memory")


# -- answers that are wrong


def nan(frame: Frame) -> Frame:
    return frame._replace(payload=struct.pack("<f", float("nan")) + frame.payload[4:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f._replace(step=f.step + 1), "not the next"),
        (lambda f: f._replace(position=f.position + 1), "another shape"),
        (lambda f: f._replace(rows=f.rows + 1), "another shape"),
        (lambda f: f._replace(flags=f.flags | Flags.SILENT, payload=b""), "another shape"),
        (lambda f: f._replace(flags=f.flags ^ Flags.LAST), "another shape"),
        (nan, "not finite"),
        (lambda f: f._replace(kind=Kind.HEARTBEAT), "HEARTBEAT"),
        (lambda f: f._replace(kind=Kind.STEP), "STEP"),
    ],
)
def test_a_wrong_answer_is_the_fault_of_its_host(
    change: Callable[[Frame], Frame], words: str
) -> None:
    rig = answering("abcA")
    rig.run(2)
    rig.compute("a")
    rig.deliver(lambda frame: change(frame) if frame.kind is Kind.RESULT else frame)
    (trouble,) = rig.chain.trouble
    assert trouble.place.link == "a" and trouble.blame is Blame.LOST and words in trouble.reason
    rig.kill("a")
    rig.route("Abc")
    finished(rig)


def test_an_answer_to_nothing_is_a_fault() -> None:
    rig = answering()
    rig.run(2)
    hop = rig.hop("c")
    rig.chain.receive(hop.session, Frame(Kind.RESULT, hop.session, rig.chain.epoch, 50), 1.0)
    assert "not the next" in rig.chain.trouble[0].reason


def test_every_answer_may_come_twice() -> None:
    rig = answering("abcB")
    for length in range(LENGTH):
        rig.run(length)
        rig.compute()
        rig.to_owner.extend(list(rig.to_owner))
        if length == 5:
            rig.kill("b")
            rig.route("aBc")
    finished(rig)


def test_answers_of_another_epoch_or_session_are_dropped() -> None:
    rig = answering()
    rig.run(2)
    rig.compute("a")
    ((_, result),) = rig.to_owner
    rig.chain.receive(result.session, result._replace(epoch=result.epoch - 1), 1.0)
    rig.chain.receive(result.session + 1, result, 1.0)
    assert rig.hop("a").flying and not rig.chain.trouble
    finished(rig)


def test_a_zombie_is_not_heard() -> None:
    """It was frozen, was given up, and now sends what it had."""
    rig = answering("abcB")
    rig.run(2)
    rig.compute("a")
    rig.deliver()
    zombie = rig.hop("b").session
    rig.compute("b")
    late = list(rig.to_owner)
    assert late
    rig.to_owner.clear()
    rig.chain.lose("b", "silent")
    rig.route("aBc")
    for _, frame in late:
        rig.chain.receive(zombie, frame, rig.now)
    finished(rig)


def test_a_host_that_says_it_holds_what_it_does_not_gains_nothing() -> None:
    rig = answering()
    rig.run(2)
    rig.route("abc")
    rig.deliver(
        lambda f: f._replace(position=9999, payload=bytes(8)) if f.kind is Kind.FENCED else f
    )
    finished(rig)
    assert rig.chain.epoch >= 2


# -- the time


def test_a_host_that_never_acknowledges_falls_out() -> None:
    rig = answering()
    rig.to_owner.clear()
    ticking(rig, ANSWER_SECONDS - 0.2)
    assert not rig.chain.trouble
    ticking(rig, 0.4)
    assert len(rig.chain.trouble) == 3 and "not answered" in rig.chain.trouble[0].reason


def test_a_pause_of_its_owner_is_no_hosts_fault() -> None:
    rig = answering()
    rig.chain.tick(0.1)
    rig.chain.tick(100.0)
    assert not rig.chain.trouble
    rig.deliver()
    rig.now = 100.0
    rig.run(8)
    rig.chain.tick(200.0)
    assert not rig.chain.trouble and not rig.chain.slow(200.0)
    rig.chain.tick(200.1)
    assert list(rig.chain.slow(200.1)) == [rig.place("a")]


def ticking(rig: ChainRig, seconds: float) -> None:
    end = rig.now + seconds
    while rig.now < end:
        rig.now += 0.1
        rig.chain.tick(rig.now)


def beat(rig: ChainRig, link: str, calls: int, computed: float) -> None:
    frame = Frame(Kind.HEARTBEAT, step=calls, computed=int(computed * 1e6))
    rig.chain.beat(link, frame)


def test_a_host_that_computes_has_time() -> None:
    rig = answering("abcB")
    rig.run(2)
    rig.route("aBc")
    rig.to_owner.clear()
    for quarter in range(100):
        for link in "aBc":
            beat(rig, link, *((5, 1.0 + quarter) if link == "B" else (quarter, 0.0)))
        ticking(rig, 0.25)
    assert not rig.chain.trouble


def test_heartbeats_alone_hold_up_no_answer_for_ever() -> None:
    rig = answering("abcB")
    rig.run(2)
    rig.route("aBc")
    rig.to_owner.clear()
    since, calls = rig.now, 0
    while not rig.chain.trouble and rig.now < since + 2 * STAND_SECONDS:
        for link in "aBc":
            beat(rig, link, calls := calls + 1, 0.1)
        ticking(rig, 0.25)
    assert rig.now == pytest.approx(since + STAND_SECONDS, abs=0.5)
    assert "stood at the epoch" in rig.chain.trouble[0].reason


def test_a_host_that_idles_while_it_owes_an_answer_is_lost() -> None:
    """What it was sent has not reached it, or its answer is lost: only its heartbeats come."""
    rig = answering()
    rig.run(2)
    since = rig.now
    while not rig.chain.trouble:
        for link in "abc":
            beat(rig, link, 5, 0.0)
        ticking(rig, 0.2)
    assert rig.now == pytest.approx(since + ANSWER_SECONDS, abs=0.5)
    (trouble,) = rig.chain.trouble
    assert trouble.place.link == "a"


def test_without_heartbeats_a_step_is_never_late() -> None:
    rig = answering()
    rig.run(2)
    ticking(rig, 60)
    assert not rig.chain.trouble


def test_who_takes_longer_than_usual_is_slow() -> None:
    rig = answering()
    assert rig.chain.slow(100.0) == {}
    rig.run(8)
    assert rig.chain.slow(rig.now + 0.2) == {}
    assert rig.chain.slow(rig.now + 0.3) == {rig.place("a"): pytest.approx(0.3)}


@pytest.mark.parametrize("clock", [0.0, 1e6])
def test_who_does_not_open_soon_is_slow_before_it_is_lost(clock: float) -> None:
    rig = ChainRig("acB")
    rig.now = clock
    rig.route("abc")
    rig.chain.add(PROMPT, rig.now)
    rig.deliver()
    ticking(rig, SILENCE_SECONDS - 0.1)
    assert rig.chain.slow(rig.now) == {}
    ticking(rig, 0.3)
    assert list(rig.chain.slow(rig.now)) == [rig.place("b")] and not rig.chain.trouble
    rig.route("aBc")
    assert rig.chain.slow(rig.now) == {}
    finished(rig)


def test_who_computes_for_others_before_it_opens_is_not_slow() -> None:
    rig = ChainRig("ac")
    rig.route("abc")
    rig.deliver()
    for calls in range(10):
        beat(rig, "b", calls, 0.0)
        ticking(rig, SILENCE_SECONDS / 2)
        assert rig.chain.slow(rig.now) == {}


def test_a_secret_may_be_given_and_a_chain_needs_no_more_than_its_arguments() -> None:
    chain = Chain(Settings(WIDTH, 10, 4), embed, lambda link, frame: None, Budget(0))
    chain.add([1], 0.0)
    assert chain.tokens == [1] and not chain.settled and not chain.recovered
