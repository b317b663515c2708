"""A process of test_checkpoint_files.py, to restore together: NUMBER COUNT PORT HARM WORKDIR.

HARM is what happens to the last process: "none", "damage" (it alone finds the latest checkpoint
damaged) or "fault" (its disk does not answer). Prints the outcome as one line of JSON.
"""

import json
import sys
import warnings
from pathlib import Path

import jax

number, count, port, harm, workdir = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", num_processes=count, process_id=number)

import grain
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pea_jax.runtime import checkpoint, checkpoint_files, parallel
from tests.runtime.test_checkpoint import ADAPTER, blank, make_state


class Iterator(grain.DatasetIterator):
    """Each host has a part of the state, as in the data pipeline."""

    def __init__(self, step: int):
        super().__init__()
        self.state = {"step": step, "bad": {str(number): "cut"}}

    def __next__(self) -> None:
        raise StopIteration

    def get_state(self) -> dict:
        return self.state

    def set_state(self, state: dict) -> None:
        self.state = state

    def merge_states(self, states: list[dict]) -> dict:
        bad = {key: why for state in states for key, why in state["bad"].items()}
        return {"step": states[0]["step"], "bad": bad}


everywhere = NamedSharding(parallel.make_mesh(), PartitionSpec())


def placed(state):
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(
            leaf.shape, everywhere, lambda index: np.asarray(leaf)[index]
        ),
        state,
    )


def save(step: int) -> None:
    checkpoints.save(step, placed(make_state(step)), Iterator(step), adapter=ADAPTER, seed=7)


read_meta = checkpoint_files.read_meta


def harmed(folder: Path) -> dict:
    if harm == "fault":
        raise OSError(5, "Input/output error", str(folder))
    if folder.name == "00000005":
        raise checkpoint_files.DamagedError("meta: cut")
    return read_meta(folder)


outcome = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", checkpoint_files.DamagedCheckpointWarning)
    try:
        with checkpoint.Checkpointer(Path(workdir)) as checkpoints:
            if not checkpoints.steps:
                save(2)
                save(5)
                checkpoints.wait()
            if harm != "none" and number == count - 1:
                checkpoint_files.read_meta = harmed
            iterator = Iterator(0)
            state = checkpoints.restore(placed(blank(make_state(1))), iterator, seed=7)
            outcome |= {"step": int(state.step), "data": iterator.state}
            if harm == "damage":
                checkpoint_files.read_meta = read_meta
                save(5)
                checkpoints.wait()
            outcome["steps"] = checkpoints.steps
    except OSError as error:
        outcome["error"] = str(error)
outcome["warnings"] = [str(one.message) for one in caught if "damaged" in str(one.message)]
sys.stdout.write(json.dumps(outcome) + "\n")
