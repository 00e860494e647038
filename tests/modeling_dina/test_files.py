"""Files and folders are complete or absent, and what has been computed is not computed again."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from modeling_dina.files import Journal, atomic_path, check_settings, load_or_compute, write_json, write_text
from tests.processes import file_size_limit


def write_file(path, text):
    path.write_text(text)


def write_folder(path, text):
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text(text)


def content(path):
    return (path / "deep" / "file" if path.is_dir() else path).read_text()


kinds = pytest.mark.parametrize(
    ("name", "write"), [("table.csv", write_file), ("file", write_file), ("checkpoint-1", write_folder)]
)


@kinds
def test_what_was_there_is_replaced_at_once(tmp_path, name, write):
    path = tmp_path / "new" / name
    for text in ("old", "new"):
        with atomic_path(path) as partial:
            write(partial, text)
            assert partial.parent == path.parent
            assert partial.name.startswith(".")
            assert partial.suffix == (path.suffix or ".partial")
            assert not path.exists() or content(path) == "old"
        assert content(path) == text
        assert list(path.parent.iterdir()) == [path]


@kinds
def test_a_failure_leaves_what_was_there(tmp_path, name, write):
    path = tmp_path / name
    write(path, "old")

    def fail():
        with atomic_path(path) as partial:
            write(partial, "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


@kinds
@pytest.mark.parametrize("left", [write_file, write_folder])
def test_what_a_killed_process_left_is_removed(tmp_path, name, write, left):
    path = tmp_path / name
    with atomic_path(path) as partial:
        killed = partial
        write(partial, "first")
    left(killed, "half")
    with atomic_path(path) as partial:
        assert not partial.exists()
        write(partial, "second")
    assert content(path) == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error_and_removes_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"


def test_a_file_does_not_replace_a_folder(tmp_path):
    write_folder(tmp_path / "out", "old")
    with pytest.raises(OSError, match="out"):
        write_text(tmp_path / "out", "new")
    assert content(tmp_path / "out") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_refuses_nan_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_what_is_there_is_not_computed_again(tmp_path):
    path, calls = tmp_path / "parts" / "one.json", []

    def make():
        calls.append(path.exists())
        return {"value": [1, 2.5, "ü"]}

    assert load_or_compute(path, make) == load_or_compute(path, make) == {"value": [1, 2.5, "ü"]}
    assert calls == [False]


def test_settings_of_a_folder(tmp_path):
    path = tmp_path / "out" / "settings.json"
    check_settings(path, {"size": 1, "levels": [0.1]})
    check_settings(path, {"size": 1, "levels": [0.1]})
    with pytest.raises(ValueError, match=r"size: expected 1, with which .*out was begun, got 2"):
        check_settings(path, {"size": 2, "levels": [0.1]})
    assert list(path.parent.iterdir()) == [path]


def test_several_runs_begin_a_folder_together(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for trial in range(20):
            path = tmp_path / str(trial) / "settings.json"
            list(pool.map(lambda _, path=path: check_settings(path, {"size": 1}), range(8)))
            assert list(path.parent.iterdir()) == [path]


def test_results_that_do_not_fit_on_the_disk_leave_the_journal_as_it_was(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, {"seed": 0})
    journal.append({"result": 1})
    before = path.read_bytes()
    # The first bytes of the next line would fit.
    with file_size_limit(len(before) + 5), pytest.raises(OSError, match="File too large"):
        journal.append({"result": 2})
    assert path.read_bytes() == before
    journal.append({"result": 3})
    assert Journal(path, {"seed": 0}).records == [{"result": 1}, {"result": 3}]


def test_reading_a_journal_that_is_being_written_changes_nothing(tmp_path):
    path = tmp_path / "journal"
    Journal(path, {"seed": 0}).append({"result": 1})
    with path.open("ab") as file:
        file.write(b'{"resu')
    before = path.read_bytes()
    assert Journal.read(path) == [{"result": 1}]
    assert path.read_bytes() == before
