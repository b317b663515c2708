"""Several hosts that build one data set together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pea_jax.data.write.parts import PartJob


@dataclass(frozen=True)
class Hosts:
    """The hosts that call `build` together and write to one shared storage.

    Each host writes its share of the parts. The first host then assembles the set while the others
    wait.

    Attributes:
      index: of this host.
      count: number of hosts.
      wait: a named barrier for all hosts.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None

    def share(self, jobs: Sequence[PartJob]) -> Sequence[PartJob]:
        """The jobs of this host, including those that are done."""
        return jobs[self.index :: self.count]


ALONE = Hosts()
