"""Safetensors into modules: exactly those tensors, in exactly that place, and clear refusals."""

import math
import re
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from flax import nnx
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from pea_jax.models.text import t5
from pea_jax.runtime import parallel
from pea_jax.weights import load, names
from pea_jax.weights.load import WeightsError, load_module
from pea_jax.weights.save import save_module
from tests.models.random_module import random_module


class _Layers(nnx.Module):
    """One of each leaf and rank, with no two sizes alike."""

    def __init__(self, param_dtype=jnp.float32):
        leaf = {"rngs": nnx.Rngs(0), "param_dtype": param_dtype}
        self.blocks = nnx.List([nnx.Linear(3, 5, **leaf), nnx.Linear(5, 7, use_bias=False, **leaf)])
        self.conv = nnx.Conv(5, 11, (2, 3), **leaf)
        self.norm = nnx.LayerNorm(13, **leaf)
        self.embeddings = nnx.Embed(17, 19, **leaf)
        self.temperature = nnx.Param(jnp.zeros((), param_dtype))


class _Attention(nnx.Module):
    """The key names of a VAE's attention."""

    def __init__(self):
        self.to_q = nnx.Linear(4, 6, use_bias=False, rngs=nnx.Rngs(0))
        self.to_out = nnx.List([nnx.Linear(6, 4, use_bias=False, rngs=nnx.Rngs(0))])


class _VAE(nnx.Module):
    def __init__(self):
        self.mid = nnx.Dict(attentions=nnx.List([_Attention()]))


def flat(module: nnx.Module) -> dict[str, np.ndarray]:
    return {
        names.key_of(path): np.asarray(variable.get_value())
        for path, variable in nnx.to_flat_state(nnx.state(module))
    }


def assert_same(got: nnx.Module, want: nnx.Module):
    got, want = flat(got), flat(want)
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].dtype == value.dtype, key
        np.testing.assert_array_equal(got[key], value, err_msg=key)


@pytest.fixture
def saved(tmp_path):
    """A module, its file and the file's tensors."""
    module = random_module(_Layers)
    save_module(module, tmp_path / "model.safetensors")
    return module, tmp_path / "model.safetensors", load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_there_and_back_is_bit_equal(tmp_path, dtype):
    module = random_module(lambda: _Layers(dtype))
    save_module(module, tmp_path / "model.safetensors")
    assert_same(load_module(lambda: _Layers(dtype), tmp_path / "model.safetensors"), module)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [None, jnp.float32, jnp.bfloat16])
def test_files_of_every_precision_are_cast_on_read(saved, stored, wanted):
    _, file, tensors = saved
    tensors = {key: np.asarray(value.astype(stored)) for key, value in tensors.items()}
    save_file(tensors, file)
    loaded = load_module(_Layers, file, dtype=wanted)
    kernel = loaded.conv.kernel.get_value()
    assert kernel.dtype == (wanted or jnp.float32)
    expected = tensors["conv.weight"].transpose(2, 3, 1, 0).astype(kernel.dtype)
    np.testing.assert_array_equal(np.asarray(kernel), expected)


def test_every_misfit_is_reported_at_once_with_shapes_and_file(saved):
    _, file, tensors = saved
    tensors["other.weight"] = np.zeros((2, 2), np.float32)
    tensors["conv.weight"] = np.zeros((11, 9, 2, 3), np.float32)
    tensors["norm.weight"] = np.zeros(13, np.int32)
    del tensors["blocks.0.bias"]
    save_file(tensors, file)
    second = file.with_name("second.safetensors")
    save_file({"blocks.1.weight": tensors["blocks.1.weight"]}, second)
    with pytest.raises(WeightsError) as raised:
        load_module(_Layers, [file, second])
    message = str(raised.value)
    assert message.startswith(f"5 tensors of {file}, {second} do not fit")
    for line in (
        f"extra: other.weight [2, 2] in {file}",
        "missing: blocks.0.bias, expected [5]",
        "misshapen: conv.weight, expected [11, 5, 2, 3], got [11, 9, 2, 3] "
        f"(conv.weight in {file})",
        f"duplicate: blocks.1.weight, expected once [7, 5], got blocks.1.weight [7, 5] in {file} "
        f"and blocks.1.weight [7, 5] in {second}",
        "type: norm.weight, expected one of F64, F32, F16, BF16, got I32",
    ):
        assert line in message


