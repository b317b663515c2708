"""Names and layouts of parameters in a checkpoint."""

import numpy as np
import pytest

from pea_jax.weights import names


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("conv_in", "kernel"), "conv_in.weight"),
        (("conv_in", "bias"), "conv_in.bias"),
        (
            ("down_blocks", 0, "resnets", 1, "norm1", "scale"),
            "down_blocks.0.resnets.1.norm1.weight",
        ),
        (("embeddings", "word_embeddings", "embedding"), "embeddings.word_embeddings.weight"),
        (("embeddings", "class_embedding"), "embeddings.class_embedding"),
        # Only the leaf is renamed.
        (("scale", "kernel", "bias"), "scale.kernel.bias"),
    ],
)
def test_key(path, key):
    assert names.key_of(path) == key


def test_linear_layout():
    """[out, in] in a file, [in, out] in a kernel."""
    assert names.axes_of(("fc", "kernel"), 2) == (1, 0)
    assert names.file_shape(("fc", "kernel"), (3, 5)) == (5, 3)


def test_convolution_layout():
    """OIHW in a file, HWIO in a kernel; all sizes differ, so that any other order shows."""
    path, file = ("conv", "kernel"), np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    kernel = file.transpose(names.axes_of(path, 4))
    assert kernel.shape == (4, 5, 3, 2)
    assert kernel[3, 4, 2, 1] == file[1, 2, 3, 4]
    assert names.file_shape(path, kernel.shape) == file.shape


@pytest.mark.parametrize("leaf", ["bias", "scale", "embedding"])
def test_other_leaves_are_not_transposed(leaf):
    assert names.axes_of(("x", leaf), 2) == (0, 1)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_layout_there_and_back(rank, rng):
    path = ("x", "kernel")
    parameter = rng.standard_normal(range(2, 2 + rank))
    file = parameter.transpose(names.file_axes_of(path, rank))
    assert file.shape == names.file_shape(path, parameter.shape)
    np.testing.assert_array_equal(file.transpose(names.axes_of(path, rank)), parameter)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_part_of_a_parameter_is_found_in_the_file(rank, rng):
    """The index, too, goes through the permutation, which for three axes is not its own inverse."""
    path = ("x", "kernel")
    file = rng.standard_normal(range(4, 4 + rank))
    parameter = file.transpose(names.axes_of(path, rank))
    index = tuple(slice(axis, axis + 2) for axis in range(rank))
    part = file[names.file_index(path, index)].transpose(names.axes_of(path, rank))
    np.testing.assert_array_equal(part, parameter[index])


@pytest.mark.parametrize("rank", [1, 5])
def test_a_kernel_of_another_rank_is_refused(rank):
    with pytest.raises(ValueError, match=rf"conv\.weight.*rank {rank}"):
        names.axes_of(("conv", "kernel"), rank)


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("text_model.encoder.layers.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.weight"),
        ("roberta.embeddings.LayerNorm.bias", "embeddings.LayerNorm.bias"),
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
        (
            "decoder.mid_block.attentions.0.query.weight",
            "decoder.mid_block.attentions.0.to_q.weight",
        ),
        ("encoder.mid_block.attentions.0.key.bias", "encoder.mid_block.attentions.0.to_k.bias"),
        ("encoder.mid_block.attentions.0.value.bias", "encoder.mid_block.attentions.0.to_v.bias"),
        (
            "encoder.mid_block.attentions.0.proj_attn.weight",
            "encoder.mid_block.attentions.0.to_out.0.weight",
        ),
        # BERT's own attention has those names too, and keeps them.
        *[(f"encoder.layer.0.attention.self.{x}.bias",) * 2 for x in ("query", "key", "value")],
        ("vision_model.text_model.x", "vision_model.text_model.x"),
    ],
)
def test_aliases(key, canonical):
    assert names.canonical(key) == canonical


@pytest.mark.parametrize(
    ("key", "got", "fits"),
    [
        ("encoder.mid_block.attentions.0.to_q.weight", (8, 8, 1, 1), True),
        ("encoder.mid_block.attentions.0.to_out.0.weight", (8, 8, 1, 1), True),
        ("encoder.mid_block.attentions.0.to_q.weight", (8, 8, 3, 3), False),
        ("encoder.mid_block.attentions.0.to_q.weight", (8, 4, 1, 1), False),
        ("encoder.mid_block.attentions.0.to_q.weight", (8, 8, 1), False),
        # A convolution where the UNet has a linear layer is another config, not another spelling.
        ("down_blocks.0.attentions.0.proj_in.weight", (8, 8, 1, 1), False),
    ],
)
def test_unit_convolutions_of_the_old_vae(key, got, fits):
    assert names.is_unit_convolution(key, got, (8, 8)) is fits
