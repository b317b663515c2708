"""A program for two joined processes: rows on a mesh that takes turns between their devices.

So are the meshes of TPU slices, which follow the torus and not the hosts.
"""

import jax
import numpy as np

from pea_jax.runtime import parallel, processes


def main() -> None:
    processes.initialize()
    index = processes.process_index()
    by_process = [[d for d in jax.devices() if d.process_index == i] for i in (0, 1)]
    devices = [device for pair in zip(*by_process, strict=True) for device in pair]
    mesh = parallel.make_mesh(devices=devices)
    assert [device.process_index for device in mesh.devices.flat] == [0, 1, 0, 1]

    rows = np.arange(4, dtype=np.int32) + 10 * index
    array = parallel.to_global({"x": rows}, mesh)["x"]
    whole = np.asarray(parallel.place(array, parallel.replicated(mesh)))
    np.testing.assert_array_equal(whole, [0, 1, 10, 11, 2, 3, 12, 13])
    np.testing.assert_array_equal(parallel.to_local(array, mesh), rows)
    np.testing.assert_array_equal(whole[parallel.own_rows(len(whole), mesh)], rows)


if __name__ == "__main__":
    main()
