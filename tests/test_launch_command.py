"""Configuration files and overrides: what does not work is named with its line."""

import pytest

from tests.test_launch_run import QUICKSTART, ROOT, door, refusal


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:\n", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import nowhere\n", "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("\n\ndef get_config():\n    return 1 / 0\n", "mine.py, line 4: ZeroDivisionError"),
        ("def get_config():\n    raise OSError('no disk')\n", "mine.py, line 2: OSError: no disk"),
        ("raise ValueError('two\\n  lines')\n", "mine.py, line 1: ValueError: two lines"),
        ("x = 1\n", "mine.py must have a function get_config()"),
        ("def get_config():\n    pass\n", "it gives NoneType"),
        ("def get_config():\n    return {'seed': 1}\n", "it gives dict"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
            "name: missing; the section needs name, seed",
        ),
        ("\0", "mine.py: "),
    ],
)
def test_a_config_file_that_does_not_work_is_named_with_its_line(text, words, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert words in refusal("run", f"--config={path}")


def test_flags_and_overrides_come_in_any_form_and_order():
    code, _, err = door("run", "--config.seed", "x", "--config", f"{ROOT}/configs/quickstart.py")
    assert code == 2 and "--config.seed=x" in err
    assert "model.num_layers is 0" in refusal("run", "--config.model.num_layers=0", QUICKSTART)
    again = [QUICKSTART, "--config.seed=abc", "--config.seed=1", "--config.model.num_layers=0"]
    assert "seed=abc" in refusal("run", *again), "an earlier value is checked too"
