"""Which files are found in a folder, and which are requested from the Hub."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from pea_jax import tinyworld
from pea_jax.weights.load import WeightsError
from pea_jax.weights.locate import (
    MOVED,
    fetch_weights,
    prefers_half,
    read_json,
    resolve,
)

STEM = "diffusion_pytorch_model"


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def write_index(file: Path, *shards: str) -> None:
    weight_map = {f"{number}.weight": shard for number, shard in enumerate(shards)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class FakeHub:
    """A repository on this disk, fetched file by file as the Hub's client does."""

    def __init__(self, root: Path):
        self.repository, self.snapshot = root / "repository", root / "snapshot"
        self.requests: list[tuple[str, str | None]] = []

    def __call__(self, repo_id, *, revision=None, allow_patterns=None):
        self.requests.append((repo_id, revision))
        files = [
            file.relative_to(self.repository).as_posix()
            for file in self.repository.rglob("*")
            if file.is_file()
        ]
        wanted = list(filter_repo_objects(files, allow_patterns=allow_patterns))
        assert wanted, f"the client warns of patterns that match nothing: {allow_patterns}"
        for name in wanted:
            (self.snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, self.snapshot / name)
        return str(self.snapshot)

    @property
    def fetched(self) -> set[str]:
        return {
            file.relative_to(self.snapshot).as_posix()
            for file in self.snapshot.rglob("*")
            if file.is_file()
        }


@pytest.fixture
def hub(tmp_path, monkeypatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_a_folder_is_itself(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path), patterns=["*.json"]) == tmp_path


def test_shipped_names(tmp_path, monkeypatch):
    monkeypatch.setattr(tinyworld, "CHECKPOINTS", tmp_path)
    with pytest.raises(WeightsError, match=r"tinyworld/sd: .*lacks the shipped checkpoint"):
        resolve("tinyworld/sd")
    (tmp_path / "sd").mkdir()
    (tmp_path / "xlm-roberta").mkdir()
    assert resolve("tinyworld/sd") == tmp_path / "sd"
    assert resolve("tinyworld/xlm-roberta") == tmp_path / "xlm-roberta"


def test_a_file_is_refused(tmp_path):
    file = touch(tmp_path, "model.safetensors") / "model.safetensors"
    with pytest.raises(WeightsError, match="got a file"):
        resolve(file)


def test_only_the_patterns_are_requested(hub):
    touch(hub.repository, "config.json", "unet/config.json", "unet/weights.bin")
    assert resolve("some/model", patterns=["unet/config.json"]) == hub.snapshot
    assert hub.requests == [("some/model", None)]
    assert hub.fetched == {"unet/config.json"}


def test_a_revision_follows_the_id(hub, tmp_path, monkeypatch):
    touch(hub.repository, "config.json")
    assert resolve("some/model@refs/pr/1") == hub.snapshot
    assert hub.requests == [("some/model", "refs/pr/1")]
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "some/model@v1/config.json")
    assert resolve("some/model@v1") == Path("some/model@v1")  # an existing folder wins
    assert len(hub.requests) == 1
    for name in ("some/model@", "@v1"):
        with pytest.raises(WeightsError, match=f"^{name}: expected id@revision, got an empty part"):
            resolve(name)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "a model", "../nowhere"])
def test_a_name_that_leads_nowhere_is_one_line(name):
    """The real client, offline as in all tests."""
    with pytest.raises(
        WeightsError, match="neither a folder here, nor one of tinyworld/"
    ) as raised:
        resolve(name)
    assert str(raised.value).startswith(f"{name}: ")
    assert "\n" not in str(raised.value)


def test_a_repository_that_moved_names_its_new_home():
    gone = "runwayml/stable-diffusion-v1-5"
    for name in (gone, f"{gone}@fp16"):
        with pytest.raises(WeightsError, match=f"^{name}: .* now at {MOVED[gone]}"):
            resolve(name)


# A repository with both precisions, and files beside them that nobody needs.
BOTH = (
    "config.json",
    *(
        f"unet/{STEM}{suffix}"
        for suffix in (
            ".safetensors",
            ".fp16.safetensors",
            ".non_ema.safetensors",
            ".bin",
            ".fp16.bin",
        )
    ),
    "unet/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "safety_checker/model.safetensors",
    "v1-5-pruned.safetensors",
)
STEMS = {"unet": STEM, "text_encoder": "model"}


@pytest.mark.parametrize(("half", "suffix"), [(True, ".fp16.safetensors"), (False, ".safetensors")])
def test_one_precision_is_fetched(hub, half, suffix):
    touch(hub.repository, *BOTH)
    found = fetch_weights("some/model@v1", STEMS, half=half)
    weights = {f"unet/{STEM}{suffix}", f"text_encoder/model{suffix}"}
    assert hub.fetched == weights | {"unet/config.json"}
    assert found == {
        "unet": [hub.snapshot / f"unet/{STEM}{suffix}"],
        "text_encoder": [hub.snapshot / f"text_encoder/model{suffix}"],
    }
    assert hub.requests == [("some/model", "v1")]


