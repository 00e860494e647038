"""Which pair an annotator sees next, and which answers count."""

from collections import Counter

import pytest

from training.label.session import REPEAT_GAP, Plan, Session
from training.label.votes import VoteFile, read_votes

NO_REPEATS = Plan(repeats=0)


@pytest.fixture
def start(tmp_path, make_pairs):
    """Starts a session on a number of pairs; a later call goes on with the same file."""
    files = []

    def start(count, annotators=("ann", "bob"), plan=NO_REPEATS, order=None):
        for file in files:
            file.close()
        files.append(VoteFile(tmp_path))
        return Session(make_pairs(count), order or range(count), files[-1], annotators, seed=3, plan=plan)

    return start


def answer(session, name, choice="left", seconds=2.0):
    shown = session.present(name)
    assert session.vote(name, shown.number, shown.pair.key, shown.left, choice, seconds)
    return shown


def test_every_pair_is_seen_once_in_the_given_order(start):
    session = start(4, order=[2, 0, 3, 1])
    for name in ("ann", "bob"):
        assert [answer(session, name).pair.key for _ in range(4)] == ["p2", "p0", "p3", "p1"]
        assert session.present(name) is None


def test_sides_are_shuffled_and_differ_between_annotators(start):
    session = start(40)
    sides = {name: "".join(answer(session, name).left for _ in range(40)) for name in ("ann", "bob")}
    assert all(10 < side.count("a") < 30 for side in sides.values())
    assert sides["ann"] != sides["bob"]


def test_a_vote_that_comes_twice_counts_once(start, tmp_path):
    session = start(3)
    shown = answer(session, "ann", "left")
    for choice in ("left", "right"):
        assert not session.vote("ann", shown.number, shown.pair.key, shown.left, choice)
    assert [vote.choice for vote in read_votes(tmp_path)] == ["left"]


def test_two_browsers_of_one_annotator_see_the_same_pair(start):
    session = start(3)
    first, second = session.present("ann"), session.present("ann")
    assert first == second
    answer(session, "ann")
    assert session.present("ann").pair != first.pair


def test_two_annotators_vote_on_one_pair(start, tmp_path):
    session = start(1)
    assert session.present("ann").pair == session.present("bob").pair
    answer(session, "ann", "left")
    answer(session, "bob", "tie")
    assert Counter(vote.annotator for vote in read_votes(tmp_path)) == {"ann": 1, "bob": 1}


def test_undo_shows_the_same_pair_with_the_same_sides_again(start, tmp_path):
    session = start(3)
    assert not session.undo("ann", 0)
    first = answer(session, "ann", "left")
    answer(session, "bob", "left")
    assert session.undo("ann", 1)
    assert not session.undo("ann", 1)  # sent again
    again = session.present("ann")
    assert (again.pair, again.left, again.number) == (first.pair, first.left, 2)
    # An answer to the presentation before the undo, which arrives late, does not count.
    assert not session.vote("ann", first.number, first.pair.key, first.left, "left")
    assert session.vote("ann", again.number, again.pair.key, again.left, "tie")
    assert [(vote.annotator, vote.choice) for vote in read_votes(tmp_path)] == [("ann", "tie"), ("bob", "left")]
    assert session.present("ann").pair.key == "p1"


def test_several_undos_go_back_one_vote_each(start):
    session = start(3)
    shown = [answer(session, "ann") for _ in range(3)]
    for earlier in reversed(shown):
        assert session.undo("ann", session.next_number("ann"))
        assert session.present("ann").pair == earlier.pair
    assert not session.can_undo("ann")


def test_a_session_that_is_started_again_shows_what_it_showed(start):
    plan = Plan(repeats=0.5)
    session = start(30, plan=plan)
    for step in range(20):
        answer(session, "ann")
        shown = session.present("ann")
        if step % 5 == 0:
            session = start(30, plan=plan)
            assert session.present("ann") == shown
    session.undo("ann", session.next_number("ann"))
    shown = session.present("ann")
    session = start(30, plan=plan)
    assert session.present("ann") == shown


