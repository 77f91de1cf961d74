"""A radix tree over token sequences: every shared token appears once, in segments whose parents come before them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["Segment", "TokenTree", "build_tree"]

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A run of tokens without a branch. `start` is the position of its first token; `parent` -1 is the root."""

    tokens: Tokens
    start: int
    parent: int

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class TokenTree:
    """Segments in depth-first order, and for each of the given sequences the segment that holds its last token."""

    segments: list[Segment]
    last: list[int]

    def path(self, segment: int) -> list[int]:
        """The ids from the root down to this segment, itself included."""
        found = []
        while segment >= 0:
            found.append(segment)
            segment = self.segments[segment].parent
        return found[::-1]

    def locate(self, sequence: int, positions: Sequence[int]) -> list[tuple[int, int]]:
        """Where the tokens at these positions of a sequence are: (segment, offset in it)."""
        path = self.path(self.last[sequence])
        starts = [self.segments[s].start for s in path]
        found = []
        for position in positions:
            segment = path[bisect_right(starts, position) - 1]
            found.append((segment, position - self.segments[segment].start))
        return found


def _common(a: Tokens, b: Tokens) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def build_tree(sequences: Sequence[Sequence[int]], *, min_saved: int = 16, max_segment: int = 4096) -> TokenTree:
    """Build the tree.

    Args:
        sequences: token ids, none empty; repeated ones and ones that begin another cost nothing.
        min_saved: a branch is shared only where that saves at least so many tokens: below it, computing them again
            costs less than a further segment.
        max_segment: longer segments are cut into a chain, so that one never exceeds a forward pass.
    """
    distinct = sorted({tuple(s) for s in sequences})
    if distinct and not distinct[0]:
        raise ValueError("build_tree: an empty sequence has no last token")
    arrays = [np.asarray(s, dtype=np.int64) for s in distinct]
    common = [_common(a, b) for a, b in pairwise(arrays)]
    # In sorted order a sequence that begins another stands directly before one that it begins.
    kept = [i for i, a in enumerate(arrays) if i == len(common) or common[i] < len(a)]
    leaves = [arrays[i] for i in kept]
    lcp = np.array([0, *(_common(a, b) for a, b in pairwise(leaves))], dtype=np.int64)

    segments: list[Segment] = []
    leaf_segment = [0] * len(leaves)

    def emit(tokens: Tokens, start: int, parent: int) -> int:
        for at in range(0, len(tokens), max_segment):
            segments.append(Segment(tokens[at : at + max_segment], start + at, parent))
            parent = len(segments) - 1
        return parent

    todo = [(0, len(leaves) - 1, 0, -1)] if leaves else []
    while todo:
        low, high, depth, parent = todo.pop()
        if low == high:
            leaf_segment[low] = emit(leaves[low][depth:], depth, parent)
            continue
        inner = lcp[low + 1 : high + 1]
        shared = int(inner.min())
        cuts = [low, *(np.flatnonzero(inner == shared) + low + 1).tolist(), high + 1]
        if (shared - depth) * (len(cuts) - 2) >= min_saved:
            parent = emit(leaves[low][depth:shared], depth, parent)
            depth = shared
        todo += [(a, b - 1, depth, parent) for a, b in reversed(list(pairwise(cuts)))]

    segment_of = {}
    leaf = 0
    for i, one in enumerate(distinct):
        segment_of[one] = leaf_segment[leaf]
        if leaf < len(kept) and kept[leaf] == i:
            leaf += 1
    tree = TokenTree(segments, [])
    for sequence in sequences:
        # A sequence that begins another ends inside that one's path.
        segment = segment_of[tuple(sequence)]
        while segments[segment].start >= len(sequence):
            segment = segments[segment].parent
        tree.last.append(segment)
    return tree
