"""Source code: files with their language and licence, and which of them nobody wrote."""

import functools
import re
from collections.abc import Iterator

from data import storage
from data.document import Record
from data.unpacking import PACKED_SUFFIX, whole

# Language: its files' suffixes; names of whole files begin with '='.
LANGUAGES = {
    "ada": "adb ads",
    "agda": "agda lagda",
    "applescript": "applescript",
    "assembly": "asm s nasm",
    "awk": "awk gawk",
    "basic": "bas vb vbs",
    "batch": "bat cmd",
    "bazel": "bzl bazel =BUILD =WORKSPACE",
    "c": "c h",
    "c#": "cs csx",
    "c++": "cc cpp cxx c++ hh hpp hxx h++ ipp inl tpp",
    "clojure": "clj cljs cljc edn",
    "cmake": "cmake =CMakeLists.txt",
    "cobol": "cob cbl cpy",
    "coffeescript": "coffee",
    "common lisp": "lisp lsp cl asd",
    "coq": "v",
    "crystal": "cr",
    "css": "css",
    "cuda": "cu cuh",
    "cython": "pyx pxd pxi",
    "d": "d di",
    "dart": "dart",
    "dockerfile": "dockerfile =Dockerfile =Containerfile",
    "elixir": "ex exs",
    "elm": "elm",
    "emacs lisp": "el",
    "erlang": "erl hrl",
    "f#": "fs fsi fsx",
    "forth": "fth 4th forth",
    "fortran": "f for f77 f90 f95 f03 f08",
    "glsl": "glsl vert frag geom comp",
    "go": "go",
    "gradle": "gradle",
    "graphql": "graphql gql",
    "groovy": "groovy gvy =Jenkinsfile",
    "haskell": "hs lhs",
    "haxe": "hx",
    "idris": "idr lidr",
    "java": "java",
    "javascript": "js mjs cjs jsx",
    "julia": "jl",
    "kotlin": "kt kts",
    "lean": "lean",
    "less": "less",
    "lua": "lua",
    "makefile": "mk mak =Makefile =makefile =GNUmakefile",
    "matlab": "m",
    "meson": "=meson.build",
    "metal": "metal",
    "mlir": "mlir",
    "mojo": "mojo",
    "nim": "nim nims",
    "nix": "nix",
    "objective-c": "mm",
    "ocaml": "ml mli mll mly",
    "pascal": "pas dpr lpr",
    "perl": "pl pm",
    "php": "php php3 php4 php5 phtml",
    "powershell": "ps1 psm1 psd1",
    "prolog": "pro",
    "protobuf": "proto",
    "puppet": "pp",
    "purescript": "purs",
    "python": "py pyi pyw =SConstruct =SConscript",
    "r": "r",
    "racket": "rkt",
    "ruby": "rb rake gemspec =Rakefile =Gemfile =Vagrantfile",
    "rust": "rs",
    "sass": "sass scss",
    "scala": "scala sc sbt",
    "scheme": "scm ss sld",
    "shell": "sh bash zsh ksh fish =.bashrc =.profile =.zshrc",
    "smalltalk": "st",
    "solidity": "sol",
    "sql": "sql",
    "stan": "stan",
    "standard ml": "sml",
    "stata": "do ado",
    "svelte": "svelte",
    "swift": "swift",
    "systemverilog": "sv svh",
    "tcl": "tcl tk",
    "terraform": "tf hcl",
    "thrift": "thrift",
    "toml": "toml",
    "typescript": "ts tsx mts cts",
    "verilog": "vh",
    "vhdl": "vhd vhdl",
    "vim script": "vim =.vimrc",
    "vue": "vue",
    "webassembly": "wat",
    "wgsl": "wgsl",
    "yaml": "yaml yml",
    "zig": "zig",
}
LANGUAGE_OF = {mark: language for language, marks in LANGUAGES.items() for mark in marks.split()}
# Suffixes of several languages: the first whose pattern is in the text; else that of the table.
SHARED = {
    "h": (
        ("objective-c", r"^\s*(@(interface|protocol|class)\b|#import\b)"),
        ("c++", r"^\s*(class \w+|namespace\b|template\s*<|public:|private:|using )|\bstd::"),
    ),
    "m": (
        ("objective-c", r"^\s*(@(interface|implementation|protocol|import)\b|#(import|include)\b)"),
    ),
    "pl": (("prolog", r"^(:-|[a-z]\w*\([^\n]*(:-|\)\.)\s*$)"),),
    "v": (("verilog", r"^\s*(module\s+\w+\s*[#(;]|endmodule\b|`timescale\b)"),),
}
SHEBANG = re.compile(r"#![ \t]*(?:\S*/)?(?:env[ \t]+(?:-\S+[ \t]+)*)?([A-Za-z]+)")
INTERPRETERS = {
    "awk": "awk gawk mawk",
    "elixir": "elixir",
    "groovy": "groovy",
    "haskell": "runghc runhaskell stack",
    "javascript": "node nodejs",
    "julia": "julia",
    "lua": "lua luajit",
    "makefile": "make",
    "perl": "perl",
    "php": "php",
    "powershell": "pwsh",
    "python": "python pypy",
    "r": "Rscript",
    "racket": "racket",
    "ruby": "ruby jruby",
    "scheme": "guile",
    "shell": "sh bash dash ksh zsh fish",
    "tcl": "tclsh wish",
    "typescript": "deno bun ts",
}
LANGUAGE_RUN_BY = {
    program: language for language, programs in INTERPRETERS.items() for program in programs.split()
}

SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+()-]+(?: (?:AND|OR|WITH) [\w.+()-]+)*)")
# How much of a file can name its licence: further on stand those of what it was made from.
HEADER_CHARS = 8 << 10
# Where a library's licence lies beside that of its programs, it is the library's that counts.
LICENCE_NAMES = (
    *("COPYING.LESSER", "COPYING.LIB", "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENSE.rst"),
    *("LICENCE", "LICENCE.txt", "LICENCE.md", "License.txt", "license.txt", "license"),
    *("COPYING", "COPYING.txt", "COPYING.md", "UNLICENSE", "LICENSE-APACHE", "LICENSE-MIT"),
)
# SPDX identifiers (GPL and its kin without -only and -or-later, which their texts leave open), and
# what is found in their texts, of which the first counts; of equal beginnings the first listed.
LICENCES = {
    "PSF-2.0": "python software foundation license version 2",
    "Apache-2.0": r"apache license,? version 2\.0",
    "MPL-2.0": r"mozilla public license,? (?:version|v\.?) ?2\.0",
    "EPL-2.0": r"eclipse public license -? ?v(?:ersion)? ?2\.0",
    "AGPL-3.0": "gnu affero general public license,? version 3",
    "LGPL-3.0": "gnu lesser general public license,? version 3",
    "LGPL-2.1": r"gnu lesser general public license,? version 2\.1",
    "LGPL-2.0": "gnu library general public license,? version 2",
    "GPL-3.0": "gnu general public license,? version 3",
    "GPL-2.0": "gnu general public license,? version 2",
    "MIT": "permission is hereby granted, free of charge, to any person obtaining a copy(?=.{,900}"
    "above copyright notice)",
    "MIT-0": "permission is hereby granted, free of charge, to any person obtaining a copy",
    "BSD-4-Clause": "redistribution and use in source and binary forms(?=.{,1200}all advertising)",
    "BSD-3-Clause": "redistribution and use in source and binary forms(?=.{,1500}"
    "(?:neither the names?|may not be used to endorse))",
    "BSD-2-Clause": "redistribution and use in source and binary forms",
    "ISC": "permission to use, copy, modify, and(?:/or)? distribute this software for any purpose "
    "with or without fee is hereby granted, provided",
    "0BSD": "permission to use, copy, modify, and(?:/or)? distribute this software for any purpose "
    "with or without fee is hereby granted",
    "Zlib": "this software is provided .as-is., without any express or implied warranty",
    "BSL-1.0": r"boost software license - version 1\.0",
    "Unlicense": "this is free and unencumbered software released into the public domain",
    "CC0-1.0": r"cc0 1\.0 universal",
    "CC-BY-SA-4.0": r"attribution-sharealike 4\.0 international",
    "CC-BY-4.0": r"attribution 4\.0 international",
}

