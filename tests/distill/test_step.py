"""The step against the formula written out, on networks of a few matrices."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pea_jax.diffusion.schedule import add_noise, target
from pea_jax.distill.batch import BatchLayout
from pea_jax.distill.frozen_forward import drop
from pea_jax.distill.losses import DistillSettings, require_finite
from pea_jax.distill.noise import draw
from pea_jax.distill.state import init_train_state, split_networks
from pea_jax.distill.step import LossAndGradient, jit_train_step, make_train_step
from pea_jax.models.conditioning import Conditioning
from pea_jax.models.latents import LatentCodec
from pea_jax.runtime import parallel
from tests.distill import fakes

KEY = jax.random.key(11)


def literal_loss(adapter_params, modules, batch, settings, schedule, key):
    """method.md's formula with its masks: every row has a student, a teacher and a target.

    Native rows get the empty prompt for an English caption, which z then masks. Returns the loss,
    and (its terms, the loss of each row).
    """
    empty = fakes.empty_prompt()
    rows = {name: part["pixels"].shape[0] for name, part in batch.items()}
    z = np.concatenate([np.full(count, name == "native") for name, count in rows.items()])
    z = jnp.asarray(z, jnp.float32)
    latent_shape = (fakes.IMAGE // 2, fakes.IMAGE // 2, fakes.CHANNELS)
    draws = draw(key, BatchLayout(rows), latent_shape, schedule, settings)

    def column(name, fallback=None):
        parts = [
            part[name] if name in part else np.repeat(fallback, count, axis=0)
            for part, count in zip(batch.values(), rows.values(), strict=True)
        ]
        return jnp.concatenate(parts)

    mean, logvar = modules["vae"].encode(column("pixels") / 127.5 - 1)
    latents = 0.5 * (mean + jnp.exp(logvar / 2) * draws.posterior)
    alpha_bar = jnp.asarray(schedule.alphas_cumprod)[draws.timesteps]
    noisy = add_noise(latents, draws.noise, alpha_bar)
    wanted = target(schedule, latents, draws.noise, alpha_bar)

    def chosen(tokens, nothing):
        return jnp.where(draws.dropped[:, None, None], nothing, tokens)

    adapter = nnx.merge(nnx.graphdef(modules["adapter"]), adapter_params)
    tower, language = modules["text_encoder"], modules["language_encoder"]
    student_tokens = chosen(
        adapter(language(column("ids"), column("mask")).tokens).tokens,
        adapter(language(empty["ids"], empty["mask"]).tokens).tokens,
    )
    english = [column(name, empty[name]) for name in ("english_ids", "english_mask")]
    nothing = [jnp.asarray(empty[name]) for name in ("english_ids", "english_mask")]
    teacher_tokens = chosen(tower(*english).tokens, tower(*nothing).tokens)
    unet = modules["unet"]
    e_s, f_s = unet(noisy, draws.timesteps, Conditioning(student_tokens))
    e_t, f_t = jax.lax.stop_gradient(unet(noisy, draws.timesteps, Conditioning(teacher_tokens)))

    def mse(a, b):
        return jnp.square(a - b).reshape(a.shape[0], -1).mean(axis=1)

    one = jnp.ones_like(z)
    to_image, to_teacher = (z, one - z) if settings.hybrid else (one, one)
    terms = {
        "loss_native": jnp.mean(to_image * mse(e_s, wanted)),
        "loss_output": jnp.mean(to_teacher * mse(e_s, e_t)),
        "loss_feature": sum(jnp.mean(to_teacher * mse(f_s[k], f_t[k])) for k in f_s),
    }
    weights = (settings.native_weight, settings.output_weight, settings.feature_weight)
    return sum(w * term for w, term in zip(weights, terms.values(), strict=True)), (
        terms,
        weights[0] * to_image * mse(e_s, wanted)
        + weights[1] * to_teacher * mse(e_s, e_t)
        + weights[2] * to_teacher * sum(mse(f_s[k], f_t[k]) for k in f_s),
    )


CASES = {
    "hybrid": (2, 4, DistillSettings(prompt_drop=0.5, noise_offset=0.3), "epsilon"),
    "not hybrid": (
        0,
        4,
        DistillSettings(
            hybrid=False, native_weight=0.7, output_weight=2.0, feature_weight=0.5, prompt_drop=0.0
        ),
        "v_prediction",
    ),
    "feature only": (
        4,
        4,
        DistillSettings(native_weight=0.0, output_weight=0.0, feature_weight=0.1, prompt_drop=0.5),
        "epsilon",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_formula(case):
    """A term on the wrong rows, a wrong mean, a dropped prompt on one side, a gradient through the
    teacher or none through the empty prompt: each changes a number here."""
    native, count, settings, prediction_type = CASES[case]
    schedule = fakes.schedule(prediction_type)
    modules = fakes.modules()
    networks, params, frozen = split_networks(**modules, empty=fakes.empty_prompt())
    batch = fakes.make_batch(native, count)

    ours = fakes.quick(LossAndGradient(networks, schedule, settings), static_argnames="data_shards")
    shards = 2 if native else 1
    loss, metrics, gradient = ours(params, frozen, batch, KEY, data_shards=shards)

    literal = jax.value_and_grad(literal_loss, has_aux=True)
    (wanted, (terms, _)), wanted_gradient = fakes.quick(
        lambda params, batch: literal(params, modules, batch, settings, schedule, KEY)
    )(params, batch)

    np.testing.assert_allclose(loss, wanted, rtol=2e-5)
    skipped = {
        name for name in ("native", "output", "feature") if getattr(settings, f"{name}_weight") == 0
    }
    for name, term in terms.items():
        if name.removeprefix("loss_") in skipped:
            assert name not in metrics
        else:
            np.testing.assert_allclose(metrics[name], term, rtol=2e-5, err_msg=name)
    for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
        assert float(jnp.abs(want).max()) > 1e-6
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("slices", [1, 2])
def test_the_loss_of_a_language_is_that_of_its_rows_one_by_one(case, slices):
    """Sums and counts, of the rows that a term applies to, each with its terms' weights."""
    native, count, settings, prediction_type = CASES[case]
    schedule = fakes.schedule(prediction_type)
    modules = fakes.modules()
    networks, params, frozen = split_networks(**modules, empty=fakes.empty_prompt())
    batch = fakes.make_batch(native, count)
    spoken = {"native": [2, 0, 2, 0], "parallel": [0, 0, 2, 2]}  # nothing is said in language 1
    for name, part in batch.items():
        part["language"] = np.array(spoken[name][: len(part["ids"])], np.int32)

    def literal(params, batch):
        return literal_loss(params, modules, batch, settings, schedule, KEY)[1][1]

    step = LossAndGradient(networks, schedule, settings, accumulation_steps=slices, languages=3)
    metrics = fakes.quick(step)(params, frozen, batch, KEY)[1]
    losses = iter(np.asarray(fakes.quick(literal)(params, batch), np.float64))
    sums, rows = np.zeros(3), np.zeros(3)
    for name, part in batch.items():
        for language in part["language"]:
            loss = next(losses)
            if name == "parallel" or settings.native_weight:
                sums[language] += loss
                rows[language] += 1
    np.testing.assert_array_equal(metrics["language_rows"], rows)
    np.testing.assert_allclose(metrics["language_loss"], sums, rtol=2e-5)
    assert (sums > 0).tolist() == [True, False, True]
    # All of them together are the loss, but for rows that nothing is learnt from.
    np.testing.assert_allclose(sums.sum() / (native + count), metrics["loss"], rtol=2e-5)


