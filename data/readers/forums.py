"""Forums: Stack Exchange dumps and threads of posts, as conversations.

Posts of one thread lie far apart, and a dump can be larger than memory. So all go into a temporary
database of SQLite, which keeps CACHE_BYTES in memory and the rest in nameless files (in
SQLITE_TMPDIR or the system's folder for such; about twice the text of the dump), and come out
sorted by thread. Memory is about three times CACHE_BYTES, and the largest thread.
"""

import codecs
import collections
import contextlib
import html
import itertools
import pickle
import re
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree

import html_to_markdown

from data import storage
from data.document import Record
from data.readers.borders import until_damage
from data.readers.fields import iso_date
from data.readers.shapes import POST, REPLIES
from data.readers.tables import json_rows
from data.unpacking import lines

CACHE_BYTES = 64 << 20
MAX_META_POSTS = 64  # how many posts of a conversation `meta` lists
QUESTION, ANSWER = "1", "2"
# Character references that XML 1.0 does not allow, and that dumps hold all the same.
FORBIDDEN = re.compile(rb"(?i)&#(x0*([0-8bcef]|1[0-9a-f])|0*([0-8]|1[124-9]|2[0-9]|3[01]));")
OWN_DOMAIN = re.compile(r"(.*\.)?(askubuntu|serverfault|stackapps|stackoverflow|superuser)")
DELETED = ("[deleted]", "[removed]", "[deleted by user]")

# Markdown without what stands for looks only. Lines end where HTML means it, and what the library
# escapes or leaves at line ends is undone.
MARKDOWN = html_to_markdown.ConversionOptions(
    skip_images=True,
    strip_tags=["a", "em", "strong", "b", "i", "sup", "u", "del", "s", "strike"],
    exclude_selectors=["hr"],
    bullets="-",
    autolinks=False,
    extract_metadata=False,
)
PREFORMATTED = re.compile(r"(?is)(<pre\b.*?</pre>)")
LINE_END = re.compile(r"[ \t]*[\r\n]\s*")
RAISED = re.compile(r"(?<=[^\s>])<sup>", re.IGNORECASE)
ESCAPED_NUMBER = re.compile(r"(?m)^([>\s]*\d+)\\([.)])")
TRAILING = re.compile(r"(?m)[ \t]+$")
EMPTY_QUOTES = re.compile(r"(?m)(?:^([> ]*>)\n){2,}")


def html_to_text(markup: str) -> str:
    """A post's HTML as Markdown without emphasis, links and images; ^ before a superscript."""
    parts = PREFORMATTED.split(RAISED.sub("^<sup>", markup))
    parts[::2] = [LINE_END.sub(" ", part) for part in parts[::2]]
    text = html_to_markdown.convert("".join(parts), MARKDOWN).content or ""
    text = TRAILING.sub("", ESCAPED_NUMBER.sub(r"\1\2", text))
    return EMPTY_QUOTES.sub(r"\1\n", text).strip("\n")


class _Post(NamedTuple):
    number: int
    id: str
    parent: str
    title: str
    text: str
    author: str
    score: float
    date: str
    url: str
    meta: Mapping[str, Any]


def read_stack_exchange(path: str) -> Iterator[Record]:
    """Reads a Posts.xml of the Stack Exchange data dump, a row a line: a record a question.

    Its text is the title, the question, and each answer under a line 'Answer:', with empty lines
    between: the accepted answer first, then the best-scored, among equals the older. Bodies are
    text as html_to_text makes it. Rows that are neither are skipped; an answer whose
    question is not in the file is broken.

    Args:
        path: a local path or URI; plain, gzip, zstd, bzip2 or xz.

    Yields:
        Broken rows as they are met, then conversations by question id. `number` counts rows. `meta`
        holds site, id, score, tags, licence if stated, accepted (id or None), num_answers, and
        answers: id, score, accepted of the first MAX_META_POSTS.

    Raises:
        OSError: the file cannot be opened, or is damaged or breaks off behind the last record.
        sqlite3.Error: no room is left for the temporary database.
    """
    site, damage = _site(path), []
    with contextlib.closing(_Threads()) as threads:
        for number, line, why in until_damage(_rows(path), damage):
            try:
                if why:
                    raise ValueError(why)
                if post := _stack_exchange_post(number, line):
                    threads.add(int(post.parent or post.id), post)
            except ValueError as error:
                yield Record(number, "", why=str(error))
        for posts in threads:
            yield from _question(posts, site)
    for error in damage:
        raise error


