"""Executors of part jobs: this process, several processes, or Apache Beam workers.

`hosts` shares the jobs among several hosts.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import multiprocessing
import pickle
import re
import signal
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from pea_jax.data.child_process import end_with_parent
from pea_jax.data.write.parts import PartJob
from pea_jax.runtime import storage

#: Does all jobs in any order and yields the number of each finished job. Jobs for other processes
#: are pickled.
Executor = Callable[[Sequence[PartJob]], Iterator[int]]

#: Interval between two checks for parts from Beam workers, seconds.
_POLL_SECONDS = 20
#: Time for a terminated worker to remove its draft, seconds.
_PATIENCE = 10.0


class WorkerError(ValueError):
    """A worker process or a Beam pipeline ended before its parts were complete."""


def serial(jobs: Sequence[PartJob]) -> Iterator[int]:
    """Does the jobs one after another in this process."""
    for number, job in enumerate(jobs):
        job()
        yield number


def processes(count: int) -> Executor:
    """Does the jobs in `count` processes of this machine, which end with this process.

    Raises (when run):
      WorkerError: a process died; names its part.
      ValueError: a job cannot be pickled. Errors of jobs pass unchanged.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 process, got {count}")

    def run(jobs: Sequence[PartJob]) -> Iterator[int]:
        if not jobs:
            return
        pickled = [_pickled(job) for job in jobs]
        pending, busy = iter(range(len(jobs))), {}
        try:
            for number in itertools.islice(pending, count):
                worker = _Worker()
                busy[worker.connection] = worker
                worker.send(number, pickled[number])
            while busy:
                for connection in wait(list(busy)):
                    worker = busy[connection]
                    yield worker.receive(jobs[worker.number].part.name)
                    if (number := next(pending, None)) is not None:
                        worker.send(number, pickled[number])
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
    """A child process that does one job at a time."""

    def __init__(self):
        # A fork could inherit locks that threads of this process hold.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.number = -1
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, number: int, job: bytes) -> None:
        self.number = number
        # `receive` reports a process that is gone.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(job)

    def receive(self, name: str) -> int:
        """The number of the job when it is done; raises the error of the job."""
        try:
            error = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"({code})"
            raise WorkerError(
                f"a worker process ended {how} over part {name}, perhaps out of memory: the same "
                "command continues with the finished parts"
            ) from None
        if error is not None:
            raise error
        return self.number

    def end(self) -> None:
        """Ask the process to end."""
        self.connection.close()
        self._process.terminate()

    def join(self) -> None:
        """Wait until the process has ended; kill it if that takes too long."""
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection) -> None:
    """The main function of a worker process."""
    # Ctrl-C reaches all processes of a terminal. The parent process ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    end_with_parent(_PATIENCE)
    job: PartJob | None = None
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


def _exit(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _sendable(error: Exception) -> Exception:
    """The error, or a picklable substitute."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _pickled(job: PartJob) -> bytes:
    try:
        return pickle.dumps(job)
    except Exception as error:
        raise ValueError(
            f"part {job.part.name} cannot be made by another process: its shard can't be pickled: "
            f"{error}"
        ) from error


def on_beam(options: Sequence[str]) -> Executor:
    """Does the jobs in an Apache Beam pipeline, whose workers must reach the data set's storage.

    Args:
      options: of the pipeline, in command-line form: "--runner=DataflowRunner", ...

    Raises:
      ValueError: Apache Beam is not installed, or does not have an option.
      WorkerError (when run): the pipeline failed, or its parts are not visible from this host.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError("Apache Beam is not installed: pip install 'pea-jax[beam]'")
    _check_options(options)

    def run(jobs: Sequence[PartJob]) -> Iterator[int]:
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
    """Refuse unknown options. Beam ignores them and might run the pipeline on this machine."""
    from apache_beam.options.pipeline_options import PipelineOptions

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = PipelineOptions(list(options)).get_all_options(retain_unknown_options=True)
    except SystemExit:
        raise ValueError(f"options of Beam: {errors.getvalue().splitlines()[-1]}") from None
    if unknown := sorted(parsed.keys() - PipelineOptions([]).get_all_options().keys()):
        raise ValueError(f"options of Beam: it knows no {', no '.join(unknown)}")


class _Pipeline:
    """A Beam pipeline that does jobs. It has its own thread because some runners block."""

    def __init__(self, jobs: Sequence[PartJob], options: Sequence[str]):
        self._jobs, self._options = jobs, options
        self._result, self._error = None, None
        # Runners limit the size of a pipeline. One pickle stores what the shards share only once.
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
        """Whether it still runs after some seconds; raises the error that ended it."""
        self._thread.join(seconds)
        if self._error is not None:
            raise WorkerError(f"the Beam pipeline failed: {_summary(self._error)}") from self._error
        return self._thread.is_alive()

    def cancel(self) -> None:
        """End the pipeline if it runs."""
        if self._thread.is_alive() and self._result is not None:
            with contextlib.suppress(Exception):
                self._result.cancel()


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> list[PartJob]:
    return pickle.loads(zlib.decompress(packed))


def _do(number: int, packed: bytes) -> int:
    """Do one of the jobs, in a Beam worker."""
    _unpacked(packed)[number]()
    return number


def _summary(error: BaseException) -> str:
    """The line that names the error, from a message that contains a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (named or lines or [type(error).__name__])[-1]


def _arrived(jobs: Sequence[PartJob], waiting: dict[str, int]) -> Iterator[int]:
    """The jobs whose parts have appeared; removes them from `waiting`."""
    folder = jobs[0].part.folder.parent
    for name in sorted(waiting.keys() & set(storage.held(folder))):
        if jobs[waiting[name]].part.is_done():
            yield waiting.pop(name)


def beam_options(text: str) -> list[str]:
    """Parses options of a Beam pipeline in the form of `tfds build`: NAME=VALUE,NAME=VALUE,...

    A name may be repeated. A name without a value is a switch.

    Raises:
      ValueError: an option has no name, or the text is empty.
    """
    wrong = [option for option in text.split(",") if not re.match(r"\w+(=|$)", option)]
    if wrong:
        raise ValueError(
            f"options of Beam: expected NAME=VALUE,NAME=VALUE,..., got {wrong[0]!r} in {text!r}"
        )
    return [f"--{option}" for option in text.split(",")]
