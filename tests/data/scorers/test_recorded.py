"""Recorded answers: the first one stands, for all who ask; damage costs a question, never gives another answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from nextflow_data.scorers.config import ScorerConfig, ScoringConfig
from nextflow_data.scorers.protocol import Question
from nextflow_data.scorers.recorded import ANSWERS, SCORER, Recorded
from nextflow_data.scorers.scoring import open_scoring

JUDGE = {"scorer": "../judge", "identity": "x", "version": "1"}

_CLIENT = """
import json, sys
from pathlib import Path
from nextflow_data.scorers.config import ScorerConfig, ScoringConfig
from nextflow_data.scorers.protocol import Question
from nextflow_data.scorers.scoring import open_scoring
file, folder, start, step, count = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
with open_scoring(ScoringConfig(scorers={"own": ScorerConfig(scorer=file)}), folder) as scoring:
    numbers = [(start + step * number) % count for number in range(count)]
    for number, answer in zip(numbers, scoring.score_all(Question(text=str(number)) for number in numbers)):
        print(json.dumps([number, answer.score]), flush=True)
"""


def _content(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def _filled(folder: Path, numbers: int = 3) -> Path:
    record = Recorded(folder, JUDGE)
    for number in range(numbers):
        assert record.put(_content(number), {"score": number / 3}) == {"score": number / 3}
    record.close()
    return record.folder / ANSWERS


def test_the_first_answer_stands(tmp_path: Path) -> None:
    """Of two clients that know nothing of each other, too."""
    one, two = Recorded(tmp_path, JUDGE), Recorded(tmp_path, JUDGE)
    assert one.get(_content(0)) is None
    assert one.put(_content(0), {"score": 0.1, "why": "é"}) == {"score": 0.1, "why": "é"}
    assert two.put(_content(0), {"score": 0.2}) == {"score": 0.1, "why": "é"} == two.get(_content(0))
    assert two.put(_content(1), {"score": 0.3}) == one.get(_content(1)) == {"score": 0.3}
    assert one.folder.parent == tmp_path and json.loads((one.folder / SCORER).read_text()) == JUDGE
    assert Recorded(tmp_path, {**JUDGE, "identity": "y"}).get(_content(0)) is None, "another scorer says something else"
    one.close(), two.close()


def test_every_cut_and_every_flipped_bit(tmp_path: Path) -> None:
    file = _filled(tmp_path)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(lines[0]) + 1, len(whole), 7):
        file.write_bytes(whole[:cut])
        record = Recorded(tmp_path, JUDGE)
        complete = whole[:cut].count(b"\n")
        assert [record.get(_content(number)) is not None for number in range(3)] == [
            number < complete for number in range(3)
        ]
        assert record.damaged == (not whole[:cut].endswith(b"\n"))
        assert record.put(_content(2), {"score": 2 / 3}) == {"score": 2 / 3}
        record.close()
        again = Recorded(tmp_path, JUDGE)
        assert again.get(_content(2)) == {"score": 2 / 3} and again.get(_content(0)) == {"score": 0.0}
        again.close()
    for place in range(len(lines[0]), len(lines[0] + lines[1])):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        record = Recorded(tmp_path, JUDGE)
        assert record.get(_content(1)) is None and record.damaged >= 1 and record.get(_content(0)) == {"score": 0.0}
        record.close()


def test_damage_that_comes_while_it_is_open(tmp_path: Path) -> None:
    file = _filled(tmp_path)
    record = Recorded(tmp_path, JUDGE)
    with file.open("r+b") as damaged:
        damaged.seek(20)
        damaged.write(b"\x00")
    assert record.get(_content(0)) is None and record.damaged == 1
    assert record.put(_content(0), {"score": 5.0}) == {"score": 5.0} == record.get(_content(0))
    assert record.get(_content(1)) == {"score": 1 / 3}
    record.close()


def test_clients_at_once_and_one_that_is_killed(files: Path, tmp_path: Path) -> None:
    """A judge who draws lots is asked by three processes in different orders, one of them killed: all tell the same."""
    count, clients = 400, []
    for start, step in ((0, 1), (7, 3), (200, 7)):
        arguments = [files / "lottery.py", tmp_path, str(start), str(step), str(count)]
        clients.append(subprocess.Popen([sys.executable, "-c", _CLIENT, *arguments], stdout=subprocess.PIPE, text=True))
    victim = clients[2].stdout
    assert victim is not None
    said = [victim.readline() for _ in range(20)]
    clients[2].kill()
    told = [dict(json.loads(line) for line in said)]
    for client in clients[:2]:
        out, _ = client.communicate()
        told.append(dict(json.loads(line) for line in out.splitlines()))
        assert client.returncode == 0 and len(told[-1]) == count
    clients[2].communicate()
    assert told[1] == told[2] and told[0].items() <= told[1].items()
    config = ScoringConfig(scorers={"own": ScorerConfig(scorer=str(files / "lottery.py"))})
    with open_scoring(config, tmp_path) as scoring:
        answers = scoring.score_all(Question(text=str(number)) for number in range(count))
        assert {number: answer.score for number, answer in enumerate(answers)} == told[1]
        assert scoring.asked["own"].counts == {"recorded": count, "damaged": scoring.asked["own"].counts["damaged"]}


def test_failed_answers_are_asked_again(files: Path, tmp_path: Path) -> None:
    config = ScoringConfig(scorers={"own": ScorerConfig(scorer=str(files / "faulty.py"))})
    for again in range(2):
        with open_scoring(config, tmp_path) as scoring:
            good, bad = scoring.score_all([Question(), Question(extra={"do": "raise"})])
            assert good.score == 1.0 and bad.failed == "raised"
            counts = scoring.asked["own"].counts
            assert counts["raised"] == 1 and counts["asked"] == 2 - again and counts["recorded"] == again
    shutil.rmtree(tmp_path)