def _rows(path: str) -> Iterator[tuple[int, bytes, str]]:
    """(number, line, why it is broken) of each line that should be a row."""
    number = 0
    with storage.open_plain(path) as stream:
        for line, why in lines(stream):
            line = line.removeprefix(codecs.BOM_UTF8).strip()
            if why or not (line == b"" or line.startswith((b"<?xml", b"<posts", b"</posts"))):
                number += 1
                yield number, line, why


def _stack_exchange_post(number: int, line: bytes) -> _Post | None:
    """A question or an answer; None for a row of another kind; ValueError for a broken one."""
    if not line.startswith(b"<row"):
        raise ValueError("not a row")
    try:
        row = ElementTree.fromstring(FORBIDDEN.sub(b"", line)).attrib
    except ElementTree.ParseError as error:
        raise ValueError(f"malformed XML: {error}") from error
    if row.get("PostTypeId") not in (QUESTION, ANSWER):
        return None
    for name in ("Id", "ParentId") if row["PostTypeId"] == ANSWER else ("Id",):
        if not re.fullmatch(r"[0-9]{1,18}", row.get(name, "")):
            raise ValueError(f"{name} is {row.get(name)!r}, not a number")
    meta = {"tags": re.findall(r"[^<>|]+", row.get("Tags", "")), "accepted": None}
    if row.get("AcceptedAnswerId", "").isdecimal():
        meta["accepted"] = int(row["AcceptedAnswerId"])
    if "ContentLicense" in row:
        meta["licence"] = row["ContentLicense"]
    score = row.get("Score", "0")
    return _Post(
        number=number,
        id=row["Id"],
        parent=row["ParentId"] if row["PostTypeId"] == ANSWER else "",
        title=" ".join(row.get("Title", "").split()),
        text=html_to_text(row.get("Body", "")),
        author="",
        score=int(score) if re.fullmatch(r"-?[0-9]{1,18}", score) else 0,
        date=row.get("CreationDate", ""),
        url="",
        meta=meta,
    )


def _question(posts: list[_Post], site: str) -> Iterator[Record]:
    """The conversation of one question, and what of it is broken."""
    question, answers = None, {}
    for post in posts:
        if (post.id in answers) if post.parent else question:
            yield Record(post.number, "", why=f"a second row of Id {post.id}")
        elif post.parent:
            answers[post.id] = post
        else:
            question = post
    if not question:
        why = "an answer to question {}, which is not in the file"
        yield from (
            Record(post.number, "", why=why.format(post.parent)) for post in answers.values()
        )
        return
    accepted = question.meta["accepted"]
    ordered = sorted(
        answers.values(), key=lambda post: (int(post.id) != accepted, -post.score, int(post.id))
    )
    parts = [question.title, question.text]
    parts += [f"Answer:\n\n{post.text}" for post in ordered if post.text]
    meta = {"site": site, "id": int(question.id), "score": question.score, **question.meta}
    meta["num_answers"] = len(ordered)
    meta["answers"] = [
        {"id": int(post.id), "score": post.score, "accepted": int(post.id) == accepted}
        for post in ordered[:MAX_META_POSTS]
    ]
    yield Record(
        question.number,
        "\n\n".join(filter(None, parts)),
        url=f"https://{site}/questions/{question.id}" if site else "",
        date=question.date,
        meta=meta,
    )


