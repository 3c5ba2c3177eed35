"""Repair: brings a text to one form, mends what machines did to it, and drops boilerplate lines.

`normalise` touches no visible character and is for code. `repair` is for prose: it also undoes
text that was read in a wrong encoding, and removes what no reader sees. Both are pure and
idempotent, and look first, in one pass, whether there is anything to do.
"""

import html
import re
import unicodedata
from html.entities import name2codepoint

import numba
import numpy as np

from data.gates import mojibake

# What a text may need, a bit each.
CONTROL, BLANK, SURROGATE, GAP, INVISIBLE, SPACE, REFERENCE, TOKEN = (1 << np.arange(8)).tolist()

# What ends a line in some system or other.
LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# C0 and C1 controls but tab and newline, and the byte order mark.
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
# What cp1252 has where Latin-1 has controls; its gaps stay, and go as controls.
GAPS = {
    byte: char for byte in range(0x80, 0xA0) if (char := bytes((byte,)).decode("cp1252", "ignore"))
}
# Soft hyphens, word joiners, invisible operators, annotation and object marks.
UNSEEN = re.compile("[\u00ad\u2060-\u2064\u206a-\u206f\ufff9-\ufffc]")
# The zero-width space parts words in the scripts of South-East Asia; elsewhere it is a leftover.
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
ZERO_SPACES = re.compile(f"(?<![{UNSPACED}])\u200b++(?![{UNSPACED}])")
# Joiners shape Persian, Indic scripts and emoji; between ASCII they do nothing.
JOINERS = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]++(?![^\x00-\x7f])")
DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
LOST = re.compile("\ufffd{2,}")
SPACES = re.compile("[\u00a0\u2000-\u200a\u205f]|(?<![\u1800-\u18af])\u202f")
WIDE = "\u2e80-\u2fff\u3001-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
WIDE_SPACES = re.compile(f"(?<![{WIDE}])\u3000++(?![{WIDE}])")
# WikiText writes a hyphen, a comma or a point inside a word or number as a token of its own.
TOKENS = re.compile(r"(?<=[\w>]) @([-,.])@ (?=[\w<])")
# A character reference, with whatever number of escapes before it.
REFERENCES = re.compile(
    r"&(?:amp;|#38;|#[xX]26;)*(#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});(?=(.?))"
)
TAG = re.compile(r"<[A-Za-z/!?]")
# Names that code does not use after its operator &: marks of punctuation, and accented letters.
PUNCTUATION_NAMES = """
    amp lt gt quot apos nbsp ensp emsp thinsp shy zwj zwnj ndash mdash lsquo rsquo sbquo ldquo rdquo
    bdquo laquo raquo lsaquo rsaquo hellip bull middot iexcl iquest euro pound deg
"""
REFERENCE_NAMES = frozenset(PUNCTUATION_NAMES.split()) | {
    name for name, code in name2codepoint.items() if 0xC0 <= code < 0x180 and len(name) > 4
}
# Names that code does use, though not before more of the same line.
MARK_NAMES = frozenset(("copy", "reg", "trade"))


def _needs() -> np.ndarray:
    """What each character of the basic plane gives reason to look for."""
    needs = np.zeros(0x10000, np.uint8)
    plane = "".join(map(chr, range(len(needs))))
    for need, pattern in (
        (CONTROL, LINE_ENDS),
        (CONTROL, CONTROLS),
        (GAP, re.compile("[\x80-\x9f]")),
        (INVISIBLE, UNSEEN),
        (INVISIBLE, DIRECTIONS),
        (INVISIBLE, re.compile("\u200b")),
        (SPACE, re.compile("[\u00a0\u2000-\u200a\u205f\u202f\u3000]")),
        (BLANK, re.compile("\u1680")),
        (REFERENCE, re.compile("&")),
        (TOKEN, re.compile("@")),
    ):
        for match in pattern.finditer(plane):
            needs[match.start()] |= need
    needs[0xD800:0xE000] = SURROGATE
    return needs


NEEDS = _needs()


