"""A judge behind an OpenAI-compatible endpoint: each question a request, each reply kept as soon as it is there.

Every request is made by the `openai` client, with this module's own policy of trying again: counted, bounded, and the
same for what the client takes for an answer (a reply cut off, garbage, no choice).
"""

import asyncio
import ipaddress
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness._measures import Endpoint
from harness.errors import MeasurementError, UserError
from harness.measure.judge._reply import GarbageError, Reply, Usage, read_reply, token_votes, word_votes
from harness.measure.judge._retrying import FILTERED, LONGEST_WAIT_S, LostError, clean, lost_or_wrong, pause_s
from harness.measure.judge._spending import Spending
from harness.measure.judge._templates import Chat, render
from harness.measure.judge._types import Keep, Progress, Question, Verdict

if TYPE_CHECKING:
    import openai

__all__ = ["EndpointVoter", "endpoint_problem"]

_PLACEHOLDER = "none"
_RATING_TOKENS = 4
"""Tokens of a reply that is read by its probabilities: a blank one and both digits of a 10 have room in it."""
_TOP = 20
"""Alternatives asked for at each token: the most that OpenAI's API gives."""
_LONGEST_WORDS = 8000
_HOPELESS = 8
"""Questions in a row without an answer, after which no further one is asked: each has cost all its tries."""


def endpoint_problem(endpoint: Endpoint) -> str | None:
    """Why this judge cannot be asked, before anything is: no key, or one that no header can carry. Needs no network."""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key and not _loopback(endpoint.endpoint):
        return f"judge {endpoint.label}: {endpoint.key_env} is not set; put the endpoint's key into that variable"
    if not (key.isascii() and key.isprintable()) or " " in key:
        return f"judge {endpoint.label}: {endpoint.key_env} holds no key (white space or letters that no key has)"
    return None


class EndpointVoter:
    """A judge behind an endpoint (see `Voter`): in words, or by the probabilities of its first token."""

    def __init__(self, endpoint: Endpoint, key: str, spent: Callable[[], float] | None = None) -> None:
        """
        Args:
            key: what decides its votes, a content key over `Endpoint.identity`.
            spent: what it has cost in the results folder so far, this voter's kept votes included, for `max_cost`.
        """
        self._endpoint, self._key = endpoint, key
        self._spending = Spending(endpoint, spent)

    @property
    def name(self) -> str:
        """As the suite calls it."""
        return self._endpoint.label

    @property
    def key(self) -> str:
        """What decides its votes."""
        return self._key

    def vote(
        self, questions: Sequence[Question], keep: Keep | None = None, progress: Progress | None = None
    ) -> list[Verdict]:
        """Its verdicts, in order; see `Voter`. A reply that holds no verdict has the verdict None.

        Raises:
            UserError: no key, or one that is refused; a model or a request that the endpoint does not know; no
                probabilities where they are asked for; no usage where there are prices; the cost bound. What is under
                way is awaited and kept first.
            MeasurementError: questions without an answer after all tries. The others were asked and kept, but where
                many in a row had none.
        """
        if problem := endpoint_problem(self._endpoint):
            raise UserError(problem)
        return asyncio.run(_Round(self._endpoint, self._spending, self._key, questions, keep, progress).run())


