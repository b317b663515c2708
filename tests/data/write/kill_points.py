"""A program that kills builds before each of their steps on the disk, and continues them: the set
must be the same, byte for byte, and no finished part is made again.

Usage: kill_points.py FOLDER COUNT: at most COUNT points, evenly over the build.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pea_jax.data import paths
from pea_jax.data.write import builder, parts
from tests.data import shards

#: Everything that changes the disk, or looks at it.
STEPS = ("open", "os.", "shutil.", "tempfile.")


def build(place: Path, diary: Path) -> None:
    builder.build(place, "small", shards.splits(diary), recipe={"of": "letters"})


def forked(task: Callable[[], None]) -> int:
    """The signal that ended a process; 0 for success."""
    child = os.fork()
    if not child:
        try:
            task()
        except BaseException as error:
            sys.stderr.write(f"failed: {error!r}\n")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a build failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def counting(place: Path, task: Callable[[], None], point: int, file: Path | None = None) -> None:
    """Do the task until its step `point`; write the number of steps to a file."""
    steps = 0

    def step(event: str, arguments: tuple) -> None:
        nonlocal steps
        if event.startswith(STEPS) and any(str(place) in str(each) for each in arguments):
            if steps == point:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

    sys.addaudithook(step)
    task()
    if file is not None:
        file.write_text(str(steps))


def main(folder: Path, count: int) -> None:
    whole, file = folder / "whole", folder / "steps"
    forked(lambda: counting(whole, lambda: build(whole, folder / "first"), -1, file))
    expected, steps = shards.contents(whole), int(file.read_text())
    points = sorted({round(i * (steps - 1) / (count - 1)) for i in range(count)})
    finished = set()
    for point in points:
        place, diary = folder / "place", folder / f"diary{point}"
        task = lambda: build(place, diary)  # noqa: B023, E731
        assert forked(lambda: counting(place, task, point)) == signal.SIGKILL  # noqa: B023
        done = sorted(
            number
            for unfinished in paths.unfinished(paths.folder_of(place, "small"))
            for number in range(len(shards.KEYS))
            if parts.ShardPart(str(unfinished), f"train-{number:05d}").is_done()
        )
        begun = len(shards.read(diary, "begin"))
        if paths.is_built(paths.folder_of(place, "small")):
            done = list(range(len(shards.KEYS)))
        assert forked(task) == 0
        again = shards.read(diary, "begin")[begun:]
        assert again == [n for n in range(len(shards.KEYS)) if n not in done], (point, done, again)
        assert shards.contents(place) == expected, f"after a kill before step {point}"
        finished.add(len(done))
        shutil.rmtree(place)
    # Killed again and again, each time a little later.
    place, diary = folder / "often", folder / "diary"
    killed = 0
    for point in range(10, 10 * steps, 10):
        if not forked(lambda: counting(place, lambda: build(place, diary), point)):  # noqa: B023
            break
        killed += 1
    assert shards.contents(place) == expected
    summary = (
        f"{len(points)} of {steps} points, with {sorted(finished)} parts done; {killed} in a row"
    )
    sys.stdout.write(summary + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
