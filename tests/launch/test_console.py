"""What reaches a terminal: nothing that it would obey."""

from data.errors import printable
from launch import cli
from launch.console import Progress


def test_control_characters_of_names_are_spelled_out(capsys, tmp_path):
    assert printable("a\x1b[31m\n漢\u202e.txt") == "a\\x1b[31m\\n漢\\u202e.txt"
    Progress().note("read b\x1b]0;title\x07.txt")
    assert cli.run_command(["run", f"--config={tmp_path}/c\x1b[2J.py"]) == cli.BAD_INPUT
    shown = capsys.readouterr().err
    assert "\\x1b]0;title\\x07.txt" in shown and "c\\x1b[2J" in shown
    assert shown.replace("\n", "").isprintable()