def test_shapes_are_compared_in_the_layout_of_the_file(saved):
    """A linear layer stored the wrong way round has the right number of elements."""
    _, file, tensors = saved
    tensors["blocks.0.weight"] = np.ascontiguousarray(tensors["blocks.0.weight"].T)
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=re.escape("expected [5, 3], got [3, 5]")):
        load_module(_Layers, file)


def test_shards_make_one_model(saved):
    module, file, tensors = saved
    files = [file.with_name(f"model-{part}.safetensors") for part in (1, 2)]
    keys = sorted(tensors)
    save_file({key: tensors[key] for key in keys[::2]}, files[0])
    save_file({key: tensors[key] for key in keys[1::2]}, files[1])
    assert_same(load_module(_Layers, files), module)
    with pytest.raises(WeightsError, match=f"{len(keys[1::2])} tensors"):
        load_module(_Layers, files[0])


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(WeightsError, match=r"^\S+gone\.safetensors: no such weights file$"):
        load_module(_Layers, tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: whole[:-7], "not a whole safetensors file"),
        (lambda whole: whole[:20], "not a whole safetensors file"),
        (lambda whole: b"", r"\(0 bytes\): not a whole safetensors file"),
        # It takes PyTorch to see that it is not whole.
        (lambda whole: b"PK\x03\x04" + whole, "torch pickle"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
    ],
)
def test_a_broken_file_is_one_line(saved, content, reason):
    _, file, _ = saved
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(WeightsError, match=reason) as raised:
        load_module(_Layers, file)
    assert str(raised.value).startswith(str(file))
    assert "\n" not in str(raised.value)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path))):
        load_module(_Layers, tmp_path)


def test_extras_are_excused_by_their_whole_key_only(saved):
    _, file, tensors = saved
    extra = {"pooler.dense.weight": np.zeros((2, 2), np.float32), "pooler": np.zeros(1)}
    save_file({**tensors, **extra}, file)
    load_module(_Layers, file, ignore=[r"pooler\..*", "pooler"])
    with pytest.raises(WeightsError, match=r"1 tensors .*\n.*extra: pooler \[1\]"):
        load_module(_Layers, file, ignore=[r"pooler\..*", "pool"])


def test_position_ids_are_always_excused(saved):
    module, file, tensors = saved
    save_file({**tensors, "text_model.embeddings.position_ids": np.arange(4)[None]}, file)
    assert_same(load_module(_Layers, file), module)


def test_ignore_excuses_no_missing_and_skips_no_known_parameter(saved):
    module, file, tensors = saved
    assert_same(load_module(_Layers, file, ignore=[".*"]), module)
    del tensors["norm.bias"]
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"missing: norm\.bias"):
        load_module(_Layers, file, ignore=[".*"])


