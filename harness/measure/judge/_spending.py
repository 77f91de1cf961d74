"""What a judge behind an endpoint costs, and that it never costs more than the suite allows."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from harness._measures import Endpoint
from harness.errors import UserError
from harness.measure.judge._reply import Usage
from harness.measure.judge._templates import Chat

__all__ = ["Spending", "price", "priced"]

_TOKENS_A_TURN = 16
_TOKENS_A_CHAT = 64
"""At most, for what a chat template writes around a turn, and before all of them."""


def priced(endpoint: Endpoint) -> bool:
    """Whether the suite says what tokens cost there."""
    return endpoint.input_price > 0 or endpoint.output_price > 0


def price(endpoint: Endpoint, read: int, written: int) -> float:
    """What these tokens cost, in the currency of the prices."""
    return (read * endpoint.input_price + written * endpoint.output_price) / 1e6


class Spending:
    """What one judge costs, and its bound.

    Before a request is sent, what it can cost at most is set aside (no tokenizer writes more tokens than the text has
    bytes), so that requests under way cannot pass the bound together. Where it is too near for another request, that
    one waits for those under way to become cheaper than they could have been. A request whose reply was lost (a
    timeout, a broken connection) may have been charged all the same; that is not known here, and not counted. Each
    further process that asks the same judge can pass the bound by what it has under way.
    """

    def __init__(self, endpoint: Endpoint, spent: Callable[[], float] | None) -> None:
        """`spent`: what the judge has cost in the results folder so far, this process's votes included."""
        self._endpoint, self._spent = endpoint, spent
        self._own: float | None = None

    def begin(self) -> None:
        """To be called in each event loop that requests are made in."""
        if self._own is None:
            self._own = 0.0 if self._spent is None else self._spent()
        self._changed = asyncio.Condition()
        self._under_way: list[float] = []

    @property
    def total(self) -> float:
        """What the judge has cost so far, also where what was kept of it does not say all."""
        return max(self._own or 0.0, 0.0 if self._spent is None else self._spent())

    def pay(self, usage: Usage | None) -> float | None:
        """Count a reply; what it cost, or None where the suite knows no prices.

        Raises:
            UserError: there are prices, and the endpoint does not say what it read and wrote.
        """
        if not priced(self._endpoint):
            return None
        if usage is None:
            raise UserError(
                f"judge {self._endpoint.label}: the endpoint does not say how many tokens it reads and writes (usage), "
                "so what it costs cannot be known; leave out input_price, output_price and max_cost"
            )
        cost = price(self._endpoint, usage.prompt_tokens, usage.completion_tokens)
        self._own = (self._own or 0.0) + cost
        return cost

    @contextlib.asynccontextmanager
    async def room(self, chat: Chat, max_tokens: int) -> AsyncIterator[None]:
        """Set aside what this request can cost at most, for as long as it is under way.

        Raises:
            UserError: it could pass the bound, and nothing is under way that could still turn out cheaper.
        """
        bound = self._endpoint.max_cost
        most = price(self._endpoint, _tokens_at_most(chat), max_tokens)
        async with self._changed:
            while bound is not None and (total := self.total) + sum(self._under_way) + most > bound:
                if not self._under_way:
                    raise UserError(
                        f"judge {self._endpoint.label}: max_cost is {bound:g}, {total:.6g} is spent, and another "
                        f"request can cost up to {most:.6g}. All votes so far are kept and not paid again: raise "
                        "max_cost and run the same command again"
                    )
                await self._changed.wait()
            self._under_way.append(most)
        try:
            yield
        finally:
            async with self._changed:
                self._under_way.remove(most)
                self._changed.notify_all()


def _tokens_at_most(chat: Chat) -> int:
    return _TOKENS_A_CHAT + sum(_TOKENS_A_TURN + len(turn["content"].encode()) for turn in chat)
