"""Scorers asked together: many requests at once, answers in order, a weighted sum, and each answer recorded before it is
read.

    with open_scoring(config, folder) as scoring:
        for answer in scoring.score_all(requests):
            ...

What is wrong with the configuration (a scorer that is not there, cannot be made or reached, is of another version) is raised
on opening; after that nothing a scorer or server does ends the work: it is a failed answer, counted by its reason.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nextflow_data.scorers.config import ScorerConfig, ScoringConfig
from nextflow_data.scorers.in_process import InProcess
from nextflow_data.scorers.loading import find
from nextflow_data.scorers.pool import Pool
from nextflow_data.scorers.protocol import Answer, Question, Way, failure
from nextflow_data.scorers.recorded import Recorded
from nextflow_data.scorers.served import Served, hold_to


def open_way(config: ScorerConfig) -> Way:
    """The way that a scorer is asked by. Raises ScorerUnusable."""
    if config.way == "pool":
        return Pool(config)
    if config.way == "server":
        return Served(config)
    scorer = find(config.scorer, config.settings)
    hold_to(scorer.description, config, "this process")
    return InProcess(scorer, config)


@contextmanager
def open_scoring(config: ScoringConfig, folder: Path | None = None) -> Iterator[Scoring]:
    """The scorers, opened and at the end closed. Answers are recorded below `folder`; None: nowhere. Raises
    ScorerUnusable."""
    with ExitStack() as opened:
        asked = {}
        for name, one in config.scorers.items():
            way = open_way(one)
            opened.callback(way.close)
            record = None if folder is None else Recorded(folder, way.description)
            if record is not None:
                opened.callback(record.close)
            threads = ThreadPoolExecutor(way.slots, thread_name_prefix=f"scorer {name}")
            opened.callback(threads.shutdown, cancel_futures=True)
            asked[name] = Asked(way, record, threads)
        yield Scoring(config, asked)


class Asked:
    """One scorer being asked. `counts` has how many answers were "asked" for and "recorded" already, and failures by reason;
    it may be read while they come, for a display."""

    def __init__(self, way: Way, record: Recorded | None, threads: ThreadPoolExecutor) -> None:
        self.way, self.record, self._threads = way, record, threads
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self, request: Question) -> Future[Answer]:
        """The answer, when it comes."""
        return self._threads.submit(self._answer, request)

    def sync(self) -> None:
        """Have all answers on the disk; those that were damaged there are counted as "damaged"."""
        if self.record is not None:
            self.record.sync()
            self.counts["damaged"] = self.record.damaged

    def _answer(self, request: Question) -> Answer:
        found = None if self.record is None else self.record.get(request.content)
        if found is not None:
            self._count("recorded")
            return Answer(found)
        answer = self.way.ask(request)
        self._count("asked", answer.failed)
        if self.record is None or answer.values is None:
            return answer
        return Answer(self.record.put(request.content, answer.values))

    def _count(self, *what: str | None) -> None:
        with self._lock:
            self.counts.update(one for one in what if one is not None)


class Scoring:
    """Scorers by the names that the configuration gives them, in `asked`."""

    def __init__(self, config: ScoringConfig, asked: Mapping[str, Asked]) -> None:
        self.config, self.asked = config, asked
        self.window = 2 * max(one.way.slots for one in asked.values())

    def score_all(self, requests: Iterable[Question]) -> Iterator[Answer]:
        """One answer a request, in their order. Its values are {"score": the weighted sum, "parts": {name: the scorer's
        values, or {"failed": reason, "why": …}}}. At most `window` requests are held at once, so any number may come;
        recorded answers are on the disk when the last one has been given."""
        waiting: deque[dict[str, Future[Answer]]] = deque()
        try:
            for request in requests:
                if len(waiting) == self.window:
                    yield self._sum(waiting.popleft())
                waiting.append({name: one.begin(request) for name, one in self.asked.items()})
            while waiting:
                yield self._sum(waiting.popleft())
        finally:
            for futures in waiting:
                for future in futures.values():
                    future.cancel()
            for one in self.asked.values():
                one.sync()

    def _sum(self, futures: Mapping[str, Future[Answer]]) -> Answer:
        answers = {name: future.result() for name, future in futures.items()}
        return weighted_sum(answers, self.config)


def weighted_sum(answers: Mapping[str, Answer], config: ScoringConfig) -> Answer:
    """Σ weight·score over the scorers, by `config.missing` where some failed; see `Scoring.score_all`. A failed sum has the
    reason of the first that failed."""
    weights = {name: one.weight for name, one in config.scorers.items()}
    failed = [name for name in weights if answers[name].failed is not None]
    present = [name for name in weights if name not in failed]
    theirs, all_of_them = (sum(abs(weights[name]) for name in names) for names in (present, weights))
    if failed and (config.missing == "fail" or theirs == 0):
        first = answers[failed[0]]
        return failure(first.failed or "raised", f"{failed[0]}: {first.why}")
    score = sum(weights[name] * float(answers[name].score or 0.0) for name in present)
    parts: dict[str, Any] = {
        name: answer.values if answer.values is not None else {"failed": answer.failed, "why": answer.why}
        for name, answer in answers.items()
    }
    return Answer({"score": score * (all_of_them / theirs) if failed else score, "parts": parts})