def test_one_language_is_not_told_apart():
    _, metrics = traced_calls(DistillSettings(), 2, 4)
    assert not {name for name in metrics if name.startswith("language")}


def traced_calls(settings, native, count):
    """Rows of every call of a network in the program for a batch."""
    networks, params, frozen = fakes.world()
    fakes.CALLS.clear()
    step = LossAndGradient(networks, fakes.schedule(), settings)
    _, metrics, _ = jax.eval_shape(step, params, frozen, fakes.make_batch(native, count), KEY)
    return dict(fakes.CALLS), set(metrics)


@pytest.mark.parametrize(
    ("options", "native", "count", "unet", "vae", "terms"),
    [
        ({}, 2, 4, [4, 6], 6, {"native", "output", "feature"}),
        ({"hybrid": False}, 0, 4, [4, 4], 4, {"native", "output", "feature"}),
        ({"output_weight": 0.0}, 2, 4, [4, 6], 6, {"native", "feature"}),
        ({"feature_weight": 0.0}, 2, 4, [4, 6], 6, {"native", "output"}),
        ({"native_weight": 0.0}, 2, 4, [4, 4], 4, {"output", "feature"}),
        ({"output_weight": 0.0, "feature_weight": 0.0}, 2, 4, [2], 2, {"native"}),
        ({}, 2, 0, [2], 2, {"native"}),
        ({}, 0, 4, [4, 4], 4, {"output", "feature"}),
    ],
)
def test_the_program_holds_only_what_a_term_needs(options, native, count, unet, vae, terms):
    """The teacher runs on the parallel rows alone, and on none where no term asks for it; a part
    that nothing is learnt from is not encoded."""
    calls, metrics = traced_calls(DistillSettings(**options), native, count)
    assert calls["unet"] == unet
    assert calls["vae"] == [vae]
    assert bool(calls.get("text_encoder")) == (len(unet) == 2)
    named = {f"loss_{term}" for term in terms}
    blocks = {"feature/down_0", "feature/mid", "feature/up_0"} if "feature" in terms else set()
    assert metrics == {"loss"} | named | blocks


