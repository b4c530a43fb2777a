"""What every task does first, in a worker of Spark's."""

from __future__ import annotations

import gc
from collections.abc import Mapping

from nextflow_pipelines.contract.made_with import check_worker


def enter_task(driver: Mapping[str, str]) -> None:
    """Raises StageError where this worker would make other bytes than the driver.

    Spark has Python look through all it holds after each task, some 7 ms for the modules alone; what is alive when a task
    begins is put out of that search's sight. The cost: what of it dies later in cycles stays; between tasks a worker holds
    little but modules and models.
    """
    check_worker(driver)
    gc.freeze()
