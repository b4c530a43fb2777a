"""Parquet files whose bytes depend only on their rows."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.decisions import ASIDE_SCHEMA, DECISION_SCHEMA, Finding, Subject, decision
from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import ROW_GROUP, UnitTables, dataset_files, iter_batches, read_table
from nextflow_pipelines.contract.units import unit_output
from nextflow_pipelines.contract.work import open_stage

SCHEMA = pa.schema([("id", pa.int64()), ("parts", pa.list_(pa.struct([("name", pa.string()), ("size", pa.int32())])))])
ROWS = [
    {"id": n, "parts": None if n % 7 == 0 else [{"name": "x" * (i * n % 5), "size": i} for i in range(n % 4)]}
    for n in range(600)
]


def write(root: Path, cuts: list[int], arrow: bool) -> Path:
    plan = StagePlan("toy", 1, {}, {})
    with open_stage(root, plan) as work:
        with unit_output(work.dir, "u") as out:
            tables = UnitTables(out, {"things": SCHEMA, "empty": SCHEMA}, "u")
            bounds = [0, *sorted(cuts), len(ROWS)]
            whole = pa.Table.from_pylist(ROWS, schema=SCHEMA)
            for start, stop in pairwise(bounds):
                tables.write("things", whole.slice(start, stop - start) if arrow else ROWS[start:stop])
            tables.close()
        work.commit(["u"])
    return work.dir


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(ROWS)), max_size=8), st.booleans())
def test_a_file_does_not_depend_on_the_batches_its_rows_came_in(cuts: list[int], arrow: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = write(Path(folder) / "one", cuts, arrow)
        other = write(Path(folder) / "other", [], True)
        assert file_sha256(one / "things" / "u.parquet") == file_sha256(other / "things" / "u.parquet")
        assert read_table(one, "things").to_pylist() == ROWS


def test_row_groups_have_a_fixed_number_of_rows(tmp_path: Path) -> None:
    meta = pq.ParquetFile(write(tmp_path, [1, 2, 599], False) / "things" / "u.parquet").metadata
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    assert sizes == [ROW_GROUP, ROW_GROUP, 600 - 2 * ROW_GROUP]


def test_a_data_set_without_rows_has_a_file_with_its_schema(tmp_path: Path) -> None:
    folder = write(tmp_path, [], True)
    assert read_table(folder, "empty").schema.equals(SCHEMA) and read_table(folder, "empty").num_rows == 0


def test_reading_by_columns_by_filter_and_in_batches(tmp_path: Path) -> None:
    folder = write(tmp_path, [], True)
    assert read_table(folder, "things", columns=["id"], filters=[("id", ">=", 590)])["id"].to_pylist() == list(
        range(590, 600)
    )
    batches = list(iter_batches(dataset_files(folder, "things"), rows=100))
    assert all(b.num_rows <= 100 for b in batches) and [r for b in batches for r in b.to_pylist()] == ROWS
    with pytest.raises(KeyError, match="no data set 'other'"):
        read_table(folder, "other")


def test_decisions_and_asides_are_counted_by_what_they_say(tmp_path: Path) -> None:
    with open_stage(tmp_path, StagePlan("toy", 1, {}, {})) as work:
        with unit_output(work.dir, "u") as out:
            tables = UnitTables(out, {"decisions": DECISION_SCHEMA, "asides": ASIDE_SCHEMA}, "u")
            about = Subject("d", None)
            for rule, action, index in (("a", "drop", 0), ("a", "drop", None), ("a", "edit", 1), ("b", "flag", 2)):
                tables.write("decisions", [decision(about, "toy", Finding(rule), action, index)])
            tables.write("asides", [{"stage": "toy", "reason": "torn"}] * 2)
            tables.close()
        manifest = work.commit(["u"])
    assert manifest["counts"] == {
        "asides": {"torn": 2},
        "decisions": {"document": {"a": {"drop": 1}}, "node": {"a": {"drop": 1, "edit": 1}, "b": {"flag": 1}}},
        "rows": {"asides": 2, "decisions": 4},
    }
