"""What templates of wikitext show: the few that carry text, by name, in several languages.

A template without an entry shows nothing: boxes, notes, navigation, pronunciations, citations.
"""

import re

# Between a template's or link's arguments once the text is taken apart.
SEPARATOR = "\1"
# From the arguments to names in lower case: {1|text} is the first, or the one named text.
TEMPLATES = {
    name: shown
    for shown, names in {
        "{2|text}": "lang, langx, langue, lang-x, script, 言語",
        "{1}": """nowrap, nobr, no wrap, nowraplinks, small, smaller, big, large, em, strong, sub,
            smallcaps, sc, small caps, abbr, abréviation, tooltip, abk, math, mvar, var, code, tt,
            kbd, samp, ill, interlanguage link, lien, illm, ill2, 仮リンク, link-en, link-de,
            link-fr, link-ja, link-ru, internal link helper/en, нп5, нп3, не переведено, нп, u,
            underline, strikethrough, noitalic, not a typo, sic, as written, ens, frs, des, its,
            ess, las, grcs, ars, angle bracket, angbr, nihongo2, cjk-new-char, linktext""",
        "{3|2|1}": "transl, transliteration, rtl-lang",
        "{4|3}": "tsl",
        "\n{1|text|quote|texte|цитата|cita}\n": """quote, blockquote, cquote, quotation, quote box,
            zitat, citation bloc, цитата, cita, citazione, citaat, 引用, rquote""",
        "« {1|texte} »": "citation, citation étrangère",
        "{1} ({2}, {3})": "nihongo, 日本語",
        "{1}（{2}）": "ruby, ルビ, 読み仮名, ruby-ja, 注音",
        "（{1}{2}－{3}{4}）": "bd",
        "{1} {2} {3}": "date, date-, unité, unite, nombre, число",
        "{1}{2}{3}{4}{5}{6}": "chem, chem2, gaps, val-, su, nts, num",
        "c. {1}": "circa, c., ca., ca",
        "{1}e siècle": "s, s-, siècle",
        "^{1}": "sup, e",
        "×10^{1}": "x10^, e10",
        "As of {1}": "as of",
        "|": "!",
        "=": "=",
        " – ": "snd, spnd, spaced ndash, spaced en dash, ndash, en dash, dash, –",
        " — ": "spaced mdash, em dash, mdash, emdash",
        " · ": "·, dot, middot, bullet, •",
        " ": "nbsp, space, spaces, thinsp, thin space, hair space, nbs, clear space, quad, zwsp",
        "″": "sec", "′": "prime", "♯": "sharp", "♭": "flat", "'": "', apostrophe", "`": "`",
        "1er": "1er", "er": "er", "ISBN {1}": "isbn",
    }.items()
    for name in map(str.strip, names.split(","))
}  # fmt: skip
# {{convert|5|to|10|km|mi}}: what stands between two values.
RANGES = {
    "-": "–", "–": "–", "to": " to ", "to-": " to ", "and": " and ", "or": " or ", "x": " × ",
    "×": " × ", "by": " by ", "xx": " × ", "+/-": " ± ", "±": " ± ", "to(-)": " to ", "-to": " to ",
}  # fmt: skip
CONVERSIONS = ("convert", "cvt", "conv", "converti", "umrechnen", "换算", "unit convert")
ARGUMENT_NAME = re.compile(r"\s*+[\w -]{1,40}\s*+")
NUMBER, UNIT = re.compile(r"[0-9]+(?:[.,/⁄][0-9]+)?"), re.compile(r"[^\W\d]")
FIELD = re.compile(r"\{([^{}]+)\}")
FOREIGN_NAME = re.compile(r"lang-[a-z-]+")


def show(inside: list[str]) -> str:
    """Gives what a template shows.

    Args:
        inside: its name and arguments in pieces, with SEPARATOR as a piece between them.

    Returns:
        The text, '' where it shows nothing that is worth keeping.
    """
    end = inside.index(SEPARATOR) if SEPARATOR in inside else len(inside)
    name = "".join(inside[:end]).strip().replace("_", " ").lower()
    shown = TEMPLATES.get(name, "{1|text}" if FOREIGN_NAME.fullmatch(name) else None)
    if shown is None and name not in (*CONVERSIONS, "val"):
        return name.removeprefix("formatnum:") if name.startswith("formatnum:") else ""
    values: dict[str, str] = {}
    numbered = 0
    for argument in "".join(inside[end + 1 :]).split(SEPARATOR):
        key, equals, value = argument.partition("=")
        if equals and ARGUMENT_NAME.fullmatch(key):
            values[key.strip().lower()] = value.strip()
        else:
            numbered += 1
            values[str(numbered)] = argument.strip()
    if name == "val":
        return _quantity(values)
    if shown is None:
        return _convert([values.get(str(number), "") for number in range(1, numbered + 1)])
    return FIELD.sub(lambda field: _first(field[1].split("|"), values), shown)


def _first(keys: list[str], values: dict[str, str]) -> str:
    return next((values[key] for key in keys if values.get(key)), "")


def _quantity(values: dict[str, str]) -> str:
    """A number, its power of ten and its unit: 1.67×10^−27 kg."""
    power = values.get("e", "").replace("-", "\u2212")
    number = values.get("1", "") + (f"×10^{power}" if power else "")
    return f"{number} {_first(['u', 'ul'], values)}".rstrip()


def _convert(values: list[str]) -> str:
    """A measure as it was given: 5 km; 5 to 10 km; 6 ft 2 in."""
    text = values[0] if values else ""
    at = 1
    while at + 1 < len(values) and values[at].lower() in RANGES:
        text += RANGES[values[at].lower()] + values[at + 1]
        at += 2
    if at + 2 < len(values) and NUMBER.fullmatch(values[at + 1]) and UNIT.match(values[at + 2]):
        return f"{text} {values[at]} {values[at + 1]} {values[at + 2]}"
    return f"{text} {values[at]}" if at < len(values) else text
