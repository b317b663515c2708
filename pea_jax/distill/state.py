"""What training changes, what it leaves alone, and what is static."""

import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from pea_jax.distill.batch import Fields

#: A tree of arrays, as `nnx.split` gives it.
Params = nnx.State[Any, Any]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The static side of the networks; the step merges it with their state inside the program."""

    unet: nnx.GraphDef
    vae: nnx.GraphDef
    text_encoder: nnx.GraphDef
    language_encoder: nnx.GraphDef
    adapter: nnx.GraphDef


@typing.no_type_check  # tree transformations rebuild it around specs, shapes and placeholders
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, so everything that a checkpoint needs of the step.

    Attributes:
        step: number of steps taken, int32.
        params: the adapter's parameters, float32.
        opt_state: the optimizer's.
        ema: the exponential moving average of `params`; None if the run keeps none.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: Params | None


def split_networks(
    *,
    unet: nnx.Module,
    vae: nnx.Module,
    text_encoder: nnx.Module,
    language_encoder: nnx.Module,
    adapter: nnx.Module,
    empty: Fields,
) -> tuple[Networks, Params, dict[str, Any]]:
    """Splits the modules into static, trained and frozen parts.

    Args:
        unet: shared by student and teacher.
        vae: its encoder makes the latents.
        text_encoder: the base model's own, for the teacher's English captions.
        language_encoder: for the student's native captions.
        adapter: the only trained module.
        empty: token ids and masks of the empty prompt, int32 [1, L] each: "ids" and "mask" from the
            language encoder's tokenizer, "english_ids" and "english_mask" from the base model's.

    Returns:
        The networks, the adapter's parameters, and the `frozen` argument of the step. They share
        the modules' arrays; nothing is copied.
    """
    split = {
        "unet": nnx.split(unet),
        "vae": nnx.split(vae),
        "text_encoder": nnx.split(text_encoder),
        "language_encoder": nnx.split(language_encoder),
    }
    adapter_graph, params = nnx.split(adapter)
    networks = Networks(
        **{name: graph for name, (graph, _) in split.items()}, adapter=adapter_graph
    )
    frozen = {name: state for name, (_, state) in split.items()}
    return networks, params, {**frozen, "empty": dict(empty)}


def init_train_state(
    params: Params, tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """The state before the first step. It owns its arrays, since every step donates them.

    Raises:
        ValueError: names every parameter that is not float32.
    """
    others = [
        f"{jax.tree_util.keystr(path)} is {leaf.dtype}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.dtype != jnp.float32
    ]
    if others:
        raise ValueError("the adapter is trained in float32, but " + ", ".join(others))

    def own(tree: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    params = own(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=own(params) if ema else None,
    )
