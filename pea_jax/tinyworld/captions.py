"""Captions of scenes in six languages, with a few templates each.

The templates and words are in `captions.json`:

    templates   language -> templates; a caption's `template` number wraps around
    words       language -> words: a text; [word, gender] for the nouns of inflected languages; for
                their adjectives, the forms in the order of `genders`
    literal     word-for-word translations of the motifs' Chinese names

A motif's English name is the one that the tiny Stable Diffusion was trained with ("panda").
`literal` is the word-for-word translation of its Chinese name ("bear cat"), which serves as the
translation baseline of the paper.
"""

import json
from pathlib import Path

from pea_jax.tinyworld.world import Scene

_TABLES = json.loads(Path(__file__).with_name("captions.json").read_text("utf-8"))
_WORDS = _TABLES["words"]

#: Language -> templates.
TEMPLATES = _TABLES["templates"]
LANGUAGES = tuple(TEMPLATES)


def _fill(language: str, template: int, scene: Scene, noun: str | list[str]) -> str:
    words, templates = _WORDS[language], TEMPLATES[language]
    noun, gender = noun if isinstance(noun, list) else (noun, None)

    def adjective(name: str) -> str:
        word = words[name]
        return word[_TABLES["genders"][language].index(gender)] if gender else word

    text = templates[template % len(templates)].format(
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
    return _fill("en", template, scene, _TABLES["literal"][scene.shape])
