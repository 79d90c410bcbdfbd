"""What a robot's next message says of its last answer, with a lookahead and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from fake_servers import SHAPES, SPEC, OpenpiServer

from genpol.steering.overlap import Overlap, overlapping
from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from genpol.steering.windows import windowed
from offline.critics.value import ValueFunction
from offline.errors import InputError
from robots.serving.client import RemotePolicy
from robots.serving.observations import Observations
from robots.serving.plans import Plans
from robots.serving.proxy import ProxySession
from robots.serving.serve_policy import serve_policy
from robots.serving.sessions import PolicySession

STATE = np.array([0.5, -1.0, 2.0], np.float32)
LONG = SPEC.with_chunk(6)
OVERLAP = Overlap(plan=6, execute=4, lookahead=2)


class Numbered:
    """The k-th chunk is k/10, k/10 + .01, ... in every dimension, in the environment's units."""

    obs_shapes = SHAPES

    def __init__(self, chunk=6):
        self.spec, self.calls, self.done = SPEC.with_chunk(chunk), 0, []

    def reset(self):
        self.calls = 0

    def sample(self, obs, n, generator):
        self.calls += 1
        row = self.calls / 10 + torch.arange(self.spec.chunk) / 100
        return self.spec.normalize(row[:, None].expand(1, n, -1, 3))

    def commit(self, act):
        self.done += [f"{x:.2f}" for x in self.spec.unnormalize(act)[0, :, 0].tolist()]

    def keep(self, rows):
        raise AssertionError


def ask(session, **message):
    """The first dimension of the actions that are answered."""
    steps = session.infer({"state": STATE, **message}, 0.0)
    try:
        while True:
            waits = next(steps)
            if waits is not None:
                waits.result(timeout=30)
    except StopIteration as end:
        return end.value


def first(answer):
    return [round(float(x), 4) for x in answer["actions"][..., 0].reshape(-1)]


def session_of(policy):
    return PolicySession(policy, Observations(SHAPES), torch.Generator())


def rows(*numbers):
    return np.repeat(np.array(numbers, np.float32)[:, None], 3, 1)


def test_an_answer_begins_with_what_is_running():
    base = Numbered()
    session = session_of(overlapping(base, OVERLAP))
    assert first(ask(session)) == [0.1, 0.11, 0.12, 0.13, 0.14, 0.15]
    # A robot of openpi says nothing but what it sees: it has asked two actions early.
    assert first(ask(session)) == [0.14, 0.15, 0.22, 0.23, 0.24, 0.25]
    assert base.done == ["0.10", "0.11", "0.12", "0.13"]
    # One that says what it did, which was less, and something else.
    assert first(ask(session, executed=rows(0.14, 0.15, 0.9))) == [
        0.23,
        0.24,
        0.32,
        0.33,
        0.34,
        0.35,
    ]
    assert base.done[4:] == ["0.14", "0.15", "0.90"]
    # One that stopped in the middle; that it stands is not to be seen from `executed`.
    assert first(ask(session, executed=rows(0.23), running=0))[:3] == [0.4, 0.41, 0.42]
    # One that was slower to stop, and said only how many are running.
    assert first(ask(session, running=1))[:3] == [0.45, 0.51, 0.52]
    assert base.done[8:] == ["0.40", "0.41", "0.42", "0.43", "0.44"]
    # One that waited until it had done all.
    assert first(ask(session, executed=rows(*range(6))))[:2] == [0.6, 0.61]
    assert first(ask(session, reset=True))[:2] == [0.1, 0.11]


def test_a_longer_plan_is_answered_as_far_as_the_robot_needs_it():
    """Of six actions that are averaged and scored a robot gets three; more it cannot have done."""
    base = Numbered()
    session = session_of(overlapping(base, Overlap(plan=6, execute=2, lookahead=1, ensemble=0.0)))
    assert first(ask(session)) == [0.1, 0.11, 0.12]
    assert first(ask(session)) == [0.12, 0.17, 0.18]  # (.13 + .21) / 2, (.14 + .22) / 2
    # Of the last plan .19 (of two), .24 and .25 are left: (.19 + .19 + .3) / 3, (.24 + .31) / 2
    assert first(ask(session, executed=rows(0.12, 0.17, 0.18)))[:2] == [0.2267, 0.275]
    assert base.done == ["0.10", "0.11", "0.12", "0.17", "0.18"]