class _Tied(nnx.Module):
    """An embedding that files of T5 hold by two names."""

    def __init__(self):
        self.shared = nnx.Embed(3, 5, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("present", [["shared"], ["encoder.embed_tokens"]])
def test_a_tied_tensor_loads_by_either_name(tmp_path, rng, present):
    """By the name that is there, whether or not the caller excuses the copy."""
    value = rng.standard_normal((3, 5)).astype(np.float32)
    file = tmp_path / "model.safetensors"
    save_file({f"{name}.weight": value for name in present}, file)
    for ignore in ((), t5.BESIDE):
        got = load_module(_Tied, file, ignore=ignore)
        np.testing.assert_array_equal(got.shared.embedding[...], value)


def test_of_both_names_of_a_tied_tensor_the_excused_one_is_passed_over(tmp_path, rng):
    """Without leave it is a duplicate; leave for both of them is no choice."""
    value = rng.standard_normal((3, 5)).astype(np.float32)
    file = tmp_path / "model.safetensors"
    save_file({"encoder.embed_tokens.weight": value + 1, "shared.weight": value}, file)
    got = load_module(_Tied, file, ignore=t5.BESIDE)
    np.testing.assert_array_equal(got.shared.embedding[...], value)
    for ignore in ((), [".*"]):
        with pytest.raises(WeightsError, match=r"duplicate: shared\.weight.*encoder\.embed_tokens"):
            load_module(_Tied, file, ignore=ignore)


def test_the_prefix_of_a_tower_is_optional(saved):
    module, file, tensors = saved
    save_file({f"text_model.{key}": value for key, value in tensors.items()}, file)
    assert_same(load_module(_Layers, file), module)
    save_file({**tensors, "roberta.norm.bias": tensors["norm.bias"]}, file)
    with pytest.raises(WeightsError, match=r"duplicate: norm\.bias.*roberta\.norm\.bias"):
        load_module(_Layers, file)


@pytest.mark.parametrize("unit", [(), (1, 1)])
@pytest.mark.parametrize("old", [True, False])
def test_old_vae_attention(tmp_path, rng, old, unit):
    """query, proj_attn for to_q, to_out.0, and 1x1 convolutions for linear layers."""
    q, out = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (4, 6)))
    keys = ("query", "proj_attn") if old else ("to_q", "to_out.0")
    tensors = {
        f"mid.attentions.0.{key}.weight": value.reshape(*value.shape, *unit)
        for key, value in zip(keys, (q, out), strict=True)
    }
    save_file(tensors, tmp_path / "vae.safetensors")
    attention = load_module(_VAE, tmp_path / "vae.safetensors").mid.attentions[0]
    np.testing.assert_array_equal(attention.to_q.kernel.get_value(), q.T)
    np.testing.assert_array_equal(attention.to_out[0].kernel.get_value(), out.T)


def test_values_beyond_the_range_of_the_wanted_type_are_refused(saved):
    _, file, tensors = saved
    tensors["norm.bias"][3] = 1e6
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"norm\.bias \(F32\) has values beyond .* float16"):
        load_module(_Layers, file, dtype=jnp.float16)


def test_a_module_with_more_than_parameters_is_refused(saved):
    class Dropping(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))

    with pytest.raises(WeightsError, match=r"only nnx\.Param.*dropout"):
        load_module(Dropping, saved[1])


class _Recorder:
    """safe_open, keeping the shape of every part that is read of a tensor."""

    def __init__(self):
        self.read: dict[str, list[tuple[int, ...]]] = {}

    def __call__(self, *args, **kwargs):
        recorder = self

        class Handle:
            def __enter__(self):
                self.file = safetensors.safe_open(*args, **kwargs)
                return self

            def __exit__(self, *exception):
                pass

            def keys(self):
                return self.file.keys()

            def get_slice(self, key):
                part = self.file.get_slice(key)

                class Slice:
                    get_shape = staticmethod(part.get_shape)
                    get_dtype = staticmethod(part.get_dtype)

                    def __getitem__(self, index):
                        values = part[index]
                        recorder.read.setdefault(key, []).append(values.shape)
                        return values

                return Slice()

        return Handle()


class _Large(nnx.Module):
    def __init__(self):
        self.fc = nnx.Linear(8, 12, use_bias=False, rngs=nnx.Rngs(0))
        self.conv = nnx.Conv(3, 16, (2, 2), rngs=nnx.Rngs(0))


def test_each_device_gets_its_part_and_no_more_is_read(tmp_path, monkeypatch):
    """On data=2, fsdp=4: four parts of each kernel, each read once for the two that hold it."""
    module = random_module(_Large)
    save_module(module, tmp_path / "model.safetensors")
    mesh = parallel.make_mesh(data=2, fsdp=4)
    recorder = _Recorder()
    monkeypatch.setattr(load, "safe_open", recorder)
    loaded = load_module(
        _Large, tmp_path / "model.safetensors", sharding=parallel.parameter_sharding(mesh, 32)
    )
    assert_same(loaded, module)
    # fc [8, 12] is split along its outputs, conv [2, 2, 3, 16] too; the bias is small, so whole.
    assert recorder.read == {
        "fc.weight": [(3, 8)] * 4,
        "conv.weight": [(4, 3, 2, 2)] * 4,
        "conv.bias": [(16,)],
    }
    kernel = loaded.conv.kernel.get_value()
    assert kernel.sharding.spec == PartitionSpec(None, None, None, "fsdp")
    for shard in kernel.addressable_shards:
        assert shard.data.shape == (2, 2, 3, 4)
        whole = np.asarray(module.conv.kernel.get_value())
        np.testing.assert_array_equal(shard.data, whole[shard.index])
    assert loaded.conv.bias.get_value().sharding.is_fully_replicated


