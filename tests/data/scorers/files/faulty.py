"""A scorer of somebody's own that does what `extra` tells it, faults among it."""

import os
import signal
import sys
import time
from pathlib import Path

HEAVY = ("numpy", "PIL", "scipy", "pyarrow", "torch")


def score(*, image, text, reference, extra):
    print("what a scorer prints harms nothing")
    do = extra.pop("do", None)
    if do == "raise":
        raise RuntimeError("no luck")
    if do == "exit":
        raise SystemExit(3)
    if do == "hang":
        while True:
            time.sleep(3600)
    if do == "die" or (do == "die once" and not Path(text).exists()):
        Path(text).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "return":
        return extra["what"]
    if do == "nan":
        return {"score": float("nan")}
    heavy = [name for name in HEAVY if name in sys.modules]
    return {
        "score": extra.get("number", 1),
        "pid": os.getpid(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "heavy": heavy,
    }
