"""Sets of latents: what they hold, and for which run they serve."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from pea_jax.data import images, latents
from pea_jax.data.read.loader import make_loader
from pea_jax.data.read.source import DatasetError
from pea_jax.data.write import builder
from tests.data import sets

RECIPE = latents.LatentRecipe(
    dataset="small",
    split="train",
    languages=("ja", "zh"),
    parts=("native", "parallel"),
    sizes=((8, 8),),
    crop="centre",
    flips=False,
    dtype="float32",
    vae="a" * 16,
    compute="float32",
)


def row(number: int, language: str = "zh", native: bool = False, **changes) -> latents.LatentRow:
    """A row whose moments encode `number`."""
    values = {
        "key": f"row{number}",
        "caption": f"c{number}",
        "caption_en": "" if native else f"e{number}",
        "language": language,
        "native": native,
        "height": 9,
        "width": 8,
        "size": (8, 8),
        "crop": (1, 0),
        "moments": np.full((2, 4, 2, 3), number / 3, np.float32),
        "mirrored": None,
    }
    return latents.LatentRow(**(values | changes))


def build(data_dir, recipe=RECIPE, pixels="b" * 16):
    rows = [row(i, each.language, each.native) for i, each in enumerate(sets.rows())]
    return builder.build(
        data_dir,
        recipe.name,
        {"train": [lambda: iter(rows)]},
        recipe=latents.recipe_file(recipe, pixels),
        row_format=latents.row_format(recipe.dtype),
    )


@pytest.mark.parametrize("dtype", latents.DTYPES)
def test_a_row_comes_back_as_it_went_in(tmp_path, rng, dtype):
    """Moments in float16 are rounded to the nearest, and read as float32."""
    moments, mirrored = rng.standard_normal((2, 2, 4, 2, 3)).astype(np.float32)
    original = row(3, moments=moments, mirrored=mirrored)
    recipe = dataclasses.replace(RECIPE, flips=True, dtype=dtype)
    folder = builder.build(
        tmp_path,
        recipe.name,
        {"train": [lambda: iter([original])]},
        recipe=latents.recipe_file(recipe, ""),
        row_format=latents.row_format(dtype),
    )
    source = latents.LatentSource(folder, "train")
    assert source.recipe == recipe
    (got,) = [source[number] for number in range(len(source))]
    for name in ("moments", "mirrored"):
        array = getattr(got, name)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, getattr(original, name).astype(dtype))
    columns = [
        {name: value for name, value in vars(each).items() if name not in ("moments", "mirrored")}
        for each in (got, original)
    ]
    assert columns[0] == columns[1]


@pytest.mark.parametrize("value", [np.nan, 1e5])
def test_moments_that_cannot_be_stored_are_refused(tmp_path, value):
    """float16 would store 1e5 as infinity."""
    recipe = dataclasses.replace(RECIPE, dtype="float16")
    original = row(3, moments=np.full((2, 4, 2, 3), value, np.float32))
    with pytest.raises(ValueError, match=r"row row3: .* not finite in float16"):
        builder.build(
            tmp_path,
            recipe.name,
            {"train": [lambda: iter([original])]},
            row_format=latents.row_format("float16"),
        )


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match=r"latents: .*float16, got 'int8'; a random crop is"):
        dataclasses.replace(RECIPE, crop="random", dtype="int8")


def test_the_name_tells_every_recipe_from_others():
    changes = {
        "dataset": "large",
        "split": "test",
        "languages": ("zh",),
        "parts": ("parallel",),
        "sizes": ((8, 8), (8, 16)),
        "flips": True,
        "dtype": "float16",
        "vae": "c" * 16,
        "compute": "bfloat16",
    }
    # A crop of another kind there is none.
    assert changes.keys() | {"crop"} == {field.name for field in dataclasses.fields(RECIPE)}
    others = [dataclasses.replace(RECIPE, **{name: value}) for name, value in changes.items()]
    assert len({one.name for one in [RECIPE, *others]}) == 10
    assert re.fullmatch(r"small_latents_[0-9a-f]{10}", RECIPE.name)
    assert dataclasses.replace(RECIPE).name == RECIPE.name


def load(source, **options):
    return make_loader(
        source,
        native_batch=2,
        parallel_batch=4,
        seed=0,
        native_tokenizer=sets.tokenize,
        english_tokenizer=sets.tokenize,
        image_size=8,
        **options,
    )


def test_batches_have_the_rows_of_the_pixel_set_in_the_same_order(tmp_path):
    pixels = sets.source(tmp_path)
    source = latents.find(tmp_path, RECIPE, None) if build(tmp_path) else None
    for _, seen, kept in zip(range(12), load(pixels), load(source), strict=False):
        for part, arrays in seen.items():
            wanted = [sets.number_of(picture) for picture in arrays.pop("pixels")]
            moments = kept[part].pop("moments")
            assert (moments.shape, moments.dtype) == ((len(wanted), 2, 4, 2, 3), np.float32)
            np.testing.assert_allclose(moments[:, 1, 2, 1, 0], np.divide(wanted, 3), rtol=1e-6)
            assert (kept[part].pop("time_ids") == [9, 8, 1, 0, 8, 8]).all()
            del arrays["time_ids"]
            assert kept[part].keys() == arrays.keys()
            for name, array in arrays.items():
                np.testing.assert_array_equal(kept[part][name], array)


def test_a_view_that_was_not_encoded_is_refused(tmp_path):
    build(tmp_path)
    source = latents.find(tmp_path, RECIPE, None)
    for size, view in [
        ((8, 16), images.CENTRE),
        ((8, 8), images.View(flipped=True)),
        ((8, 8), images.View(down=0.9)),
    ]:
        with pytest.raises(DatasetError, match=r"row row0 .*expected latents of 8x\d+ pixels"):
            source.picture(source[0], size, view)
    both = row(7, mirrored=np.zeros((2, 4, 2, 3), np.float32))
    assert source.picture(both, (8, 8), images.View(flipped=True))["moments"] is both.mirrored


def test_a_set_of_something_else_is_named_with_what_differs(tmp_path):
    """The error names both sides in one line."""
    build(tmp_path)
    find = functools.partial(latents.find, tmp_path, pixels=None)
    with pytest.raises(DatasetError) as error:
        find(dataclasses.replace(RECIPE, vae="c" * 16, sizes=((16, 16),)))
    message = str(error.value)
    assert "\n" not in message
    assert (
        f'{RECIPE.name}: sizes.0.0: 8 there, 16 now; sizes.0.1: 8 there, 16 now; vae: "' in message
    )
    assert f'"{"a" * 16}" there, "{"c" * 16}" now' in message
    assert "pea-jax prepare --latents" in message
    with pytest.raises(DatasetError, match=r"^no latents of large for this run in [^(]*$"):
        find(dataclasses.replace(RECIPE, dataset="large"))


def test_a_set_of_other_pixels_is_refused(tmp_path):
    pixels = sets.source(tmp_path)
    build(tmp_path, pixels=pixels.digest)
    assert latents.find(tmp_path, RECIPE, pixels).recipe == RECIPE
    other = sets.source(tmp_path / "other", damaged=[3])
    assert other.digest == sets.source(tmp_path / "third", damaged=[3]).digest
    with pytest.raises(DatasetError) as error:
        latents.find(tmp_path, RECIPE, other)
    for digest in (pixels.digest, other.digest):
        assert digest in str(error.value)


def test_a_set_that_is_not_finished_is_refused(tmp_path):
    def broken():
        yield row(0)
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        builder.build(
            tmp_path,
            RECIPE.name,
            {"train": [lambda: iter([row(1)]), broken]},
            recipe=latents.recipe_file(RECIPE, ""),
            row_format=latents.row_format(RECIPE.dtype),
        )
    with pytest.raises(DatasetError, match=r"1.0.0 is not finished: continue with pea-jax prepare"):
        latents.find(tmp_path, RECIPE, None)


def test_a_pixel_set_is_no_set_of_latents(tmp_path):
    folder = sets.source(tmp_path).folder
    with pytest.raises(DatasetError, match="holds no latents of this version"):
        latents.LatentSource(folder, "train")