# What nobody wrote, by its name and by what its first lines say outside of strings.
GENERATED_NAMES = re.compile(
    r"(?i)(?:.*/)?(?:(?:package-lock|npm-shrinkwrap|composer)\.(?:json|lock)|pnpm-lock\.yaml|go\.sum"
    r"|(?:yarn|cargo|poetry|pipfile|gemfile|uv|flake)\.lock"
    r"|.*(?:[.-]min\.(?:js|css)|\.bundle\.js|\.pb\.(?:go|h|cc|swift)|_pb2(?:_grpc)?\.pyi?"
    r"|\.g\.dart|\.freezed\.dart|\.designer\.cs|\.g\.cs|\.tab\.[ch]|\.yy\.[ch]))"
)
GENERATED = re.compile(
    r"(?m)^[^\n\"'=]*(?:@generated\b|\bDO NOT (?:EDIT|MODIFY)\b|\bCode generated (?:by|from)\b"
    r"|(?i:\bfile (?:(?:is|was|has been) )?(?:auto-?|\W?mostly\W )?(?:automatically )?generated\b"
    r"|\bgenerated by (?:the protocol buffer compiler|swig|f?lex|yacc|bison)\b))"
    r"|^[^\w\n]*(?i:(?:note\W+)?(?:(?:this|the)(?: \w+){1,2} (?:is|was|has been) )?"
    r"(?:auto-?|automatically |machine[ -])generated\b)"
)
GENERATED_LINES = 30
MAX_MEAN_LINE_CHARS, MAX_LINE_CHARS, MIN_ALPHANUMERIC = 100, 1000, 0.25
PUNCTUATION = re.compile(r"[\W_]+")
ASCII_PUNCTUATION = bytes(byte for byte in range(128) if not chr(byte).isalnum())
LITERAL_LINE = re.compile(
    r"""(?mx)^[ \t\[\](){},;:=|+-]*+
    (?:(?:[bBrRuUfFL]{0,2}"(?:[^"\\\n]|\\.)*+"|[bBrRuUfFL]{0,2}'(?:[^'\\\n]|\\.)*+'
       |\d[\w.]*+|(?:None|null|NULL|nil|true|false|True|False)\b)[ \t\[\](){},;:=|+-]*+)++
    (?:(?:\#|//|--|/\*)[^\n]*)?$|^INSERT\ INTO\b"""
)
MIN_LITERAL_LINES, MAX_LITERAL_SHARE = 100, 0.75


def is_code(name: str) -> bool:
    """Tells by its name whether a file is source code.

    Args:
        name: a file's path or name.
    """
    return bool(_by_name(name))


def _by_name(name: str) -> str:
    last = name.rpartition("/")[2]
    suffix = last.rpartition(".")[2].lower() if "." in last else ""
    return LANGUAGE_OF.get(f"={last}") or LANGUAGE_OF.get(suffix, "")


def _language(name: str, text: str) -> str:
    for language, pattern in SHARED.get(name.rpartition(".")[2].lower(), ()):
        if re.search(pattern, text, re.M):
            return language
    shebang = SHEBANG.match(text)
    return _by_name(name) or (LANGUAGE_RUN_BY.get(shebang[1], "") if shebang else "")


def read(path: str, root: str) -> Iterator[Record]:
    """Reads one source file: one record, whose language is that of the code.

    Args:
        path: a local path or URI.
        root: the folder that the file was found in or under; licences above it do not count.

    Yields:
        One record. In `meta`: language, '' if unknown; licence, what an SPDX line at the top of
        the file says, else what the nearest licence file on the way up to the root is, NOASSERTION
        if that is none we know, '' if there is no such file; path, inside the root. Files that are
        no UTF-8 or hold a zero byte are broken.

    Raises:
        OSError: the file cannot be opened, or is damaged or too long.
    """
    with storage.open_plain(path) as stream, whole(stream) as content:
        yield _record(content, path, root)


