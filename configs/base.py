"""Every field of a run, with its meaning and default; the other files here change a few of them.

Any field can be set on the command line: --config.optim.learning_rate=1e-4.

A workdir keeps the config it was begun with, and refuses another; free to change when a run goes
on are the groups prepare, train, sample, evaluate and mesh, and
data.{data_dir,workers,max_bad_images}.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    # Of the adapter's first weights, the order of the data, and the noise of every step.
    config.seed = 0

    config.model = ConfigDict()
    # The frozen text-to-image model: a Hub id, or a folder in diffusers format. A branch, tag or
    # commit may follow an id: "id@revision".
    config.model.base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    # The frozen encoder of the language: a Hub id, or a folder (XLM-R, RoBERTa or BERT).
    config.model.language_encoder = "FacebookAI/xlm-roberta-large"
    # Tokens a caption in that language is padded or cut to.
    config.model.language_max_length = 77
    # Of the frozen weights: "float32", "bfloat16", or "auto": bfloat16 on accelerators, float32 on
    # CPUs. The adapter, its optimiser and the losses are float32 always.
    config.model.dtype = "auto"
    # The UNet's attention: "auto" goes by devices and sizes, "xla" runs anywhere, "cudnn" on GPUs.
    config.model.attention = "auto"
    # What training computes again rather than keeps, less memory for more time: "none", "blocks"
    # (the inside of each resnet and transformer block), "full" (the inside of each level).
    config.model.remat = "none"

    config.adapter = ConfigDict()
    # Of its projector: the width between the linear layers, and how many of these there are. An
    # adapter that is given has its own.
    config.adapter.hidden_width = 2048
    config.adapter.projector_layers = 3
    # Where its first weights come from: an exported adapter's folder or file, or a file that the
    # authors of PEA-Diffusion released; "" draws them.
    config.adapter.init_from = ""

    config.data = ConfigDict()
    # "tinyworld", or the name of a data set that `pea-jax prepare` made.
    config.data.dataset = "tinyworld"
    # Where prepared data sets lie; may be in a bucket, gs://BUCKET/...
    config.data.data_dir = "~/tensorflow_datasets"
    # Of the captions, BCP 47 codes; rows of other languages are left out.
    config.data.languages = ("zh",)
    # How often rows of each come, in their order: (2, 1, 1); () takes all rows equally often.
    config.data.language_weights = ()
    # Pictures are resized and cropped to this height and width where there are no buckets. It is
    # also the size of samples, with buckets or without, unless sample.height and width are given.
    config.data.image_size = 512
    # Sizes of several aspects, one a step: ((height, width, how often), ...); a picture goes to the
    # one whose aspect is nearest. The paper's nine for SDXL: pea_jax.data.buckets.SDXL.
    config.data.buckets = ()
    # Which part stays of a picture that has another aspect: "centre" or "random".
    config.data.crop = "centre"
    # Whether one picture of two, at random, is mirrored.
    config.data.random_flip = False
    # Rows of one step over all hosts and devices, and how many of them are native pairs, which
    # learn from the picture; the others are parallel pairs, which learn from the teacher.
    config.data.batch_size = 320
    config.data.native_batch_size = 80
    # Whether both are of each device instead: then a run needs as many devices in every sitting.
    config.data.per_device = False
    # Processes of each host that decode and crop; 0 does it in threads of the training process.
    config.data.workers = 8
    # Unreadable pictures that each host skips before the run stops.
    config.data.max_bad_images = 1000
    # Train from the VAE's moments of every picture, which `pea-jax prepare --latents` kept, and run
    # no VAE. They are of this very base model, data set, size and these languages.
    config.data.latents = False
    # What they are kept in: "float32", or "float16" at half the size.
    config.data.latents_dtype = "float32"

    config.prepare = ConfigDict()
    # What `pea-jax prepare` makes data.dataset of: "tars" (webdataset, as img2dataset writes them),
    # "table" (JSONL, CSV or Parquet beside the pictures), "hugging_face" (a set of the package
    # `datasets`) or "tfds"; "" makes no set but tinyworld. See docs/data.md.
    config.prepare.origin = ""
    config.prepare.where = ConfigDict()
    # What each split is made of: files or folders, also gs://BUCKET/..., with {00000..00099}, {a,b}
    # and *; or names of sets, NAME or NAME#SPLIT. A split of nothing is not made.
    config.prepare.where.train = ()
    config.prepare.where.test = ()
    # The column of the picture, in a table and in a set: its path beside the table, or its bytes.
    config.prepare.image = "image"
    # Rows that are read together and make one file, of Parquet whole row groups up to as many; a
    # tar makes one file always.
    config.prepare.rows_per_shard = 10_000

    config.prepare.mapping = ConfigDict()
    # "official" takes captions by the keys of the authors' tars: caption_ori* where it is Chinese
    # makes a native row, else caption_zh and caption_en a parallel one; the fields of captions,
    # language and native below then stay as they are. "" goes by these.
    config.prepare.mapping.preset = ""
    # What names a row for good: {name} of the sample, {shard} of its file, or any {FIELD}. Of
    # rows with the same key one is kept.
    config.prepare.mapping.key = "{shard}/{name}"
    # Fields of the caption and of its English counterpart, the first that is not blank counts.
    # A field in a field is "texts.zh" or "captions.0"; that of a txt in a tar is "txt".
    config.prepare.mapping.caption = ("caption", "txt")
    config.prepare.mapping.caption_en = ()
    # Of all captions, a BCP 47 code; or "" and the field that holds it.
    config.prepare.mapping.language = "zh"
    config.prepare.mapping.language_field = ""
    # Which rows are native: "unpaired" (those without an English caption), "always", "never"; or ""
    # and the field that says so.
    config.prepare.mapping.native = "unpaired"
    config.prepare.mapping.native_field = ""
    # Fields of the scores that filters ask for.
    config.prepare.mapping.aesthetic = "aesthetic_score"
    config.prepare.mapping.watermark = "watermark"

    config.prepare.captions = ConfigDict()
    # Native Chinese captions keep Chinese characters, digits and some punctuation alone, and become
    # simplified Chinese.
    config.prepare.captions.strip_native = True
    config.prepare.captions.simplify = True
    # Of a caption's letters, how many at least are of its language's script; 0 takes any caption.
    config.prepare.captions.min_script_share = 0.3

    config.prepare.filters = ConfigDict()
    # Of captions; () takes all.
    config.prepare.filters.languages = ()
    # Height times width in pixels, and the longer side over the shorter one (0: any).
    config.prepare.filters.min_area = 0
    config.prepare.filters.max_aspect = 0.0
    # Of parallel rows alone; 0 and 1 take any, also rows without a score.
    config.prepare.filters.min_aesthetic = 0.0
    config.prepare.filters.max_watermark = 1.0
    # Characters of a caption when it is clean, and of the English one of parallel rows; 0: any.
    config.prepare.filters.min_characters = 1
    config.prepare.filters.max_characters = 0
    config.prepare.filters.min_characters_en = 1
    config.prepare.filters.max_characters_en = 0

    config.distill = ConfigDict()
    # Native rows learn by the diffusion loss and parallel rows from the teacher. False: all rows
    # are parallel, and all terms apply to each (native_batch_size must be 0).
    config.distill.hybrid = True
    # Weights of the three terms; 0 leaves a term out.
    config.distill.native_weight = 1.0
    config.distill.output_weight = 1.0
    config.distill.feature_weight = 0.1
    # Probability that a row's caption is replaced by the empty prompt.
    config.distill.prompt_drop = 0.1
    # Standard deviation of an offset of the noise, one value an image and channel.
    config.distill.noise_offset = 0.0

    config.optim = ConfigDict()
    # AdamW: linear warm-up to the learning rate, then polynomial decay.
    config.optim.learning_rate = 1e-5
    config.optim.end_learning_rate = 5e-8
    config.optim.warmup_steps = 100
    # The step that reaches the end learning rate, whatever train.steps is; 0 never decays.
    config.optim.decay_steps = 2_232_142
    # Of the decay; 1 is linear.
    config.optim.power = 1.0
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.999
    config.optim.epsilon = 1e-8
    # Of matrices, decoupled, scaled by the learning rate.
    config.optim.weight_decay = 0.0
    # The largest global norm of a gradient; 0 does not clip.
    config.optim.clip_norm = 1.0
    # Decay of a moving average of the adapter, which is then what is sampled and exported; 0: none.
    config.optim.ema_decay = 0.0

    config.train = ConfigDict()
    # The last step of the run.
    config.train.steps = 42_000
    # Slices that each device's rows of a step are computed in, one after another: less memory for
    # activations, the same result.
    config.train.accumulation_steps = 1
    # Steps between two lines of metrics.
    config.train.log_every = 50
    # Steps between two checkpoints; the last step has one always.
    config.train.save_every = 1000
    # How many of the latest checkpoints stay, and whether the one of the lowest loss stays too (the
    # mean over the steps that led to it).
    config.train.keep = 3
    config.train.keep_best = False
    # Steps between two sample grids in TensorBoard; 0 draws none.
    config.train.sample_every = 1000
    # What they show, by the settings of `sample`, always from the same noise.
    config.train.sample_prompts = ("一只戴着红色围巾的猫", "山上的古寺", "一盘红烧狮子头", "")
    # Where compiled programs are kept for the next start, also gs://BUCKET/...; "" keeps none.
    config.train.compilation_cache = "~/.cache/pea_jax"

    config.mesh = ConfigDict()
    # Devices that split batches alone, and devices that split the frozen weights as well; -1: all
    # that the other leaves.
    config.mesh.data = -1
    config.mesh.fsdp = 1
    # Of several processes: seconds in which all have to come, and after which one that is silent
    # counts as lost and ends the others.
    config.mesh.join_timeout = 300
    config.mesh.heartbeat_timeout = 60

    config.sample = ConfigDict()
    # ddim, euler, euler_ancestral or dpmpp_2m.
    config.sample.solver = "dpmpp_2m"
    config.sample.steps = 30
    # 1 is no guidance.
    config.sample.guidance_scale = 7.5
    # How far the guided prediction's deviation is brought back, 0 to 1.
    config.sample.guidance_rescale = 0.0
    config.sample.negative_prompt = ""
    # Pixels; 0 takes data.image_size.
    config.sample.height = 0
    config.sample.width = 0
    # Images of one program call over all devices; 0 lets the pipeline choose.
    config.sample.batch_size = 0
    config.sample.seed = 0

    config.evaluate = ConfigDict()
    # Of the prompts; none takes data.languages.
    config.evaluate.languages = ()
    # Images a prompt.
    config.evaluate.images_per_prompt = 1
    # Prompts of each set; 0 takes all.
    config.evaluate.prompts = 0
    config.evaluate.seed = 0

    return config.lock()
