"""Prompts -> images: text encoding, the denoising loop and the VAE's decoder in one program.

    pipeline = Pipeline.from_pretrained(base, language=encoder, adapter=folder)
    images = pipeline(["一个红色的大圆形"], steps=20, guidance_scale=5.0)  # uint8 [1, H, W, 3]

Without a language encoder and an adapter it is the base model with its own English text encoder.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from pea_jax.diffusion import solvers
from pea_jax.diffusion.schedule import Schedule
from pea_jax.inference import program
from pea_jax.inference.denoiser import Denoiser, Network
from pea_jax.inference.settings import IMAGES_PER_SHARD, Settings, one_each, seeds_of
from pea_jax.models.adapter import Adapter
from pea_jax.runtime import parallel
from pea_jax.weights.adapters import check_fit, load_adapter, read_adapter_config
from pea_jax.weights.bases import BaseModel, BaseSpec, load_base
from pea_jax.weights.language import LanguageEncoder, load_language_encoder
from pea_jax.weights.tokenizers import AnyTokenizer


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A text-to-image model; in another language than its own where it has an adapter.

    Pipelines that share a base share its arrays, and compiled programs wherever architectures
    agree: `with_adapter` and `english` cost nothing.

    Attributes:
      base: UNet, VAE, English text encoder and noise schedule.
      language: the encoder of the prompts' language; None for English.
      adapter: its adapter to the base; None for English.
      mesh: of the devices that hold the arrays of the base and the encoder.
    """

    base: BaseModel
    language: LanguageEncoder | None = None
    adapter: Adapter | None = None
    mesh: Mesh = dataclasses.field(default_factory=parallel.make_mesh)

    def __post_init__(self) -> None:
        if (self.language is None) != (self.adapter is None):
            got = "a language encoder" if self.adapter is None else "an adapter"
            raise ValueError(
                f"expected a language encoder and its adapter, or neither, got only {got}"
            )
        if self.language is not None:
            check_fit(self.adapter.config, self.language.width, self.base.config.unet)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        language: str | Path | None = None,
        adapter: str | Path | Adapter | None = None,
        *,
        dtype: DTypeLike | None = None,
        mesh: Mesh | None = None,
        max_length: int | None = None,
        attention: str = "auto",
    ) -> "Pipeline":
        """Loads what `sample` needs.

        Args:
          base: a folder in diffusers' format, the id of one on the Hub, or "tinyworld/sd".
          language: the folder or id of a language encoder, or "tinyworld/xlm-roberta"; None is the
            one that the adapter's folder names, or English without an adapter.
          adapter: a folder with adapter.safetensors and config.json; a bare file of an adapter,
            such as the authors' (see `weights.adapters`), which takes a `language`; or an adapter.
          dtype: of frozen weights and the computation; None is float32 on CPU, else bfloat16.
          mesh: of devices; None takes all.
          max_length: tokens that a prompt is padded to; None is what the adapter's folder says it
            was trained with, or the tokenizer's own.
          attention: of the UNet, see `models.attention`.

        Raises:
          ValueError: a file that is missing, unfit or unsupported; a language without an adapter.
        """
        mesh = parallel.make_mesh() if mesh is None else mesh
        if dtype is None:
            dtype = jnp.float32 if parallel.platform(mesh) == "cpu" else jnp.bfloat16
        if isinstance(adapter, str | Path):
            _, trained = read_adapter_config(adapter)
            language = trained.get("language_encoder") if language is None else language
            if language is None:
                raise ValueError(f"{adapter} names no language encoder: language= has to be given")
            max_length = trained.get("language_max_length") if max_length is None else max_length
            adapter = load_adapter(adapter)
        encoder = None
        if language is not None:
            encoder = load_language_encoder(language, dtype=dtype, mesh=mesh, max_length=max_length)
        base = load_base(BaseSpec(base, dtype, attention), mesh=mesh)
        return cls(base, encoder, adapter, mesh)

    def with_adapter(self, adapter: Adapter) -> "Pipeline":
        """This pipeline with another adapter; the same program serves adapters of one shape."""
        return dataclasses.replace(self, adapter=adapter)

    def english(self) -> "Pipeline":
        """The base model alone, with its own text encoder."""
        return dataclasses.replace(self, language=None, adapter=None)

    @property
    def tokenizer(self) -> AnyTokenizer:
        """The tokenizer of the prompts."""
        return self.base.tokenizer if self.language is None else self.language.tokenizer

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        latents: Float[Array | np.ndarray, "N h w c"] | None = None,
        **settings: Any,
    ) -> UInt8[np.ndarray, "N H W 3"]:
        """One image a prompt, uint8 [N, H, W, 3].

        Args:
          prompts: one or more.
          seed: as for `batches`, which says more of all this.
          latents: likewise.
          **settings: fields of `Settings`: steps, guidance_scale, solver, negative_prompt, ...
        """
        batches = self.batches(prompts, Settings(**settings), seed=seed, latents=latents)
        return np.concatenate(list(batches))

    def batches(
        self,
        prompts: Sequence[str],
        settings: Settings,
        *,
        seed: int | Sequence[int] = 0,
        latents: Float[Array | np.ndarray, "N h w c"] | None = None,
    ) -> Iterator[UInt8[np.ndarray, "n H W 3"]]:
        """Yields the images of each batch as soon as they are there, the next one under way.

        An image depends on its prompt, its seed and the settings, not on the batch or the number
        of devices (up to rounding: one level of 255).

        A new program is compiled for another solver, image size or batch size, for guidance on
        (scale above 1) against off, and where steps cross a bucket of `diffusion.solvers`. Other
        prompts, seeds, steps, guidance and adapters of one shape are data.

        Args:
          prompts: one or more.
          settings: how to sample.
          seed: of the first prompt, the following ones count up from it; or one a prompt.
          latents: standard normal, in place of what `program.initial_noise` draws from the seeds.

        Raises:
          ValueError: at once, for no prompts, a size that the VAE can't give, or arguments that
            don't fit each other.
        """
        running = self._run(prompts, settings, seed, latents, whole=True)
        return (np.asarray(images)[: len(prompts) - start] for start, images in running)

    def shares(
        self,
        prompts: Sequence[str],
        settings: Settings,
        *,
        seed: int | Sequence[int] = 0,
        latents: Float[Array | np.ndarray, "N h w c"] | None = None,
    ) -> Iterator[tuple[range, dict[int, UInt8[np.ndarray, "H W 3"]]]]:
        """Like `batches`, but of several processes each gets those that its devices made alone.

        Yields the numbers of a batch's prompts, and this process's images of them by number.
        """

        def own(start: int, images: Array) -> tuple[range, dict[int, UInt8[np.ndarray, "H W 3"]]]:
            numbers = range(start, min(start + len(images), len(prompts)))
            rows = parallel.own_rows(len(images), self.mesh)
            pairs = zip(rows, parallel.to_local(images, self.mesh), strict=True)
            return numbers, {start + row: image for row, image in pairs if start + row in numbers}

        running = self._run(prompts, settings, seed, latents, whole=False)
        return itertools.starmap(own, running)

    def _run(
        self,
        prompts: Sequence[str],
        settings: Settings,
        seed: int | Sequence[int],
        latents: Float[Array | np.ndarray, "N h w c"] | None,
        *,
        whole: bool,
    ) -> Iterator[tuple[int, UInt8[Array, "B H W 3"]]]:
        """The first prompt's number and the images of each batch: global arrays, whole or split."""
        count = len(prompts)
        if isinstance(prompts, str) or count == 0:
            raise ValueError(f"expected a list of one or more prompts, got {prompts!r}")
        shape = self.latent_shape(settings.height, settings.width)
        if latents is not None and latents.shape != (count, *shape):
            raise ValueError(f"expected latents of shape {(count, *shape)}, got {latents.shape}")
        seeds = seeds_of(seed, count)
        negatives = one_each("negative_prompt", settings.negative_prompt, count)
        plan = self.plan(settings)
        rows = self._rows_per_call(count, settings.batch_size)

        def dispatch(start: int) -> Array:
            # The last batch is filled up with its last prompt, and cut when it is fetched.
            # Every process makes its own rows of it.
            own = np.array(parallel.own_rows(rows, self.mesh))
            take = np.minimum(start + own, count - 1)
            batch = self._batch([prompts[i] for i in take], [negatives[i] for i in take], settings)
            batch["seeds"] = seeds[take]
            if latents is not None:
                batch["noise"] = np.asarray(latents, np.float32)[take]
            batch = parallel.to_global(batch, self.mesh)
            if latents is None:
                batch["noise"] = program.initial_noise(batch["seeds"], shape)
            arguments, shards = self._arguments(batch, settings)
            images = program.sample_images(*arguments, plan, data_shards=shards)
            return parallel.place(images, parallel.replicated(self.mesh)) if whole else images

        return _one_ahead(dispatch, range(0, count, rows))

    def lower(self, settings: Settings, rows: int) -> jax.stages.Lowered:
        """The program of one batch before it is compiled; the models may be abstract.

        Args:
          settings: how to sample; `batch_size` does not matter here.
          rows: prompts of one call, over all devices.
        """
        arguments, shards = self._arguments(self.batch_shapes(settings, rows), settings)
        return program.sample_images.lower(*arguments, self.plan(settings), data_shards=shards)

    def batch_shapes(self, settings: Settings, rows: int) -> dict[str, Any]:
        """The shapes, with shardings, of what the program takes for `rows` prompts."""
        shape = self.latent_shape(settings.height, settings.width)
        batch = self._batch([""] * rows, [""] * rows, settings)
        batch["seeds"] = np.zeros(rows, np.uint32)
        batch["noise"] = jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
        batch = jax.eval_shape(lambda batch: batch, batch)
        return parallel.place(batch, parallel.batch_sharding(self.mesh))

    def plan(self, settings: Settings) -> solvers.Plan:
        """The steps of the solver."""
        schedule = Schedule.from_dict(self.base.config.schedule)
        return solvers.plan(settings.solver, schedule, settings.steps)

    def _batch(
        self, prompts: Sequence[str], negatives: Sequence[str], settings: Settings
    ) -> dict[str, Any]:
        """What depends on the prompts, as rows: tokens, and SDXL's time ids."""
        factor = self.base.vae.config.downsampling_factor
        height, width, _ = self.latent_shape(settings.height, settings.width)
        size = (height * factor, width * factor)
        # The time ids say: an image of this size, not cropped.
        batch: dict[str, Any] = {
            "positive": self.tokenizer(prompts),
            "time_ids": np.tile(np.array([*size, 0, 0, *size], np.int32), (len(prompts), 1)),
        }
        if settings.guided:
            batch["negative"] = self.tokenizer(negatives)
        if settings.guided and self.language is None and self.base.config.zero_empty_prompt:
            batch["kept"] = np.array([negative != "" for negative in negatives], np.float32)
        return batch

    def _arguments(self, batch: dict[str, Any], settings: Settings) -> tuple[tuple, int]:
        """The program's arguments before the plan, and its data shards."""
        rows = {"negative": None, "kept": None, **batch}
        noise, seeds = rows.pop("noise"), rows.pop("seeds")
        strengths = np.array([settings.guidance_scale, settings.guidance_rescale], np.float32)
        networks = dict(self._networks)
        vae = networks.pop("vae")
        denoiser = Denoiser(self.base.config.family, **networks, **rows, guidance=strengths)
        return (denoiser, vae, noise, seeds), parallel.data_shards(self.mesh)

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        """Shape (h, w, c) of the latents of an image.

        Args:
          height: in pixels; None is what the UNet was trained at.
          width: likewise.

        Raises:
          ValueError: the VAE's factor doesn't divide a side; names the nearest sides that it does.
        """
        factor = self.base.vae.config.downsampling_factor
        config = self.base.unet.config
        if config.in_channels != self.base.vae.config.latent_channels:
            raise ValueError(
                f"{self.base.config.folder}: expected a text-to-image UNet, got one with "
                f"{config.in_channels} channels in, for inpainting"
            )
        trained = config.sample_size
        trained = trained if isinstance(trained, tuple) else (trained, trained)
        sides, problems = [], []
        for name, side, default in zip(("height", "width"), (height, width), trained, strict=True):
            if side is None and default is None:
                problems.append(f"{name}: the UNet's config has no sample_size to go by, give one")
                continue
            side = default * factor if side is None else side
            if side < 1 or side % factor:
                below, above = side // factor * factor, -(-side // factor) * factor
                nearest = f"{below} and {above}" if below > 0 else f"{factor}"
                problems.append(
                    f"{name}: expected a multiple of {factor}, the VAE's downsampling factor, got"
                    f" {side}; nearest: {nearest}"
                )
            sides.append(side // factor)
        if problems:
            raise ValueError("; ".join(problems))
        return sides[0], sides[1], config.in_channels

    def _rows_per_call(self, count: int, batch_size: int | None) -> int:
        shards = parallel.data_shards(self.mesh)
        wanted = IMAGES_PER_SHARD * shards if batch_size is None else batch_size
        if wanted < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        return -(-min(count, wanted) // shards) * shards

    @functools.cached_property
    def _networks(self) -> dict[str, Network | None]:
        text = self.base.text_encoder if self.language is None else self.language.tower
        adapter = None
        if self.adapter is not None:
            graph, state = nnx.split(self.adapter)
            adapter = Network(graph, parallel.place(state, parallel.replicated(self.mesh)))
        return {
            "unet": Network.of(self.base.unet),
            "vae": Network.of(self.base.vae),
            "text": Network.of(text),
            "adapter": adapter,
        }


def _one_ahead(
    dispatch: Callable[[int], Array], starts: Sequence[int]
) -> Iterator[tuple[int, Array]]:
    """Yields batch i after batch i + 1 was dispatched, so that devices never wait for the host."""
    running = map(dispatch, starts)
    waiting = next(running)
    for start, following in zip(starts, itertools.chain(running, [None]), strict=True):
        yield start, waiting
        waiting = following
