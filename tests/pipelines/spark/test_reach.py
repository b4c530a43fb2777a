"""Whether a cluster is there, before Spark is asked, and by which address it is told of the driver."""

from __future__ import annotations

import socket

import pytest
from nextflow_pipelines.spark.cluster import ClusterRefused, reach
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.session import spark_settings


def test_a_master_that_is_not_there_is_told_before_spark_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reach(f"spark://127.0.0.1:{port}") == "127.0.0.1"
        assert reach(f"k8s://https://127.0.0.1:{port}") == "127.0.0.1"
    for master, said in (
        (f"spark://127.0.0.1:{port}", f"nothing listens at 127.0.0.1:{port}: start the cluster, or correct the address"),
        ("spark://no-such-host.invalid:7077", "no host is known as no-such-host.invalid"),
        ("spark://host", "it must be spark://HOST:PORT"),
        ("mesos://host:5050", "known are local"),
    ):
        with pytest.raises(ClusterRefused, match=said):
            reach(master)
    assert reach("local[2]") is None


def test_yarn_without_its_settings_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)
    with pytest.raises(ClusterRefused, match="HADOOP_CONF_DIR"):
        reach("yarn")
    monkeypatch.setenv("YARN_CONF_DIR", "/etc/hadoop")
    assert reach("yarn") is None


def test_a_cluster_is_told_the_address_by_which_the_driver_was_seen_unless_the_recipe_names_one() -> None:
    master = "spark://host:7077"
    assert spark_settings(SparkConfig(master=master), "10.0.0.9")["spark.driver.host"] == "10.0.0.9"
    named = SparkConfig(master=master, driver_host="driver.example")
    assert spark_settings(named, "10.0.0.9")["spark.driver.host"] == "driver.example"
    assert spark_settings(SparkConfig(master=master))["spark.ui.enabled"] == "true"
    local = spark_settings(SparkConfig())
    assert "spark.driver.host" not in local and local["spark.ui.enabled"] == "false"
