"""Where a prompt begins in the cache is a number on the device: no program is compiled for it."""

from pathlib import Path

from tests.dry_run.conftest import run_json


def test_prompts_of_one_bucket_share_programs_wherever_they_begin(tmp_path: Path) -> None:
    first, *others = run_json("tests.dry_run.starts", tmp_path)
    assert first > 10
    assert others == [0] * 5