@numba.njit(cache=True, nogil=True)
def _scan(codes, needs):
    """What a text may need; some characters give reason only after some others."""
    found, before = np.uint8(0), np.int64(10)
    for code in codes:
        if code < 0x10000:
            found |= needs[code]
            if code == 10 and (before == 32 or before == 9):
                found |= np.uint8(BLANK)
            joiner = code == 0x200C or code == 0x200D
            if (joiner and before < 0x80) or (code == 0xFFFD and before == 0xFFFD):
                found |= np.uint8(INVISIBLE)
        before = np.int64(code)
    return found | np.uint8(BLANK) if before == 32 or before == 9 else found


def _look(text: str) -> int:
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return int(_scan(codes, NEEDS))


def normalise(text: str) -> str:
    """Brings a text to one form, without touching what it says.

    Args:
        text: any text.

    Returns:
        NFC; LF line ends; no control characters but tab and newline; no blanks at line ends and
        no empty lines at either end; one newline last unless nothing is left. Surrogates are
        joined, lone ones become U+FFFD.
    """
    return _normalise(text, _look(text))


def _normalise(text: str, needs: int) -> str:
    if needs & SURROGATE:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if needs & CONTROL:
        text = CONTROLS.sub("", LINE_ENDS.sub("\n", text))
    text = unicodedata.normalize("NFC", text)
    if needs & (BLANK | CONTROL | SPACE):
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    if text.endswith("\n") and not text.endswith("\n\n") and not text.startswith("\n"):
        return text
    text = text.strip("\n")
    return text + "\n" if text else ""


def repair(text: str) -> str:
    """Mends prose that machines have damaged, and brings it to one form.

    Mojibake is undone, HTML's character references are resolved in texts without tags, WikiText's
    tokens joined; what cannot be seen goes, and every kind of space becomes the common one, but
    where a script needs it: joiners in Persian, Hindi and emoji, the zero-width space in Thai and
    Khmer, marks of direction beside Hebrew and Arabic, the wide space beside wide characters.

    Args:
        text: any text; code is better left to `normalise`.

    Returns:
        The text, in the form that `normalise` gives; runs of U+FFFD are one of it.
    """
    while True:
        mended = _repair_once(text)
        if mended.strip("\n") == text.strip("\n"):
            return mended
        text = mended


def _repair_once(text: str) -> str:
    needs = _look(text)
    if needs & SURROGATE:
        text = _normalise(text, SURROGATE)
    if not text.isascii():
        text = mojibake.undo(text)
    if needs & GAP:
        text = text.translate(GAPS)
    if needs & INVISIBLE:
        text = _drop_invisible(text)
    if needs & SPACE:
        text = WIDE_SPACES.sub(" ", SPACES.sub(" ", text))
    if needs & REFERENCE and REFERENCES.search(text) and not TAG.search(text):
        text = REFERENCES.sub(_resolve, text)
    # A face in a chat looks the same; a tokenised text has other marks on their own as well.
    if needs & TOKEN and (" . " in text or " , " in text):
        text = TOKENS.sub(r"\1", text)
    return _normalise(text, needs)


def _drop_invisible(text: str) -> str:
    text = JOINERS.sub("", ZERO_SPACES.sub("", UNSEEN.sub("", text)))
    if not RIGHT_TO_LEFT.search(text):
        text = DIRECTIONS.sub("", text)
    return LOST.sub("\ufffd", text)


def _resolve(match: re.Match) -> str:
    name, after = match[1], match[2]
    if name[0] == "#" or name in REFERENCE_NAMES or (name in MARK_NAMES and after):
        return html.unescape(f"&{name};")
    return match[0]


