"""What is known of personal data: forms, tables, and the checks that numbers carry.

Each check takes a number without its separators. What a check digit cannot settle alone is told
apart by its written form or by the words beside it.
"""

import ipaddress
import re

from stdnum import luhn
from stdnum.au import abn, tfn
from stdnum.br import cpf
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.pl import pesel

# Keys that name themselves: (what ends in the anchor, what follows it).
UNDERSCORED = (
    ("gh[opusr]_", "[A-Za-z0-9]{36,255}"),
    ("github_pat_", "[A-Za-z0-9_]{22,255}"),
    ("[srp]k_", "(?:live|test)_[A-Za-z0-9]{16,255}"),
    ("whsec_", "[A-Za-z0-9+/]{24,255}"),
    *(("npm_", "[A-Za-z0-9]{36}"), ("hf_", "[A-Za-z]{34}"), ("shpat_", "[A-Fa-f0-9]{32}")),
    ("do[opr]_", "v1_[a-f0-9]{64}"),
)
HYPHENED = (
    ("glpat-", "[A-Za-z0-9_-]{20,255}"),
    ("xox[abeoprs]-", "[A-Za-z0-9-]{10,255}"),
    ("sk-", "(?=[A-Za-z_-]{0,99}[0-9])[A-Za-z0-9_-]{20,255}"),
    ("pypi-", "AgE[A-Za-z0-9_-]{50,1023}"),
    ("GOCSPX-", "[A-Za-z0-9_-]{28}"),
)
# ISO 13616 registry: country and length of its IBAN.
IBANS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18
    DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23
    IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27
    MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19
    SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
