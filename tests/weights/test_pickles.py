"""Torch pickles: tensors alone, read where they lie, and clear refusals of everything else."""

import builtins
import os
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pea_jax.runtime import parallel
from pea_jax.weights.load import WeightsError, load_module, read_header, read_tensors
from pea_jax.weights.pickles import is_pickle, open_pickle
from pea_jax.weights.save import save_module
from tests.models.random_module import random_module
from tests.weights.test_load import _Large, _Layers, assert_same, flat

torch = pytest.importorskip("torch")
from safetensors.torch import load_file


@pytest.fixture
def saved(tmp_path):
    """A module, and its tensors as PyTorch has them."""
    module = random_module(_Layers)
    save_module(module, tmp_path / "model.safetensors")
    return module, load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin"


FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@FORMATS
def test_a_module_from_a_pickle(saved, zipped):
    module, tensors, file = saved
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    assert_same(load_module(_Layers, file), module)


def test_the_name_does_not_matter(saved):
    """A pickle under the name of a safetensors file, and the other way round."""
    module, tensors, file = saved
    pickled, plain = file.with_name("a.safetensors.old"), file.with_name("b.bin")
    torch.save(tensors, pickled)
    save_module(module, plain)
    assert is_pickle(pickled)
    assert not is_pickle(plain)
    assert_same(load_module(_Layers, pickled), module)
    assert_same(load_module(_Layers, plain), module)


def test_a_training_checkpoint(saved):
    """Tensors nested beside plain values, each under the prefix of distributed training."""
    module, tensors, file = saved
    wrapped = {f"module.{key}": torch.nn.Parameter(value) for key, value in tensors.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, file)
    assert_same(load_module(_Layers, file), module)
    assert read_header(file) == {key: tuple(value.shape) for key, value in tensors.items()}


def test_a_prefix_of_some_tensors_is_part_of_their_name(tmp_path):
    torch.save({"module.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "a.bin")
    assert set(read_tensors(tmp_path / "a.bin")) == {"module.a", "b"}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (torch.float32, np.float32),
        (torch.float16, np.float16),
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float64, np.float64),
        (torch.int64, np.int64),
    ],
)
def test_every_type_arrives_as_it_is(tmp_path, stored, expected):
    values = torch.tensor([[1.5, -2.0], [0.25, 3.0]]).to(stored)
    torch.save({"a": values, "scalar": values[0, 0].clone()}, tmp_path / "a.bin")
    arrays = read_tensors(tmp_path / "a.bin")
    assert arrays["a"].dtype == expected
    np.testing.assert_array_equal(arrays["a"].astype(np.float64), values.double().numpy())
    assert arrays["scalar"].shape == ()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_files_are_cast_on_read(saved, stored):
    _, tensors, file = saved
    torch.save({key: value.to(stored) for key, value in tensors.items()}, file)
    kernel = load_module(_Layers, file, dtype=jnp.float32).conv.kernel.get_value()
    expected = tensors["conv.weight"].to(stored).float().permute(2, 3, 1, 0).numpy()
    np.testing.assert_array_equal(kernel, expected)


def test_views_of_one_storage(tmp_path):
    """A transposed tensor and one that shares its storage, as tied weights are saved."""
    whole = torch.arange(6.0).reshape(2, 3)
    torch.save({"whole": whole, "turned": whole.T, "part": whole[1]}, tmp_path / "a.bin")
    arrays = read_tensors(tmp_path / "a.bin")
    np.testing.assert_array_equal(arrays["turned"], whole.T.numpy())
    np.testing.assert_array_equal(arrays["part"], [3, 4, 5])