def test_a_vote_on_a_pair_shown_before_a_restart_in_another_order_counts(start, tmp_path):
    shown = start(3).present("ann")
    session = start(3, order=[2, 1, 0])
    assert session.present("ann").pair != shown.pair
    assert session.vote("ann", shown.number, shown.pair.key, shown.left, "left")
    assert [vote.pair for vote in read_votes(tmp_path)] == [shown.pair.key]


def test_hidden_repeats(start):
    """Their number is as planned, none comes soon, and progress does not tell them apart."""
    session = start(40, plan=Plan(repeats=0.25))
    shown, done = [], 0
    while (present := session.present("ann")) is not None:
        progress = session.progress("ann")
        assert (progress.done, progress.done + progress.remaining) == (done, 50)
        shown.append(present.pair.key)
        answer(session, "ann")
        done += 1
    counts = Counter(shown)
    repeated = [key for key, count in counts.items() if count == 2]
    assert len(shown) == 50
    assert len(repeated) == 10
    places = {key: [index for index, each in enumerate(shown) if each == key] for key in repeated}
    assert all(later - earlier >= REPEAT_GAP for earlier, later in places.values())
    assert min(later for _, later in places.values()) < 40  # not all at the end


def test_skipped_pairs_are_not_repeated(start):
    session = start(20, plan=Plan(repeats=1.0))
    for _ in range(20):
        answer(session, "ann", "skip")
    assert session.present("ann") is None
    assert session.progress("ann").remaining == 0


def test_a_goal(start):
    session = start(10, plan=Plan(repeats=0, goal=3))
    assert session.progress("ann").remaining == 3
    for _ in range(3):
        answer(session, "ann")
    assert session.present("ann") is None
    assert session.progress("ann").remaining == 0
    assert session.present("bob") is not None


def test_annotators_share_the_pairs(start, tmp_path):
    session = start(6, plan=Plan(repeats=0, annotators_per_pair=1))
    # Both have a pair before them, not the same one.
    assert session.present("ann").pair != session.present("bob").pair
    for name in ("ann", "bob", "bob", "ann", "bob"):
        answer(session, name)
    # Ann has left the last pair open, so that Bob gets it too.
    left_open = session.present("ann").pair
    assert session.present("bob").pair == left_open
    answer(session, "bob", "skip")
    answer(session, "ann")
    assert session.present("ann") is session.present("bob") is None
    assert Counter(vote.pair for vote in read_votes(tmp_path) if vote.choice != "skip") == Counter(
        {f"p{index}": 1 for index in range(6)}
    )


def test_a_pair_that_was_skipped_is_for_others(start):
    session = start(1, plan=Plan(repeats=0, annotators_per_pair=1))
    answer(session, "ann", "skip")
    assert answer(session, "bob").pair.key == "p0"


def test_time_left_is_that_of_a_typical_vote(start):
    session = start(7)
    assert session.progress("ann").seconds is None
    for seconds in (1.0, 3.0, 100.0, None):
        answer(session, "ann", seconds=seconds)
    progress = session.progress("ann")
    assert (progress.done, progress.remaining, progress.seconds) == (4, 3, 9.0)


def test_a_dropped_pair_is_not_shown_but_its_votes_count(start, tmp_path):
    session = start(2)
    shown = session.present("ann")
    session.drop(shown.pair)
    assert session.present("ann").pair.key == "p1"
    assert session.vote("ann", shown.number, shown.pair.key, shown.left, "left")
    assert len(read_votes(tmp_path)) == 1


@pytest.mark.parametrize(("number", "pair", "named"), [(0, "p9", "pair"), (1, "p0", "number"), (-1, "p0", "number")])
def test_impossible_votes(start, tmp_path, number, pair, named):
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        start(2).vote("ann", number, pair, "a", "left")
    assert read_votes(tmp_path) == []
