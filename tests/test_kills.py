"""A sweep that is killed at random moments, itself or its workers, ends with the tables of an undisturbed one."""

from pathlib import Path

from benchmarks.chaos import SUITE, TABLES, killed_until, tables
from tests.in_process import planned, swept


def test_kills_at_random_moments_change_no_row(tiny_model: Path, tmp_path: Path) -> None:
    """A short run of benchmarks/chaos.py, which says what must hold; the long one has more than a hundred kills."""
    suite = tmp_path / "chaos.yaml"
    suite.write_text(SUITE.format(model=tiny_model, trials=1))
    whole = tmp_path / "whole"
    assert swept(planned(suite, whole), whole).failures == []
    undisturbed = tables(whole, TABLES)
    assert len(undisturbed["samples"]) > 100
    counts, wrong = killed_until(4, suite, tmp_path, undisturbed, mean_s=4.0, share=0.5, seed=0)
    assert wrong == []
    assert counts["kills"] >= 4
    assert counts["rows_that_differ"] == counts["computed_though_finished"] == 0