def test_the_sharding_rule_sees_the_key_and_the_module_s_shape(saved):
    seen = {}
    load_module(_Layers, saved[1], sharding=lambda key, shape: seen.update({key: shape}))
    assert seen["conv.weight"] == (2, 3, 5, 11)
    assert seen["temperature"] == ()


def test_without_a_sharding_arrays_may_go_anywhere(saved):
    """Committed arrays could not be used with those of a mesh."""
    kernel = load_module(_Layers, saved[1]).conv.kernel.get_value()
    elsewhere = jax.device_put(jnp.ones(kernel.shape), jax.devices()[3])
    assert (kernel + elsewhere).devices() == {jax.devices()[3]}


@pytest.mark.parametrize("over_mesh", [False, True])
def test_the_host_holds_no_second_copy(tmp_path, over_mesh):
    """Peak memory of the host: the arrays, which live there on CPU, and a tensor or two."""
    count, width = 16, 256

    class Stack(nnx.Module):
        def __init__(self):
            self.layers = nnx.List(
                [nnx.Linear(width, width, use_bias=False, rngs=nnx.Rngs(0)) for _ in range(count)]
            )

    save_module(random_module(Stack), tmp_path / "model.safetensors")
    sharding = parallel.parameter_sharding(parallel.make_mesh(1, 8)) if over_mesh else None
    one = 4 * width * width
    load_module(Stack, tmp_path / "model.safetensors", sharding=sharding)  # fills jax's caches
    tracemalloc.start()
    try:
        loaded = load_module(Stack, tmp_path / "model.safetensors", sharding=sharding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert math.prod(loaded.layers[0].kernel.get_value().shape) * 4 == one
    assert peak < (count + 4) * one


class _Projections(nnx.Module):
    """An attention whose file keeps its projections in one tensor."""

    def __init__(self):
        leaf = {"rngs": nnx.Rngs(0)}
        self.attn = nnx.Dict({f"{part}_proj": nnx.Linear(6, 4, **leaf) for part in "qkv"})


STACKS = ((r"in_proj_(weight|bias)$", [rf"{part}_proj.\1" for part in "qkv"]),)


@pytest.mark.parametrize("over_mesh", [False, True])
def test_parameters_that_share_a_tensor(tmp_path, rng, over_mesh):
    weight = rng.standard_normal((12, 6)).astype(np.float32)
    bias = rng.standard_normal(12).astype(np.float32)
    save_file({"attn.in_proj_weight": weight, "attn.in_proj_bias": bias}, tmp_path / "a.st")
    sharding = parallel.parameter_sharding(parallel.make_mesh(4, 2), 8) if over_mesh else None
    loaded = load_module(_Projections, tmp_path / "a.st", stacks=STACKS, sharding=sharding).attn
    for index, part in enumerate("qkv"):
        rows = slice(4 * index, 4 * index + 4)
        projection = loaded[f"{part}_proj"]
        np.testing.assert_array_equal(projection.kernel.get_value(), weight[rows].T)
        np.testing.assert_array_equal(projection.bias.get_value(), bias[rows])


def test_a_tensor_that_does_not_divide_is_refused(tmp_path):
    save_file({"attn.in_proj_weight": np.zeros((11, 6), np.float32)}, tmp_path / "a.st")
    with pytest.raises(WeightsError, match=r"in_proj_weight \[11, 6\] cannot be 3 parameters"):
        load_module(_Projections, tmp_path / "a.st", stacks=STACKS)
    save_file({"attn.in_proj_weight": np.zeros((15, 6), np.float32)}, tmp_path / "a.st")
    with pytest.raises(
        WeightsError, match=r"q_proj\.weight, expected \[4, 6\], got \[5, 6\] \(attn"
    ):
        load_module(_Projections, tmp_path / "a.st", stacks=STACKS)
