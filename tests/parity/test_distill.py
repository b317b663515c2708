"""The loss and the adapter's gradient against PyTorch, written from method.md by itself.

diffusers' UNet with forward hooks and its AutoencoderKL, transformers' CLIP and XLM-R, an adapter
made here; only what is random is taken from ours.
"""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from pea_jax.diffusion.schedule import Schedule
from pea_jax.distill.batch import BatchLayout
from pea_jax.distill.losses import DistillSettings
from pea_jax.distill.noise import draw
from pea_jax.distill.state import split_networks
from pea_jax.distill.step import LossAndGradient
from pea_jax.families.english import EnglishText
from pea_jax.families.sd import SD
from pea_jax.families.sdxl import SDXL
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.models.vae import VAE, VAEConfig
from pea_jax.weights import names
from pea_jax.weights.load import load_module
from tests.distill.fakes import quick
from tests.parity.reference import randomise, read_config, relative_error, save, to_torch

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file

NATIVE, PARALLEL = 2, 4
IMAGE, LENGTH, WIDTH, LANGUAGE_WIDTH = 16, 6, 12, 8
KEY = jax.random.key(2)  # drops prompts of both parts: checked below
SETTINGS = DistillSettings(
    native_weight=0.7, output_weight=1.3, feature_weight=0.2, prompt_drop=0.4, noise_offset=0.2
)
#: Family -> the prediction types that its models come with.
FAMILIES = {"sd": ("epsilon", "v_prediction"), "sdxl": ("epsilon",)}
CASES = [(family, kind) for family, kinds in FAMILIES.items() for kind in kinds]
#: SDXL's second tower, whose projected vector conditions the UNet; WIDTH is that of both towers.
POOLED_WIDTH, SECOND_WIDTH = 10, 8
UNETS = {
    "sd": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
    },
    # SDXL's three levels, so that there are its seven features.
    "sdxl": {
        "sample_size": 8,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": (1, 2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * 4,
    },
}
VAE_CONFIG = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "scaling_factor": 0.4,
}
TOWER = {
    "vocab_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "hidden_act": "gelu",
}


class TorchAdapter(torch.nn.Module):
    """method.md, "The adapter": the SD 1.x form, or SDXL's with a pooled vector."""

    def __init__(self, pooled_width=None):
        super().__init__()
        self.layernorm = torch.nn.LayerNorm(LANGUAGE_WIDTH)
        self.projector = torch.nn.Sequential(
            torch.nn.Linear(LANGUAGE_WIDTH, 10, bias=False),
            torch.nn.GELU(),
            torch.nn.Linear(10, 10, bias=False),
            torch.nn.GELU(),
            torch.nn.Linear(10, pooled_width or WIDTH, bias=False),
        )
        self.fc = torch.nn.Linear(pooled_width, WIDTH) if pooled_width else None

    def forward(self, tokens):
        hidden = self.projector(self.layernorm(tokens))
        if self.fc is None:
            return hidden, None
        return self.fc(torch.nn.functional.gelu(hidden)), hidden.mean(dim=1)


def make_models(family) -> dict[str, "torch.nn.Module"]:
    def clip(width, **options):
        return transformers.CLIPTextConfig(
            **{**TOWER, **options}, hidden_size=width, eos_token_id=2
        )

    xlm_r = transformers.XLMRobertaConfig(
        **TOWER, hidden_size=LANGUAGE_WIDTH, type_vocab_size=1, pad_token_id=1
    )
    models = {
        "unet": diffusers.UNet2DConditionModel(**UNETS[family]),
        "vae": diffusers.AutoencoderKL(**VAE_CONFIG),
        "text_encoder": transformers.CLIPTextModel(clip(WIDTH, hidden_act="quick_gelu")),
        "language_encoder": transformers.XLMRobertaModel(xlm_r, add_pooling_layer=False),
        "adapter": TorchAdapter(),
    }
    if family == "sdxl":
        first = clip(WIDTH - SECOND_WIDTH, hidden_act="quick_gelu")
        second = clip(SECOND_WIDTH, projection_dim=POOLED_WIDTH)
        models["text_encoder"] = transformers.CLIPTextModel(first)
        models["text_encoder_2"] = transformers.CLIPTextModelWithProjection(second)
        models["adapter"] = TorchAdapter(POOLED_WIDTH)
    for seed, model in enumerate(models.values()):
        randomise(model, seed)
    # The posterior's spread must show in the latents beside its mean.
    models["vae"].quant_conv.bias.data[4:] = -1.0
    models["adapter"].requires_grad_(True)
    return models


def tokens(generator, rows, padding):
    """Prompts of any length, the first of them empty: ids and mask."""
    lengths = np.array([2, *generator.integers(3, LENGTH + 1, rows - 1)])[:, None]
    mask = np.arange(LENGTH)[None] < lengths
    ids = np.where(mask, generator.integers(4, 32, (rows, LENGTH)), padding)
    ids[:, 0], ids[np.arange(rows), lengths[:, 0] - 1] = 0, 2
    return ids.astype(np.int32), mask.astype(np.int32)


