"""The text towers against transformers: every hidden state, padded, alone, empty and longest."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.weights.load import load_module
from tests.parity.reference import jitted, randomise, read_config, relative_error, save

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.numpy import load_file, save_file

TOLERANCE = 1e-5

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layer_norm_eps": 0.01,  # nobody's default
    # Eager attention gives a token that may see nothing the mean of all values, as ours does.
    # torch's fused kernel differs there, and is the same as eager everywhere else.
    "attn_implementation": "eager",
}
CLIP = {**SIZES, "max_position_embeddings": 9, "bos_token_id": 48}
POOLER = (r"(.*\.)?pooler\..*",)

BERTS = {
    "bert": (transformers.BertConfig, transformers.BertModel, {"max_position_embeddings": 9}),
    "roberta": (
        transformers.RobertaConfig,
        transformers.RobertaModel,
        {"max_position_embeddings": 11, "type_vocab_size": 1},
    ),
    # another padding id than usual: the positions count from it
    "xlm-roberta": (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaModel,
        {"max_position_embeddings": 13, "pad_token_id": 3},
    ),
}


def prompts(padding: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [4, 9]: the longest prompt, a short one, the empty one, and only padding."""
    ids = np.random.default_rng(0).integers(5, 45, (4, 9)).astype(np.int32)
    lengths = (9, 5, 2, 0)
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1 if length else 9 :] = end
        row[length:] = padding
    mask = np.arange(9)[None] < np.array(lengths)[:, None]
    return ids, mask.astype(np.int32)


def clip(file: Path, config: dict) -> CLIPText:
    config = CLIPTextConfig.from_dict(config)
    return load_module(lambda: CLIPText(config, rngs=nnx.Rngs(0)), file)


def bert(file: Path, config: dict) -> Bert:
    config = BertConfig.from_dict(config)
    return load_module(lambda: Bert(config, rngs=nnx.Rngs(0)), file, ignore=POOLER)


def compare(model, run, ids, mask, *, tolerance=TOLERANCE):
    """All hidden states, the last one, and the pooled vector where the tower has one."""
    arguments = {} if mask is None else {"attention_mask": torch.from_numpy(mask)}
    want = model(torch.from_numpy(ids), output_hidden_states=True, **arguments)
    got = run(ids, mask)
    assert len(got.hidden_states) == len(want.hidden_states)
    for index, (ours, theirs) in enumerate(zip(got.hidden_states, want.hidden_states, strict=True)):
        error = relative_error(ours, theirs)
        assert error < tolerance, f"hidden state {index}: {error:.1e}"
    assert relative_error(got.tokens, want.last_hidden_state) < tolerance
    if got.pooled is not None:
        assert relative_error(got.pooled, want.pooler_output) < tolerance


@pytest.fixture(scope="module", params=[("quick_gelu", 2), ("gelu", 49)], ids=["quick", "exact"])
def clip_pair(request, tmp_path_factory):
    """A small random CLIPTextModel and ours; the legacy and the present rule of pooling."""
    activation, eos = request.param
    config = transformers.CLIPTextConfig(**CLIP, hidden_act=activation, eos_token_id=eos)
    model = randomise(transformers.CLIPTextModel(config))
    file = save(model, tmp_path_factory.mktemp("clip"))
    return model, file, jitted(clip(file, read_config(file)))


def test_clip_as_stable_diffusion_calls_it(clip_pair):
    """No mask; padding with the end of text (SD 1.x) and with 0 (SD 2.x): pooled at the first."""
    model, _, run = clip_pair
    for padding in (49, 0):
        ids, _ = prompts(padding, end=49)
        compare(model, run, ids, None)


def test_clip_with_a_mask(clip_pair):
    model, _, run = clip_pair
    compare(model, run, *prompts(padding=49, end=49))


def test_clip_alone(clip_pair):
    """A batch of one, shorter than the longest prompt."""
    model, _, run = clip_pair
    compare(model, run, prompts(0, 49)[0][1:2, :5], None)


@pytest.mark.parametrize("published", [True, False])
def test_clip_file_with_and_without_prefix(clip_pair, tmp_path, published):
    """As published (text_model. and the positions' buffer), and as transformers 5 saves."""
    _, file, _ = clip_pair
    tensors = {key.removeprefix("text_model."): value for key, value in load_file(file).items()}
    if published:
        tensors = {f"text_model.{key}": value for key, value in tensors.items()}
        tensors["text_model.embeddings.position_ids"] = np.arange(9)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    config = read_config(file)
    got, want = clip(tmp_path / "model.safetensors", config), clip(file, config)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(got), nnx.state(want))


@pytest.fixture(scope="module", params=[*BERTS])
def bert_pair(request, tmp_path_factory):
    """A small random model of each kind, and ours."""
    make_config, make_model, sizes = BERTS[request.param]
    config = make_config(**SIZES, **sizes)
    model = randomise(make_model(config))
    file = save(model, tmp_path_factory.mktemp("bert"))
    return model, file, jitted(bert(file, read_config(file)))


def test_bert(bert_pair):
    """Padded, longest, empty, and all padding."""
    model, _, run = bert_pair
    ids, mask = prompts(model.config.pad_token_id, end=2)
    compare(model, run, ids, mask)


def test_bert_alone(bert_pair):
    """A batch of one without a mask, whose padding counts by its id alone."""
    model, _, run = bert_pair
    compare(model, run, prompts(model.config.pad_token_id, end=2)[0][1:2, :7], None)


@pytest.mark.parametrize("old", [False, True], ids=["present", "tensorflow"])
def test_bert_file_with_prefix_and_head(bert_pair, tmp_path, old):
    """As published: "bert." or "roberta." before every key, and a head that the tower lacks."""
    model, file, _ = bert_pair
    prefix = "bert" if model.config.model_type == "bert" else "roberta"
    tensors = {f"{prefix}.{key}": value for key, value in load_file(file).items()}
    if old:
        tensors = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for key, value in tensors.items()
        }
    tensors[f"{prefix}.embeddings.position_ids"] = np.arange(9)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    config = read_config(file)
    got, want = bert(tmp_path / "model.safetensors", config), bert(file, config)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(got), nnx.state(want))


@pytest.mark.slow
def test_clip_full_size(tmp_path):
    """The text tower of Stable Diffusion 1.x, 123,060,480 parameters, as it is called there."""
    config = transformers.CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        projection_dim=768,
        attn_implementation="eager",
    )
    model = randomise(transformers.CLIPTextModel(config))
    ids = np.full((2, 77), 49407, np.int32)
    ids[:, :9] = np.random.default_rng(0).integers(0, 49406, (2, 9))
    file = save(model, tmp_path)
    compare(model, jitted(clip(file, read_config(file))), ids, None)


@pytest.mark.slow
def test_xlm_r_full_size(tmp_path):
    """XLM-R base, 277,453,056 parameters, at the longest prompt."""
    config = transformers.XLMRobertaConfig(
        vocab_size=250002,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        attn_implementation="eager",
    )
    model = randomise(transformers.XLMRobertaModel(config))
    ids = np.random.default_rng(0).integers(5, 250000, (2, 512)).astype(np.int32)
    ids[1, 60:] = 1
    file = save(model, tmp_path)
    run = jitted(bert(file, read_config(file)))
    compare(model, run, ids, (ids != 1).astype(np.int32))
