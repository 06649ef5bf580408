"""Automata: what they draw they accept, probabilities add up, entropies are those of closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.automata import Automaton
from etude.data.randomness import stream
from etude.data.state_machines import token_machine

REBER = [
    (0, "B", 1), (1, "T", 2), (1, "P", 3), (2, "S", 2), (2, "X", 4), (3, "T", 3), (3, "V", 5), (4, "X", 3),
    (4, "S", 6), (5, "P", 4), (5, "V", 6), (6, "E", 7),
]  # fmt: skip


def reber():
    return Automaton(REBER, 0, [7])


def test_a_grammar_accepts_its_strings_and_no_others():
    machine = reber()
    good = ["BTXSE", "BPVVE", "BTSSXXTVVE", "BPTVPSE"]
    bad = ["BTXS", "TXSE", "BTXSEE", "BPPE", "", "BTQSE", "BTXS E"]
    assert machine.accepts(good).all()
    assert not machine.accepts(bad).any()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.integers(5, 12), extra=st.integers(0, 20))
def test_drawn_strings_are_accepted_and_as_long_as_asked(seed, low, extra):
    machine = reber()
    drawn = machine.sample(20, (low, low + extra + 2), stream(seed, "s"))
    assert machine.accepts(drawn.symbols).all()
    assert machine.accepts(machine.decode(drawn.symbols)).all()
    assert low <= int(drawn.lengths.min()) and int(drawn.lengths.max()) <= low + extra + 2
    assert torch.equal(machine.encode(machine.decode(drawn.symbols)), drawn.symbols)
    belief = machine.beliefs(drawn.symbols)  # the grammar is deterministic: the belief is the state itself
    rows, t = (drawn.states >= 0).nonzero(as_tuple=True)
    assert torch.allclose(belief[rows, t, drawn.states[rows, t]], torch.ones(len(rows), dtype=torch.float64))


def test_the_same_generator_gives_the_same_strings():
    a, b = (reber().sample(30, None, stream(3, "s")) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not torch.equal(a.symbols[:, :5], reber().sample(30, None, stream(4, "s")).symbols[:, :5])


def test_log_probs_are_those_of_the_path_and_frequencies_follow():
    machine = reber()
    assert machine.log_probs(["BTXSE"])[0].exp().tolist() == pytest.approx([1, 0.5, 0.5, 0.5, 1])
    assert machine.log_probs(["BE"])[0].tolist() == [0.0, -math.inf]
    drawn = machine.decode(machine.sample(2000, None, stream(0, "s")).symbols)
    assert drawn.count("BTXSE") / 2000 == pytest.approx(0.125, abs=0.03)


def test_next_probs_sum_to_one_and_know_the_end():
    machine = Automaton([("a", "x", "a"), ("a", "y", "b")], "a", {"a": 0.4, "b": 1.0})
    assert machine.next_probs("a").tolist() == pytest.approx([0.3, 0.3, 0.4])
    assert machine.next_probs("b").tolist() == pytest.approx([0, 0, 1])
    listed = Automaton([("a", "x", "a"), ("a", "y", "b")], "a", ["a", "b"])
    assert listed.next_probs("a").tolist() == pytest.approx([1 / 3] * 3)


def test_hidden_branches_are_inferred_from_the_symbols():
    """A garden path: the branch shows only at the third symbol, and then the belief turns over."""
    edges = [("s", "a", "left", 9), ("s", "a", "right", 1), ("left", "b", "l2"), ("right", "b", "r2")]
    edges += [("l2", "c", "end", 9), ("l2", "d", "end", 1), ("r2", "d", "end")]
    machine = Automaton(edges, "s", ["end"])
    assert not machine.deterministic
    belief = machine.beliefs(["abd"])[0]
    assert float(belief[2, machine.number("l2")]) == pytest.approx(0.9)
    assert machine.log_probs(["abd"])[0, 2].exp().item() == pytest.approx(0.9 * 0.1 + 0.1)
    assert machine.accepts(["abd", "abc"]).all()
    for ask in (machine.entropy_rate, lambda: machine.entropy(2)):
        with pytest.raises(ValueError, match="average log_probs"):
            ask()


def test_entropy_rates_of_closed_forms():
    coin = Automaton([("a", "h", "a", 0.25), ("a", "t", "a", 0.75)], "a")
    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert coin.entropy_rate() == pytest.approx(h)
    assert coin.entropy(7) == pytest.approx(7 * h)
    ring = Automaton([("a", "x", "b"), ("b", "y", "a"), ("b", "z", "a")], "a")
    assert ring.entropy_rate() == pytest.approx(math.log(2) / 2)
    ends = Automaton([("a", "x", "a")], "a", {"a": 0.5})  # geometric: 2 choices of log 2, one symbol on average
    assert ends.entropy_rate() == pytest.approx(2 * math.log(2))
    with pytest.raises(ValueError, match="chance decides"):
        Automaton([("a", "x", "b"), ("a", "y", "c"), ("b", "x", "b"), ("c", "x", "c")], "a").entropy_rate()


def test_the_entropy_of_a_grammar_is_the_mean_surprise_of_its_strings():
    machine = reber()
    drawn = machine.sample(3000, None, stream(1, "s"))
    nats = -machine.log_probs(drawn.symbols).sum()
    assert float(nats / drawn.lengths.sum()) == pytest.approx(machine.entropy_rate(), rel=0.04)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(3, 40), base=st.integers(2, 12), data=st.data())
def test_token_machines_write_legal_steps(seed, n, base, data):
    successors = data.draw(st.integers(1, n))
    machine = token_machine(n, successors, base=base, generator=stream(seed, "machine"))
    assert all(len(set(row)) == successors for row in machine.successors.tolist())
    m = 6
    drawn = machine.sample(25, 1 + m * machine.digits, stream(seed, "data"))
    states = machine.read(drawn.symbols)
    assert states.shape == (25, m) and int(states.min()) >= 0
    assert machine.legal(states).all()
    floor = math.log(n) + (m - 1) * math.log(successors)
    assert machine.entropy(1 + m * machine.digits) == pytest.approx(floor)
    if successors == n:  # with fewer, chance may decide which states are ever seen again
        assert machine.entropy_rate() == pytest.approx(math.log(n) / machine.digits)
    nats = -machine.log_probs(drawn.symbols).sum(-1)
    assert nats.tolist() == pytest.approx([floor] * 25)


def test_illegal_steps_and_numbers_that_are_no_state_are_seen():
    machine = token_machine(50, 5, generator=stream(0, "machine"))
    a = 7
    good = int(machine.successors[a, 0])
    wrong = next(s for s in range(50) if s not in machine.successors[a].tolist())
    row = torch.tensor([[10, 0, 7, good // 10, good % 10], [10, 0, 7, wrong // 10, wrong % 10], [10, 0, 7, 9, 9]])
    states = machine.read(row)
    assert states.tolist() == [[7, good], [7, wrong], [7, -1]]
    assert machine.legal(states)[:, 0].tolist() == [True, False, False]
    with pytest.raises(ValueError, match="begin token 10"):
        machine.read(row[:, 1:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Automaton([], "a"), "at least one edge"),
        (lambda: Automaton([("a", "x")], "a"), "an edge is"),
        (lambda: Automaton([("a", "xy", "b")], "a"), "one character"),
        (lambda: Automaton([("a", "x", "b", -1.0)], "a"), "weights must be positive"),
        (lambda: Automaton([("a", "x", "b")], "z"), "unknown state 'z'"),
        (lambda: Automaton([("a", "x", "b")], "a", ["q"]), "unknown state 'q'"),
        (lambda: Automaton([("a", "x", "b")], {"a": 0.0}), "start weights"),
        (lambda: Automaton([("a", "x", "b")], "a", {"a": 1.5}), "probability 1.5"),
        (lambda: Automaton([("a", "x", "b")], "a", alphabet="y"), "not in the alphabet"),
        (lambda: reber().sample(0, 3, stream(0)), "n must be"),
        (lambda: reber().sample(1, 0, stream(0)), "at least 1"),
        (lambda: reber().sample(1, (9, 3), stream(0)), "low <= high"),
        (lambda: reber().sample(1, (1, 4), stream(0)), "ended after 1 to 4"),
        (lambda: reber().encode(["BQ"]), "not in the alphabet"),
        (lambda: token_machine(5, 6, generator=stream(0)), "1..5"),
        (lambda: token_machine(5, 2, base=50, generator=stream(0)), "base must lie"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_machine_that_never_ends_says_so():
    with pytest.raises(ValueError, match="0 of"):
        Automaton([("a", "x", "a")], "a").sample(1, (1, 20), stream(0))
