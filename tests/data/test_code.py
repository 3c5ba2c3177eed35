"""Source code: languages, licences as their stewards word them, and what nobody wrote."""

import gzip
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from data import unpacking
from data.quickstart import python_library
from data.readers import code
from data.readers.borders import to_the_damage

STDLIB = Path(sysconfig.get_path("stdlib"))
DEBIAN_LICENCES = Path("/usr/share/common-licenses")

MIT = """The MIT License (MIT)

Copyright (c) 2020 A. Writer

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.
"""
BSD = """Copyright 2020 A. Writer

 * Redistribution and use in source and binary forms, with or without
 * modification, are permitted provided that the following conditions
 * are met:
 * 1. Redistributions of source code must retain the above copyright notice.
"""
ISC = """Permission to use, copy, modify, and/or distribute this software for any
purpose with or without fee is hereby granted"""
LICENCES = {
    "MIT": MIT,
    "MIT-0": MIT.partition("subject")[0],
    "BSD-2-Clause": BSD,
    "BSD-3-Clause": BSD + "3. Neither the name of the copyright holder nor the names\n",
    "BSD-4-Clause": BSD + "3. All advertising materials mentioning features\n4. Neither the name",
    "ISC": ISC + ", provided that the above\ncopyright notice appear in all copies.",
    "0BSD": ISC + ".\n\nTHE SOFTWARE IS PROVIDED",
    "Apache-2.0": "        Apache License\n     Version 2.0, January 2004\n",
    "GPL-2.0": "     GNU GENERAL PUBLIC LICENSE\n         Version 2, June 1991\n",
    "GPL-3.0": "     GNU GENERAL PUBLIC LICENSE\n         Version 3, 29 June 2007\n",
    "LGPL-2.1": "  GNU LESSER GENERAL PUBLIC LICENSE\n    Version 2.1, February 1999\n",
    "LGPL-3.0": "  GNU LESSER GENERAL PUBLIC LICENSE\n    Version 3, 29 June 2007\n"
    "incorporates the terms of version 3 of the GNU General Public License",
    "AGPL-3.0": "  GNU AFFERO GENERAL PUBLIC LICENSE\n   Version 3, 19 November 2007\n",
    "MPL-2.0": "Mozilla Public License Version 2.0\n====\nGNU General Public License, Version 2",
    "Unlicense": "This is free and unencumbered software released into the public domain.",
    "CC0-1.0": "Creative Commons Legal Code\n\nCC0 1.0 Universal\n",
    "PSF-2.0": "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n" + ISC + " and without",
    "NOASSERTION": "All rights reserved. You may look at it.",
}


def read(path, root):
    [record] = to_the_damage(code.read(str(path), str(root)))
    return record


def write(path, content="x = 1\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("a/b.py", "python"),
        ("a.PY", "python"),
        ("a.cc", "c++"),
        ("lib.rs", "rust"),
        ("x/Makefile", "makefile"),
        ("Dockerfile", "dockerfile"),
        ("CMakeLists.txt", "cmake"),
        ("a.tsx", "typescript"),
        ("Rakefile", "ruby"),
        ("a.f90", "fortran"),
        ("README.md", ""),
        ("a.txt", ""),
        ("a.json", ""),
        ("a.html", ""),
        ("py", ""),
        ("a.py/notes", ""),
    ],
)
def test_names_tell_the_language(tmp_path, name, language):
    assert code.is_code(name) == bool(language)
    path = write(tmp_path / name, "nothing to see\n")
    assert read(path, tmp_path).language == language


def test_no_suffix_names_two_languages():
    marks = [mark for marks in code.LANGUAGES.values() for mark in marks.split()]
    assert [mark for mark, count in Counter(marks).items() if count > 1] == []
    assert len(code.LANGUAGES) >= 80


@pytest.mark.parametrize(
    ("name", "text", "language"),
    [
        ("a.h", "int f(void);\n", "c"),
        ("a.h", "#pragma once\nnamespace a {\n}\n", "c++"),
        ("a.h", "std::vector<int> f();\n", "c++"),
        ("a.h", "@interface Foo : NSObject\n@end\n", "objective-c"),
        ("a.m", "function y = f(x)\ny = x;\nend\n", "matlab"),
        ("a.m", '#import "Foo.h"\n', "objective-c"),
        ("a.pl", "use strict;\nmy $x = f(1);\n", "perl"),
        ("a.pl", "parent(a, b).\n", "prolog"),
        ("a.v", "Theorem a : 1 = 1.\nProof. auto. Qed.\n", "coq"),
        ("a.v", "module counter(input clk);\nendmodule\n", "verilog"),
        ("run", "#!/bin/sh\nls\n", "shell"),
        ("run", "#!/usr/bin/env python3.11\n", "python"),
        ("run", "#! /usr/bin/env -S node --flag\n", "javascript"),
        ("run", "#!/opt/unheard-of\n", ""),
        ("run.rb", "#!/bin/sh\n", "ruby"),
    ],
)
def test_text_tells_the_language_where_the_name_does_not(tmp_path, name, text, language):
    record = read(write(tmp_path / name, text), tmp_path)
    assert (record.language, record.meta["language"]) == (language, language)
    assert (record.text, record.markup, record.number) == (text, "code", 1)