def encoded(batch):
    """A batch with what the fake VAE makes of its pictures in their place."""
    codec = LatentCodec(fakes.modules()["vae"])
    batch = {name: dict(part) for name, part in batch.items()}
    for part in batch.values():
        part["moments"] = np.stack(codec.moments(jnp.asarray(part.pop("pixels"))), axis=1)
    return batch


def test_moments_that_were_kept_give_the_same_step_without_a_vae():
    """Mean and log variance the other way round, or noise that is drawn otherwise, would not."""
    networks, params, frozen = fakes.world()
    batch, settings = fakes.make_batch(2, 4), DistillSettings(prompt_drop=0.5)
    kept = encoded(batch)
    results = []
    for given, options in [(batch, {}), (kept, {"picture": "moments"})]:
        step = LossAndGradient(networks, fakes.schedule(), settings, **options)
        fakes.CALLS.clear()
        results.append(fakes.quick(step)(params, frozen, given, KEY))
        assert fakes.CALLS["vae"] == ([] if options else [6])
    for got, wanted in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("picture", ["pixels", "moments"])
def test_a_batch_of_the_other_kind_of_picture_is_refused(picture):
    networks, params, frozen = fakes.world()
    batch = fakes.make_batch(2, 4)
    given = encoded(batch) if picture == "pixels" else batch
    step = LossAndGradient(networks, fakes.schedule(), DistillSettings(), picture=picture)
    expected = rf"native: expected the fields \[.*'{picture}'.* got \["
    with pytest.raises(ValueError, match=expected):
        jax.eval_shape(step, params, frozen, given, KEY)


def test_without_prompt_drop_the_empty_prompt_is_not_read_by_the_teacher():
    calls, _ = traced_calls(DistillSettings(prompt_drop=0.0), 2, 4)
    assert calls["text_encoder"] == [4]
    calls, _ = traced_calls(DistillSettings(), 2, 4)
    assert calls["text_encoder"] == [4, 1]


