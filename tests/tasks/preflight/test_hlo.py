"""What is read from a program's text: loops as often as they run, kernels, collectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pea_jax.runtime import parallel
from pea_jax.tasks.preflight import hlo


def _text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def _ones(*shape):
    return jnp.ones(shape, jnp.float32)


def test_a_product_in_a_scan_counts_as_often_as_it_runs():
    def function(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    real, once = hlo.count(_text(function, _ones(16, 32), _ones(32, 32)))
    assert once.flops == 2 * 16 * 32 * 32
    assert real.flops == 7 * once.flops
    assert real.bytes > 3 * once.bytes


def test_a_loop_may_be_told_how_often_it_works():
    """The sampler's loop is as long as its plan, whose last rows are no steps."""

    def function(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=64)[0]

    real, once = hlo.count(_text(function, _ones(16, 32), _ones(32, 32)), {64: 20})
    assert real.flops == 20 * once.flops


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "SAME"), (1, "VALID")])
def test_a_convolution_counts_the_places_that_see_no_padding(stride, padding):
    """Counted by hand: the ones that each output sums up."""

    def function(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, w = _ones(1, 9, 7, 4), _ones(3, 3, 4, 8)
    wanted = 2 * float(jnp.sum(function(x, w)))
    # A CPU may turn the convolution into another; the shapes of the text are what is counted.
    text = "\n".join(
        [
            "ENTRY %main (a: f32[1,9,7,4], b: f32[3,3,4,8]) -> f32[] {",
            "  %a = f32[1,9,7,4]{3,2,1,0} parameter(0)",
            "  %b = f32[3,3,4,8]{3,2,1,0} parameter(1)",
            f"  ROOT %c = f32[{','.join(map(str, function(x, w).shape))}]{{3,2,1,0}} "
            f"convolution(%a, %b), window={{size=3x3{_window(stride, padding)}}}, "
            "dim_labels=b01f_01io->b01f",
            "}",
        ]
    )
    assert hlo.count(text)[0].flops == wanted


def _window(stride, padding):
    pads = jax.lax.padtype_to_pads((9, 7), (3, 3), (stride, stride), padding)
    pad = "x".join(f"{low}_{high}" for low, high in pads)
    return f" stride={stride}x{stride} pad={pad}"


SPLASH = """\
ENTRY %main (q: bf16[2,10,4096,64], k: bf16[2,10,1024,64], m: s8[1,8,8]) -> bf16[10] {{
  %m = s8[1,8,8]{{2,1,0}} parameter(2)
  %q = bf16[2,10,4096,64]{{3,2,1,0}} parameter(0)
  %k = bf16[2,10,1024,64]{{3,2,1,0:T(8,128)(2,1)S(1)}} parameter(1)
  %{name}.7 = (f32[512,128]{{1,0:T(8,128)}}, bf16[2,10,4096,64]{{3,2,1,0}}) custom-call(%m, %q, \
%k, %k), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{}}"
}}}}, metadata={{op_name="jit(f)/x"}}
  ROOT %r = bf16[10]{{0}} copy(%q)
}}
"""


@pytest.mark.parametrize(
    ("name", "products"),
    [("splash_mha_fwd_residuals", 2), ("splash_mha_dq_no_residuals", 3), ("splash_mha_dkv", 4)],
)
def test_splash_attention_counts_its_products(name, products):
    """Attributes of a kernel go over several lines, one of which begins with a brace."""
    counts, _ = hlo.count(SPLASH.format(name=name))
    assert counts.kernel_flops == products * 2 * 20 * 4096 * 1024 * 64
    assert counts.unknown_kernels == ()
    assert counts.bytes > 2 * 20 * 4096 * 64  # the copy after the kernel is seen


def test_another_kernel_is_named_rather_than_counted():
    counts, _ = hlo.count(SPLASH.format(name="mystery"))
    assert counts.kernel_flops == 0
    assert counts.unknown_kernels == ("mystery.7",)


def test_collectives_with_the_bytes_that_a_device_sends():
    mesh = parallel.make_mesh(data=8)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.device_put(np.ones((64, 16), np.float32), rows)

    summed, _ = hlo.count(_text(lambda x: jnp.sum(x, axis=0), x))
    assert summed.collectives == {"all-reduce": (1, 2 * 7 / 8 * 16 * 4)}

    whole = parallel.replicated(mesh)
    gathered, _ = hlo.count(
        jax.jit(lambda x: 2 * x, out_shardings=whole).lower(x).compile().as_text()
    )
    assert gathered.collectives == {"all-gather": (1, 7 * 8 * 16 * 4)}


@pytest.mark.parametrize("axes", [("data", "fsdp"), ("fsdp", "data")])
def test_collectives_over_one_axis_of_a_mesh(axes):
    """Over the inner axis the text says which devices lie where, and over the outer one nothing."""
    mesh = jax.make_mesh([{"data": 2, "fsdp": 4}[axis] for axis in axes], axes)
    x = jax.device_put(np.ones((64, 16), np.float32), NamedSharding(mesh, PartitionSpec("fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    text = jax.jit(lambda x: 2 * x, out_shardings=whole).lower(x).compile().as_text()
    assert ("device_ids=(" in text) == (axes[-1] == "fsdp")
    assert hlo.count(text)[0].collectives == {"all-gather": (1, 3 * 16 * 16 * 4)}


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.count("nothing")