def test_compressed_code_is_read_by_its_inner_name(tmp_path):
    path = write(tmp_path / "a.py.gz", gzip.compress(b"x = 1\n"))
    assert read(path, tmp_path)[:2] == (1, "x = 1\n")
    assert read(path, tmp_path).language == "python"
    cut = write(tmp_path / "b.py.gz", gzip.compress(b"x = 1\n" * 999)[:-9])
    assert "damaged" in read(cut, tmp_path).why


@pytest.mark.parametrize("licence", LICENCES)
@pytest.mark.parametrize("name", ["LICENSE", "COPYING", "LICENCE.txt"])
def test_licence_is_that_of_the_file_beside(tmp_path, licence, name):
    write(tmp_path / name, LICENCES[licence])
    assert read(write(tmp_path / "a.py"), tmp_path).meta["licence"] == licence


def test_nearest_licence_counts_and_none_above_the_root(tmp_path):
    write(tmp_path / "LICENSE", LICENCES["GPL-3.0"])
    root = tmp_path / "root"
    plain = write(root / "src" / "a.py")
    assert read(plain, root).meta == {"language": "python", "licence": "", "path": "src/a.py"}
    write(root / "own" / "COPYING", LICENCES["ISC"])
    assert read(write(root / "own" / "deep" / "a.py"), root).meta["licence"] == "ISC"
    assert read(write(root / "own" / "a.py"), str(root) + "/").meta["licence"] == "ISC"
    assert read(plain, tmp_path).meta["path"] == "root/src/a.py"
    assert read(plain, tmp_path).meta["licence"] == "GPL-3.0"


def test_two_licences_to_choose_from(tmp_path):
    write(tmp_path / "LICENSE-MIT", LICENCES["MIT"])
    write(tmp_path / "LICENSE-APACHE", LICENCES["Apache-2.0"])
    assert read(write(tmp_path / "a.rs"), tmp_path).meta["licence"] == "Apache-2.0 OR MIT"


def test_first_licence_of_a_file_is_its_own(tmp_path):
    bundled = "\n\nIt includes code under the\n" + LICENCES["Apache-2.0"] + "x" * 10_000
    write(tmp_path / "LICENSE", LICENCES["BSD-3-Clause"] + bundled)
    assert read(write(tmp_path / "a.c"), tmp_path).meta["licence"] == "BSD-3-Clause"
    write(tmp_path / "x" / "LICENSE", "My own terms." + " word" * 2000 + LICENCES["MIT"])
    assert read(write(tmp_path / "x" / "a.c"), tmp_path).meta["licence"] == "NOASSERTION"


def test_lesser_licence_is_the_librarys(tmp_path):
    write(tmp_path / "COPYING", LICENCES["GPL-3.0"])
    write(tmp_path / "COPYING.LESSER", LICENCES["LGPL-3.0"])
    assert read(write(tmp_path / "a.c"), tmp_path).meta["licence"] == "LGPL-3.0"


@pytest.mark.parametrize(
    ("line", "licence"),
    [
        ("# SPDX-License-Identifier: MIT", "MIT"),
        ("/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */", None),
        ("// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)\n", None),
        ("x = 1", "ISC"),
    ],
)
def test_spdx_line_comes_before_files(tmp_path, line, licence):
    write(tmp_path / "LICENSE", LICENCES["ISC"])
    record = read(write(tmp_path / "a.c", f"#!/x\n{line}\nint a;\n"), tmp_path)
    expected = licence or line.partition(": ")[2].removesuffix(" */").strip()
    assert record.meta["licence"] == expected


