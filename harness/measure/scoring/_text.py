"""Bulk tokenisation that splits context and continuation as lm-eval does, and its stop strings on new tokens."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["StopStrings", "encode_all", "encode_pairs"]


def encode_all(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], prefix: str | None, special: bool | None
) -> dict[str, list[int]]:
    """Each distinct text → its tokens, in two calls of the tokenizer.

    A text that already begins with `prefix` gets no special tokens, so that none stands twice; `special` says whether
    the others get them (None: as the tokenizer does by itself).
    """
    distinct = list(dict.fromkeys(texts))
    found: dict[str, list[int]] = {}
    for begins in (False, True):
        part = [t for t in distinct if bool(prefix and t.startswith(prefix)) is begins]
        if part:
            add = (
                {"add_special_tokens": False} if begins else {} if special is None else {"add_special_tokens": special}
            )
            encoded = tokenizer(part, return_attention_mask=False, **add)["input_ids"]
            found.update(zip(part, encoded, strict=True))
    return found


def encode_pairs(
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[tuple[str, str]],
    prefix_id: int,
    special: bool | None,
) -> list[tuple[list[int], list[int]]]:
    """(context tokens, continuation tokens) of each pair of texts, as lm-eval's `TemplateLM` makes them.

    Spaces at a context's end go to the continuation; an empty context becomes the prefix token, which may be the
    continuation's own first token.
    """
    prefix = tokenizer.decode(prefix_id)
    split = []
    for context, continuation in pairs:
        kept = context.rstrip() if context else ""
        split.append((kept, context[len(kept) :] + continuation))
    whole = encode_all(
        tokenizer, (c + t for (full, _), (c, t) in zip(pairs, split, strict=True) if full), prefix, special
    )
    contexts = encode_all(
        tokenizer, (c for (full, _), (c, _) in zip(pairs, split, strict=True) if full), prefix, special
    )
    alone = encode_all(tokenizer, (t for full, t in pairs if not full), None, special=False)
    found = []
    for (full, text), (context, continuation) in zip(pairs, split, strict=True):
        if full:
            head = contexts[context]
            found.append((head, whole[context + continuation][len(head) :]))
        else:
            tokens = alone[text]
            found.append((tokens[:1], tokens[1:]) if tokens[:1] == [prefix_id] else ([prefix_id], tokens))
    return found


class StopStrings:
    """Whether new tokens end in a stop string: looked for in the last tokens only, two more than the string's own."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stops = [s for s in stops if s]
        lengths = [len(tokenizer.encode(s, add_special_tokens=False)) + 2 for s in self.stops]
        self.window = max(lengths, default=0)

    def __call__(self, tokens: list[int]) -> bool:
        """Asked after every new token."""
        if not self.stops:
            return False
        text = self.tokenizer.decode(tokens[-self.window :])
        return any(s in text for s in self.stops)
