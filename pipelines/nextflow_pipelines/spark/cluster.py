"""Whether a cluster is there at all, asked before Spark is: what is wrong with `spark.master`, in a sentence and at once.

Spark itself tries a wrong address for a minute, logs what it finds to nobody, and may wait forever. So the master is called
by a plain connection first, which also shows by which of its addresses this machine is reached from there; Spark would take
the one that its host name stands for, often a loopback. The cost: a master behind a proxy that must be spoken to otherwise
cannot be used.
"""

from __future__ import annotations

import os
import re
import socket
from urllib.parse import urlsplit

from nextflow_data.common.errors import RequestError

from nextflow_pipelines.contract.stage import StageError

CONNECT_SECONDS = 10.0
"""Longest wait for a master to take a connection."""


class ClusterError(StageError):
    """A cluster does not do the work, or no longer: what is known of it and what to do."""


class ClusterRefused(ClusterError, RequestError):
    """What is asked for no cluster here can give: a wrong setting, which trying again does not cure."""


def is_local(master: str) -> bool:
    """Whether driver and tasks share one process of Spark (`local`, `local[N]`), which schedules cores and nothing else."""
    return master == "local" or master.startswith("local[")


def reach(master: str) -> str | None:
    """Makes sure that the master of a cluster can be reached; returns the address of this machine by which it was, where the
    master has an address at all. Raises ClusterRefused."""
    if is_local(master) or master.startswith("local-cluster["):
        return None
    if master == "yarn":
        if not (os.environ.get("HADOOP_CONF_DIR") or os.environ.get("YARN_CONF_DIR")):
            raise ClusterRefused(
                "spark.master is yarn, and neither HADOOP_CONF_DIR nor YARN_CONF_DIR says where Hadoop's settings lie: set "
                "one to the folder with yarn-site.xml"
            )
        return None
    failed = []
    for host, port in places(master):
        try:
            with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
                return str(connection.getsockname()[0])
        except socket.gaierror:
            failed.append(f"no host is known as {host}")
        except ConnectionRefusedError:
            failed.append(f"nothing listens at {host}:{port}")
        except TimeoutError:
            failed.append(f"{host}:{port} does not answer within {CONNECT_SECONDS:g} s")
        except OSError as error:
            failed.append(f"{host}:{port} cannot be reached ({error.strerror or error})")
    raise ClusterRefused(f"spark.master is {master}, and {'; '.join(failed)}: start the cluster, or correct the address")


def places(master: str) -> list[tuple[str, int]]:
    """Host and port of each master that a cluster's address names. Raises ClusterRefused."""
    if master.startswith("spark://"):
        found = [re.fullmatch(r"(.+):(\d{1,5})", place) for place in master.removeprefix("spark://").split(",")]
        places = [(match[1].strip("[]"), int(match[2])) for match in found if match]
        if len(places) == len(found):
            return places
        raise ClusterRefused(f"spark.master is {master}: it must be spark://HOST:PORT (7077, unless its start says another)")
    if master.startswith("k8s://"):
        address = master.removeprefix("k8s://")
        parts = urlsplit(address if "//" in address else f"https://{address}")
        if parts.hostname:
            return [(parts.hostname, parts.port or (80 if parts.scheme == "http" else 443))]
        raise ClusterRefused(f"spark.master is {master}: it must be k8s://https://HOST:PORT")
    raise ClusterRefused(
        f"spark.master is {master}: known are local[N], spark://HOST:PORT, yarn and k8s://https://HOST:PORT"
    )