def test_the_pooled_vector_is_not_dropped():
    conditioning = Conditioning(jnp.ones((3, 2, 4)), jnp.arange(6.0).reshape(3, 2))
    nothing = Conditioning(jnp.zeros((1, 2, 4)), jnp.full((1, 2), -1.0))
    dropped = drop(conditioning, nothing, jnp.array([True, False, True]))
    np.testing.assert_array_equal(dropped.tokens[:, 0, 0], [0, 1, 0])
    np.testing.assert_array_equal(dropped.pooled, conditioning.pooled)


def test_an_adapter_with_a_pooled_vector_goes_through():
    networks, params, frozen = fakes.world(pooled_width=3)
    step = LossAndGradient(networks, fakes.schedule(), DistillSettings())
    loss, _, gradient = jax.eval_shape(step, params, frozen, fakes.make_batch(2, 4), KEY)
    assert loss.shape == ()
    assert "fc" in gradient


def test_the_teacher_reads_a_mask_only_where_its_config_asks_for_one():
    """diffusers gives Stable Diffusion's tower no mask; a masked teacher is another teacher."""
    batch = fakes.make_batch(0, 2)
    other = jax.tree.map(np.copy, batch)
    other["parallel"]["english_mask"] = np.ones_like(other["parallel"]["english_mask"])
    assert not np.array_equal(other["parallel"]["english_mask"], batch["parallel"]["english_mask"])
    settings = DistillSettings(feature_weight=0.0)
    changes = []
    for use_attention_mask in (False, True):
        modules = fakes.modules()
        modules["text_encoder"].towers[0].config = fakes.TowerConfig(use_attention_mask)
        networks, params, frozen = split_networks(**modules, empty=fakes.empty_prompt())
        step = fakes.quick(LossAndGradient(networks, fakes.schedule(), settings))
        losses = [float(step(params, frozen, each, KEY)[0]) for each in (batch, other)]
        changes.append(losses[0] != losses[1])
    assert changes == [False, True]


@pytest.fixture(scope="module")
def trained():
    """A compiled step on one device, and its world."""
    networks, params, frozen = fakes.world()
    tx = optax.adam(1e-2)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    objective = LossAndGradient(networks, fakes.schedule(), DistillSettings(prompt_drop=0.5))
    train_step = make_train_step(objective, tx, ema_decay=0.5)

    def init():
        return jax.device_put(init_train_state(params, tx, ema=True), parallel.replicated(mesh))

    return init, frozen, jit_train_step(train_step, mesh)


def test_steps_donate_their_state_and_compile_once(trained, caplog):
    init, frozen, step = trained
    state = init()
    batch = fakes.make_batch(2, 4)
    caplog.set_level("WARNING")
    for number in range(3):
        before = state
        with jax.log_compiles():
            state, metrics = step(state, frozen, batch, KEY)
        assert int(state.step) == number + 1
        donated = [leaf.is_deleted() for leaf in jax.tree.leaves(before)]
        assert all(donated), "the old state is kept beside the new one"
        assert np.isfinite(float(metrics["grad_norm"]))
    compiled = [line for line in caplog.messages if re.match(r"Compiling .*step_on_mesh", line)]
    assert len(compiled) == 1, compiled
    weights = [leaf for leaf in jax.tree.leaves(frozen) if isinstance(leaf, jax.Array)]
    assert not any(leaf.is_deleted() for leaf in weights)


def test_a_step_is_a_function_of_its_number_and_the_key_of_the_run(trained):
    """A run that resumes must draw what the run that it resumes would have drawn."""
    init, frozen, step = trained
    batch = fakes.make_batch(2, 4)

    def loss_at(number, key):
        state = init()
        state = dataclasses.replace(state, step=state.step + number)
        return float(step(state, frozen, batch, key)[1]["loss"])

    losses = [loss_at(3, KEY), loss_at(4, KEY), loss_at(3, jax.random.key(12)), loss_at(3, KEY)]
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3


