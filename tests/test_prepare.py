import pytest
from ml_collections import ConfigDict

from pea_jax import prepare
from pea_jax.data.source import DatasetError
from pea_jax.tinyworld import dataset, splits
from tests.data import sets


def config(data_dir, name) -> ConfigDict:
    return ConfigDict({"data": {"dataset": name, "data_dir": str(data_dir)}})


def test_a_set_is_found_by_its_name_and_told(tmp_path, capsys):
    sets.source(tmp_path)
    source = prepare.open_split("small", tmp_path)
    assert (source.split, len(source)) == ("train", sum(sets.COUNTS.values()))
    prepare.prepare(config(tmp_path, "small"))
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"small is in {source.folder}:",
        "  ja: 7 parallel rows, 5 native rows",
        "  zh: 23 parallel rows, 13 native rows",
    ]


def test_a_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no data set 'photos'"):
        prepare.prepare(config(tmp_path, "photos"))
    assert not list(tmp_path.iterdir())


def test_tinyworld_is_built_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "scenes", lambda *split: splits.scenes(*split)[::100])
    monkeypatch.setattr(dataset, "VARIANTS", {"train": 1, "test": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset.fingerprint.cache_clear()
    source = prepare.open_split("tinyworld", "~/data", "test")
    assert source.folder.is_relative_to(tmp_path / "data")
    assert source.languages == ("it", "ja", "ko", "ru", "zh")
    assert "building the tinyworld data set" in capsys.readouterr().out
    assert prepare.open_split("tinyworld", "~/data", "test").folder == source.folder
    assert capsys.readouterr().out == ""
    dataset.fingerprint.cache_clear()