def _site(path: str) -> str:
    """The site's host: of 'beer.Posts.xml.gz', 'ai.stackexchange.com/Posts.xml' and the like."""
    *_, folder, name = ["", *path.split("/")]
    prefix = name.partition("Posts.xml")[0].rstrip(".-_").lower()
    if re.fullmatch(r"[a-z0-9.-]+\.(com|net)", prefix or folder):
        return prefix or folder
    if not re.fullmatch(r"[a-z0-9.-]+", prefix):
        return ""
    if prefix.endswith("mathoverflow"):
        return f"{prefix}.net"
    return f"{prefix}.com" if OWN_DOMAIN.fullmatch(prefix) else f"{prefix}.stackexchange.com"


def read_threads(path: str) -> Iterator[Record]:
    """Reads a dump of forum posts, JSON lines or one JSON array: a record a thread.

    A post names its parent, or a row holds a whole tree with its replies inside (shapes.POST and
    REPLIES hold the spellings known; Open Assistant's 'prompt' around it). Its text is the title,
    then every post as 'A: text', empty lines between: a post, then its replies, best-scored first,
    each with its own below it. Authors, or their roles where posts have those, are letters in order
    of appearance. Deleted posts are left out, their replies are not; so are parents that are
    missing.

    Args:
        path: a local path or URI; plain, gzip, zstd, bzip2 or xz.

    Yields:
        Broken rows as they are met, then threads, by their names or the places of their first
        posts. `number` is of the first row. `meta` holds num_posts, and posts: id, author, score of
        the first MAX_META_POSTS.

    Raises:
        OSError: the file cannot be opened, or is damaged or breaks off behind the last record.
        sqlite3.Error: no room is left for the temporary database.
    """
    damage: list[Exception] = []
    with contextlib.closing(_Threads()) as threads, storage.open_plain(path) as stream:
        for number, row in until_damage(json_rows(stream), damage):
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                posts = list(_posts(number, row))
            except ValueError as error:
                yield Record(number, "", why=str(error))
                continue
            if len(posts) > 1:
                yield from _thread([post for _, post in posts])
            else:
                threads.add(*posts[0])
        for thread in threads:
            yield from _thread(thread)
    for error in damage:
        raise error


def _posts(number: int, row: Any) -> Iterator[tuple[str | None, _Post]]:
    """(thread that it names, post) of a row, and of the replies inside it."""
    if isinstance(row, dict) and isinstance(row.get("prompt"), dict):
        row = row["prompt"]
    stack, count = [(row, "")], 0
    while stack:
        row, parent = stack.pop()
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, not an object")
        thread, post = _post(number, row, parent, f"#{number}.{count}")
        yield thread, post
        count += 1
        for name in REPLIES:
            if isinstance(row.get(name), list):
                stack += [(reply, post.id) for reply in reversed(row[name])]


def _post(number: int, row: dict, parent: str, place: str) -> tuple[str | None, _Post]:
    """(thread that it names, post) of one object; ValueError if it is none."""
    found = {}
    for key, names in POST.items():
        found[key] = next((row[name] for name in names if row.get(name) not in (None, "")), "")
    text, title = found["text"], found["title"]
    if not isinstance(text, str) or not isinstance(title, str) or not (text or title):
        raise ValueError(f"no text under any of {', '.join(POST['text'])}")
    own_id, thread, author = (str(found[key]) for key in ("id", "thread", "author"))
    if "subreddit" in row or "link_id" in row:
        # Reddit numbers submissions (t3) and comments (t1) apart, and escapes its text.
        text, title = html.unescape(text), html.unescape(title)
        own_id = f"{'t1' if thread else 't3'}_{own_id}"
        thread = thread or own_id
    if text.strip() in DELETED or row.get("deleted") is True:
        text = ""
    post = _Post(
        number=number,
        id=own_id or place,
        parent=parent or str(found["parent"]),
        title=" ".join(title.split()),
        text=text.strip("\n"),
        author=place if author in ("", *DELETED) else author,
        score=_number(found["score"], -_number(row.get("rank"), 0)),
        date=iso_date(found["date"]),
        url=f"https://www.reddit.com{row['permalink']}" if "permalink" in row else "",
        meta={},
    )
    "".join(value for value in post if isinstance(value, str)).encode()  # ValueError: no Unicode
    return thread or None, post