MAX_LINE_CHARS = 200
# What stands around the words of a menu or button.
FRAME = " \t-–—_*•·|/\\<>«»‹›→←↑▲▼►▸…:;.!?#+&~()[]{}'\"“”‘’。！？｜【】「」（）"
NETWORK = (
    r"(?:facebook|twitter|google ?\+|google plus|linkedin|pinterest|reddit|tumblr|whatsapp|"
    r"instagram|telegram|youtube|digg|rss|vk|вконтакте|weibo|wechat|微信|微博|flipboard|"
    r"stumbleupon|delicious|skype|tiktok|mastodon|bluesky)"
)
SHARE = (
    r"(?:share|tweet|like|follow|pin(?: it)?|teile[n]?|partage[rz]?|compartir|comparte|condividi|"
    r"compartilhe|compartilhar|partilhar|delen|deel|поделиться|udostępnij|シェア|分享|转发)"
)
# Whole lines, without case and FRAME.
PHRASES = frozenset(
    phrase.strip()
    for phrase in """
    accept all|accept all cookies|accept cookies|add a comment|add to cart|all rights reserved
    allow all cookies|allow cookies|back to home|back to top|be the first to comment
    bookmark the permalink|cancel reply|click here|click to share|close this window
    comments are closed|continue reading|cookie consent|cookie notice|cookie policy
    cookie preferences|cookie settings|cookies policy|email this|email this page|follow us|go to top
    i accept|i agree|learn more|leave a comment|leave a reply|load more|log in|log in to comment
    log in to reply|log out|login|logout|main menu|manage cookies|manage preferences|my account
    newsletter sign up|next article|next page|next post|no comments|no comments yet|page load link
    page not found|post a comment|post comment|previous article|previous page|previous post
    print this page|printable version|privacy policy|read more|read the rest of this entry
    reject all|reject all cookies|related articles|related posts|reply|reply to this post
    replydelete|report abuse|send to a friend|share|share article|share link|share post|share this
    share this article|share this page|share this post|share this story|share your thoughts
    shopping cart|show more|sign in|sign in to comment|sign up|site map|sitemap|skip navigation
    skip to content|skip to footer|skip to main content|skip to main navigation|skip to navigation
    skip to primary content|skip to search|skip to secondary content|subscribe now
    terms & conditions|terms and conditions|terms of service|terms of use|toggle navigation|tweet
    tweet this|view all|view cart|we use cookies
    alle ablehnen|alle akzeptieren|alle cookies akzeptieren|alle rechte vorbehalten|artikel teilen
    beitrag teilen|cookie-einstellungen|cookie-richtlinie|cookies akzeptieren|datenschutzerklärung
    kommentar schreiben|mehr erfahren|mehr lesen|nach oben|weiterlesen|zum inhalt springen
    zur navigation springen
    accepter les cookies|aller au contenu|aller au contenu principal|en savoir plus
    gérer les cookies|laisser un commentaire|lire la suite|mentions légales|partager
    partager cet article|politique de confidentialité|politique de cookies|retour en haut
    se connecter|suivez-nous|tous droits réservés|tout accepter|tout refuser
    aceptar cookies|aceptar todas|aceptar todo|aviso legal|compartir|configurar cookies
    deja un comentario|iniciar sesión|ir al contenido|leer más|más información|política de cookies
    política de privacidad|saltar al contenido|seguir leyendo|todos los derechos reservados
    volver arriba
    accetta i cookie|accetta tutti|accetta tutto|condividi|continua a leggere
    informativa sulla privacy|lascia un commento|leggi di più|leggi tutto|torna su
    tutti i diritti riservati|vai al contenuto
    aceitar cookies|aceitar todos|compartilhar|compartilhe|continue lendo|deixe um comentário
    leia mais|ler mais|partilhar|pular para o conteúdo|saiba mais|todos os direitos reservados
    voltar ao topo
    alle cookies accepteren|alle rechten voorbehouden|alles accepteren|cookie-instellingen
    cookiebeleid|cookies accepteren|deel dit artikel|deel dit bericht|ga naar de inhoud|lees meer
    lees verder|naar boven|privacybeleid
    все права защищены|наверх|оставить комментарий|перейти к содержанию|поделиться
    поделиться ссылкой|политика конфиденциальности|принять все|принять все cookie|читать далее
    читать дальше|читать полностью
    akceptuj wszystkie|czytaj dalej|czytaj więcej|dodaj komentarz|dowiedz się więcej
    polityka cookies|polityka prywatności|przejdź do treści|udostępnij|wszelkie prawa zastrzeżone
    zaloguj się
    すべてのcookieを受け入れる|すべて許可|この記事をシェア|この記事をシェアする|もっと見る
    クッキーを許可する|コメントを残す|コンテンツへスキップ|シェア|シェアする|トップへ戻る
    プライバシーポリシー|ログイン|利用規約|同意する|本文へスキップ|無断転載を禁じます|続きを読む
    上一页|上一篇|下一页|下一篇|全部拒绝|全部接受|分享|分享到|分享至|接受所有cookie|末页|版权所有
    登录|跳到主要内容|跳到主要內容|跳至内容|跳至主要內容|返回顶部|阅读全文|阅读更多|隐私政策|首页
    隱私權政策
    """.replace("\n", "|").split("|")
    if phrase.strip()
)
BUTTONS = re.compile(
    rf"{SHARE}(?: us)?(?: this(?: \w+)?)?(?: (?:on|via|to|by|with|auf|bei|per|über|sur|par|en|por|"
    rf"su|no|pelo|op|в|во|на|na|w))? {NETWORK}|(?:auf|bei|sur|en|su|op|в|на|na) {NETWORK} {SHARE}|"
    rf"{NETWORK}でシェア(?:する)?|分享[到至] ?{NETWORK}|"
    rf"(?=.*{NETWORK})(?:(?:\d+ )?(?:{NETWORK}|{SHARE}|e-?mail|print|mail)(?: |$)){{2,}}|"
    r"(?:please )?click (?:here|on the image|the (?:link|image)s?)(?: (?:to|for) .{0,60})?|"
    r"(?:page|seite|página|pagina|strona|страница) \d+ (?:of|/|von|sur|de|di|van|z|из) \d+|"
    r"第 ?\d+ ?页.{0,3}共 ?\d+ ?页|\d+ (?:comments?|repl(?:y|ies))|continue reading .{0,80}|"
    r"this entry was (?:posted|tagged) .*|posted (?:on|by|in) .{0,80}(?:\b(?:19|20)\d\d|\d:\d\d).*|"
    r"powered by (?:wordpress|vbulletin|blogger|disqus|phpbb|drupal|joomla|shopify).*|"
    r"(?:previous|next) (?:post|article|entry|page|story):.*|view all posts (?:by|in) .*|"
    r"(?:copyright|\(?c\)|©) ?(?:copyright|\(c\)|©)? ?\d{4}.{0,80}"
)
# The words that BUTTONS begin with: a look at them spares most lines the expression.
BUTTON_WORDS = """
    share tweet like follow pin teile partage compart condividi partilhar delen deel поделиться
    udostępnij シェア 分享 转发 facebook twitter google linkedin pinterest reddit tumblr whatsapp
    instagram telegram youtube digg rss vk вконтакте weibo wechat 微信 微博 flipboard stumbleupon
    delicious skype tiktok mastodon bluesky mail email e-mail print auf bei sur en su op в на na
    please click page seite página pagina strona страница 第 continue this posted powered previous
    next view copyright © (c c) 0 1 2 3 4 5 6 7 8 9
"""
BUTTON_STARTS = tuple(BUTTON_WORDS.split())
# What parts the entries of a menu that stands in one row, and the entries of nearly every site.
SEPARATORS = ("|", "·", "•", "»", "›", "｜", "\t", " / ", " - ", " > ", "   ")
SEPARATOR = re.compile("|".join(map(re.escape, SEPARATORS)))
NAVIGATION = re.compile(
    r"home(?:page)?|about(?: \w+)?|contacts?(?: us)?|faqs?|help|log ?in|sign in|log ?out|sign up|"
    r"register|site ?map|privacy(?: policy)?|terms(?: .*)?|search|advanced search|forums?|blog|"
    r"news|jobs|careers|donate|rss|subscribe|my account|cart|checkout|advertise|press|shop|store|"
    r"support|startseite|impressum|kontakt|datenschutz|accueil|contactez-nous|inicio|contacto|"
    r"aviso legal|chi siamo|contatti|início|contato|contactos|over ons|главная|контакты|новости|"
    r"о компании|o nas|strona główna|ホーム|お問い合わせ|会社概要|サイトマップ|首页|关于我们|"
    r"联系我们"
)
COOKIES = re.compile(
    r"\b(?:use|uses|using|accept|allow|store|place|set|verwende\w*|nutz\w*|benutz\w*|setz\w*|"
    r"utilis\w*|dépos\w*|utiliza\w*|usa\w*|usiamo|utilizz\w*|gebruik\w*|plaats\w*|использу\w*|"
    r"używa\w*|korzysta\w*|stosuje\w*|wykorzystuje\w*)\b.{0,40}(?:cookie|куки|ciastecz)|"
    r"cookies? (?:to|on|um|zu|pour|para|per|om|для|w celu|est|help|are|policy|settings)|"
    r"(?:cookie|クッキー).{0,10}(?:使用|利用|同意)|(?:使用|利用).{0,10}cookie"
)
CONSENT = re.compile(
    r"site|seite|browser|browsing|privacy|consent|policy|settings|agree|zustimm|einverstanden|"
    r"erfahrung|datenschutz|navigation|confidentialité|acceptez|sitio|navegación|acept|aceita|"
    r"navegação|sito|navigazione|acconsent|akkoord|ervaring|сайт|соглас|stron|zgod|serwis|"
    r"サイト|同意|网站|網站|体验"
)
SCRIPT = re.compile(
    r"(?:please )?(?:enable|turn on|activate) java ?script.*|"
    r"java ?script (?:must be|is|seems to be|has been|appears to be) .*(?:abled|required|off).*|"
    r"(?:this|our|the) (?:\w+ )?(?:site|page|video|form|app\w*|feature) (?:requires|needs).*|"
    r"you (?:need to|must|have to) (?:enable|have|turn on) java ?script.*|"
    r"your browser (?:does not|doesn't|doesn’t|has) .*|we're sorry but .*(?:require|without).*|"
    r"(?:bitte )?aktivieren sie java ?script.*|(?:veuillez )?activer java ?script.*|"
    r"(?:por favor,? )?(?:activ[ae]|habilit[ae]|ative).* java ?script.*|abilita.* java ?script.*|"
    r"включите java ?script.*|.*włącz.* java ?script.*|schakel java ?script.*|"
    r"java ?scriptを有効に.*|请(?:启用|开启) ?java ?script.*"
)
RIGHTS = (
    "all rights reserved", "alle rechte vorbehalten", "tous droits réservés",
    "todos los derechos reservados", "todos os direitos reservados", "tutti i diritti riservati",
    "alle rechten voorbehouden", "все права защищены", "wszelkie prawa zastrzeżone", "版权所有",
    "版權所有", "無断転載",
)  # fmt: skip


