"""Every field of a run with its default; the other configs change a few of them.

Set any field on the command line: --config.optim.learning_rate=1e-4.

A workdir stores the config of its run. When the run is resumed, every field must have the stored
value. Only these fields may change on resume: the groups prepare, train, sample, evaluate and mesh,
and data.{data_dir,workers,max_bad_images}.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    # Random seed for adapter init, data order and per-step noise.
    config.seed = 0

    config.model = ConfigDict()
    # Frozen text-to-image model: a Hub id, or a folder in diffusers format. "ID@REVISION" names a
    # branch, tag or commit.
    config.model.base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    # Frozen language encoder: a short name, a Hub id or a folder; "A+B" concatenates two encoders.
    # docs/operations.md, "Models", lists the short names and the supported architectures.
    config.model.language_encoder = "FacebookAI/xlm-roberta-large"
    # Length in tokens to which each caption in the new language is padded or truncated.
    config.model.language_max_length = 77
    # Dtype of the frozen models: "float32", "bfloat16", or "auto" (bfloat16 on accelerators,
    # float32 on CPUs). The adapter, its optimizer and the losses are always float32.
    config.model.dtype = "auto"
    # Attention implementation of the UNet: "xla" (any device), "cudnn" (GPUs), "splash" (TPUs), or
    # "auto", which chooses per layer by device, dtype and size.
    config.model.attention = "auto"
    # Activations to recompute in the backward pass, which saves memory and costs time: "none",
    # "blocks" (inside each resnet and transformer block) or "full" (inside each UNet level).
    config.model.remat = "none"

    config.adapter = ConfigDict()
    # Projector: width between its linear layers, and number of linear layers. Both are ignored if
    # init_from is set, because the file defines them.
    config.adapter.hidden_width = 2048
    config.adapter.projector_layers = 3
    # Initial weights: the folder or file of an exported adapter, or a file that the authors of
    # PEA-Diffusion released. "" initializes randomly.
    config.adapter.init_from = ""

    config.data = ConfigDict()
    # Data set: "tinyworld", or the name of a set that `pea-jax prepare` made.
    config.data.dataset = "tinyworld"
    # Folder of the prepared data sets; may be in a bucket, gs://BUCKET/...
    config.data.data_dir = "~/tensorflow_datasets"
    # Caption languages to train on, as BCP 47 codes. Rows in other languages are skipped.
    config.data.languages = ("zh",)
    # Relative sampling weight of each language, in the order of data.languages, such as
    # (2, 1, 1). () samples all rows equally often.
    config.data.language_weights = ()
    # Height and width of training images in pixels, unless data.buckets is set. Also the default
    # size of samples, with or without buckets.
    config.data.image_size = 512
    # Training sizes of several aspect ratios: ((height, width, probability), ...). Each image goes
    # to the nearest aspect ratio, and each step has one size. () uses data.image_size. The nine
    # sizes of the paper for SDXL: pea_jax.data.buckets.SDXL.
    config.data.buckets = ()
    # Crop position for images of another aspect ratio: "centre" or "random".
    config.data.crop = "centre"
    # Mirror each image horizontally with probability 0.5.
    config.data.random_flip = False
    # Rows per step, summed over all hosts and devices: all rows, and the native rows among them.
    # Native rows learn from the image, the other (parallel) rows from the teacher.
    config.data.batch_size = 320
    config.data.native_batch_size = 80
    # Interpret both batch sizes per device; the device count must then stay fixed across restarts.
    config.data.per_device = False
    # Worker processes per host that decode and crop images; 0 uses threads of the training process.
    config.data.workers = 8
    # Maximum number of unreadable images that each host skips; one more stops the run.
    config.data.max_bad_images = 1000
    # Train from precomputed VAE moments, made by `pea-jax prepare --latents`, and do not run the
    # VAE encoder. The moments must match the base model, data set, image sizes and languages.
    config.data.latents = False
    # Storage dtype of the moments: "float32", or "float16" at half the size.
    config.data.latents_dtype = "float32"

    config.prepare = ConfigDict()
    # Source format that `pea-jax prepare` reads to make data.dataset: "tars" (webdataset, as
    # img2dataset writes it), "table" (JSONL, CSV, TSV or Parquet beside the images),
    # "hugging_face" (a data set of the package `datasets`) or "tfds". "" makes no data set, except
    # tinyworld. See docs/data.md.
    config.prepare.origin = ""
    config.prepare.where = ConfigDict()
    # Sources of each split: files or folders, also gs://BUCKET/..., with {00000..00099}, {a,b} and
    # *; or data set names, NAME or NAME#SPLIT. () makes no such split.
    config.prepare.where.train = ()
    config.prepare.where.test = ()
    # Image column of a table or data set. It holds image bytes, or paths relative to the table.
    config.prepare.image = "image"
    # Rows per shard of a table or data set; a shard is read and written as one unit. A Parquet
    # shard is a number of whole row groups up to this limit. A tar is always one shard.
    config.prepare.rows_per_shard = 10_000

    config.prepare.mapping = ConfigDict()
    # "" uses the mapping fields below. "official" reads captions by the keys of the authors' tars:
    # a Chinese caption_ori* makes a native row, else caption_zh and caption_en make a parallel row.
    # "official" requires the defaults for caption, caption_en, language*, and native* below.
    config.prepare.mapping.preset = ""
    # Permanent key of a row, made of {name} (of the sample), {shard} (its file) and any {FIELD}.
    # If several rows have the same key, only the first is kept.
    config.prepare.mapping.key = "{shard}/{name}"
    # Fields of the caption and of its English translation; the first non-blank field is used.
    # "texts.zh" and "captions.0" read nested fields; "txt" is the .txt file in a tar.
    config.prepare.mapping.caption = ("caption", "txt")
    config.prepare.mapping.caption_en = ()
    # Language of all captions as a BCP 47 code; or "", and the field that holds the code.
    config.prepare.mapping.language = "zh"
    config.prepare.mapping.language_field = ""
    # Native rows: "unpaired" (rows without an English caption), "always" or "never"; or "", and the
    # boolean field that marks them.
    config.prepare.mapping.native = "unpaired"
    config.prepare.mapping.native_field = ""
    # Score fields that min_aesthetic and max_watermark read.
    config.prepare.mapping.aesthetic = "aesthetic_score"
    config.prepare.mapping.watermark = "watermark"

    config.prepare.captions = ConfigDict()
    # Native Chinese captions: remove all but Chinese characters, digits and common punctuation; and
    # convert traditional to simplified Chinese.
    config.prepare.captions.strip_native = True
    config.prepare.captions.simplify = True
    # Minimum fraction of a caption's letters in the script of its language; 0 accepts any script.
    config.prepare.captions.min_script_share = 0.3

    config.prepare.filters = ConfigDict()
    # Caption languages to keep, as BCP 47 codes; () keeps all.
    config.prepare.filters.languages = ()
    # Minimum image area in pixels, and maximum ratio of the longer to the shorter side; 0: no
    # limit.
    config.prepare.filters.min_area = 0
    config.prepare.filters.max_aspect = 0.0
    # Parallel rows only: minimum aesthetic score (0: no limit), and maximum watermark probability
    # (1: no limit). A limit also rejects rows without the score.
    config.prepare.filters.min_aesthetic = 0.0
    config.prepare.filters.max_watermark = 1.0
    # Length of the cleaned caption, and of the English caption of parallel rows, in characters;
    # 0: no limit.
    config.prepare.filters.min_characters = 1
    config.prepare.filters.max_characters = 0
    config.prepare.filters.min_characters_en = 1
    config.prepare.filters.max_characters_en = 0

    config.distill = ConfigDict()
    # True: native rows use the diffusion loss, and parallel rows the two distillation losses.
    # False: all rows are parallel and use all three losses; native_batch_size must be 0.
    config.distill.hybrid = True
    # Weights of the diffusion loss, the output loss and the feature loss; 0 disables a loss.
    config.distill.native_weight = 1.0
    config.distill.output_weight = 1.0
    config.distill.feature_weight = 0.1
    # Probability of replacing the tokens of a row by those of the empty prompt, 0 to 1.
    config.distill.prompt_drop = 0.1
    # Standard deviation of an offset added to the noise, drawn per image and channel; 0: none.
    config.distill.noise_offset = 0.0

    config.optim = ConfigDict()
    # AdamW. The learning rate rises linearly from 0, then decays polynomially.
    config.optim.learning_rate = 1e-5
    config.optim.end_learning_rate = 5e-8
    config.optim.warmup_steps = 100
    # Step at which the end learning rate is reached, independent of train.steps; 0: no decay.
    config.optim.decay_steps = 2_232_142
    # Exponent of the decay; 1 is linear.
    config.optim.power = 1.0
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.999
    config.optim.epsilon = 1e-8
    # Decoupled weight decay, scaled by the learning rate; applies to matrices only.
    config.optim.weight_decay = 0.0
    # Maximum global norm of the gradient; 0: no clipping.
    config.optim.clip_norm = 1.0
    # Decay of the exponential moving average (EMA) of the adapter. If it is positive, sampling and
    # export use the EMA weights; 0: no EMA.
    config.optim.ema_decay = 0.0

    config.train = ConfigDict()
    # Total number of steps, including those before a resume.
    config.train.steps = 42_000
    # Number of slices in which each device processes its rows, one after another. More slices need
    # less activation memory and give the same result.
    config.train.accumulation_steps = 1
    # Steps between two lines of metrics.
    config.train.log_every = 50
    # Steps between two checkpoints; the last step is always saved.
    config.train.save_every = 1000
    # Number of latest checkpoints to keep, and whether to keep the checkpoint with the lowest loss
    # too. Its loss is the mean over the steps since the checkpoint before.
    config.train.keep = 3
    config.train.keep_best = False
    # Steps between two sample grids in TensorBoard; 0: no grids.
    config.train.sample_every = 1000
    # Prompts of the sample grids. The grids use the settings of config.sample and the same initial
    # noise each time.
    config.train.sample_prompts = ("一只戴着红色围巾的猫", "山上的古寺", "一盘红烧狮子头", "")
    # Folder that caches compiled programs across runs, also gs://BUCKET/...; "": no cache.
    config.train.compilation_cache = "~/.cache/pea_jax"

    config.mesh = ConfigDict()
    # Size of the two mesh axes: data splits batches; fsdp splits batches and large frozen weights.
    # Their product is the number of devices. -1: all devices that the other axis leaves.
    config.mesh.data = -1
    config.mesh.fsdp = 1
    # Multi-process runs, in seconds: time for all processes to join at the start, and silence after
    # which a process counts as lost and the others exit.
    config.mesh.join_timeout = 300
    config.mesh.heartbeat_timeout = 60

    config.sample = ConfigDict()
    # "ddim", "euler", "euler_ancestral" or "dpmpp_2m".
    config.sample.solver = "dpmpp_2m"
    # Solver steps.
    config.sample.steps = 30
    # Scale of classifier-free guidance; 1 or below: no guidance.
    config.sample.guidance_scale = 7.5
    # Guidance rescale, 0 (off) to 1 (standard deviation of the conditional prediction restored).
    config.sample.guidance_rescale = 0.0
    # Negative prompt for guidance, in the language of the prompts.
    config.sample.negative_prompt = ""
    # Image size in pixels; 0: data.image_size.
    config.sample.height = 0
    config.sample.width = 0
    # Images per batch, over all devices; 0: automatic.
    config.sample.batch_size = 0
    # Seed of the first image; each following image adds 1.
    config.sample.seed = 0

    config.evaluate = ConfigDict()
    # Languages of the prompts, as BCP 47 codes; (): data.languages.
    config.evaluate.languages = ()
    # Images per prompt.
    config.evaluate.images_per_prompt = 1
    # Maximum number of prompts per prompt set; 0: all.
    config.evaluate.prompts = 0
    # Seed of the first image; each following image adds 1.
    config.evaluate.seed = 0

    return config.lock()
