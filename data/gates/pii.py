r"""Personal data and secrets in a text: found by their formats, replaced by typed placeholders.

What is found is a matter of form, checks and the words beside it, never of a model. Every kind
hangs on an anchor that one fast scan finds (an `@`, a run of six digits, a prefix such as `AKIA`);
only what stands around an anchor is read closely, in a window of bounded length, so that the time
is linear in the text, whatever it holds.

Forms that many harmless numbers share count only where words vouch for them: `467 3395` is a phone
number after "call me at" and nothing otherwise. Examples are treated as what they are examples of:
mails at example.com, addresses of the documentation networks and test cards are replaced. IP
addresses that name no machine of the Internet stay: private, loopback, link-local, multicast.
"""

import bisect
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from stdnum import luhn

from data.errors import BadInput
from data.gates import pii_numbers

# In order of precedence: where two overlap, the earlier kind stays, and of one kind the first.
KINDS = ("key", "mail", "iban", "card", "national_number", "ip", "phone")
# Plain text, unlike a control token, and without anything that is found again.
PLACEHOLDERS = {kind: f"[{kind.upper()}]" for kind in KINDS}
MAX_PASSES = 8


def _anchored(anchor: str, keys: tuple[tuple[str, str], ...]) -> re.Pattern:
    """A pattern that begins in its anchor, which is fast to look for; a group holds the prefix."""
    forms = (rf"(?<=(?<![A-Za-z0-9_-])({prefix}))(?:{rest})" for prefix, rest in keys)
    return re.compile(rf"{anchor}(?:{'|'.join(forms)})(?![A-Za-z0-9_])")


KEYS = {
    "_": _anchored("_", pii_numbers.UNDERSCORED),
    "-": _anchored("-", pii_numbers.HYPHENED),
    "A": re.compile(r"A(?<![\w-]A)(?:[KS]IA[A-Z0-9]{16}|Iza[\w-]{35})(?![\w-])"),
    "eyJ": re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]*"),
    "-----BEGIN": re.compile(
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:"
        r"[^-]{0,8192}+(?:-(?!----)[^-]{0,8192}+){0,16}+-----END [A-Z0-9 ]{0,40}-----"
        r"|(?:(?:\\n|\s){0,4}[A-Za-z0-9+/=]{16,}+)++)"
    ),
    "://": re.compile(
        r"://([^\s/@:<>\"'`{}$\[]{0,64}:(?!(?i:pass(?:w(?:or)?d|phrase)?|pwd|secret|token)@)"
        r"[^\s/@<>\"'`{}$\[]{1,128})(?=@)"
    ),
}
# A value that is given a name: what follows the sign, then the name before it. After "=" an "&"
# parts one value of a query from the next.
VALUE = (
    r"[ \t]{0,3}[\"'`]?(?:(?:[Bb]earer|[Bb]asic|[Tt]oken) {1,3})?"
    r"(?=[^0-9\s]{0,64}+[0-9])([\w+/!@#%^*~.?-]{8,255}={0,2})(?![\w(\[{])"
)
KEYS_ASSIGNED = {
    "=": re.compile("=>?" + VALUE),
    ":": re.compile(":=?" + VALUE.replace("%^", "%&^")),
}
KEY_NAME = re.compile(
    r"(?i:(?:passw(?:or)?d|passwort|passwd|pwd|passphrase|(?<![a-z])pass|secret|token|credentials?"
    r"|(?:api|access|auth|account|private|secret|encryption|signing|master)[ _-]?key(?:[ _-]?id)?"
    r"|authorization)(?: is)?[\"'\]]{0,2}[ \t]{0,4})\Z"
)
CHANGES = re.compile("[0-9]+|[A-Z]*[a-z]+|[A-Z]+")

