"""Personal data: what is found is what its own format and published check digits say it is."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from data.errors import BadInput
from data.gates import pii
from data.gates.pii import KINDS, Span

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
GOLD = SHARED / "filters/pii_presidio/pii_a.jsonl.gz"
GOLD_KINDS = {
    "EMAIL_ADDRESS": "mail",
    "PHONE_NUMBER": "phone",
    "IP_ADDRESS": "ip",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "US_SSN": "national_number",
}
# A little under what is reached, which is 1.0 for all: the other half of the set may differ.
GOLD_FLOORS = {"mail": 0.98, "phone": 0.93, "ip": 0.95, "card": 0.97, "iban": 0.98} | {
    "national_number": 0.98
}

# Published examples: by the authorities, in the standards, or in the articles about them.
NATIONAL = {
    "US SSN": "<<123-45-6789>>",
    "US ITIN": "<<912-70-1234>>",
    "UK NHS": "NHS number <<943 476 5919>>",
    "UK NINO": "National Insurance number <<AB123456C>>",
    "UK NINO in groups": "<<AB 12 34 56 C>>",
    "ES NIF": "DNI <<12345678Z>>",
    "ES NIE": "<<X1234567L>>",
    "IT codice fiscale": "<<RSSMRA85T10A562S>>",
    "FR NIR": "<<2 55 08 14 168 025 38>>",
    "FR NIR in one": "sécurité sociale <<255081416802538>>",
    "DE Steuer-ID": "Steuer-ID <<86 095 742 719>>",
    "PL PESEL": "PESEL <<44051401359>>",
    "SE personnummer": "<<811218-9876>>",
    "SE personnummer in one": "personnummer <<198112189876>>",
    "BR CPF": "<<529.982.247-25>>",
    "BR CPF in one": "CPF <<11144477735>>",
    "IN Aadhaar": "Aadhaar <<2341 2341 2346>>",
    "CA SIN": "SIN <<046 454 286>>",
    "AU TFN": "TFN <<123 456 782>>",
    "AU ABN": "ABN <<51 824 753 556>>",
}
IBANS = """
    GB82 WEST 1234 5698 7654 32|DE89 3704 0044 0532 0130 00|FR14 2004 1010 0505 0001 3M02 606
    NL91ABNA0417164300|NO93 8601 1117 947|BE68539007547034|CH93 0076 2011 6238 5295 7
    IT60X0542811101000000123456|ES9121000418450200051332|PL61109010140000071219812874
    SE4550000000058398257466|MT84MALT011000012345MTLCAST001S|SA0380000000608010167519
    LC55HEMM000100010012001200023015|BR1800360305000010009795493C1|gb82 west 1234 5698 7654 32
"""
# The payment processors' test numbers, by scheme.
CARDS = """
    4111111111111111 4012-8888-8888-1881 5555555555554444 2223003122003222 378282246310005
    3714-496353-98431 6011111111111117 3530111333300000 30569309025904 38520000023237
    6200000000000005 5019717010103742 4111-1111-1111-1111
"""
PHONES = """
    +1 415 555 2671|(415) 555-2671|415-555-2671|415.555.2671|1-800-555-0199|123-456-7890
    (898)666-3621x0135|345-899-3560 ext. 4587|+44 20 7946 0958|+44 (0)20 7946 0958|020 7946 0958
    07700 900123|+33 1 23 45 67 89|01.23.45.67.89|+49 30 1234567|0171 1234567|030/12345678
    06-12345678|+34 612 34 56 78|8 (495) 123-45-67|+7 495 123-45-67|(11) 91234-5678
    +86 138 0013 8000|+91 98765 43210|+81-3-1234-5678|0044 20 7946 0958|(+47) 22 85 91 09
    +12015550123|(02) 9876 5432|(01) 8404029
