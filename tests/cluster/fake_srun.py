"""What srun does, on one machine: SLURM_NTASKS copies of a command, their signals and their exit code.

Run as ``srun``. It writes its process id to ``$FAKE_SLURM/srun.pid`` when it can be signalled; SIGTERM then stands for
SLURM's signal to the step and reaches every task. As with ``--kill-on-bad-exit=1``, the first task that fails has the
others killed. The exit code is the highest of the tasks', 128 + signal for one that a signal has ended. Each is
recorded in ``$FAKE_SLURM/tasks``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    place = Path(os.environ["FAKE_SLURM"])
    command = sys.argv[1:]
    while command[0].startswith("-"):
        command.pop(0)
    requested: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: requested.append(number))
    (place / "srun.pid").write_text(str(os.getpid()))

    count, per_node = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for task in range(count):
        node, local = divmod(task, per_node)
        own = {"SLURM_PROCID": str(task), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}
        tasks.append(subprocess.Popen(command, env=os.environ | own, start_new_session=True))

    codes: list[int | None] = [None] * count
    while None in codes:
        time.sleep(0.01)
        for number in requested[:]:
            requested.remove(number)
            for task in tasks:
                task.send_signal(number)
        codes = [exit_code(task.poll()) for task in tasks]
        if any(codes):
            for task in tasks:
                task.kill()
    (place / "srun.pid").unlink()
    with (place / "tasks").open("a") as file:
        print(*codes, file=file)
    return max(code for code in codes if code is not None)


def exit_code(code: int | None) -> int | None:
    return 128 - code if code is not None and code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
