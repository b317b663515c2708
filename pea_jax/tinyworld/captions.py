"""Captions of scenes in six languages, with a few templates each.

A motif's English name is the one that the tiny Stable Diffusion was trained with ("panda").
`literal` is the word-for-word translation of its Chinese name ("bear cat"), which serves as the
translation baseline of the paper.
"""

from pea_jax.tinyworld.world import Scene

LANGUAGES = ("en", "zh", "ja", "ko", "ru", "it")

#: Templates of each language; a caption's `template` number wraps around.
TEMPLATES = {
    "en": (
        "a {size} {colour} {shape} {background}",
        "{background}, a {size} {colour} {shape}",
        "a {colour} {shape}, {size}, {background}",
        "a picture of a {size} {colour} {shape} {background}",
    ),
    "zh": (
        "{background}有一个{colour}的{size}{shape}",
        "一个{size}的{colour}{shape}，在{background}",
        "{background}，{colour}的{size}{shape}",
        "一张图画：{background}的{colour}{size}{shape}",
    ),
    "ja": (
        "{background}{size}{colour}{shape}",
        "{colour}{size}{shape}、{background}絵",
        "{background}{colour}{shape}、{size}もの",
        "{background}{size}{colour}{shape}の絵",
    ),
    "ko": (
        "{background} {size} {colour} {shape}",
        "{colour} {size} {shape}, {background} 그림",
        "{background} {colour} {shape}, {size} 것",
        "{background} {size} {colour} {shape} 그림",
    ),
    "ru": (
        "{size} {colour} {shape} {background}",
        "{background} {size} {colour} {shape}",
        "{colour} {shape}, {size}, {background}",
        "картинка: {size} {colour} {shape} {background}",
    ),
    "it": (
        "{size} {shape} {colour} {background}",
        "{background}, {size} {shape} {colour}",
        "{shape} {colour}, {size}, {background}",
        "immagine: {size} {shape} {colour} {background}",
    ),
}

#: Words of each language: a string; (word, gender) for the nouns of inflected languages; for their
#: adjectives, the forms in the order of `_GENDERS`.
_GENDERS = {"ru": ("m", "f", "n", "p"), "it": ("m", "f")}

