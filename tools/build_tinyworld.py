"""Trains and writes the checkpoints in the package: tinyworld's Stable Diffusion and XLM-R.

PyTorch diffusers and transformers write all files with save_pretrained, so that our loader reads
the real format. There are five stages; each can run alone, from the files that the earlier stages
left in --work:

    python tools/build_tinyworld.py --work runs/tinyworld --stage all

    vae          AutoencoderKL, 64x64x3 -> 8x8x8, on images of the training scenes
    diffusion    UNet2DConditionModel and CLIPTextModel, trained together on English captions
    decoder      the VAE's decoder again, for sharper edges, on latents of the UNet too
    language     XLMRobertaModel, trained contrastively with a small image tower, six languages
    export       fp16 safetensors and tokenizers into pea_jax/tinyworld/checkpoints

No stage uses held-out scenes (tinyworld.splits). Needs torch and diffusers.
"""

import argparse
import contextlib
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from pea_jax import tinyworld
from pea_jax.tinyworld import captions, oracle, splits, world

ENGLISH_LENGTH = 32
NATIVE_LENGTH = 40
TEMPLATES = 4
EMA_DECAY = 0.999

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def train_scenes() -> list[world.Scene]:
    return [s for native in (False, True) for s in splits.scenes("train", native)]


def pictures(scenes: list[world.Scene], shifts: int, seed: int) -> torch.Tensor:
    """Renders every scene at `shifts` random places: float [scenes, shifts, 3, 64, 64], -1..1."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-world.MAX_SHIFT, world.MAX_SHIFT, (len(scenes), shifts, 2))
    images = np.stack(
        [[world.render(s, *place) for place in row] for s, row in zip(scenes, places, strict=True)]
    )
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> np.ndarray:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int = 100):
    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * (
            0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
        )

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def log(stage: str, step: int, steps: int, start: float, **values: float) -> None:
    text = " ".join(f"{k} {v:.4f}" for k, v in values.items())
    print(f"{stage} {step}/{steps} {text} {time.time() - start:.0f}s", flush=True)


def batches(count: int, size: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
    """Index batches without replacement, epoch after epoch."""
    while True:
        yield from torch.randperm(count, generator=rng).split(size)[: count // size]


def average(averages: list[torch.Tensor], parameters: list[nn.Parameter], step: int) -> None:
    """Updates the moving averages; the decay is smaller in the first steps."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - decay)


@contextlib.contextmanager
def swapped(parameters: list[nn.Parameter], averages: list[torch.Tensor]) -> Iterator[None]:
    """Replaces the parameters by their averages inside the context."""
    kept = [p.detach().clone() for p in parameters]
    for p, value in zip(parameters, averages, strict=True):
        p.data.copy_(value)
    yield
    for p, value in zip(parameters, kept, strict=True):
        p.data.copy_(value)


# Stage 1: the VAE.


