"""Who makes the parts of a data set: this process, several, or the workers of Apache Beam.

`hosts` has what several hosts do together.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from pea_jax.data.write.parts import Job
from pea_jax.runtime import storage

#: Does all jobs, in any order, and yields the number of each that is done. Jobs are pickled where
#: they are done by other processes.
Run = Callable[[Sequence[Job]], Iterator[int]]

#: Between two looks at what the workers of Beam have done, seconds.
_POLL_SECONDS = 20
#: What a worker that is to end has for removing its draft, seconds.
_PATIENCE = 10.0


class WorkerError(ValueError):
    """A process or a pipeline that was to make parts ended without them."""


def in_turn(jobs: Sequence[Job]) -> Iterator[int]:
    """One after the other, in this process."""
    for number, job in enumerate(jobs):
        job()
        yield number


def processes(count: int) -> Run:
    """By `count` processes of this machine. They end when this one does, however it ends.

    Raises (when run):
      WorkerError: a process died; it says over which part.
      ValueError: a job can't be pickled. What a job raises is raised as it is.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 process, got {count}")

    def run(jobs: Sequence[Job]) -> Iterator[int]:
        if not jobs:
            return
        pickled = [_pickled(job) for job in jobs]
        todo, busy = iter(range(len(jobs))), {}
        try:
            for number in itertools.islice(todo, count):
                worker = _Worker()
                busy[worker.connection] = worker
                worker.give(number, pickled[number])
            while busy:
                for connection in wait(list(busy)):
                    worker = busy[connection]
                    yield worker.take(jobs[worker.number].part.name)
                    if (number := next(todo, None)) is not None:
                        worker.give(number, pickled[number])
                    else:
                        del busy[connection]
                        worker.connection.close()
        finally:
            for worker in busy.values():
                worker.end()
            for worker in busy.values():
                worker.join()

    return run


class _Worker:
    """A process that does one job at a time."""

    def __init__(self):
        # Not forked: threads of this process may hold locks.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.number = -1
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, number: int, job: bytes) -> None:
        self.number = number
        # Of a process that is gone, `take` tells.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(job)

    def take(self, name: str) -> int:
        """The number of the job when it is done; raises what it raised."""
        try:
            error = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"({code})"
            raise WorkerError(
                f"a worker process ended {how} over part {name}; for want of memory, perhaps: "
                "the same command goes on with the parts that are done"
            ) from None
        if error is not None:
            raise error
        return self.number

    def end(self) -> None:
        """Ask it to end, whatever it is at."""
        self.connection.close()
        self._process.terminate()

    def join(self) -> None:
        """Wait until it has ended, and not for long."""
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection) -> None:
    """The life of a worker process."""
    # Ctrl-C goes to all processes of a terminal: the first one tells the others what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job: Job | None = None
    while True:
        try:
            job = pickle.loads(connection.recv_bytes())
            job()
        except EOFError:
            return
        except SystemExit:
            if job is not None:
                job.part.remove_drafts()
            raise
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)).rstrip())
            connection.send(_sendable(error))
        else:
            connection.send(None)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # time to remove the draft
    threading.Event().wait(_PATIENCE)
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    """An error that arrives as it is sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _pickled(job: Job) -> bytes:
    try:
        return pickle.dumps(job)
    except Exception as error:
        raise ValueError(
            f"part {job.part.name} can't be made by another process, for its shard can't be "
            f"pickled: {error}"
        ) from error


def on_beam(options: Sequence[str]) -> Run:
    """By the workers of an Apache Beam pipeline, who must reach the storage of the data set.

    Args:
      options: of the pipeline, as on a command line: "--runner=DataflowRunner", ...

    Raises:
      ValueError: Apache Beam is not installed, or knows no such option.
      WorkerError (when run): the pipeline failed, or its parts are not to be seen from here.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError("Apache Beam is not installed: pip install 'pea-jax[beam]'")
    _check_options(options)

    def run(jobs: Sequence[Job]) -> Iterator[int]:
        if not jobs:
            return
        waiting = {job.part.name: number for number, job in enumerate(jobs)}
        pipeline = _Pipeline(jobs, options)
        try:
            while pipeline.runs(_POLL_SECONDS):
                yield from _arrived(jobs, waiting)
        finally:
            pipeline.cancel()
        yield from _arrived(jobs, waiting)
        if waiting:
            raise WorkerError(
                f"{len(waiting)} of {len(jobs)} parts are not in {jobs[0].part.top} when the Beam "
                f"pipeline has ended, such as {min(waiting)}: its workers must write to a storage "
                "that all share, a bucket or a network disk"
            )

    return run


