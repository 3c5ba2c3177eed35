"""What training may not hold: every example of the benchmarks that are named."""

import pytest

from data.errors import BadInput
from launch import decontamination, settings
from tests.launch.test_settings import change, nested
from tests.launch.test_stages import benchmarks


def parse(folder, gates, **changes):
    config = change(nested(), "data.sources.code.gates", gates)
    keys = {"tasks": ("mmlu",), "data": str(folder)} | changes
    for key, value in keys.items():
        config = change(config, f"eval.{key}", value)
    return settings.parse(config)


def texts(chosen, note=print):
    return [row for row in decontamination.texts(chosen, note) if row[0] != "instruct"]


def test_every_example_of_a_benchmark_is_held_against_training(tmp_path):
    benchmarks(tmp_path)
    questions = [("mmlu", "One and two?"), ("mmlu", "Two?")]
    for limit in (0, 1):
        found = texts(parse(tmp_path, ("contamination",), limit=limit))
        assert [row for row in found if row[1].endswith("?")] == questions, "no shot, no limit"
        assert found[1:5] == [("mmlu", digit) for digit in "1234"]
    notes = []
    assert texts(parse(tmp_path, ("length",)), notes.append) == []
    assert [note.partition(":")[0] for note in notes] == ["eval.tasks"]


def test_curation_depends_on_the_content_of_a_benchmark(tmp_path):
    benchmarks(tmp_path)
    chosen = parse(tmp_path, ("contamination",))
    before = decontamination.fingerprint(chosen)
    assert decontamination.fingerprint(parse(tmp_path, ("contamination",), limit=1)) == before
    path = tmp_path / "mmlu" / "sums_test.csv"
    path.write_text(path.read_text().replace("Two?", "Three?"))
    assert decontamination.fingerprint(chosen) != before


def test_a_benchmark_without_files_is_bad_input(tmp_path):
    chosen = parse(tmp_path, ("contamination",))
    for ask in (texts, decontamination.fingerprint):
        with pytest.raises(BadInput, match=r"eval\.data: .*/mmlu: no file found"):
            ask(chosen)