@pytest.mark.real
@pytest.mark.skipif(not DEBIAN_LICENCES.is_dir(), reason="no Debian licence texts on this machine")
def test_whole_licence_texts_are_known(tmp_path):
    names = {"BSD": "BSD-3-Clause", "GPL-2": "GPL-2.0", "GPL-3": "GPL-3.0", "LGPL-2": "LGPL-2.0"}
    names |= {"LGPL-2.1": "LGPL-2.1", "LGPL-3": "LGPL-3.0", "Artistic": "NOASSERTION"}
    names |= {name: name for name in ("Apache-2.0", "MPL-2.0", "CC0-1.0")}
    for name, licence in names.items():
        if (DEBIAN_LICENCES / name).is_file():
            write(tmp_path / name / "LICENSE", (DEBIAN_LICENCES / name).read_bytes())
            path = write(tmp_path / name / "a.c")
            assert read(path, tmp_path).meta["licence"] == licence, name


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"caf\xe9 = 1\n", "not UTF-8"), (b"a\0b", "zero byte"), (b"x" * 101, "more than 100 bytes")],
)
def test_what_is_no_text_is_broken(tmp_path, monkeypatch, content, why):
    monkeypatch.setattr(unpacking, "MAX_WHOLE_BYTES", 100)
    record = read(write(tmp_path / "a.py", content), tmp_path)
    assert record.text == "" and why in record.why
    assert read(write(tmp_path / "b.py", b"\xef\xbb\xbfx = 1"), tmp_path).text == "x = 1"


def lines(number, mark="value = compute(other)"):
    return "\n".join(f"{mark}_{i}" for i in range(number))


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.py", lines(50), ""),
        ("a.py", "", ""),
        ("x/package-lock.json", "{}", "generated"),
        ("Cargo.lock", "x", "generated"),
        ("js/jquery.min.js", "x", "generated"),
        ("a_pb2.py", "x", "generated"),
        ("api.pb.go", "x", "generated"),
        ("mypb2.py", lines(5), ""),
        ("a.go", "// Code generated by stringer; DO NOT EDIT.\n" + lines(5), "generated"),
        ("a.py", "# This file is automatically generated by x.py\n" + lines(5), "generated"),
        ("a.js", "/**\n * @generated\n */\n" + lines(5), "generated"),
        ("a.c", "/* A lexical scanner generated by flex */\n" + lines(5), "generated"),
        ("a.py", "# Auto-generated by a script\n" + lines(5), "generated"),
        ("a.py", "# word\n" * 30 + "# DO NOT EDIT\n", ""),
        ("gen.py", 'HEADER = "// Code generated by gen. DO NOT EDIT."\n' + lines(5), ""),
        ("a.py", '"""Overwrites\n    auto-made and generated documentation."""\n', ""),
        ("a.c", "/* config.h is auto-generated, see INSTALL */\n" + lines(5), ""),
        ("a.js", "\n".join(["a" * 101] * 9), "minified"),
        ("a.js", "\n".join(["a" * 100] * 9) + "\n", ""),
        ("a.js", "b\n" * 20 + "a" * 1001, "minified"),
        ("a.js", "b\n" * 20 + "a" * 1000, ""),
        ("a.js", "\n".join(["a" + "!" * 4] * 9), "minified"),
        ("a.js", "\n".join(["aa" + "!" * 5] * 9), ""),
        ("a.py", "T = [\n" + "    (1, 0x2F, 'a\\'b'),  # one\n" * 120 + "]\n", "data"),
        ("a.py", "T = [\n" + "    'word': \"other\",\n" * 99 + "]\n", ""),
        ("a.py", "T = [\n" + "    1.5e3, -2,\n" * 120 + "]\n" + lines(45), ""),
        ("a.sql", "INSERT INTO t VALUES (1, 'a');\n" * 120, "data"),
    ],
)
def test_what_nobody_wrote(name, text, why):
    assert code.why_not(text, name) == why


def test_library_of_this_python():
    dropped = {}
    for file in python_library.list_files(python_library.CODE):
        record = read(file.path, file.root)
        assert record.text == Path(file.path).read_text(encoding="utf-8")
        assert (record.language, record.meta["path"]) == ("python", file.name)
        if (STDLIB / "LICENSE.txt").is_file():
            stated = "SPDX-License-Identifier" in record.text[:1000]
            assert record.meta["licence"] == ("MIT" if stated else "PSF-2.0"), file.name
        if why := code.why_not(record.text, file.name):
            dropped[file.name] = why
    # Looked at: tables of characters, and files that say that a script wrote them.
    assert dropped["encodings/cp1252.py"] == dropped["html/entities.py"] == "data"
    assert dropped["stringprep.py"] == dropped["token.py"] == "generated"
    people = {"argparse.py", "locale.py", "typing.py", "idlelib/mainmenu.py", "ast.py"}
    assert people.isdisjoint(dropped)
    others = [name for name in dropped if not name.startswith("encodings/")]
    assert len(others) < 12 and len(dropped) < 90, dropped
