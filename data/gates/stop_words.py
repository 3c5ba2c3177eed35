"""The most frequent function words of languages, as sets that compiled code looks up.

Gopher (Rae et al. 2021) gives those of English; the others are the like of them, for every text in
a natural language holds a few. The languages are those that are written with blanks or where single
characters are function words, as those of data.words are.
"""

import functools
import unicodedata

import numpy as np

from data.words import build_set, split_words

NUM_SLOTS = 64
# ISO 639-1 code: words in lower case.
STOP_WORDS = {
    "ar": "في من على أن إلى هذا التي عن مع لا ما كان",
    "bg": "на и да се в за не от че с са по",
    "bn": "এবং ও এই করে থেকে জন্য না হয় একটি তার যে কি",
    "ca": "de la el i que els les en un una per amb",
    "cs": "a se v na je že to s z do i o",
    "da": "og i at det er en til af på for med den",
    "de": "der die und in den von zu das mit sich nicht ist",
    "el": "και το να της η την με για που από τα του",
    "en": "the be to of and that have with",
    "es": "de la que el en y los se del las un por",
    "fa": "و در به از که این را با است آن برای یک",
    "fi": "ja on ei se että oli hän ovat joka mutta kun myös",
    "fr": "de la le et les des en un du une est que",
    "he": "של את על לא זה עם הוא כי גם או היה אל",
    "hi": "के में की है और से का को पर यह नहीं कि",
    "hr": "i u je na se da za su od s kao ne",
    "hu": "a az és hogy nem is egy ez meg volt csak el",
    "id": "yang dan di dengan untuk dari ini itu dalam tidak pada adalah",
    "it": "di e il la che in a per un del non una",
    "ja": "の に は を た が で て と し れ さ",
    "nl": "de het een van en in is dat op te zijn met",
    "no": "og i det er på som en til å av for med",
    "pl": "w i na z się nie do to jest że o po",
    "pt": "de a o que e do da em um para os com",
    "ro": "de și în la a cu pe că din nu o să",
    "ru": "и в не на что с как по это из но он",
    "sk": "a sa v na je že to s z do o ako",
    "sv": "och att det i en som på är av för den med",
    "tr": "ve bir bu da de için ile çok daha ne var değil",
    "uk": "і в на не що з та до як у за це",
    "ur": "کے میں کی ہے اور سے کا کو پر یہ نہیں کہ",
    "vi": "và của là có không được trong cho một các với những",
    "zh": "的 一 是 不 了 在 有 和 人 以 上 他",
}
LANGUAGES = {language: number for number, language in enumerate(STOP_WORDS)}


@functools.cache
def sets() -> np.ndarray:
    """Hashes the words of every language.

    Returns:
        A set as `probe` reads it for each language, in the order of LANGUAGES; uint64
        [languages, NUM_SLOTS], read-only.
    """
    slots = np.empty((len(STOP_WORDS), NUM_SLOTS), np.uint64)
    for row, words in zip(slots, STOP_WORDS.values(), strict=True):
        text = unicodedata.normalize("NFC", words).encode()
        hashes = split_words(np.frombuffer(text, np.uint8), np.array([0, len(text)])).hashes
        row[:] = build_set(hashes, NUM_SLOTS)
    slots.flags.writeable = False
    return slots


def numbers(languages: list[str]) -> np.ndarray:
    """Looks languages up.

    Args:
        languages: ISO 639-1 codes, or anything else.

    Returns:
        The row of each in `sets`, -1 where it has no list; int64 [languages].
    """
    return np.array([LANGUAGES.get(language, -1) for language in languages], np.int64)
