"""A scorer called in this process: the first of the three ways, and what the other two do at their far end.

A plain function is called by one thread, one request at a time, since nobody asked it to bear more; an async one is called
for as many at once as `concurrency` says. An async function is really ended by its time-out, at its next await. A plain one
is not, for Python has no way to: its request fails in time, but the ones after it wait until it has come back, each up to
its own time-out. What may hang belongs in a pool.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from nextflow_data.scorers.config import ScorerConfig
from nextflow_data.scorers.limits import not_to_be_opened, too_long
from nextflow_data.scorers.loading import Scorer
from nextflow_data.scorers.protocol import Answer, Question, canonical, checked, failure

GRACE_S = 1.0
"""Seconds that an async scorer which does not end when it is cancelled is waited for on top; ours."""


class InProcess:
    """One scorer, made in a thread of its own. Raises ScorerUnusable."""

    def __init__(self, scorer: Scorer, config: ScorerConfig) -> None:
        self.description = scorer.description
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"scorer {scorer.name}", daemon=True)
        self._thread.start()
        try:
            self._score = asyncio.run_coroutine_threadsafe(_made(scorer), self._loop).result()
        except BaseException:
            self.close()
            raise
        self._async = inspect.iscoroutinefunction(self._score)
        self.slots = config.concurrency if self._async else 1

    def ask(self, request: Question) -> Answer:
        """The answer; a failed one at latest when the time-out (and for async scorers the grace) has passed."""
        limit = self._config.timeout_s
        asked = asyncio.run_coroutine_threadsafe(self._within(request, limit if self._async else None), self._loop)
        try:
            return asked.result(limit + (GRACE_S if self._async else 0))
        except CancelledError:
            return failure("raised", "CancelledError")
        except TimeoutError:
            asked.cancel()  # one that still waits for its turn is never begun
            return failure("timed-out", f"{limit:g} s; it goes on in this process, which cannot end it")

    def close(self) -> None:
        """End the thread; one that hangs is left behind."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GRACE_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _within(self, request: Question, limit: float | None) -> Answer:
        try:
            async with asyncio.timeout(limit):
                return await answer(self._score, request, self._config)
        except TimeoutError:
            return failure("timed-out", f"{limit:g} s")


async def answer(score: Callable[..., Any], request: Question, config: ScorerConfig) -> Answer:
    """What a made scorer says to a request; whatever it does wrong is a failed answer."""
    problem = too_long(request, config) or not_to_be_opened(request, config)
    if problem is not None:
        return failure("bad-input", problem)
    try:
        extra = json.loads(canonical(request.extra))  # a scorer may change it, and the next is given it too
        returned = score(image=request.image, text=request.text, reference=request.reference, extra=extra)
        if inspect.isawaitable(returned):
            returned = await returned
    except (Exception, SystemExit) as error:
        return failure("raised", f"{type(error).__name__}: {error}")
    return checked(returned)


async def _made(scorer: Scorer) -> Callable[..., Any]:
    return scorer.make()  # in the loop's thread, where async clients want to be made
