"""The packages of each extra: installed, in a version that is allowed, and importable, by our own metadata."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module, metadata

from packaging.requirements import Requirement

from nextflow_orchestration.doctor.check import Case, Diagnosis, always, bad, check, never, ok, unneeded
from nextflow_orchestration.doctor.requirements import BASE, DISTRIBUTION, module_of, pip_install, requirements

NEEDED = (BASE, "data", "train")
"""What a run on the CPU needs."""
_FOR = {"gpu": "FP8 on NVIDIA GPUs", "siglip": "the tokenizer's SigLIP teacher", "wandb": "curves on Weights & Biases"}


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def problem(wanted: Requirement) -> str | None:
    """What is wrong with an installed package that is asked for; None: nothing. Imports it."""
    distribution = metadata.distribution(wanted.name)
    if not wanted.specifier.contains(distribution.version, prereleases=True):
        return f"{wanted.name} {distribution.version} is not {wanted.specifier}"
    module = module_of(distribution)
    print(f"importing {module}", file=sys.stderr, flush=True)
    try:
        import_module(module)
    except Exception as error:
        return f"{wanted.name} {distribution.version} does not import ({type(error).__name__}: {error})"
    return None


def _packages(extra: str, case: Case) -> Diagnosis:
    asked = requirements()[extra]
    missing = [one.name for one in asked if not _installed(one.name)]
    problems = [f"not installed: {', '.join(missing)}"] if missing else []
    problems += [found for one in asked if one.name not in missing and (found := problem(one)) is not None]
    pip = pip_install(extra)
    if not problems:
        return ok(", ".join(f"{one.name} {metadata.version(one.name)}" for one in asked))
    if extra in _FOR and len(missing) == len(asked):
        return unneeded("not installed", f"for {_FOR[extra]}: {pip}")
    return bad("; ".join(problems), pip)


def _register() -> None:
    try:
        extras = list(requirements())
    except metadata.PackageNotFoundError:

        @check("packages", BASE)
        def missing(case: Case) -> Diagnosis:
            return bad(f"{DISTRIBUTION} itself is not installed here", "pip install -e '.[data,train]' in its folder")

        return
    for extra in extras:
        needed = always if extra in NEEDED else never
        check("packages", extra, seconds=60, needed=needed)(partial(_packages, extra))


_register()