LOCAL_BACKWARDS = re.compile(r"(?:(?![\u2e80-\U0003ffff])[\w.+'&%~-]){1,65}|[\w.+-]{1,65}")
LABEL = r"[^\W_](?:(?:[^\W_]|-){0,61}[^\W_])?"
DOMAIN = re.compile(
    rf"(?:{LABEL}\.){{1,8}}(?:xn--[A-Za-z0-9-]{{2,59}}|[A-Za-z]{{2,24}}|[^\W\d_A-Za-z]{{2,24}})"
    r"(?![A-Za-z0-9_])"
)
SPELT_AT = re.compile(r" ?[\[(]at[\])] ?")
SPELT_DOMAIN = re.compile(rf"({LABEL})((?:(?:\.| ?[\[(] ?dot ?[\])] ?){LABEL}){{1,4}})(?!\w)")
# Users of services, ends of domains that a spelt-out one may have, and ends that are no domain's.
SERVICE_USERS = frozenset(("git", "hg", "svn"))
SPELT_ENDS = frozenset(("com", "org", "net", "edu", "gov", "info"))
NO_DOMAINS = frozenset(
    ("css", "csv", "exe", "gif", "htm", "html", "jpeg", "jpg", "js", "json", "pdf", "php", "png")
    + ("svg", "txt", "webp", "xml", "yaml", "yml", "internal", "invalid", "local", "localhost")
)

CARD = re.compile(
    r"(?<![\w/+\]])(?<![0-9][-.])(?:[0-9]{12,19}|(?<![0-9] )[0-9]{4}([ -])(?:[0-9]{6}\1[0-9]{4,5}"
    r"|[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?)(?! [0-9]{4}(?![0-9])))(?!\w|[-.][0-9])"
)
CARD_WORD = re.compile(r"(?i)(?<!\[)\b(?:card|credit|debit|visa|master ?card|maestro|amex|cc)\b")
IBAN_START = re.compile("(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}")
WORD_CHARS = 48
OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = re.compile(
    rf"(?<![\w.\]])(?<![A-Za-z][/-])(?<![\s(][0-9]:)(?:{OCTET}\.){{3}}{OCTET}"
    r"(?!\w|\.[0-9]|[-+~][0-9]*[A-Za-z])"
)
IPV6_INSIDE, IPV6_REST = re.compile(":[0-9A-Fa-f]{0,4}:"), re.compile("[0-9A-Fa-f:]*")
IP_WORD = re.compile(
    r"(?i)(?:(?<!\[)\bip(?:v4|s)?\b|address|host|server|\bping|proxy|gateway|router|dns|://|@)"
)
PORT = re.compile(":[0-9]{2,5}|/[0-9]")
VERSION = re.compile(
    r"(?i)(?<![a-z])(?:v|ver|version|release|rev|revision|build|firmware|update|driver|section|sec"
    r"|chapter|clause|fig|figure|table|theorem|sp|jdk)[\W_]{0,6}\Z"
)

# Six digits or more, a dotted quad, or the digits of an Italian codice fiscale. It begins in a
# class of characters, not in a look-behind, because that is fast to look for.
NUMBERS = re.compile(
    r"[0-9](?<![0-9][0-9])(?:(?:[- ./()\u00a0\u2009\u202f\u2010-\u2013]{0,3}+[0-9]){5,}+"
    r"|[0-9]{0,2}(?:\.[0-9]{1,3}){3}|[0-9][A-Za-z][0-9]{2}[A-Za-z][0-9]{3}[A-Za-z])"
)
OTHER_LABEL = re.compile(
    r"(?i)(?:isbn|issn|doi|order|invoice|account|acct|ref|case|part|item|sku|model|serial|patent"
    r"|pmid|ticket|a/c|[$\u20ac\u00a3\u00a5])\W{0,3}(?:(?:number|no|nr|id)\W{0,3})?\Z"
)
IN_A_ROW = re.compile(r"[0-9] {0,2}\Z|[:T][0-9]{2}:\Z")
ALONE_BEFORE, ALONE_AFTER = re.compile(pii_numbers.EDGE), re.compile(r"(?=x[0-9]|(?!\w|[.,][0-9]))")
EXTENSION = re.compile(r"(?i)(?:,? ?(?:x|ext\.?|extension) ?[0-9]{1,6}(?!\w))?")
PHONE_LABEL = re.compile(
    r"(?i)(?:(?<![a-z\[])(?:tele)?(?:phone|fon|fono|f\u00f3no|fax)s?|(?<![\w.])(?:t[e\u00e9]l|ph|mob|mobile"
    r"|mobil|mobiel|cell|cellular|cellphone|handy|gsm|whatsapp|sms|text|call|dial|ring|desk|hotline"
    r"|helpline|landline|messages?|answering|reach|contact|(?:my|his|her|our) number|[tpmf](?=:)))"
    r"(?:[\s:;,=()*|\u2013-]|\.(?!\s*\n)|\b(?:numbers?|no|nr|num|at|on|is|was|me|us|him|her|them"
    r"|you|your|my|our|this|the|or|free|toll|direct|line|home|work|office|mobile|cell|with"
    r"|registered|to|via)\b){0,12}\Z"
    r"|(?<!\[)\b(?:call|contact|phone|reach|text|fax)(?:ed|ing|s)?\b[^0-9.!?\n]{0,40} at \Z"
)
# Before "cell", what makes it another; behind it, a line is one of a culture.
NO_PHONE = re.compile(
    r"(?i)(?:\b(?:excel|sheet|spreadsheet|table|grid|merged|active|stem|blood|red|white|cancer|tumou?r"
    r"|nerve|plant|host|fuel|solar|battery|memory|prison|jail|[bt])[ -]cells?\W|\bcell lines?\b)"
    r"[^.\n]{0,24}\Z"
)
PHONE_LABEL_AFTER = re.compile(
    r"(?i) ?[-\u2013(]? ?(?:office|fax|mobile|cell|tel|phone|desk)\b(?=\s*(?:[\n,;|)\\]|\Z))"
)


