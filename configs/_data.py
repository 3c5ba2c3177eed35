"""The sections on data, which every configuration has: sources, gates, deduplication, mixture."""

from ml_collections import ConfigDict

PROSE_GATES = (  # Gopher's but for repetition, which is how manuals look
    "length",
    "language",
    "gopher_word_count",
    "gopher_mean_word_length",
    "gopher_symbol_ratio",
    "gopher_bullet_lines",
    "gopher_ellipsis_lines",
    "gopher_alphabetic_words",
    "gopher_stop_words",
    "gopher_top_ngrams",
    "c4_lorem_ipsum",
)


def data() -> ConfigDict:
    """Sources and curation; thresholds are those of the papers where nothing is said."""
    return ConfigDict(
        dict(
            sources=dict(
                docs=dict(
                    path="python:docs",  # docstrings and reference manual of the running Python
                    kind="auto",  # of data.sources.KINDS; auto looks into each file
                    markup="auto",  # plain, html, latex, wikitext or book; auto goes by the kind
                    extract="main",  # text from HTML: main, page or trafilatura
                    text_field="",  # key or column that holds the text; "": the first usual one
                    weight=1.0,  # share in training, relative to the other domains'
                    gates=PROSE_GATES,  # names from data.gates, or of a family: gopher, c4, fineweb
                ),
                code=dict(
                    path="python:code",  # standard library sources, without tests
                    kind="auto",
                    markup="auto",
                    extract="main",
                    text_field="",
                    weight=1.0,
                    gates=("length",),  # rules for prose make no sense on code
                ),
            ),
            gates=gates(),
            dedup=dict(
                num_bands=16,  # bands of the MinHash signature
                band_rows=8,  # permutations a band; 16 x 8 finds half the pairs at 0.67
                ngram_words=5,  # words an n-gram
                seed=1,  # of the permutations
                urls=True,  # of one URL only the newest document stays
                paragraph_chars=0,  # characters; longer paragraphs seen before go; 0: all stay
                min_left=0.5,  # share of a document below which it goes with its paragraphs
                prefer=("longest",),  # of near-duplicates: quality, longest, newest; then the first
            ),
            heldout_fraction=0.05,  # share of source files held out; above 0, to 0.5
            max_document_bytes=65_536,  # longer texts are cut at paragraph or line ends, or blanks
        )
    )


def gates() -> dict:
    """Thresholds of the gates; a source names those that apply."""
    return dict(
        min_chars=200,  # characters
        max_chars=1_000_000,  # characters
        blocked="",  # a file of host names whose pages go; subdomains count
        opt_out="",  # a file of URLs and SHA-256 of texts that go
        language=dict(
            keep=("en",),  # ISO 639 codes that may stay; () for all
            min_score=0.3,  # probability of lid.176; CCNet: 0.5, without code in it
            min_score_by_language=dict(),  # code: probability
        ),
        gopher=dict(  # arXiv 2112.11446
            min_words=50,  # words
            max_words=100_000,  # words
            min_mean_word_chars=3.0,  # characters a word
            max_mean_word_chars=10.0,  # characters a word
            max_symbol_to_word_ratio=0.1,  # hashes, or ellipses, a word
            max_bullet_lines=0.9,  # ratio of lines
            max_ellipsis_lines=0.3,  # ratio of lines
            min_alphabetic_words=0.8,  # ratio of words with a letter
            min_stop_words=2,  # different ones of the text's language
            max_duplicate_lines=0.3,  # ratio of lines
            max_duplicate_line_chars=0.2,  # ratio of characters
            max_duplicate_paragraphs=0.3,  # ratio of paragraphs
            max_duplicate_paragraph_chars=0.2,  # ratio of characters
            max_top_ngram_chars=(0.20, 0.18, 0.16),  # ratio of word characters; n = 2, 3, 4
            max_duplicate_ngram_chars=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),  # n = 5 .. 10
        ),
        c4=dict(  # arXiv 1910.10683
            max_javascript_lines=0.1,  # ratio of lines
            max_policy_lines=0.1,  # ratio of lines
            max_curly_brackets=0,  # opening ones
            min_line_words=5,  # words of a line that counts as prose
            min_terminal_lines=0.1,  # ratio of lines of prose that end in punctuation
            min_sentences=3,
        ),
        fineweb=dict(  # arXiv 2406.17557
            min_punctuated_lines=0.12,  # ratio of lines that end in punctuation
            short_line_chars=30,  # characters
            max_short_lines=0.67,  # ratio of lines
            max_character_duplicates=0.01,  # ratio of characters in lines seen before
            max_newlines_per_word=0.3,
        ),
        toxicity=toxicity(),
        quality=dict(
            model="",  # what --fit-quality wrote; "": no score
            good="",  # texts to learn from: paths as of a source
            bad="",
            min_score=0.0,  # probability of good below which a text goes
            train=classifier(l2=1.0),
        ),
        contamination_words=13,  # words that a text may not share with an evaluation set
        pii=("mail", "phone", "ip", "card", "iban", "national_number", "key"),  # masked
    )


def toxicity() -> dict:
    """Offensive words and talk; lists and models are yours to give."""
    return dict(
        lists="",  # a folder of LANGUAGE.txt, a word or phrase a line; "": none
        max_hits_per_word=0.03,  # listed words and phrases, for a word of the text
        model="",  # what --fit-toxicity wrote; "": no score
        max_score=0.9,  # probability of toxic above which a text goes
        max_score_by_language=dict(),  # code: probability
        examples=dict(),  # NAME=dict(path, text, label, toxic): labelled texts to learn from
        train=classifier(l2=0.05),
    )


def classifier(l2: float) -> dict:
    """A linear model over hashed n-grams."""
    return dict(
        bits=20,  # 2 ** bits weights
        word_ngrams=2,  # words in the longest n-gram
        min_char_ngram=0,  # characters in n-grams inside words; 0 and 0: none
        max_char_ngram=0,
        epochs=5,  # passes over the examples
        learning_rate=2.0,
        l2=l2,  # of the weights, against the losses of one pass
        seed=0,  # of the order of the examples
    )


def mixture() -> ConfigDict:
    """What pretraining reads of each domain and language, and when."""
    return ConfigDict(
        dict(
            by_language=False,  # languages of a domain are groups of their own
            alpha=0.0,  # shares follow weight x tokens ** alpha
            language_alpha=1.0,  # inside a domain, tokens ** language_alpha; 1: as they come
            budget_tokens=0,  # of the whole run; 0: as many as pretraining reads
            max_epochs=float("inf"),  # times that a group may be read; 4 cost little
            domain_max_epochs=dict(),  # the same for single domains
            stages=(),  # dict(name=, fraction=, weights={domain: weight}) in order: a curriculum
        )
    )
