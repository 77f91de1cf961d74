"""Experience replay: a part of every batch comes from earlier datasets, so that what they taught is not forgotten.

Rolnick et al. 2019 (arXiv:1811.11682); for language models Scialom et al. 2022 (arXiv:2205.12393).
"""

from collections.abc import Sequence

from methods._rows import training_order

__all__ = ["mixed", "replayed"]

Row = dict[str, list[int]]


def replayed(batches: int, batch_size: int, fraction: float) -> list[int]:
    """How many rows of each batch are replayed: `fraction` of all rows seen so far, rounded down, at every batch's end.

    So every batch has its share, or every second one where the share is half a row.
    """
    # A fraction such as 0.3 is a little less than that in binary, and ten of them must be three.
    due = [int((number + 1) * batch_size * fraction + 1e-9) for number in range(batches)]
    return [now - before for now, before in zip(due, [0, *due], strict=False)]


def mixed(
    rows: Sequence[Row],
    earlier: Sequence[Sequence[Row]],
    *,
    fraction: float,
    batches: int,
    batch_size: int,
    seed: int,
) -> list[Row]:
    """The rows that a run sees, in order: in each batch new ones, then those replayed.

    Earlier datasets take turns, so that each has an equal share however long it is. Within a dataset rows come in
    shuffled epochs (`training_order`); the new rows are the first that a run without replay would see.

    Args:
        rows: of the new dataset.
        earlier: rows of each earlier dataset, none of them empty.
        fraction: part of the rows that is replayed, below 1.
        batches: forward passes of the run.
    """
    counts = replayed(batches, batch_size, fraction)
    total = sum(counts)
    new = iter(training_order(len(rows), batches * batch_size - total, seed))
    # Another seed for each: equally long sets would otherwise be seen in the same order.
    orders = [iter(training_order(len(old), total, seed + 1 + place)) for place, old in enumerate(earlier)]
    turn = 0
    seen: list[Row] = []
    for count in counts:
        seen += [rows[next(new)] for _ in range(batch_size - count)]
        for _ in range(count):
            seen.append(earlier[turn][next(orders[turn])])
            turn = (turn + 1) % len(earlier)
    return seen
