"""What accelerators can do: which kinds of devices are known."""

import pytest

from pea_jax.runtime import chips


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_a_kind_of_device_as_jax_names_it_is_one_chip(kind, name):
    assert chips.find(kind).name == name


@pytest.mark.parametrize("kind", ["cpu", "TPU v4 lite", "TPU v9", "NVIDIA L40S", "NVIDIA A10G"])
def test_a_kind_that_is_not_listed_is_not_taken_for_another(kind):
    assert chips.find(kind) is None