def test_training_brings_the_student_to_the_teacher(trained):
    """Of the sign of the update, and of what it is applied to. Noise is drawn anew at every step,
    so what it did is measured on the noise of step 0, before and after."""
    init, frozen, step = trained
    batch = fakes.make_batch(2, 4)

    def distance(state):
        _, metrics = step(state, frozen, batch, KEY)
        return float(metrics["loss_feature"] + metrics["loss_output"])

    state = init()
    for _ in range(60):
        state, _ = step(state, frozen, batch, KEY)
    before, after = distance(init()), distance(dataclasses.replace(state, step=0 * state.step))
    assert after < 0.8 * before


def test_the_moving_average_follows_at_its_decay(trained):
    init, frozen, step = trained
    state = init()
    wanted = jax.tree.map(np.array, state.params)
    for number in range(8):
        state, _ = step(state, frozen, fakes.make_batch(2, 4), KEY)
        decay = min(0.5, (1 + number) / (10 + number))
        now = jax.tree.map(np.array, state.params)
        wanted = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, wanted, now)  # noqa: B023
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6),
        state.ema,
        wanted,
    )


def test_a_value_that_is_not_finite_is_named(trained):
    """An infinite weight behind the last feature breaks the prediction, and no block's feature."""
    init, frozen, step = trained
    broken = {**frozen, "unet": jax.tree.map(jnp.copy, frozen["unet"])}
    kernel = broken["unet"]["leave"]["kernel"]
    kernel[...] = kernel[...].at[0, 0].set(jnp.inf)
    _, metrics = step(init(), broken, fakes.make_batch(2, 4), KEY)
    with pytest.raises(FloatingPointError, match="step 5: not finite") as error:
        require_finite(jax.device_get(metrics), 5)
    message = str(error.value)
    assert "loss_native" in message
    assert "loss_output" in message
    assert "feature/" not in message


def test_frozen_bfloat16_trains_a_float32_adapter():
    """The dtype of the frozen networks must not leak into the state or the metrics."""
    networks, params, frozen = fakes.world(dtype=jnp.bfloat16)
    tx = optax.adam(1e-2)
    objective = LossAndGradient(networks, fakes.schedule(), DistillSettings())
    train_step = make_train_step(objective, tx, ema_decay=0.9)
    state = init_train_state(params, tx, ema=True)
    new, metrics = jax.eval_shape(train_step, state, frozen, fakes.make_batch(2, 4), KEY)
    floats = [leaf for leaf in jax.tree.leaves((new, metrics)) if leaf.dtype != jnp.int32]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_a_batch_that_does_not_divide_the_shards_is_refused():
    networks, params, frozen = fakes.world()
    step = LossAndGradient(networks, fakes.schedule(), DistillSettings())
    trace = functools.partial(step, data_shards=8)
    with pytest.raises(ValueError, match="8 data shards of the mesh, but native has 6 rows; use"):
        jax.eval_shape(trace, params, frozen, fakes.make_batch(6, 8), KEY)


def test_a_decay_that_cannot_be_is_refused():
    networks, _, _ = fakes.world()
    objective = LossAndGradient(networks, fakes.schedule(), DistillSettings())
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got 1.0"):
        make_train_step(objective, optax.sgd(1.0), ema_decay=1.0)


def test_a_batch_that_no_term_applies_to_is_refused():
    networks, params, frozen = fakes.world()
    settings = DistillSettings(output_weight=0.0, feature_weight=0.0)
    step = LossAndGradient(networks, fakes.schedule(), settings)
    with pytest.raises(ValueError, match=r"no term of .* applies to its rows, {'parallel': 4}"):
        jax.eval_shape(step, params, frozen, fakes.make_batch(0, 4), KEY)