class Span(NamedTuple):
    """Where something personal stands in a text: characters from `start` to before `end`."""

    start: int
    end: int
    kind: str


def find(text: str, kinds: tuple[str, ...]) -> list[Span]:
    """Finds personal data and secrets.

    Args:
        text: any text.
        kinds: which of KINDS to look for.

    Returns:
        Spans that do not overlap, in the order of the text.

    Raises:
        BadInput: a kind is not one of KINDS.
    """
    wanted = _known(kinds)
    spans = []
    if "key" in wanted:
        spans += _keys(text)
    if "mail" in wanted:
        spans += _mails(text)
    if wanted - {"key", "mail"}:
        for run in NUMBERS.finditer(text):
            spans += _numbers(text, *run.span(), wanted)
    if "ip" in wanted and ":" in text:
        spans += _ipv6(text)
    return _settle(spans) if spans else spans


def replace(text: str, kinds: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """Replaces what `find` finds by a placeholder a kind, until nothing is found any more.

    Args:
        text: any text.
        kinds: which of KINDS to look for.

    Returns:
        (text, how many of each kind were replaced, for the kinds found). Replaced again, the text
        stays as it is, but for lists glued together so that each one uncovers the next.

    Raises:
        BadInput: a kind is not one of KINDS.
    """
    counts = {}
    # A placeholder is shorter than what it replaces and may bring words nearer to other numbers.
    for _ in range(MAX_PASSES):
        parts, done = [], 0
        for start, end, kind in find(text, kinds):
            parts += (text[done:start], PLACEHOLDERS[kind])
            counts[kind] = counts.get(kind, 0) + 1
            done = end
        if not parts:
            break
        text = "".join(parts) + text[done:]
    return text, counts


@functools.cache
def _known(kinds: tuple[str, ...]) -> frozenset[str]:
    for kind in kinds:
        if kind not in KINDS:
            raise BadInput(f"kind of personal data: {kind!r}; allowed: {', '.join(KINDS)}")
    return frozenset(kinds)


def _settle(spans: list[Span]) -> list[Span]:
    """Leaves of spans that overlap the one of the kind that comes first in KINDS."""
    kept = []
    for span in sorted(spans, key=lambda span: (KINDS.index(span.kind), span.start, -span.end)):
        place = bisect.bisect(kept, span)
        clear = place == 0 or kept[place - 1].end <= span.start
        if clear and (place == len(kept) or span.end <= kept[place].start):
            kept.insert(place, span)
    return kept


def _keys(text: str) -> Iterator[Span]:
    for anchor, pattern in KEYS.items():
        if anchor in text:
            for match in pattern.finditer(text):
                yield Span(match.start(match.lastindex or 0), match.end(), "key")
    for sign, pattern in KEYS_ASSIGNED.items():
        if sign in text:
            for match in pattern.finditer(text):
                before = text[max(0, match.start() - WORD_CHARS) : match.start()]
                if _is_random(match[1]) and KEY_NAME.search(before):
                    yield Span(*match.span(1), "key")


def _is_random(value: str) -> bool:
    """Tells a secret from a name, which is made of words and a few digits.

    Letters and digits change often in a piece of a secret or in the five of a UUID, or it has the
    signs that passwords have, or many characters: `Sup3rS3cret!`, but not `sha256_digest`.
    """
    changes = []
    for piece in re.split("[._/-]", value):
        parts = CHANGES.findall(piece)
        changes.append(len(parts) - sum(part.isalpha() and len(part) > 3 for part in parts))
    signs = re.search("[!@#^~?]", value) and sum(changes) >= 2
    dense = len(set(value)) >= 18 and not re.search(r"[._]|^[^A-Z]*$|^[^a-z]*$", value)
    uuid = value.count("-") == 4 == len(changes) - 1 and sum(changes) >= 8
    return max(changes) >= 4 or bool(signs or dense or uuid)


def _mails(text: str) -> Iterator[Span]:
    at, last = text.find("@"), 0
    while at >= 0:
        domain = DOMAIN.match(text, at + 1)
        if domain and (start := _local_start(text, last, at)) < at:
            end = at + 1 + _sane_chars(domain.group())
            handle = text[start:at] in SERVICE_USERS and text[end : end + 1] == ":"
            handle = handle or text[start - 1 : start] == "@"
            if end > at + 1 and not handle and not _is_userinfo(text, start, at):
                yield Span(start, end, "mail")
                last = end
        at = text.find("@", at + 1)
    if ("(" in text and "(at)" in text) or ("[" in text and "[at]" in text):
        for match in SPELT_AT.finditer(text):
            domain = SPELT_DOMAIN.match(text, match.end())
            start = _local_start(text, 0, match.start())
            end = re.split(r"\W+", domain[0])[-1].lower() if domain else ""
            if start < match.start() and (len(end) == 2 or end in SPELT_ENDS):
                yield Span(start, domain.end(), "mail")


def _local_start(text: str, low: int, at: int) -> int:
    """Start of the name before an `@`, after RFC 5321 less its oddities; `at` if there is none."""
    match = LOCAL_BACKWARDS.match(text[max(low, at - 65) : at][::-1])
    name = match.group()[::-1] if match else ""
    if len(name) > 64 or name.endswith((".", "-")):
        return at
    return at - len(name.rpartition("..")[2].lstrip(".+'&%~-"))


def _sane_chars(domain: str) -> int:
    """Length of a domain without a sentence that is glued to it; 0 if it ends in no name of one."""
    *labels, before, last = domain.split(".")
    if labels and last.istitle() and before.islower():
        return len(domain) - len(last) - 1
    return 0 if last.lower() in NO_DOMAINS else len(domain)


def _is_userinfo(text: str, start: int, at: int) -> bool:
    """Whether an `@` parts a URL's user from its host."""
    scheme = text.rfind("://", max(0, start - 128), at)
    return scheme >= 0 and not re.search(r"[\s/]", text[scheme + 3 : at])


def _numbers(text: str, start: int, end: int, wanted: frozenset[str]) -> Iterator[Span]:
    """What a run of digits and separators holds, or is a part of."""
    run = text[start:end]
    num_digits = len(pii_numbers.NOT_DIGITS.sub("", run))
    if num_digits <= 8 and pii_numbers.DATE.fullmatch(run):
        return
    if "card" in wanted and num_digits >= 12:
        for match in CARD.finditer(text, start, end + 8):
            if _is_card(text, match):
                yield Span(*match.span(), "card")
    if "iban" in wanted and num_digits >= 8:
        for match in IBAN_START.finditer(text, max(0, start - 36), end):
            if stop := _iban_end(text, match):
                yield Span(match.start(), stop, "iban")
    if "national_number" in wanted:
        for span in pii_numbers.find_national(text, start, end, num_digits):
            yield Span(*span, "national_number")
    if "ip" in wanted and run.count(".") >= 3:
        for match in IPV4.finditer(text, start, end + 2):
            if _is_ipv4(text, match):
                yield Span(*match.span(), "ip")
    if "phone" in wanted and num_digits >= 7:
        yield from _phones(text, start, end)


def _is_card(text: str, match: re.Match) -> bool:
    digits = pii_numbers.NOT_DIGITS.sub("", match.group())
    if pii_numbers.is_card(digits):
        return True
    near = text[max(0, match.start() - WORD_CHARS) : match.end() + WORD_CHARS // 2]
    return luhn.is_valid(digits) and bool(CARD_WORD.search(near))


def _iban_end(text: str, match: re.Match) -> int:
    """Where an IBAN that begins like this ends, 0 if it is none."""
    if num_chars := pii_numbers.IBAN_CHARS.get(match.group()[:2].upper()):
        rest = re.compile(rf"(?:[ -]?[A-Za-z0-9]){{{num_chars - 4}}}(?![A-Za-z0-9])")
        if whole := rest.match(text, match.end()):
            iban = re.sub("[ -]", "", text[match.start() : whole.end()])
            return whole.end() if pii_numbers.is_iban(iban) else 0
    return 0


def _is_ipv4(text: str, match: re.Match) -> bool:
    """A dotted quad that begins small is more often a version: words must say that it is not."""
    start, end = match.span()
    before = text[max(0, start - WORD_CHARS) : start]
    if not pii_numbers.is_public_ip(match.group()) or VERSION.search(before[-24:]):
        return False
    octets = list(map(int, match.group().split(".")))
    if max(octets) >= 100 and max(octets[:2]) >= 20:
        return True
    return bool(PORT.match(text, end) or IP_WORD.search(before.rpartition("\n")[2]))


def _ipv6(text: str) -> Iterator[Span]:
    inside = IPV6_INSIDE.search(text)
    while inside:
        start, end = inside.start(), IPV6_REST.match(text, inside.start()).end()
        first = text[max(0, start - 4) : start]
        start -= len(first) - len(first.rstrip("0123456789abcdefABCDEF"))
        alone = not re.search(r"\w", text[start - 1 : start] + text[end : end + 1])
        stop = end - (text[end - 2 : end] != "::" and text[end - 1] == ":")
        if alone and stop - start <= 39 and pii_numbers.is_public_ip(text[start:stop]):
            yield Span(start, stop, "ip")
        inside = IPV6_INSIDE.search(text, end)


def _phones(text: str, start: int, end: int) -> Iterator[Span]:
    last, place = 0, max(0, start - 3)
    while match := pii_numbers.PHONE.search(text, place, end + 2):
        # Digits before a number make it a part of a longer one, but not those of another phone.
        in_a_row = IN_A_ROW.search(text[max(last, match.start() - 4) : match.start()])
        stop = _phone_end(match, bool(in_a_row))
        if stop and not OTHER_LABEL.search(text[max(0, match.start() - 24) : match.start()]):
            last = stop
            yield _whole_phone(text, match.start(), stop)
        place = stop or match.end()
    whole = None if last else pii_numbers.WHOLE.match(text, start)
    if whole and not pii_numbers.DATE.match(whole.group()):
        start, end = start - (text[start - 1 : start] == "+"), whole.end()
        alone = ALONE_BEFORE.match(text, start) and ALONE_AFTER.match(text, end)
        near = text[max(0, start - WORD_CHARS) : start]
        before = PHONE_LABEL.search(near) and not NO_PHONE.search(near)
        if alone and (before or PHONE_LABEL_AFTER.match(text, end)):
            yield _whole_phone(text, start, end)


def _whole_phone(text: str, start: int, end: int) -> Span:
    """With the bracket that it closes, and the extension."""
    opened = text[start - 1 : start] == "(" and ")" in text[start:end].partition("(")[0]
    return Span(start - opened, EXTENSION.match(text, end).end(), "phone")


def _phone_end(match: re.Match, in_a_row: bool) -> int:
    """Where a number of one of PHONE's forms ends, 0 if it is none."""
    form, number = match.lastgroup, match.group()
    groups = re.findall("[0-9]+", number)
    num_digits = sum(map(len, groups))
    right = not in_a_row and not all(group[0] == "0" for group in groups)
    right = right and not (form == "zeros" and len(set(map(len, groups))) == 1)
    if form == "plus" or (form == "zeros" and right):
        chars = pii_numbers.end_international(number)
        return match.start() + chars if chars else 0
    if form == "area":
        right = right and 8 <= num_digits <= 13 and not re.match(r"\((?:1[5-9]|20)..\)", number)
    elif form == "trunk":
        loose = len(groups) == 2 and num_digits == 9 and number[0] != "("
        right = right and (10 if "." in number else 9) <= num_digits <= 12 and len(groups) > 1
        right = right and not (loose and (" " in number or len(groups[0]) == 5))
        right = right and len(groups) < 6 and not pii_numbers.DATE.match(number)
    else:
        right = form != "zeros" and (right or " " not in number)
    return match.end() if right else 0
