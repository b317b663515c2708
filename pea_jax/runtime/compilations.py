"""A count of the programs that jax compiles."""

import functools

import jax

#: jax's event for the time to compile one program, or to fetch it from the cache.
_EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Programs that jax compiled, or fetched from its cache, since this object was made."""

    def __init__(self) -> None:
        self._begin = _total().copy()

    @property
    def count(self) -> int:
        """The number of programs."""
        return int(_total()[0] - self._begin[0])

    @property
    def seconds(self) -> float:
        """The time that they took."""
        return _total()[1] - self._begin[1]


@functools.cache
def _total() -> list[float]:
    """Count and seconds of this process, updated by jax."""
    total = [0.0, 0.0]

    def add(event: str, seconds: float, **_: object) -> None:
        if event == _EVENT:
            total[0] += 1
            total[1] += seconds

    jax.monitoring.register_event_duration_secs_listener(add)
    return total
