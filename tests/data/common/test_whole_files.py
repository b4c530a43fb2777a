"""A file is there whole or not at all."""

import pytest
from nextflow_data.common.whole_files import file_problem, file_sha256, replace_file, replacing


@pytest.mark.parametrize("durable", [True, False])
def test_what_was_there_stays_until_the_new_is_whole(tmp_path, durable):
    path = tmp_path / "a.txt"
    replace_file(path, "first", durable)
    with pytest.raises(RuntimeError), replacing(path, durable) as beside:
        beside.write_text("half")
        assert path.read_text() == "first"
        raise RuntimeError
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    replace_file(path, b"second", durable)
    assert path.read_bytes() == b"second"


def test_two_at_a_time_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path):
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "gone" / "a.txt", "text")


def test_a_file_is_compared_with_what_is_known(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1: the hash of "abc".
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == known and file_problem(path, 3, known) is None
    assert "has 3 bytes" in str(file_problem(path, 4, known)) and "damaged" in str(file_problem(path, 3, "0" * 64))