class _Round:
    """One call of `vote`: some workers take questions until there are none, or none may be asked any more."""

    def __init__(
        self,
        endpoint: Endpoint,
        spending: Spending,
        seed: str,
        questions: Sequence[Question],
        keep: Keep | None,
        progress: Progress | None,
    ) -> None:
        self._endpoint, self._spending, self._seed = endpoint, spending, seed
        self._questions, self._keep, self._progress = questions, keep, progress
        self._secret = os.environ.get(endpoint.key_env, "").strip() or _PLACEHOLDER
        self._verdicts: dict[int, Verdict] = {}
        self._unanswered: list[str] = []
        self._in_a_row = 0
        self._stop: Exception | None = None
        self._quiet_until = 0.0
        self._limit = "max_tokens"

    async def run(self) -> list[Verdict]:
        import openai

        self._spending.begin()
        # Redirects are not followed, or text would go where nobody has said; a proxy has nothing to do with loopback.
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not _loopback(self._endpoint.endpoint))
        async with openai.AsyncOpenAI(
            api_key=self._secret,
            base_url=self._endpoint.endpoint,
            max_retries=0,
            timeout=self._endpoint.timeout_s,
            http_client=http,
        ) as client:
            places = iter(range(len(self._questions)))
            count = min(self._endpoint.concurrency, len(self._questions))
            await asyncio.gather(*(self._work(client, places) for _ in range(count)))
        if self._stop is not None:
            raise self._stop
        if self._unanswered:
            raise MeasurementError(self._told())
        return [self._verdicts[place] for place in range(len(self._questions))]

    async def _work(self, client: "openai.AsyncOpenAI", places: Iterator[int]) -> None:
        for place in places:
            if self._stop is not None or self._in_a_row >= _HOPELESS:
                return
            try:
                verdict = await self._verdict(client, place)
                if verdict is None:
                    return
                self._verdicts[place] = verdict
                if self._keep is not None:
                    self._keep(place, verdict)
                if self._progress is not None:
                    self._progress(len(self._verdicts), len(self._questions))
            except LostError as error:
                self._unanswered.append(error.reason)
                self._in_a_row += 1
            except Exception as error:  # noqa: BLE001  # raised by run, nothing is swallowed
                # Raised when the others have finished and kept what they had under way; the first one counts.
                self._stop = self._stop or error
                return
            else:
                self._in_a_row = 0

    async def _verdict(self, client: "openai.AsyncOpenAI", place: int) -> Verdict | None:
        """The verdict on one question, None where a stop came between two tries.

        Raises:
            LostError: no answer after all tries.
        """
        question = self._questions[place]
        chat = render(question.template, question.texts, words=not self._endpoint.probabilities)
        paid: list[float] = []
        tries = 0
        while True:
            await self._quiet()
            if self._stop is not None:
                return None
            try:
                async with self._spending.room(chat, self._tokens):
                    if self._stop is not None:
                        return None
                    tries += 1
                    reply = await self._reply(client, chat, paid)
            except LostError as lost:
                longest = f"{lost.reason}, and it asks to wait {lost.wait_s:.0f} s" if lost.wait_s else lost.reason
                if lost.wait_s is not None and lost.wait_s > LONGEST_WAIT_S:
                    raise LostError(longest) from lost
                if tries > self._endpoint.retries:
                    raise LostError(f"{lost.reason} at the last of {tries} tries") from lost
                pause = pause_s(f"{self._seed} {place}", tries, lost.wait_s)
                if lost.wait_s is not None:
                    # Who is told to wait waits with all requests, or the others are refused as well.
                    self._quiet_until = max(self._quiet_until, asyncio.get_running_loop().time() + lost.wait_s)
                await asyncio.sleep(pause)
            else:
                return self._read(question, chat, reply, sum(paid) if paid else None)

    async def _reply(self, client: "openai.AsyncOpenAI", chat: Chat, paid: list[float]) -> Reply:
        import openai

        limit = self._limit
        try:
            # The client's own timeout is for each read: a reply that trickles in would never end.
            async with asyncio.timeout(self._endpoint.timeout_s):
                response = await client.chat.completions.with_raw_response.create(**self._request(chat, limit))
            reply = read_reply(response.content)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise LostError(f"no answer within {self._endpoint.timeout_s:g} s") from error
        except openai.APIStatusError as error:
            if error.status_code == 400 and error.code == FILTERED:
                return Reply(words="", finish=FILTERED, positions=[], usage=Usage(prompt_tokens=0))
            if error.status_code == 400 and error.param == limit == "max_tokens":
                # OpenAI's newer models know this limit by its other name only.
                self._limit = "max_completion_tokens"
                return await self._reply(client, chat, paid)
            raise lost_or_wrong(error, self._endpoint, self._secret) from error
        except openai.APIConnectionError as error:
            raise LostError(f"the connection broke ({type(error.__cause__).__name__})") from error
        except GarbageError as error:
            if error.usage is not None and (cost := self._spending.pay(error.usage)) is not None:
                paid.append(cost)
            raise LostError(str(error)) from error
        if (cost := self._spending.pay(reply.usage)) is not None:
            paid.append(cost)
        return reply

    def _request(self, chat: Chat, limit: str) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self._endpoint.model, "messages": chat, limit: self._tokens}
        if self._endpoint.probabilities:
            return {**asked, "temperature": 0.0, "logprobs": True, "top_logprobs": _TOP}
        return {**asked, "temperature": self._endpoint.temperature}

    @property
    def _tokens(self) -> int:
        return _RATING_TOKENS if self._endpoint.probabilities else self._endpoint.max_tokens

    def _read(self, question: Question, chat: Chat, reply: Reply, cost: float | None) -> Verdict:
        words: str | None = _shortened(clean(reply.words, self._secret))
        if not self._endpoint.probabilities:
            verdict, score, shares = word_votes(question.template, reply.words)
        elif reply.positions is None:
            raise UserError(
                f"judge {self._endpoint.label}: the endpoint gives no probabilities (logprobs); set "
                "probabilities: false, so that its words are read"
            )
        else:
            verdict, score, shares = token_votes(question.template, reply.positions, reply.finish)
            words = words if verdict is None else None
        used = reply.usage
        return Verdict(
            verdict=verdict,
            score=score,
            asked="\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in chat),
            probabilities=shares,
            words=words,
            cost=cost,
            tokens={} if used is None else {"prompt": used.prompt_tokens, "completion": used.completion_tokens},
        )

    async def _quiet(self) -> None:
        loop = asyncio.get_running_loop()
        while (rest := self._quiet_until - loop.time()) > 0:
            await asyncio.sleep(rest)

    def _told(self) -> str:
        total, answered = len(self._questions), len(self._verdicts)
        reasons = "; ".join(f"{n} × {reason}" for reason, n in Counter(self._unanswered).most_common())
        kept = "are kept" if self._keep is not None else "were answered"
        not_asked = total - answered - len(self._unanswered)
        rest = f", {not_asked} were not asked after {_HOPELESS} in a row had no answer" if not_asked else ""
        return (
            f"judge {self._endpoint.label}: {len(self._unanswered)} of {total} questions got no answer ({reasons}); "
            f"{answered} {kept}{rest}. Try again when it answers"
        )


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shortened(words: str) -> str:
    if len(words) <= _LONGEST_WORDS:
        return words
    # The verdict stands at the end, the reason at the beginning.
    return f"{words[: _LONGEST_WORDS // 2]} […] {words[-_LONGEST_WORDS // 2 :]}"