def make_batch(family):
    """A batch, and the empty prompt of both sides."""
    generator = np.random.default_rng(0)
    towers = 2 if family == "sdxl" else 1
    batch = {}
    for name, rows in (("native", NATIVE), ("parallel", PARALLEL)):
        ids, mask = tokens(generator, rows + 1, padding=1)
        pixels = generator.integers(0, 256, (rows, IMAGE, IMAGE, 3), dtype=np.uint8)
        time_ids = generator.integers(0, 1000, (rows, 6), dtype=np.int32)
        batch[name] = {"pixels": pixels, "time_ids": time_ids, "ids": ids[1:], "mask": mask[1:]}
        batch[name]["language"] = np.zeros(rows, np.int32)
    # Ids of two towers lie side by side; here they differ in their padding, as SDXL's do.
    sides = [tokens(np.random.default_rng(9), PARALLEL + 1, padding=2 - i) for i in range(towers)]
    english_ids, english_mask = (np.concatenate(side, axis=1) for side in zip(*sides, strict=True))
    batch["parallel"] |= {"english_ids": english_ids[1:], "english_mask": english_mask[1:]}
    empty = {
        "ids": ids[:1],
        "mask": mask[:1],
        "english_ids": english_ids[:1],
        "english_mask": english_mask[:1],
    }
    return batch, empty


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Family -> the PyTorch models, and ours from their files."""
    return {family: make_pair(family, tmp_path_factory) for family in FAMILIES}


def make_pair(family, tmp_path_factory):
    models = make_models(family)
    files = {
        name: save(model, tmp_path_factory.mktemp(name))
        for name, model in models.items()
        if name != "adapter"
    }
    files["adapter"] = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_file(models["adapter"].state_dict(), files["adapter"])
    classes = {
        "unet": (UNet, UNetConfig),
        "vae": (VAE, VAEConfig),
        "text_encoder": (CLIPText, CLIPTextConfig),
        "text_encoder_2": (functools.partial(CLIPText, projected=True), CLIPTextConfig),
        "language_encoder": (Bert, BertConfig),
    }
    classes = {name: classes[name] for name in classes if name in files}
    configs = {name: cls.from_dict(read_config(files[name])) for name, (_, cls) in classes.items()}
    builds = {
        name: lambda model=model, config=configs[name]: model(config, rngs=nnx.Rngs(0))
        for name, (model, _) in classes.items()
    }
    pooled_width = POOLED_WIDTH if family == "sdxl" else None
    adapter = AdapterConfig(LANGUAGE_WIDTH, 10, WIDTH, pooled_width=pooled_width)
    builds["adapter"] = lambda: Adapter(adapter, rngs=nnx.Rngs(0))
    ours = {name: load_module(build, files[name]) for name, build in builds.items()}
    towers = [ours.pop(name) for name in ("text_encoder", "text_encoder_2") if name in ours]
    return models, {**ours, "text_encoder": EnglishText(SDXL if family == "sdxl" else SD, towers)}


def english(models, ids):
    """What diffusers' pipelines of the family give the UNet: tokens, and SDXL's pooled vector."""
    if "text_encoder_2" not in models:
        return models["text_encoder"](ids).last_hidden_state, None
    outputs = [
        models[name](own, output_hidden_states=True)
        for name, own in zip(("text_encoder", "text_encoder_2"), ids.chunk(2, dim=1), strict=True)
    ]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return hidden, outputs[1].text_embeds


def hooked(unet, latents, timesteps, context, pooled, time_ids):
    """The prediction, and every block's output in the order of computation."""
    features, handles = {}, []
    blocks = [
        *((f"down_{index}", block) for index, block in enumerate(unet.down_blocks)),
        ("mid", unet.mid_block),
        *((f"up_{index}", block) for index, block in enumerate(unet.up_blocks)),
    ]
    for name, block in blocks:

        def keep(module, arguments, output, name=name):
            features[name] = output[0] if isinstance(output, tuple) else output

        handles.append(block.register_forward_hook(keep))
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
    prediction = unet(
        latents, timesteps, encoder_hidden_states=context, added_cond_kwargs=added
    ).sample
    for handle in handles:
        handle.remove()
    return prediction, features


