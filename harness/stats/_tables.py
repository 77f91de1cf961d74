"""Scores by document as arrays of documents × seeds."""

from collections.abc import Sequence

import numpy as np

from harness.errors import UserError
from harness.stats._types import Array, Scores, finite

__all__ = ["paired_tables", "score_table"]


def paired_tables(a: Scores, b: Scores) -> tuple[list[str], Array, Array]:
    """The documents in order, and the scores of both sides, documents × seeds.

    Raises:
        UserError: the documents differ, a ragged number of seeds, a score that is not finite.
    """
    if a.keys() != b.keys():
        only_a, only_b = len(a.keys() - b.keys()), len(b.keys() - a.keys())
        raise UserError(
            f"a paired comparison needs the same documents on both sides: {only_a} are only in the first, {only_b} "
            f"only in the second, {len(a.keys() & b.keys())} in both; measure both recipes with the same task settings"
        )
    # Sorted: the answer must not depend on the order in which rows were read.
    documents = sorted(a)
    return documents, score_table(a, documents, "a"), score_table(b, documents, "b")


def score_table(scores: Scores, documents: Sequence[str], what: str) -> Array:
    """The scores of these documents, documents × seeds.

    Raises:
        UserError: no documents, a ragged number of seeds, a score that is not finite.
    """
    if not documents:
        raise UserError(f"{what}: no documents to compare")
    try:
        whole = np.array([scores[d] for d in documents], dtype=np.float64)
    except ValueError:
        rows = [np.atleast_1d(np.asarray(scores[d], dtype=np.float64)) for d in documents]
        if len({row.size for row in rows}) != 1:
            raise _ragged(rows, what) from None
        whole = np.stack(rows)
    if 0 in whole.shape:
        raise _ragged([whole[0]], what)
    return finite(whole.reshape(len(documents), -1), what)


def _ragged(rows: Sequence[Array], what: str) -> UserError:
    lengths = sorted({row.size for row in rows})
    return UserError(f"{what}: expected the same number of seeds for every document, got {lengths}")
