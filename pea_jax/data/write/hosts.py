"""Several hosts that make the parts of a data set together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pea_jax.data.write.parts import Job


@dataclass(frozen=True)
class Hosts:
    """Hosts that write to one storage, and call `build` together.

    Each makes its share of the parts. The first host then puts the set together, for which the
    others wait.

    Attributes:
      index: which of the hosts this is.
      count: how many they are.
      wait: waits until all of them are at the place of a name.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None

    def share(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Those of all jobs that are this host's, whatever is done of them."""
        return jobs[self.index :: self.count]


ALONE = Hosts()
