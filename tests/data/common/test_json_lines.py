"""A record that a kill or a full disk has cut is read as far as it is one."""

from pathlib import Path

from nextflow_data.common.json_lines import read_rows


def test_what_is_no_object_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    assert read_rows(path) == []
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo{"step": 3}\n[4]\n\n{"step": 5, "word": "\xe2\x80\xa8"}\n\xff\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 5, "word": "\u2028"}]