def _number(value: Any, otherwise: float) -> float:
    return value if isinstance(value, int | float) and abs(value) < 1e15 else otherwise


def _thread(posts: list[_Post]) -> Iterator[Record]:
    """The conversation of one thread, and what of it is broken."""
    by_id: dict[str, _Post] = {}
    for post in posts:
        if by_id.setdefault(post.id, post) is not post:
            yield Record(post.number, "", why=f"a second post of id {post.id}")
    replies = collections.defaultdict(list)
    for post in by_id.values():
        replies[post.parent if post.parent in by_id else ""].append(post)
    ordered, letters, parts, listed = [], {}, [], []
    stack = sorted(replies.pop("", []), key=_by_score)
    while stack:
        post = stack.pop()
        ordered.append(post)
        stack += sorted(replies.pop(post.id, []), key=_by_score)
        if post.text:
            author = letters.setdefault(post.author, _letter(len(letters)))
            parts.append(f"{author}: {post.text}")
            listed.append({"id": post.id, "author": author, "score": post.score})
    for post in itertools.chain.from_iterable(replies.values()):
        yield Record(post.number, "", why=f"post {post.id}: its parents lead in a circle")
    if ordered:
        first = ordered[0]
        meta = {"num_posts": len(listed), "posts": listed[:MAX_META_POSTS]}
        text = "\n\n".join(filter(None, [first.title, *parts]))
        number = min(post.number for post in ordered)
        yield Record(number, text, url=first.url, date=first.date, meta=meta)


def _by_score(post: _Post) -> tuple[float, int]:
    """Sorts the best last, where a stack takes it first."""
    return post.score, -post.number


def _letter(index: int) -> str:
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


class _Threads:
    """Posts that come in any order and go out by thread, in bounded memory."""

    def __init__(self):
        # '' is a temporary database; whatever thread asks for the next record may use it.
        self.base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for command in (
            f"PRAGMA cache_size = {-CACHE_BYTES // 1024}",
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE post (number INTEGER PRIMARY KEY, thread, id TEXT, parent TEXT, post)",
            "CREATE TABLE root (number INTEGER PRIMARY KEY, first INTEGER)",
            "BEGIN",
        ):
            self.base.execute(command)

    def add(self, thread: int | str | None, post: _Post):
        """Takes a post; `thread` None: that of its parent."""
        row = (post.number, thread, post.id, post.parent, pickle.dumps(tuple(post)))
        self.base.execute("INSERT INTO post VALUES (?, ?, ?, ?, ?)", row)

    def __iter__(self) -> Iterator[list[_Post]]:
        if self.base.execute("SELECT 1 FROM post WHERE thread IS NULL LIMIT 1").fetchone():
            self._find_roots()
        rows = self.base.execute(
            "SELECT COALESCE(thread, first), post FROM post LEFT JOIN root USING (number)"
            " ORDER BY 1, post.number"
        )
        for _, group in itertools.groupby(rows, lambda row: row[0]):
            yield [_Post(*pickle.loads(post)) for _, post in group]

    def _find_roots(self):
        """Names threads that nobody names after their first posts; circles have none."""
        for command in (
            "CREATE INDEX by_id ON post (id) WHERE thread IS NULL",
            "CREATE TABLE known (id TEXT PRIMARY KEY, number INTEGER, parent TEXT)",
            "INSERT INTO known SELECT id, MIN(number), parent FROM post WHERE thread IS NULL"
            " GROUP BY id",
            "CREATE INDEX by_parent ON known (parent)",
            "WITH RECURSIVE tree (id, first) AS ("
            " SELECT id, number FROM known WHERE parent NOT IN (SELECT id FROM known)"
            " UNION ALL SELECT known.id, tree.first FROM tree, known WHERE known.parent = tree.id)"
            " INSERT INTO root SELECT post.number, tree.first FROM tree, post"
            "  WHERE post.id = tree.id AND post.thread IS NULL",
        ):
            self.base.execute(command)

    def close(self):
        self.base.close()