"""
NO_PHONES = """
    2010-2020|2021-05-06|05/06/2021|06.05.2021 12|1,234,567|$1 234 567 890|12 345 678|123 456 789
    2001 2002 2003|ISBN 978-3-16-148410-0|ISBN 0-306-40615-2|3.14159265358979|12345678901|20211231
    2020-01-01T03:05:07.123457-05:00|order 415-555-2671|https://a.org/x/415-555-2671|2.6.32|555-1234
    Boston, MA 02110-1301|-1.8389073227 + 1.75438095j|+10011010010|0043 0043 0053|1.622 393 6648
    Smith (1999) 123-456|34(2) 123-1567|10.1016/j.bone.2017.03.002|1914 - 1918|40.7128 -74.0060
    05 00 01 02 03 04|a.org/2018/06/12094011|<fraction> 0035 2044 0038
    04-26-2011 10:11 AM|doi:10.1016/j.cell.2010.07.021|Excel cell 100 200 3000|cell line 293 4567
"""
LABELLED_PHONES = """
    Please call me at 467 3395.|Phone:\\n467 3395\\n|Mobile: 99 577450|Fax: 9498777106
    Can someone call me on 9472 7916? I|They're not answering at 374 780 163
    28-64-66-98 office\\nx|text 1365.7120 now|Contact Dave McCuan at 539-3028.|Desk: 930.167.3943
    085 175 7641-Office\\\\,3660170548-Fax|reach her at 516 466 638|my number is 6725437654
"""
ADDRESSES = """
    86.121.97.248|203.0.113.5:8080|http://172.61.42.192/|ping 8.8.8.8|10.0.0.1 to 165.165.185.178
    2001:db8:85a3::8a2e:370:7334|6e40:4041:c617:e898:c11:40d2:c669:2eb4|[2606:4700:4700::1111]:443
"""
NO_ADDRESSES = """
    127.0.0.1|192.168.1.1|10.20.30.140|172.16.254.1|169.254.62.145|0.0.0.0|255.255.255.255|239.1.2.130
    1.2.3.4|version 12.34.56.178|v86.121.97.248|Chrome/91.0.44.124|86.121.97.248.5|256.121.97.248
    Guile 3.0.5.130|RFC 5445 3.8.2.4: The|pkg-86.121.97.248|086.121.097.248|86.121.97.248-rc1
    ::1|fe80::1:2:3|a[1::2]|12:30:45|00:1A:2B:3C:4D:5E|std::cout|fd12:3456:789a:1:2:3:4:5|2001::
"""
MAILS = """
    a.b+c@mail.co.uk|O'Brien@x.org|üser@münchen.de|用户@例え.jp|联系<<foo@bar.com>>吧|'<<bob@x.org>>'
    mailto:<<joe@x.io>>?subject=1|&lt;<<a@b.de>>&gt;|<<foo@bar.com>>.Please write
    foo@xn--80ak6aa92e.com|<<foo@bar.com>>-Fax|<<foo@bar.co.uk>>.|a..<<b@c.de>>|first.last@sub.sub2.example.museum
    john [at] foo [dot] com|name (at) host.org|<<a@b.de>>,<<c@d.de>>;<<e@f.de>>
"""
NO_MAILS = """
    foo@bar|icon@2x.png|user@localhost|x@y.z|lodash@4.17.21|git@github.com:user/repo|bob@x.internal
    http://name@host.com/|ssh://git@github.com/x|@app.route|D@L@D.conjugate|foo.@bar.com|-@bar.com
    meet (at) noon. Then|@user@mastodon.social|https://user:password@example.com|facebook-@x.com