def torch_terms(models, batch, empty, draws, prediction_type):
    """Every term of method.md, "The loss", over rows [native, parallel]."""
    z = torch.tensor([1.0] * NATIVE + [0.0] * PARALLEL)

    def column(name):
        return torch.from_numpy(np.concatenate([part[name] for part in batch.values()]))

    def both(name):
        """A field of the parallel rows; native rows, whose teacher z masks, get the empty one."""
        nothing = np.repeat(empty[name], NATIVE, axis=0)
        return torch.from_numpy(np.concatenate([nothing, batch["parallel"][name]]))

    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )
    timesteps = torch.from_numpy(np.array(draws.timesteps)).long()
    noise = to_torch(np.asarray(draws.noise))
    dropped = torch.from_numpy(np.array(draws.dropped))[:, None, None]
    time_ids = column("time_ids")
    with torch.no_grad():
        images = to_torch(column("pixels").numpy().astype(np.float32) / 127.5 - 1)
        posterior = models["vae"].encode(images).latent_dist
        latents = posterior.mean + posterior.std * to_torch(np.asarray(draws.posterior))
        latents = latents * models["vae"].config.scaling_factor
        noisy = scheduler.add_noise(latents, noise, timesteps)
        velocity = scheduler.get_velocity(latents, noise, timesteps)
        target = noise if prediction_type == "epsilon" else velocity

        said, pooled = english(models, both("english_ids"))
        nothing, _ = english(models, torch.from_numpy(empty["english_ids"]))
        context = torch.where(dropped, nothing, said)
        e_t, f_t = hooked(models["unet"], noisy, timesteps, context, pooled, time_ids)
        language = models["language_encoder"]
        hidden = language(column("ids"), attention_mask=column("mask")).last_hidden_state
        nothing = language(
            torch.from_numpy(empty["ids"]), attention_mask=torch.from_numpy(empty["mask"])
        ).last_hidden_state

    adapter = models["adapter"]
    (said, pooled), (nothing, _) = adapter(hidden), adapter(nothing)
    context = torch.where(dropped, nothing, said)
    e_s, f_s = hooked(models["unet"], noisy, timesteps, context, pooled, time_ids)

    def mse(a, b):
        return torch.nn.functional.mse_loss(a, b, reduction="none").mean([1, 2, 3])

    features = {name: ((1 - z) * mse(f_s[name], f_t[name])).mean() for name in f_s}
    return {
        "loss_native": (z * mse(e_s, target)).mean(),
        "loss_output": ((1 - z) * mse(e_s, e_t)).mean(),
        "loss_feature": sum(features.values()),
        **{f"feature/{name}": value for name, value in features.items()},
    }


def schedule_of(prediction_type):
    return Schedule(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )


@pytest.fixture(scope="module")
def ours(pairs):
    """(Family, prediction type) -> our loss, terms and gradient; one program a family."""
    results = {}
    for family, kinds in FAMILIES.items():
        batch, empty = make_batch(family)
        networks, params, frozen = split_networks(**pairs[family][1], empty=empty)
        functions = {
            (family, kind): LossAndGradient(networks, schedule_of(kind), SETTINGS) for kind in kinds
        }

        def run(*arguments, functions=functions):
            return {case: function(*arguments) for case, function in functions.items()}

        results |= quick(run)(params, frozen, batch, KEY)
    return results


@pytest.mark.parametrize(("family", "prediction_type"), CASES)
def test_terms_loss_and_every_gradient_are_those_of_pytorch(pairs, ours, family, prediction_type):
    models, _ = pairs[family]
    batch, empty = make_batch(family)
    layout = BatchLayout({"native": NATIVE, "parallel": PARALLEL})
    draws = draw(KEY, layout, (8, 8, 4), schedule_of(prediction_type), SETTINGS)
    for rows in (slice(NATIVE), slice(NATIVE, None)):
        assert 0 < int(draws.dropped[rows].sum()) < draws.dropped[rows].size

    terms = torch_terms(models, batch, empty, draws, prediction_type)
    loss = (
        SETTINGS.native_weight * terms["loss_native"]
        + SETTINGS.output_weight * terms["loss_output"]
        + SETTINGS.feature_weight * terms["loss_feature"]
    )
    models["adapter"].zero_grad()
    loss.backward()
    wanted = {name: parameter.grad for name, parameter in models["adapter"].named_parameters()}

    got_loss, metrics, gradient = ours[family, prediction_type]
    assert relative_error(got_loss, loss.item()) < 1e-5
    assert metrics.keys() == terms.keys() | {"loss"}
    if family == "sdxl":
        assert len([name for name in metrics if name.startswith("feature/")]) == 7
    for name, term in terms.items():
        error = relative_error(metrics[name], term.item())
        assert error < 1e-5, f"{name}: {error:.1e}"

    got = {
        names.key_of(path): np.moveaxis(np.asarray(leaf[...]), -1, 0)  # [in, out] -> [out, in]
        for path, leaf in nnx.to_flat_state(gradient)
    }
    assert got.keys() == wanted.keys()
    for name, want in wanted.items():
        error = relative_error(got[name], want)
        assert error < 1e-4, f"gradient of {name}: {error:.1e}"
