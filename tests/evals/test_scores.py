import dataclasses

import numpy as np
import pytest

from pea_jax.evals import scores
from pea_jax.tinyworld import splits
from pea_jax.tinyworld.world import render


def test_true_renders_are_right_and_each_attribute_counts_for_itself():
    scenes = splits.scenes("test", native=False)[::8]
    images = np.stack([render(scene) for scene in scenes])
    perfect = {"all": 1.0, "shape": 1.0, "colour": 1.0, "size": 1.0, "background": 1.0}
    assert scores.scene_accuracy(images, scenes) == perfect

    other = {"small": "large", "large": "small"}
    wanted = [dataclasses.replace(s, size=other[s.size]) for s in scenes[:2]] + list(scenes[2:])
    assert scores.scene_accuracy(images, wanted) == perfect | {"all": 0.75, "size": 0.75}

    # Two attributes wrong in one image cost one image, not two.
    wanted[0] = dataclasses.replace(wanted[0], colour="blue")
    expected = perfect | {"all": 0.75, "size": 0.75, "colour": 0.875}
    assert scores.scene_accuracy(images, wanted) == expected


def test_noise_scores_nothing():
    scenes = splits.scenes("test", native=True)[:4]
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    assert scores.scene_accuracy(noise, scenes)["all"] == 0


def test_one_scene_an_image_is_needed():
    with pytest.raises(ValueError, match="got 1 and 2 images"):
        scores.scene_accuracy(np.zeros((2, 64, 64, 3), np.uint8), splits.scenes("test", True)[:1])
