"""The real networks, as small as they go: every kind of block, and 8x8 latents."""

from flax import nnx
from jax.sharding import Sharding

from pea_jax.distill.state import split_networks
from pea_jax.families.english import EnglishText
from pea_jax.families.sd import SD
from pea_jax.models.adapter import Adapter, AdapterConfig
from pea_jax.models.text.bert import Bert, BertConfig
from pea_jax.models.text.clip import CLIPText, CLIPTextConfig
from pea_jax.models.unet.unet import UNet, UNetConfig
from pea_jax.models.vae import VAE, VAEConfig
from tests.distill import fakes
from tests.models.random_module import random_module

IMAGE = 16  # side; the VAE halves it
VOCABULARY = 32
TOWER = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}


def modules(gather: Sharding | None = None) -> dict[str, nnx.Module]:
    """Every network; the values of its parameters come from numpy, and move with no library.

    The UNet gathers its kernels where it uses them, if it is said to where.
    """
    unet = UNetConfig.from_dict(UNET)
    vae = VAEConfig(block_out_channels=(8, 8), norm_num_groups=4)
    clip = CLIPTextConfig(**TOWER, hidden_size=12, intermediate_size=16, eos_token_id=2)
    bert = BertConfig(
        model_type="xlm-roberta",
        hidden_size=8,
        intermediate_size=16,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        **TOWER,
    )
    adapter = AdapterConfig(input_width=8, hidden_width=10, output_width=12)
    return {
        "unet": random_module(lambda: UNet(unet, rngs=nnx.Rngs(0), gather=gather), 1),
        "vae": random_module(lambda: VAE(vae, rngs=nnx.Rngs(0)), 2),
        "text_encoder": random_module(
            lambda: EnglishText(SD, [CLIPText(clip, rngs=nnx.Rngs(0))]), 3
        ),
        "language_encoder": random_module(lambda: Bert(bert, rngs=nnx.Rngs(0)), 4),
        "adapter": random_module(lambda: Adapter(adapter, rngs=nnx.Rngs(0)), 5),
    }


def world(gather: Sharding | None = None):
    """Networks, the adapter's parameters and the frozen argument."""
    return split_networks(**modules(gather), empty=fakes.empty_prompt())


def make_batch(native: int, parallel: int):
    return fakes.make_batch(native, parallel, image=IMAGE, vocabulary=VOCABULARY)
