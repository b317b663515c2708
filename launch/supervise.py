"""Run `pea-jax train`, and distinguish a stopped run from a finished one.

    python launch/supervise.py pea-jax train --distributed --config FILE --workdir DIR ...
    python launch/supervise.py --finished DIR

`pea-jax train` exits with 0 after its last step, and also after SIGTERM, the notice of a
preemption, when it has saved and stopped. A scheduler that restarts only failed jobs cannot
distinguish the two. This script exits with 75 (EX_TEMPFAIL) where the workdir's last checkpoint is
not that of the last step, and otherwise with the command's status. It forwards SIGTERM and SIGINT;
in a container it is process 1, which receives them.

`--finished` only checks the workdir: 0 for finished, 75 for not.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence

STOPPED = 75


def main(arguments: Sequence[str]) -> int:
    """The exit status for the arguments of the command line."""
    if len(arguments) == 2 and arguments[0] == "--finished":
        return 0 if is_finished(arguments[1]) else STOPPED
    workdir = _workdir(arguments)
    if not arguments or arguments[0].startswith("-") or workdir is None:
        sys.stderr.write(
            "supervise.py: expected --finished DIR, or a command with its --workdir DIR\n"
        )
        return 2
    status = _run(arguments)
    if status == 0 and not is_finished(workdir):
        sys.stderr.write(f"supervise.py: {workdir} is short of its last step: status {STOPPED}\n")
        return STOPPED
    return status


def is_finished(workdir: str) -> bool:
    """Whether the run in `workdir`, a folder or gs://, has a whole checkpoint of its last step."""
    # Imported here: it takes seconds that the command should not wait for.
    from pea_jax.runtime import checkpoint, checkpoint_files, storage

    folder = storage.as_path(workdir)
    try:
        config = checkpoint.read_config(folder)
    except FileNotFoundError:
        return False
    return max(checkpoint_files.steps(folder), default=0) >= config["train"]["steps"]


def _run(command: Sequence[str]) -> int:
    # Inherited descriptors stay open, so that the run itself holds a launcher's lock.
    child = subprocess.Popen(list(command), close_fds=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: child.send_signal(got))
    status = child.wait()
    return 128 - status if status < 0 else status


def _workdir(arguments: Sequence[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument.startswith("--workdir="):
            return argument.partition("=")[2]
        if argument == "--workdir" and index + 1 < len(arguments):
            return arguments[index + 1]
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