def train_vae(work: Path, steps: int, batch: int = 16) -> None:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 48, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=world.IMAGE_SIZE,
        scaling_factor=1.0,
    )
    with torch.no_grad():  # start with little noise on the latents
        vae.quant_conv.bias[8:] = -8.0
    images = pictures(train_scenes(), 12, seed=1).flatten(0, 1)
    rng = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, weight_decay=1e-4)
    schedule = cosine(optimizer, steps)
    start = time.time()
    for step, rows in zip(range(steps), batches(len(images), batch, rng), strict=False):
        x = images[rows]
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(rng)).sample
        # The squared error learns colours first; the absolute error sharpens edges.
        error = 3 * F.mse_loss(y, x) + 0.3 * F.l1_loss(y, x)
        loss = error + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log("vae", step, steps, start, loss=loss.item(), l1=F.l1_loss(y, x).item())
    vae.eval()
    with torch.no_grad():
        latents = torch.cat([vae.encode(x).latent_dist.mode() for x in images[::8].split(64)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.save_pretrained(work / "vae")
    check_vae(work)


@torch.no_grad()
def check_vae(work: Path) -> None:
    """Scores decoded held-out scenes with the oracle: the upper bound for any model."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    for native in (False, True):
        scenes = splits.scenes("test", native)
        x = pictures(list(scenes), 4, seed=9).flatten(0, 1)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        read = [oracle.read(image) for image in to_uint8(y)]
        right = np.mean([r == scenes[i // 4] for i, r in enumerate(read)])
        print(f"vae: oracle on held-out, native={native}: {right:.3f}, l1 {F.l1_loss(y, x):.4f}")


# Stage 2: the UNet and its English text encoder.


def english_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE like CLIP's, trained on tinyworld's English captions."""
    texts = [captions.caption(s, "en", t) for s in train_scenes() for t in range(TEMPLATES)]
    texts += [
        captions.literal(s, t) for s in splits.scenes("train", True) for t in range(TEMPLATES)
    ]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    # CLIP's order: bytes, bytes that end a word, merges, the two special tokens.
    merges = [tuple(m) for m in model["merges"]]
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=ENGLISH_LENGTH)


def encode(tokenizer, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    out = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return out.input_ids, out.attention_mask


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def train_diffusion(work: Path, steps: int, batch: int = 64, learning_rate: float = 1e-3) -> None:
    torch.manual_seed(2)
    rng = torch.Generator().manual_seed(2)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    tokenizer = english_tokenizer()
    tokenizer.save_pretrained(work / "tokenizer")
    unet = new_unet()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=ENGLISH_LENGTH,
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scenes = train_scenes()
    images = pictures(scenes, 12, seed=2)
    with torch.no_grad():
        moments = torch.cat(
            [vae.encode(x).latent_dist.parameters for x in images.flatten(0, 1).split(128)]
        ).unflatten(0, images.shape[:2])
    mean, logvar = moments.chunk(2, dim=2)
    mean, std = mean * vae.config.scaling_factor, (logvar / 2).exp() * vae.config.scaling_factor
    texts = [captions.caption(s, "en", t) for s in scenes for t in range(TEMPLATES)]
    ids = encode(tokenizer, texts, ENGLISH_LENGTH)[0].unflatten(0, (len(scenes), TEMPLATES))
    empty = encode(tokenizer, [""], ENGLISH_LENGTH)[0]

    parameters = [*unet.parameters(), *text.parameters()]
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-3, fused=True)
    schedule = cosine(optimizer, steps)
    noising = DDIMScheduler(**SCHEDULE)
    start, total = time.time(), 0.0
    for step, rows in zip(range(steps), batches(len(scenes), batch, rng), strict=False):
        shift = torch.randint(images.shape[1], (batch,), generator=rng)
        template = torch.randint(TEMPLATES, (batch,), generator=rng)
        drop = torch.rand(batch, generator=rng) < 0.1
        t = torch.randint(1000, (batch,), generator=rng)
        noise = torch.randn(batch, *mean.shape[2:], generator=rng)
        latents = mean[rows, shift]
        latents = latents + std[rows, shift] * torch.randn(latents.shape, generator=rng)
        tokens = text(torch.where(drop[:, None], empty, ids[rows, template])).last_hidden_state
        prediction = unet(noising.add_noise(latents, noise, t), t, tokens).sample
        loss = F.mse_loss(prediction, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average(averages, parameters, step)
        total += loss.item()
        if (step + 1) % 100 == 0:
            log("diffusion", step + 1, steps, start, loss=total / 100)
            total = 0.0
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            with swapped(parameters, averages):
                unet.save_pretrained(work / "unet")
                text.save_pretrained(work / "text_encoder")
                check_diffusion(unet, text, tokenizer, vae)


def english_side(work: Path) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """Loads the models that `train_diffusion` saved."""
    return (
        UNet2DConditionModel.from_pretrained(work / "unet").eval(),
        CLIPTextModel.from_pretrained(work / "text_encoder").eval(),
        CLIPTokenizer.from_pretrained(work / "tokenizer"),
    )


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    prompts: list[str],
    seed: int,
    guidance: float = 4.0,
    solver_steps: int = 20,
) -> torch.Tensor:
    """Scaled latents that the UNet makes for English prompts, [N, 8, 8, 8]."""
    ids = encode(tokenizer, [*prompts, ""], ENGLISH_LENGTH)[0]
    tokens = text(ids).last_hidden_state
    both = torch.cat([tokens[:-1], tokens[-1:].expand(len(prompts), -1, -1)])
    solver = DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing")
    solver.set_timesteps(solver_steps)
    x = torch.randn(len(prompts), 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    for t in solver.timesteps:
        cond, uncond = unet(torch.cat([x, x]), t, both).sample.chunk(2)
        x = solver.step(uncond + guidance * (cond - uncond), t, x).prev_sample
    return x


@torch.no_grad()
def check_diffusion(
    unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL
) -> None:
    """Scores the English model's images of held-out scenes with the oracle."""
    for native in (False, True):
        scenes = [s for s in splits.scenes("test", native) for _ in range(2)]
        prompts = [captions.caption(s, "en", i) for i, s in enumerate(scenes)]
        x = sample(unet, text, tokenizer, prompts, seed=3)
        images = to_uint8(vae.decode(x / vae.config.scaling_factor).sample)
        read = [oracle.read(image) for image in images]
        pairs = list(zip(read, scenes, strict=True))
        scores = {"all": np.mean([r == s for r, s in pairs])}
        for field in ("shape", "colour", "size", "background"):
            scores[field] = np.mean([getattr(r, field) == getattr(s, field) for r, s in pairs])
        print("teacher", f"native={native}", {k: round(float(v), 3) for k, v in scores.items()})


# Stage 3: the decoder again, on latents of the trained UNet.


def train_decoder(work: Path, steps: int, batch: int = 16, learning_rate: float = 1e-3) -> None:
    """Trains only the decoder. The latents, and so the UNet, do not change.

    Half of each batch consists of encoded images. The other half consists of latents that the UNet
    made from training captions: they differ from the encoder's latents in another way than noise.
    """
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    images = pictures(train_scenes(), 12, seed=4).flatten(0, 1)
    with torch.no_grad():
        encoded = torch.cat([vae.encode(x).latent_dist.mode() for x in images.split(64)])
    made, shown = generated(work, vae)
    rng = torch.Generator().manual_seed(4)
    parameters = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    schedule = cosine(optimizer, steps)
    halves = zip(
        range(steps),
        batches(len(images), batch // 2, rng),
        batches(len(made), batch // 2, rng),
        strict=False,
    )
    start, total = time.time(), 0.0
    for step, rows, made_rows in halves:
        x = torch.cat([images[rows], shown[made_rows]])
        latents = torch.cat([encoded[rows], made[made_rows]])
        noise = torch.randn(latents.shape, generator=rng)
        y = vae.decode(latents + 0.03 / vae.config.scaling_factor * noise).sample
        # Relative to the image's variance: otherwise small figures would hardly count.
        error = (y - x).square().mean((1, 2, 3)) + 0.3 * (y - x).abs().mean((1, 2, 3))
        loss = (error / (x.var(dim=(1, 2, 3)) + 0.01)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average(averages, parameters, step)
        total += F.l1_loss(y, x).item()
        if (step + 1) % 100 == 0:
            log("decoder", step + 1, steps, start, l1=total / 100)
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            with swapped(parameters, averages):
                vae.save_pretrained(work / "vae")
                check_vae(work)
    check_diffusion(*english_side(work), vae)


@torch.no_grad()
def generated(work: Path, vae: AutoencoderKL, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents that the UNet makes from training captions, `count` per caption, and their images.

    The image of a caption is known except for the position of the figure. The position is the one
    whose render matches the decoded latents best. Latents without a matching figure are skipped.

    Returns:
        Latents as the decoder takes them [N, 8, 8, 8], and images [N, 3, 64, 64], -1..1.
    """
    unet, text, tokenizer = english_side(work)
    grid = np.arange(-world.MAX_SHIFT, world.MAX_SHIFT + 0.1, 0.25)
    places = list(itertools.product(grid, grid))
    figures: dict[tuple[str, str], list[world.Scene]] = {}
    for scene in train_scenes():
        figures.setdefault((scene.shape, scene.size), []).append(scene)
    latents, renders, start = [], [], time.time()
    for index, ((shape, size), scenes) in enumerate(figures.items()):
        middle = world.IMAGE_SIZE / 2
        masks = np.stack(
            [
                world.coverage(shape, world.SIZES[size], (middle + dx, middle + dy)).ravel()
                for dx, dy in places
            ]
        )
        targets = scenes * count
        prompts = [captions.caption(s, "en", i) for i, s in enumerate(targets)]
        made = sample(unet, text, tokenizer, prompts, seed=100 + index)
        made = made / vae.config.scaling_factor
        for scene, z, image in zip(targets, made, to_uint8(vae.decode(made).sample), strict=True):
            ground = np.array(world.BACKGROUNDS[scene.background], np.float32)
            direction = np.array(world.COLOURS[scene.colour], np.float32) - ground
            alpha = ((image - ground) @ direction / (direction @ direction)).clip(0, 1).ravel()
            errors = (masks**2).sum(1) - 2 * masks @ alpha + alpha @ alpha
            best = int(errors.argmin())
            if errors[best] < 0.3 * masks[best].sum():
                latents.append(z)
                renders.append(world.render(scene, *places[best]))
        log("generated", index + 1, len(figures), start, kept=len(latents))
    shown = torch.from_numpy(np.stack(renders)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.stack(latents), shown


# Stage 4: the language encoder.


def _is_word(piece: str) -> bool:
    """False for whole clauses, which a unigram model learns as one piece in scripts without spaces.

    Every held-out combination must consist of pieces that occur in training.
    """
    han = any("\u4e00" <= c <= "\u9fff" for c in piece)
    kana = any("\u3040" <= c <= "\u309f" for c in piece)
    return piece != "<unk>" and len(piece) <= (2 if han else 3 if kana else 16)


def native_tokenizer() -> XLMRobertaTokenizer:
    """A unigram model like XLM-R's, trained on the captions of all six languages."""
    texts = [
        captions.caption(s, language, t)
        for s in train_scenes()
        for language in captions.LANGUAGES
        for t in range(TEMPLATES)
    ]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = special + [(p, s) for p, s in pieces if _is_word(p)] + [("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=pieces, model_max_length=NATIVE_LENGTH)


def image_tower(width: int) -> nn.Module:
    """A small convolutional network on images of half the size: [B, 3, 32, 32] -> [B, width]."""
    layers: list[nn.Module] = []
    for c_in, c_out in itertools.pairwise((3, 32, 64, 96)):
        layers += [nn.Conv2d(c_in, c_out, 3, 2, 1), nn.GroupNorm(8, c_out), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, width))


def train_language(work: Path, steps: int, batch: int = 192, width: int = 96) -> None:
    torch.manual_seed(3)
    rng = torch.Generator().manual_seed(3)
    tokenizer = native_tokenizer()
    tokenizer.save_pretrained(work / "language_tokenizer")
    tower = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=4 * width,
            max_position_embeddings=NATIVE_LENGTH + 2,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        add_pooling_layer=False,
    )
    vision, project = image_tower(64), nn.Linear(width, 64, bias=False)
    scale = nn.Parameter(torch.tensor(math.log(10.0)))
    scenes = train_scenes()
    images = F.avg_pool3d(pictures(scenes, 4, seed=3), (1, 2, 2))
    languages = len(captions.LANGUAGES)
    texts = [
        captions.caption(s, language, t)
        for s in scenes
        for language in captions.LANGUAGES
        for t in range(TEMPLATES)
    ]
    ids, mask = encode(tokenizer, texts, NATIVE_LENGTH)
    shape = (len(scenes), languages * TEMPLATES)
    ids, mask = ids.unflatten(0, shape), mask.unflatten(0, shape)
    longest = int(mask.sum(-1).max())
    ids, mask = ids[..., :longest], mask[..., :longest]
    print(f"language: {len(tokenizer)} pieces, longest caption {longest} tokens", flush=True)

    parameters = [*tower.parameters(), *vision.parameters(), *project.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)
    schedule = cosine(optimizer, steps)
    labels = torch.arange(batch)
    start = time.time()
    for step, rows in zip(range(steps), batches(len(scenes), batch, rng), strict=False):
        shift = torch.randint(images.shape[1], (batch,), generator=rng)
        which = torch.randint(shape[1], (batch,), generator=rng)
        m = mask[rows, which]
        hidden = tower(ids[rows, which], attention_mask=m).last_hidden_state
        pooled = (hidden * m[..., None]).sum(1) / m.sum(1, keepdim=True)
        a = F.normalize(project(pooled), dim=-1)
        b = F.normalize(vision(images[rows, shift]), dim=-1)
        logits = a @ b.T * scale.clamp(max=math.log(50.0)).exp()
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            right = (logits.argmax(1) == labels).float().mean().item()
            log("language", step + 1, steps, start, loss=loss.item(), right=right)
    tower.eval().save_pretrained(work / "language")


# Stage 5: the files in the package.


def export(work: Path, output: Path) -> None:
    """Writes fp16 weights in the published layouts; replaces the files in `output`."""
    staging = output.with_name(output.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    sd, xlmr = staging / "sd", staging / "xlm-roberta"
    parts = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for name, kind in parts.items():
        kind.from_pretrained(work / name).half().save_pretrained(sd / name)
    CLIPTokenizer.from_pretrained(work / "tokenizer").save_pretrained(sd / "tokenizer")
    PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1).save_pretrained(sd / "scheduler")
    XLMRobertaModel.from_pretrained(
        work / "language", add_pooling_layer=False
    ).half().save_pretrained(xlmr)
    XLMRobertaTokenizer.from_pretrained(work / "language_tokenizer").save_pretrained(xlmr)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (sd / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file in staging.rglob("config.json"):  # diffusers records where a model was loaded from
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    staging.rename(output)
    size = sum(f.stat().st_size for f in output.rglob("*") if f.is_file())
    print(f"export: {output}, {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files")
    parser.add_argument("--stage", default="all")
    parser.add_argument("--vae-steps", type=int, default=2400)
    parser.add_argument("--diffusion-steps", type=int, default=5500)
    parser.add_argument("--decoder-steps", type=int, default=4000)
    parser.add_argument("--language-steps", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=tinyworld.CHECKPOINTS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    stages = {
        "vae": lambda: train_vae(args.work, args.vae_steps),
        "diffusion": lambda: train_diffusion(args.work, args.diffusion_steps),
        "decoder": lambda: train_decoder(args.work, args.decoder_steps),
        "language": lambda: train_language(args.work, args.language_steps),
        "export": lambda: export(args.work, args.output),
    }
    if args.stage != "all" and args.stage not in stages:
        parser.error(f"--stage is all or one of {', '.join(stages)}")
    for name, run in stages.items():
        if args.stage in ("all", name):
            run()


if __name__ == "__main__":
    main()