"""
BODY = "16C7e42F292c6912E7710c838347Ae178B4a"
KEYS = (
    "<<AKIA" + "IOSFODNN7EXAMPLE>>",
    "aws_secret_access_key = <<wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY>>",
    *(f"x <<{prefix}_{BODY}>>" for prefix in ("ghp", "gho", "ghs", "npm", "sk_live", "rk_test")),
    f"<<github_pat_{BODY}>>",
    f"<<glpat-{BODY}>>",
    "<<xoxb-" + "123456789012-abcdefghijklmnopqrstuvwx>>",
    "<<AIza" + "SyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe>>",
    f"<<sk-{BODY}>>",
    f"<<sk-ant-api03-{BODY}>>",
    "<<pypi-" + f"AgEIcHlwaS5vcmc{BODY}{BODY}>>",
    "Bearer <<eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N>>",
    "<<-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4\n\nMIIE\n-----END RSA PRIVATE KEY----->>\n",
    "<<-----BEGIN PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ>>\n cut off",
    "password=<<Sup3rS3cret!>>",
    'api_key: "<<a8f5f167f44f4964e6c998dee827110c>>"',
    "{'token': '<<abc123def456ghi789>>'}",
    "Authorization: Bearer <<abc123DEF456ghi789jkl>>",
    "?a=1&token=<<ec5c0836-31d5-48f4-b431-7480817f1adc>>&b=2",
    "postgres://<<user:pa55>>@localhost:5432/db",
    "SECRET_KEY = '<<9f8e7d6c5b4a39281706>>'",
    "my password is: <<Tr0ub4dor&3>>",
)
NO_KEYS = """
    password = get_password2()|token = tokens[i1+2]|token: np.int64|secret = os.environ["S1"]
    access_key=s3_config.access_key_2|PASS: ld-x86-64/pr19636-3c|disk-based-storage-of-2020-parts
    sha256=e3b0c44298fc1c149afbf4c8996fb924|https://host:8080/a@b|password: ********|AKIA1234
    -----BEGIN PUBLIC KEY-----|starts with -----BEGIN PRIVATE KEY----- and so on|eyJust a word
    token = utf8_decode
