"""Extracts the font for the captions of tinyworld's grids from Noto Sans CJK (SIL OFL 1.1).

    pip install fonttools
    python tools/build_font.py NotoSansCJK-Regular.ttc

Keeps ASCII, Latin-1 and every glyph of the captions in all six languages.
"""

import sys

from fontTools import subset
from fontTools.ttLib import TTFont

from pea_jax import tinyworld
from pea_jax.tinyworld import captions, splits


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: build_font.py NotoSansCJK-Regular.ttc")
    scenes = [
        s for split in ("train", "test") for n in (False, True) for s in splits.scenes(split, n)
    ]
    text = {
        glyph
        for scene in scenes
        for language in captions.LANGUAGES
        for template in range(len(captions.TEMPLATES[language]))
        for glyph in captions.caption(scene, language, template)
    }
    text |= {chr(code) for code in (*range(32, 127), *range(160, 256))}
    # Face 2 of the collection is Simplified Chinese.
    font = TTFont(sys.argv[1], fontNumber=2)
    options = subset.Options(layout_features=["kern"], name_IDs=[0, 1, 2, 13, 14], hinting=False)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(text)))
    subsetter.subset(font)
    font.save(tinyworld.FONT)
    print(f"{tinyworld.FONT}: {len(text)} glyphs, {tinyworld.FONT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
