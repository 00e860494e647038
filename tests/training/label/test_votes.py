"""The file of votes: no vote is lost or counted twice, whatever happens to the process or the disk."""

import json

import pytest

from tests.processes import file_size_limit
from training.label.votes import Vote, VoteFile, read_votes


@pytest.mark.parametrize(
    ("left", "choice", "preference"),
    [
        ("a", "left", 1.0),
        ("a", "right", 0.0),
        ("b", "left", 0.0),
        ("b", "right", 1.0),
        ("a", "tie", 0.5),
        ("b", "both_bad", 0.5),
        ("a", "skip", None),
    ],
)
def test_preference_for_a(left, choice, preference):
    assert Vote("ann", 0, "p0", left, choice).preference == preference


def add(file, *votes):
    for vote in votes:
        file.vote(vote)


def test_votes_are_on_the_disk_at_once_and_read_back(tmp_path, write_votes):
    votes = write_votes("ann p0 left a", "bob p0 tie b", "ann p1 skip a")
    file = VoteFile(tmp_path)
    for count, vote in enumerate(votes, 1):
        file.vote(vote)
        assert len(read_votes(tmp_path)) == count
    # By annotator.
    assert read_votes(tmp_path) == [votes[0], votes[2], votes[1]]
    assert [file.next_number(name) for name in ("ann", "bob", "eve")] == [2, 1, 0]
    file.close()
    assert VoteFile(tmp_path).tally.standing() == read_votes(tmp_path)


def test_undo_is_a_line_and_takes_back_the_last_vote_that_stands(tmp_path, write_votes):
    file = VoteFile(tmp_path)
    add(file, *write_votes("ann p0 left a", "ann p1 left a", "bob p1 right a"))
    file.undo("ann")
    assert [vote.pair for vote in read_votes(tmp_path)] == ["p0", "p1"]
    assert file.tally.undone["ann"].pair == "p1"
    file.undo("ann")
    assert [(vote.annotator, vote.pair) for vote in read_votes(tmp_path)] == [("bob", "p1")]
    assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 1 + 5
    assert file.next_number("ann") == 4


def test_a_line_cut_off_by_a_crash_is_removed(tmp_path, write_votes):
    first, second, third = write_votes("ann p0 left a", "ann p1 left a", "ann p2 tie b")
    file = VoteFile(tmp_path)
    add(file, first, second)
    file.close()
    path = tmp_path / "votes.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert read_votes(tmp_path) == [first]
    file = VoteFile(tmp_path)
    # The page, which got no answer, sends the same vote again.
    assert file.next_number("ann") == second.number
    add(file, second, third)
    assert read_votes(tmp_path) == [first, second, third]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_full_disk_changes_nothing(tmp_path, write_votes):
    first, second = write_votes("ann p0 left a", "ann p1 left a")
    file = VoteFile(tmp_path)
    file.vote(first)
    path = tmp_path / "votes.jsonl"
    before = path.read_bytes()
    with file_size_limit(len(before) + 10):
        for write in (lambda: file.vote(second), lambda: file.undo("ann")):
            with pytest.raises(OSError, match="File too large"):
                write()
    assert path.read_bytes() == before
    assert (file.next_number("ann"), file.tally.standing()) == (1, [first])
    file.vote(second)
    assert read_votes(tmp_path) == [first, second]


def test_one_server_at_a_time(tmp_path):
    file = VoteFile(tmp_path)
    with pytest.raises(ValueError, match="out: expected a folder that no other server writes to"):
        VoteFile(tmp_path)
    file.close()
    VoteFile(tmp_path).close()


@pytest.mark.parametrize(
    "content", ['{"other": 1}\n', "no json\n", '{"format": "dina votes", "version": 1}\n{"a": 1}\n']
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, content):
    (tmp_path / "votes.jsonl").write_text(content)
    with pytest.raises(ValueError, match="out: "):
        VoteFile(tmp_path)
    assert (tmp_path / "votes.jsonl").read_text() == content


def test_a_folder_without_votes(tmp_path):
    with pytest.raises(ValueError, match="out: expected a folder with votes"):
        read_votes(tmp_path)