def _check_options(options: Sequence[str]) -> None:
    """Beam itself passes over options that it doesn't know: the pipeline would run elsewhere."""
    from apache_beam.options.pipeline_options import PipelineOptions

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given = PipelineOptions(list(options)).get_all_options(retain_unknown_options=True)
    except SystemExit:
        raise ValueError(f"options of Beam: {said.getvalue().splitlines()[-1]}") from None
    if unknown := sorted(given.keys() - PipelineOptions([]).get_all_options().keys()):
        raise ValueError(f"options of Beam: it knows no {', no '.join(unknown)}")


class _Pipeline:
    """A Beam pipeline that does jobs. Some runners block, so it is run by a thread of its own."""

    def __init__(self, jobs: Sequence[Job], options: Sequence[str]):
        self._jobs, self._options = jobs, options
        self._result, self._error = None, None
        # One pickle, in which what the shards have in common is there once: runners limit the size
        # of a pipeline.
        for job in jobs:
            _pickled(job)
        self._packed = zlib.compress(pickle.dumps(list(jobs)))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions

            pipeline = beam.Pipeline(options=PipelineOptions(list(self._options)))
            _ = (
                pipeline
                | "Parts" >> beam.Create(range(len(self._jobs)))
                | "Spread" >> beam.Reshuffle()
                | "Make" >> beam.Map(_do, self._packed)
            )
            self._result = pipeline.run()
            self._result.wait_until_finish()
        except BaseException as error:
            self._error = error

    def runs(self, seconds: float) -> bool:
        """Whether it still runs when some time has passed; raises what ended it."""
        self._thread.join(seconds)
        if self._error is not None:
            raise WorkerError(f"the Beam pipeline failed: {_gist(self._error)}") from self._error
        return self._thread.is_alive()

    def cancel(self) -> None:
        """End it, if it runs."""
        if self._thread.is_alive() and self._result is not None:
            with contextlib.suppress(Exception):
                self._result.cancel()


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> list[Job]:
    return pickle.loads(zlib.decompress(packed))


def _do(number: int, packed: bytes) -> int:
    """Does one of the jobs, in a worker of Beam."""
    _unpacked(packed)[number]()
    return number


def _gist(error: BaseException) -> str:
    """Of an error whose message holds a whole traceback: the line that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (said or lines or [type(error).__name__])[-1]


def _arrived(jobs: Sequence[Job], waiting: dict[str, int]) -> Iterator[int]:
    """The jobs whose parts are there now; they are taken out of `waiting`."""
    folder = jobs[0].part.folder.parent
    for name in sorted(waiting.keys() & set(storage.held(folder))):
        if jobs[waiting[name]].part.is_done():
            yield waiting.pop(name)


def beam_options(text: str) -> list[str]:
    """Options of a Beam pipeline from the form that `tfds build` takes: NAME=VALUE,NAME=VALUE,...

    A name may come several times, and without a value it is a switch.

    Raises:
      ValueError: an option has no name, or the text is empty.
    """
    wrong = [option for option in text.split(",") if not re.match(r"\w+(=|$)", option)]
    if wrong:
        raise ValueError(
            f"options of Beam: expected NAME=VALUE,NAME=VALUE,..., got {wrong[0]!r} in {text!r}"
        )
    return [f"--{option}" for option in text.split(",")]