def drop_boilerplate(text: str) -> tuple[str, int]:
    """Drops lines that a page's machinery wrote: consent, sharing, menus, rights, page numbers.

    A line goes only if it is short and nothing else than that; no line is shortened. The phrases
    are English, German, French, Spanish, Italian, Portuguese, Dutch, Russian, Polish, Japanese
    and Chinese.

    Args:
        text: normalised text.

    Returns:
        The text without them, and how many lines went.

    Source: after C4 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2), which
    drops every line that names Javascript, or that does not end as a sentence does.
    """
    lines = text.split("\n")
    folded = text.casefold()
    # What is nowhere in the text need not be looked for in its lines.
    rights = tuple(phrase for phrase in RIGHTS if phrase in folded)
    cookies = "cookie" in folded or "クッキー" in folded or "куки" in folded
    script = "javascript" in folded or "java script" in folded
    kept = [
        line
        for line, fold in zip(lines, folded.split("\n"), strict=True)
        if not line
        or len(line) > MAX_LINE_CHARS
        or not (
            _is_button(fold.strip(FRAME))
            or any(phrase in fold for phrase in rights)
            or (cookies and COOKIES.search(fold) and CONSENT.search(fold))
            or (script and SCRIPT.fullmatch(fold.strip(FRAME)))
            or _is_navigation(fold)
        )
    ]
    num_dropped = len(lines) - len(kept)
    if not num_dropped:
        return text, 0
    text = "\n".join(kept).strip("\n")
    return text + "\n" if text else "", num_dropped


def _is_button(fold: str) -> bool:
    if fold in PHRASES:
        return True
    return fold.startswith(BUTTON_STARTS) and BUTTONS.fullmatch(fold) is not None


def _is_navigation(fold: str) -> bool:
    """A row of three or more short names, two of them of a site's usual pages."""
    if sum(map(fold.count, SEPARATORS)) < 2:
        return False
    names = [name for part in SEPARATOR.split(fold) if (name := part.strip(FRAME))]
    if len(names) < 3 or any(len(name) > 30 or name.count(" ") > 3 for name in names):
        return False
    return sum(bool(NAVIGATION.fullmatch(name)) for name in names) >= 2