def _record(content: bytes, path: str, root: str) -> Record:
    if b"\0" in content:
        return Record(1, "", why="binary: it holds a zero byte")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Record(1, "", why=f"not UTF-8: {error}")
    language = _language(PACKED_SUFFIX.sub("", path), text)
    stated = SPDX.search(text[:HEADER_CHARS])
    licence = stated[1] if stated else find_licence(path, root)
    inside = path.removeprefix(root.rstrip("/") + "/")
    meta = {"language": language, "licence": licence, "path": inside}
    return Record(1, text, language=language, markup="code", meta=meta)


def find_licence(path: str, root: str) -> str:
    """What the nearest licence file is, from the folder of a file up to the root; see `read`."""
    return _licence(path.rpartition("/")[0], root.rstrip("/"))


def forget_licences() -> None:
    """Licence files that were read may have changed since."""
    _licence.cache_clear()


@functools.lru_cache(maxsize=1 << 16)
def _licence(folder: str, root: str) -> str:
    found = {}
    for name in LICENCE_NAMES:
        try:
            with storage.open_plain(f"{folder}/{name}" if folder else name) as stream:
                text = stream.read(HEADER_CHARS).decode(errors="replace")
        except storage.DAMAGE:
            continue
        found[name] = _identify(text)
    both = [found.get(name) for name in ("LICENSE-APACHE", "LICENSE-MIT")]
    if all(both) and len(found) == 2:
        return " OR ".join(both)
    if found:
        return next((licence for licence in found.values() if licence), "NOASSERTION")
    above = folder.rpartition("/")[0]
    return _licence(above, root) if folder.startswith(root + "/") else ""


def _identify(text: str) -> str:
    """The SPDX identifier of a licence's text, '' if it is none we know."""
    words = re.sub(r"[\s*#>=]+", " ", text.lower())
    places = {}
    for licence, pattern in LICENCES.items():
        if place := re.search(pattern, words):
            places[licence] = place.start()
    return min(places, key=places.get, default="")


def why_not(text: str, name: str) -> str:
    """Tells why a source file is no code that people wrote.

    Args:
        text: the file's text.
        name: its path or name.

    Returns:
        '' if it is; 'generated': by name, or as its first GENERATED_LINES lines say; 'minified':
        lines too long, or too few letters and digits; 'data': mostly lines of literals.

    Source: lengths and share of letters of StarCoder's preprocessing (Li et al. 2023,
    https://arxiv.org/abs/2305.06161), which took them from Codex (Chen et al. 2021,
    https://arxiv.org/abs/2107.03374); generated and literals are rules of our own.
    """
    head = "\n".join(text.split("\n", GENERATED_LINES)[:GENERATED_LINES])
    if GENERATED_NAMES.fullmatch(name) or GENERATED.search(head):
        return "generated"
    lines = text.removesuffix("\n").split("\n")
    chars = [len(line) for line in lines]
    if sum(chars) > MAX_MEAN_LINE_CHARS * len(chars) or max(chars) > MAX_LINE_CHARS:
        return "minified"
    if _count_alphanumeric(text) < MIN_ALPHANUMERIC * len(text):
        return "minified"
    num_literal = sum(1 for _ in LITERAL_LINE.finditer(text))
    num_lines = sum(1 for line in lines if line and not line.isspace())
    if num_literal >= MIN_LITERAL_LINES and num_literal > MAX_LITERAL_SHARE * num_lines:
        return "data"
    return ""


def _count_alphanumeric(text: str) -> int:
    if text.isascii():  # far faster
        return len(text.encode().translate(None, ASCII_PUNCTUATION))
    return len(PUNCTUATION.sub("", text))