@pytest.mark.parametrize("half", [True, False])
def test_the_other_precision_is_fetched_for_the_part_that_has_no_other(hub, half):
    only = "safetensors" if half else "fp16.safetensors"
    unet = "fp16.safetensors" if half else "safetensors"
    other = "safetensors" if half else "fp16.safetensors"
    touch(hub.repository, "unet/config.json", "text_encoder/config.json")
    touch(
        hub.repository, f"unet/{STEM}.{unet}", f"unet/{STEM}.{other}", f"text_encoder/model.{only}"
    )
    fetch_weights("some/model", STEMS, half=half)
    weights = {name for name in hub.fetched if name.endswith("safetensors")}
    assert weights == {f"unet/{STEM}.{unet}", f"text_encoder/model.{only}"}


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("model.safetensors.fp16.index.json", "model-0000{}-of-00002.fp16.safetensors"),
        ("model.fp16.safetensors.index.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("model.safetensors.index.json", "model-0000{}-of-00002.safetensors"),
    ],
)
def test_shards_of_every_naming(hub, index, shard):
    shards = [shard.format(number) for number in (1, 2)]
    touch(hub.repository, *shards, "config.json", "other-00001-of-00002.safetensors")
    # Shards of the other precision, which must stay where they are.
    half = "fp16" in index
    others = (
        "model-0000{}-of-00002.safetensors" if half else "model-0000{}-of-00002.fp16.safetensors"
    )
    touch(hub.repository, *(others.format(number) for number in (1, 2)))
    write_index(hub.repository / index, shards[0], shards[1], shards[0])
    assert fetch_weights("some/model", {"": "model"}, half=half) == {
        "": [hub.snapshot / shard for shard in shards]
    }
    assert hub.fetched == {"config.json", index, *shards}


@pytest.mark.parametrize("half", [True, False])
def test_pickles_are_fetched_for_the_part_that_has_nothing_else(hub, half):
    touch(hub.repository, "unet/config.json", "text_encoder/config.json")
    touch(hub.repository, f"unet/{STEM}.bin", f"unet/{STEM}.safetensors")
    touch(hub.repository, "text_encoder/pytorch_model.bin", "text_encoder/tf_model.h5")
    assert fetch_weights("some/model", STEMS, half=half) == {
        "unet": [hub.snapshot / f"unet/{STEM}.safetensors"],
        "text_encoder": [hub.snapshot / "text_encoder/pytorch_model.bin"],
    }
    assert not any(name.endswith(("unet/" + STEM + ".bin", ".h5")) for name in hub.fetched)


def test_pickles_in_shards_and_of_open_clip(tmp_path):
    shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    touch(tmp_path / "t5", *shards)
    write_index(tmp_path / "t5" / "pytorch_model.bin.index.json", *shards)
    found = fetch_weights(tmp_path, {"t5": "model"})
    assert found == {"t5": [tmp_path / "t5" / name for name in shards]}
    pickled = touch(tmp_path / "clip", "open_clip_pytorch_model.bin")
    found = fetch_weights(pickled, {"": "open_clip_model"})
    assert found == {"": [pickled / "open_clip_pytorch_model.bin"]}


def test_a_repository_without_a_config(hub):
    touch(hub.repository, "tokenizer.json", "open_clip_pytorch_model.bin")
    fetch_weights("some/model", {"": "open_clip_model"}, beside="tokenizer.json")
    assert hub.fetched == {"tokenizer.json", "open_clip_pytorch_model.bin"}


def test_a_repository_without_weights_is_refused_for_every_part(hub):
    touch(hub.repository, "unet/config.json", "text_encoder/config.json")
    touch(hub.repository, "text_encoder/tf_model.h5")
    with pytest.raises(
        WeightsError,
        match=rf"unet: expected {STEM}.*or {STEM}.bin, .*text_encoder: expected model\.safetensors,"
        r" its shards or pytorch_model\.bin",
    ):
        fetch_weights("some/model", STEMS)


def test_a_local_folder_prefers_one_precision_and_takes_the_other(tmp_path):
    touch(tmp_path / "both", "model.safetensors", "model.fp16.safetensors")
    touch(tmp_path / "half", "model.fp16.safetensors")
    touch(tmp_path / "full", "model.safetensors")
    names = {
        (folder, half): fetch_weights(tmp_path, {folder: "model"}, half=half)[folder][0].name
        for folder in ("both", "half", "full")
        for half in (True, False)
    }
    assert names == {
        ("both", True): "model.fp16.safetensors",
        ("both", False): "model.safetensors",
        ("half", True): "model.fp16.safetensors",
        ("half", False): "model.fp16.safetensors",
        ("full", True): "model.safetensors",
        ("full", False): "model.safetensors",
    }
    assert fetch_weights(tmp_path, {"both": "model"}, half=True) == {
        "both": [tmp_path / "both" / "model.fp16.safetensors"]
    }


def test_the_error_lists_what_a_folder_has_instead(tmp_path):
    touch(tmp_path / "unet", "flax_model.msgpack")
    with pytest.raises(
        WeightsError, match=r"expected model\.safetensors, .* got flax_model\.msgpack"
    ):
        fetch_weights(tmp_path, {"unet": "model"})
    with pytest.raises(WeightsError, match="vae: no such folder"):
        fetch_weights(tmp_path, {"vae": "model"})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "expected a JSON object"),
        ("[]", "got a list"),
        ("{}", "expected a weight_map"),
        (
            '{"weight_map": {"a": "../../secret.safetensors"}}',
            r"got \['../../secret.safetensors'\]",
        ),
    ],
)
def test_a_broken_index_is_refused(tmp_path, content, problem):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=problem):
        fetch_weights(tmp_path, {"": "model"})


def test_a_missing_json_names_itself(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json: no such file$"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("dtype", "half"), [("float32", False), ("bfloat16", True), ("float16", True), (None, False)]
)
def test_16_bit_models_read_16_bit_files(dtype, half):
    assert prefers_half(dtype) is half
