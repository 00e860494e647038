"""Ranks and win probabilities within groups that are spread over the shards."""

import json

import pandas as pd
import pytest

from modeling_dina.dataset import ranking
from modeling_dina.dataset.ranking import rank_within_groups
from modeling_dina.dataset.run import score_dataset
from modeling_dina.dataset.shards import ScoreShards
from modeling_dina.dataset.sources import ManifestSource

GROUPS = ["red", "blue", None, "red", "blue", "red", "alone"]


@pytest.fixture
def shards(scorer, files, tmp_path):
    """Scores of seven rows of one prompt in shards of two rows; row 4 has an error, and row 2 no group."""
    rows = [
        {"key": str(i), "prompt": "a cat", "image": files[i % 6].name, "group": group}
        for i, group in enumerate(GROUPS)
    ]
    rows[4]["image"] = "none.png"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ManifestSource(tmp_path / "rows.jsonl", "group")
    options = {"shard_size": 2, "num_workers": 0, "progress": lambda *_: None, "num_draws": 3, "mode": "precision"}
    return score_dataset(scorer, source, tmp_path / "out", **options)


@pytest.mark.parametrize("rows_a_bucket", [1, 100])
def test_ranks_are_those_of_the_scorer(shards, scorer, files, tmp_path, monkeypatch, rows_a_bucket):
    monkeypatch.setattr(ranking, "ROWS_A_BUCKET", rows_a_bucket)
    rank_within_groups(shards, tmp_path / "ranked")
    assert [path.name for path in sorted((tmp_path / "ranked").iterdir())] == [path.name for path in shards.paths()]
    table = pd.read_parquet(tmp_path / "ranked")
    assert table["key"].tolist() == [str(i) for i in range(7)]
    assert not {"samples", "variance", "weights"} & set(table)
    assert table["rank"].isna().tolist() == [i in (2, 4) for i in range(7)]
    assert table["win_probability"].isna().tolist() == [i in (2, 4) for i in range(7)]
    assert table["rank"][[1, 6]].tolist() == [1, 1]
    assert table["win_probability"][[1, 6]].tolist() == [0.5, 0.5]

    red = [0, 3, 5]
    expected = scorer.rank(prompt="a cat", images=[files[i] for i in red], num_draws=3, mode="precision")
    assert [red[i] for i in expected.order] == table["rank"][red].sort_values().index.tolist()
    best = expected.win_probability[:, expected.order[0]]
    assert table["win_probability"][red].tolist() == pytest.approx(best.tolist(), abs=1e-5)
    assert not list(tmp_path.rglob(".rank*"))


def test_equal_scores_have_an_equal_rank(tmp_path):
    from modeling_dina.dataset.rows import Unit

    shards = ScoreShards(tmp_path / "data", 4, with_samples=True)
    common = {"prompt": "a cat", "group": "x", "variance": [0.1], "weights": [1.0]}
    scores = [1.0, 2.0, 2.0, 0.5]
    shards.write(Unit(0, 0), [{"key": None, "score": score, "samples": [score], **common} for score in scores])
    ((_, table),) = ranking.ranked(shards)
    assert table["rank"].to_pylist() == [3, 1, 1, 4]
