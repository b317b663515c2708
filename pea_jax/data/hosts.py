"""Several hosts that make the parts of a data set together."""

from collections.abc import Callable, Iterator, Sequence

from pea_jax.data.executors import in_turn
from pea_jax.data.parts import Job


class Hosts:
    """A `Run` of several hosts that write to one storage, and call `build` together.

    Each makes its share of the parts. The first host then puts the set together, for which the
    others wait.

    Args:
      index: which of the hosts this is.
      count: how many they are.
      wait: waits until all of them are at the place of a name.
    """

    def __init__(self, index: int, count: int, wait: Callable[[str], None]):
        self._index, self._count, self._wait = index, count, wait
        self._made = self._ended = False

    def __call__(self, jobs: Sequence[Job]) -> Iterator[int]:
        """Do this host's jobs, and yield all of them once they are done."""
        if self._made:  # what is left is for one host
            yield from in_turn(jobs)
            return
        self._made = True
        for number, job in enumerate(jobs):
            # Not by its number here: hosts that start apart may find other parts done.
            if int(job.part.name.rpartition("-")[2]) % self._count == self._index:
                job()
                yield number
        self._wait("parts of a data set")
        if self._index:
            self.end()
            raise BuiltElsewhereError("the first host was to put the set together, and did not")
        for number, job in enumerate(jobs):
            if int(job.part.name.rpartition("-")[2]) % self._count:
                if not job.part.is_done():
                    raise ValueError(
                        f"part {job.part.name} is not in {job.part.top}, but another host has made "
                        "it: hosts make a set together in a storage that all of them share"
                    )
                yield number

    def end(self) -> None:
        """Wait until every host knows that the set is there."""
        if self._made and not self._ended:
            self._ended = True
            self._wait("a data set")


class BuiltElsewhereError(ValueError):
    """Another host puts the set together; `builder.build` takes it for done when it is there."""