@FORMATS
def test_each_device_gets_its_part(tmp_path, zipped):
    module = random_module(_Large)
    save_module(module, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    sharding = parallel.parameter_sharding(parallel.make_mesh(data=2, fsdp=4), 32)
    loaded = load_module(_Large, tmp_path / "a.bin", sharding=sharding)
    assert_same(loaded, module)
    assert len(loaded.conv.kernel.get_value().sharding.device_set) == 8


def test_a_part_is_read_and_no_more(tmp_path):
    """Most pages of a large file stay on disk."""
    size = 1 << 23
    torch.save({"large": torch.ones(size), "small": torch.ones(4)}, tmp_path / "a.bin")
    resident = _resident()
    with open_pickle(tmp_path / "a.bin") as handle:
        assert handle.get_slice("large").get_shape() == [size]
        np.testing.assert_array_equal(handle.get_slice("large")[5:9], np.ones(4))
        assert _resident() - resident < 4 * size / 4


def _resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_arrays_outlive_their_file(tmp_path):
    """What was read is a copy: the file may be written over."""
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.bin")
    with open_pickle(tmp_path / "a.bin") as handle:
        array = handle.get_slice("a")[:]
    file = tmp_path / "a.bin"
    with file.open("r+b") as stream:
        stream.write(b"\0" * file.stat().st_size)
    np.testing.assert_array_equal(array, np.ones(1000))


def test_misfits_are_reported_as_for_safetensors(saved):
    _, tensors, file = saved
    tensors["norm.weight"] = torch.zeros(13, dtype=torch.int32)
    tensors["other"] = torch.zeros(2)
    del tensors["norm.bias"]
    torch.save(tensors, file)
    with pytest.raises(WeightsError) as raised:
        load_module(_Layers, file)
    for line in (
        f"extra: other [2] in {file}",
        "missing: norm.bias, expected [13]",
        "type: norm.weight, expected one of F64, F32, F16, BF16, got I32",
    ):
        assert line in str(raised.value)


class _Program:
    """Runs a command where it is unpickled by others than `weights_only`."""

    def __reduce__(self):
        return (os.mkdir, ("/tmp/pea_jax_must_not_be_there",))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"a": torch.ones(2), "b": _Program()}, r"tensors alone.*got posix\.mkdir$"),
        (torch.nn.Linear(2, 2), r"tensors alone.*got torch\.nn\.modules\.linear\.Linear$"),
        (torch.ones(2), "expected a mapping of names to tensors, got a Tensor"),
        ({}, "expected a mapping of names to tensors, got nothing"),
        ({"state_dict": {}}, "expected a mapping of names to tensors, got nothing"),
        (
            {"a": torch.ones(2), "step": 3, 7: torch.ones(1)},
            "expected names and dense tensors, got 'step': a int; 7: a Tensor",
        ),
        ({"a": torch.eye(3).to_sparse()}, "expected names and dense tensors, got 'a': a Tensor"),
    ],
    ids=["program", "module", "tensor", "empty", "nested-empty", "values", "sparse"],
)
@FORMATS
def test_what_is_not_named_tensors_is_refused(tmp_path, content, problem, zipped):
    file = tmp_path / "a.bin"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=problem) as raised:
        open_pickle(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)
    assert not os.path.exists("/tmp/pea_jax_must_not_be_there")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="got a TorchScript program"):
        open_pickle(tmp_path / "a.pt")


@pytest.mark.parametrize("kept", [-40, 30])
@FORMATS
def test_a_broken_file_is_one_line(saved, kept, zipped):
    _, tensors, file = saved
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=f"^{re.escape(str(file))}: not a whole torch") as raised:
        load_module(_Layers, file)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(WeightsError, match=r"a\.bin: no such weights file$"):
        open_pickle(tmp_path / "a.bin")


def test_without_torch_a_line_says_what_to_install(saved, monkeypatch):
    module, tensors, file = saved
    torch.save(tensors, file)
    save_module(module, file.with_suffix(".safetensors"))
    real = builtins.__import__

    def without_torch(name, *arguments, **keywords):
        if name.split(".")[0] == "torch":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(WeightsError, match=r"pip install torch") as raised:
        load_module(_Layers, file)
    assert "\n" not in str(raised.value)
    assert flat(load_module(_Layers, file.with_suffix(".safetensors"))).keys() == tensors.keys()