"""


def cases(table):
    """Fields of a table of examples; marks of spans stay in them."""
    fields = (field.strip() for line in table.splitlines() for field in line.split("|"))
    return [field.replace("\\n", "\n") for field in fields if field]


def texts(text, *kinds):
    return [text[span.start : span.end] for span in pii.find(text, kinds or KINDS)]


def marked(text):
    """The text without its << >>, and what they held; all of it if there are none."""
    held = re.findall("<<(.*?)>>(?!>)", text, re.DOTALL)
    return re.sub("<<(.*?)>>(?!>)", r"\1", text, flags=re.DOTALL), held or [text]


def altered(number):
    """Every number that differs in one digit."""
    for place, char in enumerate(number):
        if char.isdigit():
            for digit in set("0123456789") - {char}:
                yield number[:place] + digit + number[place + 1 :]


@pytest.mark.parametrize("example", NATIONAL.values(), ids=NATIONAL)
def test_published_national_number_is_found(example):
    text, numbers = marked(f"It says {example}, as it should.")
    assert texts(text, "national_number") == numbers


# Social security and insurance numbers have no check digit.
@pytest.mark.parametrize(
    "name", [n for n in NATIONAL if n.split()[1] not in ("SSN", "ITIN", "NINO")]
)
def test_national_number_with_a_wrong_digit_is_not_one(name):
    """Check digits by 10 or 11 see every wrong digit, those by 23 and 97 nearly all."""
    wrong = list(altered(marked(NATIONAL[name])[0]))
    missed = [text for text in wrong if texts(text, "national_number")]
    assert len(missed) <= 0.03 * len(wrong), missed


@pytest.mark.parametrize(
    "text",
    ["000-12-3456", "666-12-3456", "123-00-6789", "123-45-0000", "912-66-1234", "912-93-1234"]
    + ["BG 12 34 56 C", "QQ 12 34 56 C", "AO 12 34 56 C", "AB 12 34 56 E"],
)
def test_national_number_never_given_out_is_not_one(text):
    assert texts(text, "national_number") == []


@pytest.mark.parametrize("number", ["943 476 5919", "046 454 286", "2341 2341 2346", "44051401359"])
def test_number_that_many_share_needs_its_name(number):
    assert texts(f"in all {number} of them", "national_number") == []


@pytest.mark.parametrize("iban", cases(IBANS))
def test_iban_of_the_registry_is_found_and_any_wrong_digit_seen(iban):
    assert texts(f"My IBAN is {iban}. Thanks") == [iban]
    assert [wrong for wrong in altered(iban) if texts(wrong, "iban")] == []
    assert texts(f"{iban}1", "iban") == [], "one digit too many"


@pytest.mark.parametrize("card", CARDS.split())
def test_card_is_found_and_any_wrong_digit_seen(card):
    assert pii.find(f"a {card}, b", KINDS) == [Span(2, 2 + len(card), "card")]
    assert texts(f"name,{card},12/25", "card") == [card]
    assert [wrong for wrong in altered(card) if texts(wrong, "card")] == []


def test_card_of_a_length_that_others_share_needs_a_word():
    for number in ("4222222222222", "501864667909", "4030874397740603788"):
        assert texts(f"Please block card no {number} now") == [number]
        assert texts(f"the number {number} is") == []
    assert texts("0.4111111111111111 and 4111111111111111.5 and /4111111111111111") == []


@pytest.mark.parametrize("phone", cases(PHONES))
def test_phone_of_a_telling_form_is_found_whole(phone):
    assert pii.find(f"It is {phone}, a.", KINDS) == [Span(6, 6 + len(phone), "phone")]
    assert texts(f"{phone}\n{phone}\n", "phone") == [phone, phone]


@pytest.mark.parametrize("text", cases(NO_PHONES))
def test_number_that_is_no_phone_stays(text):
    assert texts(f"there: {text} ") == []


@pytest.mark.parametrize("text", cases(LABELLED_PHONES))
def test_phone_of_any_form_is_found_beside_a_label(text):
    numbers = re.findall(r"[0-9][0-9 .-]+[0-9]", text)
    assert texts(text, "phone") == numbers
    bare = re.sub("[A-Za-z:']", "", text)
    assert len(texts(bare, "phone")) < max(2, len(numbers)), "the label makes the difference"


@pytest.mark.parametrize("text", cases(ADDRESSES))
def test_public_address_is_found(text):
    address = re.findall(r"[0-9a-f]+(?::[0-9a-f:]+)+[0-9a-f]|[0-9]+(?:\.[0-9]+){3}", text)[-1]
    assert texts(text, "ip") == [address]


@pytest.mark.parametrize("text", cases(NO_ADDRESSES))
def test_local_address_or_version_stays(text):
    assert texts(f"see {text} there", "ip") == []


@pytest.mark.parametrize("text", cases(MAILS))
def test_mail_is_found_without_its_surroundings(text):
    text, mails = marked(text)
    assert texts(text) == mails


@pytest.mark.parametrize("text", cases(NO_MAILS))
def test_text_with_an_at_sign_is_not_yet_a_mail(text):
    assert texts(text) == []


@pytest.mark.parametrize("text", KEYS)
def test_key_is_found_and_nothing_else(text):
    text, keys = marked(text)
    assert texts(text, "key") == keys


@pytest.mark.parametrize("text", cases(NO_KEYS))
def test_text_that_names_a_key_but_holds_none_stays(text):
    assert texts(text, "key") == []


def test_earlier_kind_keeps_what_two_claim():
    text = "https://joe:s3cr3t@mail.example.com"
    assert [span.kind for span in pii.find(text, KINDS)] == ["key"]
    assert [span.kind for span in pii.find("NHS 943 476 5919", KINDS)] == ["national_number"]
    assert [span.kind for span in pii.find("NHS 943 476 5919", ("phone",))] == ["phone"]


def test_only_the_kinds_asked_for_are_found():
    parts = {"mail": "a@b.org", "phone": "+44 20 7946 0958", "ip": "2001:db8::1:2:3"}
    parts |= {"card": "4111 1111 1111 1111", "iban": "NL91ABNA0417164300"}
    parts |= {"national_number": "123-45-6789", "key": f"ghp_{BODY}"}
    text = "; ".join(parts.values())
    for kind, part in parts.items():
        assert texts(text, kind) == [part]
        assert pii.replace(part, (kind,)) == (pii.PLACEHOLDERS[kind], {kind: 1})
    assert [span.kind for span in pii.find(text, KINDS)] == list(parts)
    with pytest.raises(BadInput, match=r"'name'; allowed: key, mail, iban"):
        pii.find(text, ("mail", "name"))


def test_replacing_leaves_the_rest_and_counts():
    text = "Write to a@b.org or c@d.org,\ncall (415) 555-2671 — äöü."
    replaced, counts = pii.replace(text, KINDS)
    assert replaced == "Write to [MAIL] or [MAIL],\ncall [PHONE] — äöü."
    assert counts == {"mail": 2, "phone": 1}
    assert pii.replace("nothing here", KINDS) == ("nothing here", {})


def test_placeholders_are_plain_and_found_by_nothing():
    assert all(re.fullmatch(r"\[[A-Z_]+\]", tag) for tag in pii.PLACEHOLDERS.values())
    assert pii.find(" ".join(pii.PLACEHOLDERS.values()), KINDS) == []


def test_replacing_again_changes_nothing():
    """Random mixtures of whole and broken pieces: what replacing uncovers is replaced as well."""
    pieces = [*cases(PHONES), *cases(NO_PHONES), *cases(LABELLED_PHONES), *NATIONAL.values(), *KEYS]
    pieces += [
        *cases(MAILS),
        *CARDS.split(),
        *cases(IBANS),
        *cases(ADDRESSES),
        "call ",
        "SSN ",
        "[",
    ]
    pieces += list("@.-+() /:=\n12345,xé中]") * 20
    rng = random.Random(2)
    for _ in range(1500):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 25)))
        spans = pii.find(text, KINDS)
        ends = [0, *(span.end for span in spans)]
        assert all(end <= span.start < span.end for end, span in zip(ends, spans, strict=False))
        once, _ = pii.replace(text, KINDS)
        assert pii.replace(once, KINDS) == (once, {}), text


UNITS = "@|a@|a.|1|1-|1 |1.1.1.|(1|::|eyJ|sk-|_|=|://a:|GB82 |a [at] b |password=|+1|é@é.|call "
KEY_HEAD = "-----BEGIN PRIVATE KEY-----\n"


@pytest.mark.parametrize("unit", [*UNITS.split("|"), KEY_HEAD])
def test_text_made_to_be_slow_holds_nothing_and_ends(unit):
    """Anything quadratic would take minutes here: 200,000 characters."""
    assert pii.find(unit * (200_000 // len(unit)), KINDS) == []


def test_numbers_glued_together_do_not_take_a_pass_each():
    replaced, counts = pii.replace("+1 415 555 2671" * 3000, KINDS)
    assert replaced.count("[PHONE]") == counts["phone"] >= 1


def rows_of(path, field):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)[field] for line in lines]


@pytest.mark.real
@pytest.mark.skipif(not GOLD.is_file(), reason="the labelled set is not beside the checkout")
def test_labelled_set_is_found():
    gold, found = set(), set()
    rows = zip(rows_of(GOLD, "full_text"), rows_of(GOLD, "spans"), strict=True)
    for number, (text, spans) in enumerate(rows):
        for span in spans:
            if kind := GOLD_KINDS.get(span["entity_type"]):
                gold.add((kind, number, span["start_position"], span["end_position"]))
        found |= {(span.kind, number, span.start, span.end) for span in pii.find(text, KINDS)}
    for kind, floor in GOLD_FLOORS.items():
        theirs, ours = ({row for row in side if row[0] == kind} for side in (gold, found))
        recall, precision = len(theirs & ours) / len(theirs), len(theirs & ours) / len(ours)
        assert recall >= floor, (kind, recall, theirs - ours)
        assert precision >= floor, (kind, precision, ours - theirs)


@pytest.mark.real
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not beside the checkout")
@pytest.mark.parametrize(
    ("path", "field"),
    [("pretrain/books/books.jsonl.gz", "text"), ("eval/gsm8k/train.jsonl.gz", "answer")],
)
def test_novels_and_sums_hold_nobody(path, field):
    """18.8 MB of Dickens and others, and arithmetic full of numbers."""
    assert [found for text in rows_of(SHARED / path, field) for found in texts(text)] == []
