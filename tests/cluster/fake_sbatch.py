"""What sbatch does, at once and on one machine: every task of the array, with the variables of its options.

Run as ``sbatch``. The job ids are counted in ``$FAKE_SLURM/jobs``, where the dependencies are recorded too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def options_of(arguments: list[str]) -> dict[str, str]:
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments)
    return {name: value for name, _, value in pairs}


def main() -> int:
    place = Path(os.environ["FAKE_SLURM"])
    arguments = sys.argv[1:]
    position = next(i for i, argument in enumerate(arguments) if not argument.startswith("--"))
    script = arguments[position]
    written = options_of(re.findall(r"^#SBATCH (--\S+)", Path(script).read_text(), flags=re.MULTILINE))
    options = written | options_of(arguments[:position])
    with (place / "jobs").open("a") as jobs:
        print(options.get("dependency", ""), file=jobs)
    job = str(1000 + len((place / "jobs").read_text().splitlines()))
    print(job if "parsable" in options else f"Submitted batch job {job}")
    first, _, last = options["array"].partition("-")
    tasks = range(int(first), int(last or first) + 1)
    for task in tasks:
        environment = os.environ | {
            "SLURM_JOB_ID": f"9{task}",
            "SLURM_ARRAY_JOB_ID": job,
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": str(len(tasks)),
            "SLURM_NNODES": options["nodes"],
            "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
            "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        }
        with (place / "log").open("a") as log:
            command = ["bash", script, *arguments[position + 1 :]]
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