IBAN_CHARS = {code: int(chars) for code, chars in re.findall("([A-Z]{2})([0-9]{2})", IBANS)}
# Digits of a national number, fewest and most, with the calling codes (ITU-T E.164) that have them.
CALLING_CODES = """
    4-7: 683 690; 5-5: 290 500 682; 5-6: 688; 5-7: 676 677 678 685; 5-8: 686; 6-6: 298 299 508 672
    681 687; 6-7: 597; 6-8: 53 689; 6-9: 376; 6-11: 39 352 358; 6-13: 49; 7-7: 220 238 239 246 248
    269 291 297 501 592 673 674 679 680 691 692 960; 7-8: 230 241 267 372 507 599 670 675 961 975;
    7-9: 231 245 252 265 353 354 359 423 967; 7-10: 46 95; 7-13: 43; 8-8: 45 47 65 216 222 223 226
    227 228 232 235 236 253 257 266 268 350 356 357 370 371 373 374 382 383 386 387 389 502 503
    504 505 506 509 591 598 800 852 853 965 968 973 974 976 993; 8-9: 32 36 51 66 213 218 224 237
    258 264 355 377 381 385 593 595 855 886 962 963 970 971 972; 8-10: 20 57 60 63 64 225 229 234
    263 378 850 856 880 964 977; 8-11: 82; 8-12: 62; 9-9: 27 31 33 34 40 41 48 56 61 93 94 211 212
    221 233 240 242 243 244 249 250 251 254 255 256 260 261 262 351 375 380 420 421 590 594 596
    966 992 994 995 996 998; 9-10: 44 81 84 92; 9-12: 86; 10-10: 1 7 30 52 58 90 91 98; 10-11: 54
    55;
"""
NATIONAL_DIGITS = {
    int(code): (int(fewest), int(most))
    for fewest, most, codes in re.findall(r"([0-9]+)-([0-9]+):([^;]+)", CALLING_CODES)
    for code in codes.split()
}
# What may stand between two digits of one number: a blank, dash, dot or slash, and brackets.
UNDOTTED = r"\)?(?: ?[-\u2010-\u2013] ?|[ \u00a0\u2009\u202f/])?\(?"
SEPARATOR = rf"(?:\)?\.|{UNDOTTED})"
NOT_DIGITS = re.compile("[^0-9]+")
# No part of a word, path or longer number.
EDGE = r"(?<![\w&%#@+\]])(?<![A-Za-z_/]/)(?<![\w\]]-)(?<![0-9\]]\.)"
END = r"(?!\w|[-.][0-9])"
GAP, AREA = "(?: ?- ?| )", "[2-9][0-9]{2}"
# Forms of phone numbers that tell by themselves. `plus` and `zeros` are international, `trunk` is
# any that starts with one 0.
PHONE = re.compile(
    rf"(?P<plus>(?<![\w+\]])\(?\+\(?[1-9](?:{SEPARATOR}[0-9]){{6,17}}+(?=x|\W|$))"
    rf"|(?P<zeros>{EDGE}(?<!/)00[ -]?[1-9](?:{UNDOTTED}[0-9]){{6,17}}+)"
    rf"|(?P<american>{EDGE}(?:(?:1[ -]?)?(?:\({AREA}\) ?-?[0-9]{{3}} ?[-.]? ?|(?:{AREA}{GAP}){{2}}"
    rf"|[1-9][0-9]{{2}}-[0-9]{{3}}-)|(?:1\.)?[1-9][0-9]{{2}}\.[0-9]{{3}}\.)[0-9]{{4}}(?=x|{END}))"
    rf"|(?P<russian>{EDGE}8[ -]?\(?[0-9]{{3,4}}\)?[ -]?[0-9]{{2,3}}-[0-9]{{2}}-[0-9]{{2}}{END})"
    rf"|(?P<area>{EDGE}\(0?[1-9][0-9]{{0,4}}(?: [0-9]{{1,3}})?\)[ -]?[0-9]{{2,5}}"
    rf"(?:[ .-][0-9]{{2,5}}){{1,3}}{END})"
    rf"|(?P<trunk>{EDGE}(?<!/)(?:\(0[1-9][0-9]{{0,4}}\)[ -]?|0[1-9][0-9]{{0,4}}(?: ?- ?|/? |/))"
    rf"[0-9]{{2,8}}(?:[ -][0-9]{{2,4}}){{0,4}}{END}"
    rf"|{EDGE}0[1-9](?:(?:\.[0-9]{{2}}){{4}}|[0-9]{{0,2}}(?:\.[0-9]{{3,4}}){{2}}){END})"
)
WHOLE = re.compile(
    rf"(?:[0-9](?:{UNDOTTED}[0-9]){{6,12}}|[0-9]{{3,4}}\.[0-9]{{4}}"
    rf"|[0-9]{{2,4}}(?:\.[0-9]{{2,4}}){{2,5}})(?!{SEPARATOR}[0-9])"
)
DATE = re.compile(
    r"(?:1[5-9]|20)[0-9]{2}(?:[-/. ][01]?[0-9][-/. ][0-3]?[0-9]| ?[-/\u2013 ] ?(?:1[5-9]|20)"
    r"[0-9]{2})(?![0-9])|[0-3]?[0-9][-/. ][0-3]?[0-9][-/. ](?:1[5-9]|20)[0-9]{2}(?![0-9])"
    r"|[01]?[0-9]/[0-3]?[0-9]/[0-9]{2}|(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])[0-3][0-9](?![0-9])"
)
# First digits, from and to, with the length of a card's number, as the schemes publish them: Visa,
# Mastercard (two), Maestro with UnionPay, Discover and RuPay (two), RuPay, American Express (two),
# Diners Club (three), JCB (three), Mir, Troy. They have numbers of 12 to 19 digits, but those of
# other lengths than here look like those of much else.
CARDS = (
    *(("4", "4", 16), ("51", "55", 16), ("2221", "2720", 16), ("50", "50", 16), ("56", "69", 16)),
    *(("81", "82", 16), ("34", "34", 15), ("37", "37", 15), ("300", "305", 14), ("36", "36", 14)),
    *(("38", "39", 14), ("3528", "3589", 16), ("2131", "2131", 15), ("1800", "1800", 15)),
    *(("2200", "2204", 16), ("9792", "9792", 16)),
)
# Addresses that documents give as examples name no machine, but stand for those that do.
EXAMPLES = [
    ipaddress.ip_network(network)
    for network in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def is_card(digits: str) -> bool:
    """Tells whether digits are a payment card's number.

    Args:
        digits: decimal digits.

    Returns:
        True if an issuer's range of CARDS has it and the check digit is right.
    """
    known = any(
        len(digits) == length and low <= digits[: len(low)] <= high for low, high, length in CARDS
    )
    return known and luhn.is_valid(digits)


def is_iban(number: str) -> bool:
    """Tells whether a text is an international bank account number.

    Args:
        number: letters and digits without separators, in either case.

    Returns:
        True if the country has IBANs of this length and the remainder by 97 is 1.

    Source: ISO 13616-1.
    """
    if len(number) != IBAN_CHARS.get(number[:2].upper()) or not number[2:4].isdigit():
        return False
    return int("".join(str(int(char, 36)) for char in number[4:] + number[:4])) % 97 == 1


def is_public_ip(address: str) -> bool:
    """Tells whether a text is an IP address of a machine of the Internet.

    Args:
        address: dotted quad, or eight or fewer groups of hexadecimal digits.

    Returns:
        True if it can be parsed and is global, or of EXAMPLES. A shortened IPv6 address must lie in
        2000::/3, all that is given out, and have three groups: else `1::2`, a slice of an array,
        would be one.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    public = parsed.is_global or any(parsed in network for network in EXAMPLES)
    public = public and not parsed.is_multicast
    if not public or parsed.version == 4:
        return public
    groups = [group for group in address.split(":") if group]
    return len(groups) == 8 or (len(groups) >= 3 and parsed in GLOBAL_UNICAST)


def _is_day(month: str, day: str) -> bool:
    return 1 <= int(month) <= 12 and 1 <= int(day) <= DAYS[int(month) - 1]


def _us(number: str) -> bool:
    """Social security number (as given out since 2011), or taxpayer number if it starts in 9."""
    area, group, serial = number[:3], int(number[3:5]), number[5:]
    if area[0] == "9":
        return 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99
    return area not in ("000", "666") and group > 0 and serial != "0000"


def _gb_nino(number: str) -> bool:
    """HMRC's manual NIM39110: letters and pairs of letters that are not given out."""
    first, second = number[0], number[1]
    taken = first not in "DFIQUV" and second not in "DFIOQUV"
    return taken and number[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _es(number: str) -> bool:
    return (nie if number[0] in "XYZ" else dni).is_valid(number)


def _fr(number: str) -> bool:
    """Numéro de sécurité sociale, of a month or a code above 19."""
    month = number[3:5]
    return month.isdigit() and (1 <= int(month) <= 12 or int(month) >= 20) and nir.is_valid(number)


def _se(number: str) -> bool:
    """Personnummer; 60 is added to the day of a co-ordination number."""
    digits = number[-10:]
    return _is_day(digits[2:4], f"{int(digits[4:6]) % 60}") and luhn.is_valid(digits)


def _ca(number: str) -> bool:
    return number[0] != "8" and len(set(number)) > 1 and luhn.is_valid(number)


# Forms that tell by themselves, each with its check.
FORMS = {
    "us": (r"[0-9]{3}-[0-9]{2}-[0-9]{4}", _us),
    "gb": (r"[A-Z]{2} [0-9]{2} [0-9]{2} [0-9]{2} [A-D]", _gb_nino),
    "es": (r"[XYZ]-?[0-9]{7}-?[A-Z]", _es),
    "it": (r"(?i:[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z])", codicefiscale.is_valid),
    "fr": (r"[1-478] [0-9]{2} [0-9]{2} [0-9][0-9AB] [0-9]{3} [0-9]{3} ?[0-9]{2}", _fr),
    "se": (r"(?:19|20)?[0-9]{6}[-+][0-9]{4}", _se),
    "br": (r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", cpf.is_valid),
}
# Forms that many numbers share, each with its check and the words that must stand near it.
WORDED = {
    "us": (
        r"[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}",
        _us,
        r"SSN|ITIN|(?i:social security|taxpayer id)",
    ),
    "gb_nhs": (r"[0-9]{3}[- ]?[0-9]{3}[- ]?[0-9]{4}", nhs.is_valid, r"NHS"),
    "gb": (
        r"(?i:[A-Z]{2} ?(?:[0-9]{2} ?){3}[A-D])",
        _gb_nino,
        r"NINO|\bNI\b|(?i:national insurance)",
    ),
    "es": (r"(?i:[0-9]{8}[- ]?[A-Z])", _es, r"DNI|D\.N\.I|NI[FE]|N\.I\.F|(?i:identidad)"),
    "de": (
        r"[0-9]{2} ?(?:[0-9]{3} ?){2}[0-9]{3}",
        idnr.is_valid,
        r"TIN|(?i:steuer|idnr|tax id|identifikationsnummer)",
    ),
    "pl": (r"[0-9]{11}", pesel.is_valid, r"(?i:pesel)"),
    "se": (r"(?:19|20)?[0-9]{6}[- ]?[0-9]{4}", _se, r"(?i:person(?:al)? ?(?:nummer|number|nr))"),
    "br": (r"[0-9]{3}[. ]?[0-9]{3}[. ]?[0-9]{3}[- ]?[0-9]{2}", cpf.is_valid, r"CPF|cpf"),
    "fr": (
        r"[1-478] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
        _fr,
        r"NIR|(?i:s\u00e9cu|securite soc|insee)",
    ),
    "in": (
        r"[2-9][0-9]{3}[- ]?[0-9]{4}[- ]?[0-9]{4}",
        aadhaar.is_valid,
        r"UIDAI|(?i:aadh?aar)|आधार",
    ),
    "ca": (r"[0-9]{3}[- ]?[0-9]{3}[- ]?[0-9]{3}", _ca, r"SIN\b|NAS\b|(?i:social insurance)"),
    "au_tax": (r"[0-9]{3} ?[0-9]{3} ?[0-9]{3}", tfn.is_valid, r"TFN|(?i:tax file)"),
    "au_business": (
        r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}",
        abn.is_valid,
        r"ABN|A\.B\.N|(?i:australian business n)",
    ),
}
FORM = re.compile(
    r"(?<![\w.\]-])(?<![A-Za-z]/)(?:"
    + "|".join(f"(?P<{key}>{form})" for key, (form, _) in FORMS.items())
    + ")"
    + END
)
WORD = re.compile(
    r"\b(?:" + "|".join(f"(?P<{key}>{words})" for key, (_, _, words) in WORDED.items()) + ")"
)
WORDED_FORM = {
    key: re.compile(r"(?<![\w.\]-])" + form + END) for key, (form, _, _) in WORDED.items()
}
SEPARATORS = str.maketrans("", "", " .-+")
WORD_CHARS_BEFORE, WORD_CHARS_AFTER = 48, 16


def find_national(text: str, start: int, end: int, num_digits: int) -> list[tuple[int, int]]:
    """Finds the national numbers that touch a run of digits.

    Args:
        text: any text.
        start, end: the run, digits and what may separate them.
        num_digits: digits in the run.

    Returns:
        (start, end) of each number, in no order; one may be there twice.
    """
    found = []
    if num_digits < 8 and not re.search("[A-Za-z]", text[end - 1 : end + 2]):
        return found
    for match in FORM.finditer(text, max(0, start - 8), end + 8):
        number = match.group().upper().translate(SEPARATORS)
        if FORMS[match.lastgroup][1](number):
            found.append(match.span())
    near = text[max(0, start - WORD_CHARS_BEFORE) : end + WORD_CHARS_AFTER]
    for key in sorted({match.lastgroup for match in WORD.finditer(near)}) if not found else ():
        for match in WORDED_FORM[key].finditer(text, max(0, start - 8), end + 4):
            number = match.group().upper().translate(SEPARATORS)
            if WORDED[key][1](number):
                found.append(match.span())
    return found


def end_international(number: str) -> int:
    """Cuts a number that starts with + or 00 between groups, to what its country dials.

    Args:
        number: sign, calling code, and all digits and separators that follow.

    Returns:
        Length of the longest part with a right number of digits, 0 if there is none.
    """
    sign = re.match(r"\(?(?:\+|00)[ .(-]*", number).end()
    if re.fullmatch(r"[0-9]+\.[0-9]+", number[sign:]):
        return 0
    for group in reversed(list(re.finditer(r"[0-9]+", number[sign:]))):
        digits = NOT_DIGITS.sub("", number[sign : sign + group.end()].replace("(0)", ""))
        for chars in (1, 2, 3):
            few, most = NATIONAL_DIGITS.get(int(digits[:chars]), (1, 0))
            right = few <= len(digits) - chars <= most and len(digits) >= 8
            if right and (digits[0] != "1" or digits[1] in "23456789"):
                return sign + group.end()
    return 0