_WORDS: dict[str, dict[str, object]] = {
    "zh": {
        "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星星",
        "heart": "爱心", "cross": "十字", "diamond": "菱形", "ring": "圆环",
        "taiji": "太极", "lantern": "灯笼", "torii": "鸟居", "matryoshka": "套娃",
        "gondola": "凤尾船", "panda": "熊猫",
        "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
        "turquoise": "青色", "blue": "蓝色", "purple": "紫色", "pink": "粉色",
        "small": "小", "large": "大",
        "snow": "雪地上", "sand": "沙滩上", "fog": "雾里", "night": "夜空中",
    },
    "ja": {
        "circle": "円", "square": "正方形", "triangle": "三角形", "star": "星",
        "heart": "ハート", "cross": "十字", "diamond": "ひし形", "ring": "輪",
        "taiji": "太極図", "lantern": "提灯", "torii": "鳥居", "matryoshka": "マトリョーシカ",
        "gondola": "ゴンドラ", "panda": "パンダ",
        "red": "赤い", "orange": "橙色の", "yellow": "黄色い", "green": "緑色の",
        "turquoise": "水色の", "blue": "青い", "purple": "紫色の", "pink": "桃色の",
        "small": "小さな", "large": "大きな",
        "snow": "雪の上の", "sand": "砂の上の", "fog": "霧の中の", "night": "夜空の",
    },
    "ko": {
        "circle": "원", "square": "정사각형", "triangle": "삼각형", "star": "별",
        "heart": "하트", "cross": "십자가", "diamond": "마름모", "ring": "고리",
        "taiji": "태극", "lantern": "등롱", "torii": "도리이", "matryoshka": "마트료시카",
        "gondola": "곤돌라", "panda": "판다",
        "red": "빨간", "orange": "주황색", "yellow": "노란", "green": "초록색",
        "turquoise": "청록색", "blue": "파란", "purple": "보라색", "pink": "분홍색",
        "small": "작은", "large": "큰",
        "snow": "눈 위의", "sand": "모래 위의", "fog": "안개 속의", "night": "밤하늘의",
    },
    "ru": {
        "circle": ("круг", "m"), "square": ("квадрат", "m"), "triangle": ("треугольник", "m"),
        "star": ("звезда", "f"), "heart": ("сердце", "n"), "cross": ("крест", "m"),
        "diamond": ("ромб", "m"), "ring": ("кольцо", "n"),
        "taiji": ("инь-ян", "m"), "lantern": ("фонарик", "m"), "torii": ("тории", "p"),
        "matryoshka": ("матрёшка", "f"), "gondola": ("гондола", "f"), "panda": ("панда", "f"),
        "red": ("красный", "красная", "красное", "красные"),
        "orange": ("оранжевый", "оранжевая", "оранжевое", "оранжевые"),
        "yellow": ("жёлтый", "жёлтая", "жёлтое", "жёлтые"),
        "green": ("зелёный", "зелёная", "зелёное", "зелёные"),
        "turquoise": ("бирюзовый", "бирюзовая", "бирюзовое", "бирюзовые"),
        "blue": ("синий", "синяя", "синее", "синие"),
        "purple": ("фиолетовый", "фиолетовая", "фиолетовое", "фиолетовые"),
        "pink": ("розовый", "розовая", "розовое", "розовые"),
        "small": ("маленький", "маленькая", "маленькое", "маленькие"),
        "large": ("большой", "большая", "большое", "большие"),
        "snow": "на снегу", "sand": "на песке", "fog": "в тумане", "night": "в ночном небе",
    },
    "it": {
        "circle": ("cerchio", "m"), "square": ("quadrato", "m"), "triangle": ("triangolo", "m"),
        "star": ("stella", "f"), "heart": ("cuore", "m"), "cross": ("croce", "f"),
        "diamond": ("rombo", "m"), "ring": ("anello", "m"),
        "taiji": ("tao", "m"), "lantern": ("lanterna", "f"), "torii": ("torii", "m"),
        "matryoshka": ("matrioska", "f"), "gondola": ("gondola", "f"), "panda": ("panda", "m"),
        "red": ("rosso", "rossa"), "orange": ("arancione", "arancione"),
        "yellow": ("giallo", "gialla"), "green": ("verde", "verde"),
        "turquoise": ("turchese", "turchese"), "blue": ("blu", "blu"),
        "purple": ("viola", "viola"), "pink": ("rosa", "rosa"),
        "small": ("piccolo", "piccola"), "large": ("grande", "grande"),
        "snow": "sulla neve", "sand": "sulla sabbia", "fog": "nella nebbia",
        "night": "nel cielo notturno",
    },
    "en": {
        **{w: w for w in ("circle", "square", "triangle", "star", "heart", "cross", "diamond")},
        **{w: w for w in ("ring", "lantern", "torii", "matryoshka", "gondola", "panda")},
        **{w: w for w in ("red", "orange", "yellow", "green", "turquoise", "blue", "purple")},
        "pink": "pink", "taiji": "yin-yang", "small": "small", "large": "large",
        "snow": "in the snow", "sand": "on the sand", "fog": "in the fog", "night": "at night",
    },
}  # fmt: skip

#: Word-for-word translations of the motifs' Chinese names.
_LITERAL = {
    "taiji": "utmost pole",
    "lantern": "lamp cage",
    "torii": "bird dwelling",
    "matryoshka": "sleeve doll",
    "gondola": "phoenix tail boat",
    "panda": "bear cat",
}


def _fill(language: str, template: int, scene: Scene, noun: object) -> str:
    words = _WORDS[language]
    noun, gender = noun if isinstance(noun, tuple) else (noun, None)

    def adjective(name: str) -> str:
        word = words[name]
        return word[_GENDERS[language].index(gender)] if isinstance(word, tuple) else word

    text = TEMPLATES[language][template % len(TEMPLATES[language])].format(
        shape=noun,
        colour=adjective(scene.colour),
        size=adjective(scene.size),
        background=words[scene.background],
    )
    return text.replace("a orange", "an orange") if language == "en" else text


def caption(scene: Scene, language: str, template: int = 0) -> str:
    """The caption of a scene in `language`, by one of its templates.

    Raises:
      ValueError: the language is not in ``LANGUAGES``.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is none of {', '.join(LANGUAGES)}")
    return _fill(language, template, scene, _WORDS[language][scene.shape])


def literal(scene: Scene, template: int = 0) -> str:
    """The English caption of a motif with the word-for-word translation of its Chinese name.

    Raises:
      ValueError: the scene has no motif.
    """
    if not scene.native:
        raise ValueError(f"only a motif's name is lost in translation, got {scene.shape!r}")
    return _fill("en", template, scene, _LITERAL[scene.shape])
