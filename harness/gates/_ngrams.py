"""Which documents a set of rows holds: an index of the documents' runs of words, past which any number of rows go.

Words are what is left of a text without case and punctuation. A document counts as held where one row has at least 70 %
of the 8-grams of one of its parts (question, answer, …), the measure of PaLM (Chowdhery et al. 2022, section 8,
arXiv:2204.02311). A single shared 13-gram (Brown et al. 2020, appendix C, arXiv:2005.14165) is too little for prompts
that are made of fixed requests: by it, 48 of the 160 bundled test prompts would be in the training prompts, with which
they share no question; by this, one is. What this misses are paraphrases, and copies of a short text in which a word
was changed.

The index knows the documents' words and n-grams only, and a row's other words end a run: memory is bounded by the
documents, however many rows there are. n-grams are compared by a 64-bit hash: with 10^7 n-grams against 10^5, a false
match has a chance of about 10^-7.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["COVERED", "SHARED", "WORDS", "NgramIndex", "words"]

WORDS = 8
"""Words of an n-gram (PaLM's)."""
COVERED = 0.7
"""Share of a part's n-grams that one row must have (PaLM's)."""
SHARED = 0.1
"""An n-gram that more than a tenth of the documents have, and more than two, is the task's wording and counts for none
(in the same spirit Brown et al. leave out n-grams that more than ten training documents have)."""

_WORD = re.compile(r"\w+")
_BATCH = 200_000
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Part = tuple[str, str, set[tuple[int, ...]]]


def words(text: str) -> list[str]:
    """The words of a text: compatibility forms unified (NFKC), case folded, punctuation left out."""
    return _WORD.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold())


class NgramIndex:
    """The n-grams of groups of documents (tasks). A document is its parts, over whose bounds no n-gram goes."""

    def __init__(self, groups: Mapping[str, Mapping[str, Sequence[str]]], seed: int = 0) -> None:
        """`groups`: name of a group → name of a document → its parts. `seed` is of the hash, not of the answer."""
        self._ids: dict[str, int] = {}
        parts = [part for group, documents in groups.items() for part in self._parts(group, documents)]
        names = {(group, name) for group, name, _ in parts}
        self.too_short: dict[str, set[str]] = {
            group: {name for name in documents if (group, name) not in names} for group, documents in groups.items()
        }
        """Group → documents that cannot be found: no part has eight words, or none that are its own."""
        self._names = [(group, name) for group, name, _ in parts]
        self._needed = np.array([COVERED * len(grams) for *_, grams in parts])
        self._values = np.random.default_rng(seed).integers(2**64, size=len(self._ids) + 1, dtype=np.uint64)
        owners: dict[tuple[int, ...], list[int]] = {}
        for number, (*_, grams) in enumerate(parts):
            for gram in grams:
                owners.setdefault(gram, []).append(number)
        flat = np.array([word for gram in owners for word in gram], np.int64)
        hashes = self._hash(flat, np.arange(0, len(flat), WORDS))
        order = np.argsort(hashes)
        self._hashes, listed = hashes[order], list(owners.values())
        self._owners = np.array([o for place in order for o in listed[place]], np.int64)
        self._ends = np.cumsum([len(listed[place]) for place in order], dtype=np.int64)

    def _parts(self, group: str, documents: Mapping[str, Sequence[str]]) -> list[Part]:
        """The parts that have n-grams of their own, with these."""
        found: list[Part] = []
        spread: Counter[tuple[int, ...]] = Counter()
        for name, texts in documents.items():
            mine: set[tuple[int, ...]] = set()
            for text in dict.fromkeys(texts):
                known = tuple(self._ids.setdefault(word, len(self._ids) + 1) for word in words(text))
                grams = {known[i : i + WORDS] for i in range(len(known) - WORDS + 1)}
                found.append((group, name, grams))
                mine |= grams
            spread.update(mine)
        most = max(2, SHARED * len(documents))
        own = [(group, name, {g for g in grams if spread[g] <= most}) for group, name, grams in found]
        return [part for part in own if part[2]]

    def _hash(self, ids: Ids, starts: Ids) -> Hashes:
        """Of the windows that begin at these places; unsigned numbers wrap around."""
        total = np.zeros(len(starts), np.uint64)
        for offset in range(WORDS):
            total = total * _MULTIPLIER + self._values[ids[starts + offset]]
        return total

    def find(self, rows: Iterable[Iterable[str]]) -> dict[str, set[str]]:
        """Group → its documents that one of the rows holds. A row is its texts, over whose bounds no n-gram goes."""
        found: dict[str, set[str]] = {group: set() for group in self.too_short}
        ids: list[int] = []
        lengths: list[int] = []
        known = self._ids.get
        for texts in rows:
            before = len(ids)
            for text in texts:
                ids += [known(word, 0) for word in words(text)]
                ids.append(0)
            lengths.append(len(ids) - before)
            if len(ids) >= _BATCH:
                self._search(ids, lengths, found)
                ids, lengths = [], []
        self._search(ids, lengths, found)
        return found

    def _search(self, batch: list[int], lengths: list[int], found: dict[str, set[str]]) -> None:
        if len(batch) < WORDS or not len(self._hashes):
            return
        ids = np.array(batch, np.int64)
        unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        starts = np.flatnonzero(unknown[WORDS:] == unknown[:-WORDS])
        windows = self._hash(ids, starts)
        places = np.minimum(np.searchsorted(self._hashes, windows), len(self._hashes) - 1)
        same = self._hashes[places] == windows
        row = np.repeat(np.arange(len(lengths)), lengths)[starts[same]]
        # A row that says something twice has it once.
        pairs = np.unique(row * len(self._hashes) + places[same])
        row, gram = pairs // len(self._hashes), pairs % len(self._hashes)
        first = np.concatenate([[0], self._ends[:-1]])[gram]
        count = self._ends[gram] - first
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        part = self._owners[np.repeat(first, count) + within]
        held, times = np.unique(np.repeat(row, count) * len(self._names) + part, return_counts=True)
        for number in np.unique((held % len(self._names))[times >= self._needed[held % len(self._names)]]):
            group, name = self._names[number]
            found[group].add(name)