def test_samples_are_no_plan():
    session = session_of(overlapping(Numbered(), OVERLAP))
    ask(session)
    drawn = ask(session, num_samples=2)["actions"]
    assert drawn.shape == (2, 6, 3)
    np.testing.assert_allclose(drawn[:, 0, 0], 0.14, atol=1e-6)  # runs when they begin
    assert first(ask(session))[:2] == [0.3, 0.31]  # which of them is executed is not known


def test_what_cannot_be_running_is_refused_and_forgets_nothing():
    session = session_of(overlapping(Numbered(), OVERLAP))
    ask(session)
    for running, said in (
        (3, '"running" is 3, expected 0 to 2'), (-1, "is -1, expected 0 to 2"),
        (0.5, '"running" is 0.5, expected a whole number'), ("all", "'all', expected a whole"),
        (True, "True, expected a whole number"), (rows(1.0), "expected a whole number"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            ask(session, running=running)
    with pytest.raises(InputError, match='"state" is NoneType'):
        ask(session, state=None)
    assert first(ask(session, running=np.int64(2)))[:3] == [0.14, 0.15, 0.22]
    plain = session_of(Numbered())
    with pytest.raises(InputError, match='"running" is 1, expected 0 to 0'):
        ask(plain, running=1)
    assert first(ask(plain, running=0))[:2] == [0.1, 0.11]


def test_after_a_failed_decision_nothing_is_running():
    """The robot has no answer, so that it has stopped by the time it asks again."""
    base = Numbered()
    session = session_of(overlapping(base, OVERLAP))
    ask(session)
    good, base.sample = base.sample, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        ask(session)
    base.sample = good
    assert first(ask(session))[:2] == [0.2, 0.21]
    assert base.done == ["0.10", "0.11", "0.12", "0.13"]  # once


def test_without_a_lookahead_all_is_as_it_was():
    base = Numbered()
    plans = Plans(base)
    plans.tell(None, None)
    plans.answered(base.sample(None, 1, None)[0, 0])
    plans.tell(None, None)
    assert base.done == ["0.10", "0.11", "0.12", "0.13", "0.14", "0.15"]
    plans.tell(None, None)
    assert len(base.done) == 6 and plans.length is None and plans.lookahead == 0


def test_each_client_has_plans_of_its_own_and_is_told_of_the_lookahead():
    with serve_policy(overlapping(Numbered(), OVERLAP), port=0) as server:
        with RemotePolicy.connect(server.address) as one, RemotePolicy.connect(server.address) as b:
            ours = one.metadata["genpol"]
            assert ours["lookahead"] == 2 and "running" in ours["features"]
            obs = {"state": torch.from_numpy(STATE)[None]}
            for robot in (one, b):
                act = robot.sample(obs, 1, None)[0, 0, :, 0]
                raw = robot.spec.unnormalize(robot.sample(obs, 1, None))[0, 0, :, 0]
                assert act.shape == (6,) and abs(float(raw[0]) - 0.2) < 1e-5


# -- the proxy

VALUE = ValueFunction(SPEC, SHAPES, hidden=(8,)).eval()


class Upstream:
    """Answers six actions: the k-th answer's are k/100, k/100 + .001, ..."""

    def __init__(self):
        self.count = 0

    def __call__(self, message):
        self.count += 1
        row = self.count / 100 + np.arange(6) / 1000
        return {"actions": np.repeat(row[:, None], 3, 1), "number": self.count}


def proxied(server, score, overlap, chunk=None):
    def connect():
        return RemotePolicy.connect(server.url, env_spec=SPEC, parallel=2, chunk=chunk)

    def steer(base):
        return overlapping(Steered(base, windowed(VALUE, score), 2, argmax()), overlap)

    return ProxySession(connect, steer, 2, Observations(SHAPES), torch.Generator(), SPEC)


def test_a_proxy_answers_what_was_scored():
    with OpenpiServer(Upstream()) as server:
        session = proxied(server, 2, None, chunk=2)
        answer = ask(session)
        assert first(answer) == [answer["number"] / 100, answer["number"] / 100 + 0.001]
        session.close()
        session = proxied(server, 6, None)
        answer = ask(session)
        assert answer["actions"].shape == (6, 3) and answer["actions"].dtype == np.float64
        session.close()


def test_a_proxy_puts_what_is_running_before_the_other_servers_actions():
    with OpenpiServer(Upstream()) as server:
        session = proxied(server, 6, Overlap(plan=6, execute=4, lookahead=2))
        before = first(ask(session, executed=rows(9.0)))  # of no answer of ours
        answer = ask(session)
        mine = answer["number"] / 100
        new = [round(mine + i / 1000, 4) for i in range(2, 6)]
        assert first(answer) == [*before[4:], *new]
        again = ask(session, executed=rows(*before[:1]), running=0)
        assert first(again)[0] == round(again["number"] / 100, 4)
        with pytest.raises(InputError, match='"running" is 3, expected 0 to 2'):
            ask(session, running=3)
        with pytest.raises(InputError, match='"executed" has shape'):
            ask(session, executed=np.zeros((2, 7)))
        assert ask(session, reset=True)["actions"][0, 0] > 0.05
        session.close()
    # The other server never hears of what is between the robot and us.
    assert all(set(message) == {"state"} for message in server.messages)


# -- what is told on, as to a recording


class Listens:
    def __init__(self):
        self.heard = []

    def told(self, told, message):
        done = None if told.executed is None else [round(float(x), 2) for x in told.executed[:, 0]]
        self.heard.append((done, told.intervention, told.ends))

    def decided(self, message, decided):
        self.heard.append([round(float(x), 2) for x in decided.answer[:, 0]])

    def close(self):
        pass


def listened(policy):
    listener = Listens()
    return PolicySession(policy, Observations(SHAPES), torch.Generator(), None, listener), listener


def test_a_recording_hears_of_what_was_executed_and_not_of_what_was_only_answered():
    session, listener = listened(overlapping(Numbered(), OVERLAP))
    ask(session)
    ask(session)  # says nothing: four of six were done
    ask(session, success=True)  # the same, and it is over
    first_, second = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15], [0.14, 0.15, 0.22, 0.23, 0.24, 0.25]
    told = [round(x, 2) for x in first_[:4]], [round(x, 2) for x in second[:4]]
    assert listener.heard == [
        first_, (told[0], False, False), second, (told[1], False, True),
    ]  # fmt: skip


def test_a_humans_actions_end_the_plan_and_are_told_to_the_policy():
    base = Numbered()
    session, listener = listened(overlapping(base, OVERLAP))
    ask(session)
    alone = {"executed": rows(0.1, 0.11)}
    with pytest.raises(StopIteration) as end:
        next(session.infer(alone, 0.0))
    assert end.value.value == {"executed": 2}
    again = ask(session, executed=rows(0.7, 0.8, 0.9), intervention=True)
    assert first(again)[:2] == [0.2, 0.21]  # nothing is running
    assert base.done == ["0.10", "0.11", "0.70", "0.80", "0.90"]
    assert listener.heard[1:3] == [([0.1, 0.11], False, False), ([0.7, 0.8, 0.9], True, False)]
    # Longer than a chunk, as a human's may be: the policy is told the latest.
    ask(session, executed=rows(*(i / 100 for i in range(1, 10))), intervention=True)
    assert base.done[5:] == ["0.04", "0.05", "0.06", "0.07", "0.08", "0.09"]


def test_what_a_failed_message_said_is_counted_once():
    base = Numbered()
    session, listener = listened(overlapping(base, OVERLAP))
    ask(session)
    with pytest.raises(InputError, match='no "state"'):  # is not heard at all
        list(session.infer({"sate": STATE, "executed": rows(0.1, 0.11)}, 0.0))
    good, base.sample = base.sample, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):  # is heard, and has no answer
        ask(session, executed=rows(0.1, 0.11, 0.12))
    with pytest.raises(ZeroDivisionError):
        ask(session, executed=rows(0.1, 0.11, 0.12))
    base.sample = good
    ask(session, executed=rows(0.1, 0.11, 0.12, 0.13), running=0)
    assert base.done == ["0.10", "0.11", "0.12", "0.13"]
    heard = [entry[0] for entry in listener.heard if isinstance(entry, tuple)]
    assert [x for part in heard for x in part] == [0.1, 0.11, 0.12, 0.13]
    ask(session, executed=rows(0.2))
    assert base.done[4:] == ["0.20"]
