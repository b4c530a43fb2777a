"""The job script that trains on a Slurm cluster: one launcher a node, a stop that saves, and a way back into the queue.

The script starts `megatron_nextflow.launch` once on each node, which attends torchrun there, because torchrun alone gives a
checkpoint half a minute. Signals take the way that Slurm leaves open: `srun` answers SIGTERM by killing its tasks and passes
SIGUSR1 on, so the script sends SIGUSR1. Slurm sends it some minutes before the time is up (`signal_seconds`); on pre-emption
with a grace time the launchers get SIGTERM from Slurm itself. Saved and not finished, the job asks to be put back into the
queue, and the next run of the same job goes on. The cost: the folder of the training must lie where all nodes see it.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nextflow_data.common.whole_files import replace_file

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launcher import with_absolute_paths
from megatron_nextflow.runtime.training_folder import CONFIG, LOGS, RECORD

SCRIPT = "train.sbatch"
NO_REQUEUE = "no-requeue"
"""A file of this name in the training's folder keeps a job that was stopped out of the queue."""
_PORTS = (20000, 10000)
"""First port and number of ports of which a job takes one by its number; below those that Linux gives to clients."""


def processes(config: TrainConfig) -> int:
    """Training processes of the job: one a GPU."""
    return config.slurm.nodes * config.slurm.gpus_per_node


def write_script(config: TrainConfig, root: Path, name: str, after: Sequence[str] = ()) -> Path:
    """Writes train.json and train.sbatch into the training's folder; returns the script.

    `after`: a command for the end of the job, as words. Raises ValueError for what cannot run with the job's processes.
    """
    resolved = with_absolute_paths(config, root)
    # In a container other packages are installed than here.
    elsewhere = {"fp8": None, "wandb": None} if config.slurm.container else {}
    resolved.model_copy(update=elsewhere).check(processes(resolved))
    text = script(resolved, name, after)
    (resolved.output / LOGS).mkdir(parents=True, exist_ok=True)
    replace_file(resolved.output / CONFIG, resolved.model_dump_json(indent=1) + "\n")
    path = resolved.output / SCRIPT
    replace_file(path, text)
    return path


def script(config: TrainConfig, name: str, after: Sequence[str] = ()) -> str:
    """The text of the job script for a configuration whose paths are absolute. Every value is quoted for the shell."""
    output = str(config.output)
    if "\n" in output:
        raise ValueError("the training's folder has a line break in its name, which an sbatch option cannot hold")
    parts = (_options(config, name), _before(config), _body(config, after))
    return "#!/bin/bash\n" + "\n".join("\n".join(part) + "\n" for part in parts)


def _options(config: TrainConfig, name: str) -> list[str]:
    slurm = config.slurm
    log = str(config.output / LOGS).replace("%", "%%") + "/job-%j.log"
    given = {
        "job-name": re.sub(r"[^A-Za-z0-9_.-]", "-", name),
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": slurm.gpus_per_node,
        "cpus-per-task": slurm.gpus_per_node * slurm.cpus_per_gpu,
        "mem": slurm.mem,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "reservation": slurm.reservation,
        "constraint": slurm.constraint,
        "output": shlex.quote(log),
        "open-mode": "append",
        "signal": f"B:USR1@{slurm.signal_seconds}",
    }
    lines = [f"--{key}={value}" for key, value in given.items() if value is not None]
    lines += ["--exclusive"] if slurm.exclusive else []
    lines += ["--requeue" if slurm.requeue else "--no-requeue", *slurm.options]
    return [f"#SBATCH {line}" for line in lines]


def _before(config: TrainConfig) -> list[str]:
    slurm = config.slurm
    lines = ["set -euo pipefail", f"output={shlex.quote(str(config.output))}", 'rm -f "$output"/' + NO_REQUEUE]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in slurm.environment.items()]
    site = [f"module load {shlex.quote(module)}" for module in slurm.modules]
    site += [f"source {shlex.quote(str(slurm.setup))}"] if slurm.setup else []
    if site:
        lines += ["set +u  # what a site brings is seldom written for it", *site, "set -u"]
    first, count = _PORTS
    port = str(config.master_port) if config.master_port else f"$(({first} + SLURM_JOB_ID % {count}))"
    lines += [
        'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        f"port={port}",
        'attempt="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
    ]
    return lines


def _body(config: TrainConfig, after: Sequence[str]) -> list[str]:
    slurm = config.slurm
    python = shlex.quote(str(slurm.python or sys.executable))
    step = [f"srun --nodes={slurm.nodes} --ntasks-per-node=1 --kill-on-bad-exit=1"]
    step.append(f"--cpus-per-task={slurm.gpus_per_node * slurm.cpus_per_gpu}")
    if slurm.container:
        step.append(f"--container-image={shlex.quote(slurm.container)}")
    if slurm.container_mounts:
        step.append(f"--container-mounts={shlex.quote(','.join(slurm.container_mounts))}")
    step.append(f'{python} -m megatron_nextflow.launch --config "$output"/{CONFIG} --processes {processes(config)}')
    step.append(f'--nodes {slurm.nodes} --rendezvous "${{hosts[0]}}:$port" --attempt "$attempt" &')
    end = [f"{shlex.join(after)} || true"] if after else []
    requeue = [
        f'    if [ ! -e "$output"/{NO_REQUEUE} ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then',
        '        scontrol requeue "$SLURM_JOB_ID"',
        "    fi",
    ]
    return [
        "# The training saves and stops on SIGUSR1, and srun passes that on; SIGTERM would make srun kill it.",
        "interrupted=",
        "stop() {",
        "    interrupted=yes",
        '    kill -USR1 "$step" 2>/dev/null || true',
        "}",
        " \\\n    ".join(step),
        "step=$!",
        "trap stop USR1 TERM",
        "",
        "# A signal ends `wait` early, so it is asked again; 127: the end was told before the signal came.",
        "status=0",
        "while :; do",
        "    interrupted=",
        "    code=0",
        '    wait "$step" || code=$?',
        '    [ "$code" -eq 127 ] || status=$code',
        '    [ -n "$interrupted" ] || break',
        "done",
        *end,
        "",
        "# Stopped before its last step: back into the queue, unless the job was cancelled (it is RUNNING no more).",
        # White space is no part of JSON's meaning, and no other key of the record is called so.
        f'stopped() {{ [[ "$(tr -d "[:space:]" < "$output"/{RECORD})" == *\'"status":"stopped"\'* ]]; }}',
        'if { [ "$status" -eq 0 ] || [ "$status" -gt 128 ]; } && stopped; then',
        *(requeue if slurm.requeue else []),
        "    exit 0",
        "fi",
        'exit "$status"',
    ]
