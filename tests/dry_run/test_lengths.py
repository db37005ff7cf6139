"""What a server's prompts compile: programs for lengths, none for where a prompt begins."""

import json
from pathlib import Path

from tests.dry_run.conftest import run_json


def served(
    folder: Path, device: str, model: str, users: int, *prompts: tuple[int, int], warm: int = 0
) -> list[list[int]]:
    """[programs, recording of decode] of each prompt: its length, and tokens in the cache."""
    given = device, model, str(users), json.dumps(prompts), str(warm)
    found: list[list[int]] = run_json("tests.dry_run.lengths", folder, *given)
    return found


def test_prompts_of_one_bucket_share_programs_wherever_they_begin(tmp_path: Path) -> None:
    prompts = (700, 416), (600, 256), (1000, 672), (2000, 1696), (512, 160), (6000, 5728)
    (compiled, recording), *others = served(tmp_path, "N300", "Llama-3.2-1B", 1, *prompts)
    assert compiled > 10
    assert others == [[0, recording]] * 5


def test_decode_is_recorded_anew_after_a_new_length_alone(tmp_path: Path) -> None:
    """On a Galaxy with weights read ahead, some of its programs are compiled anew, too."""
    prompts = (100, 0), (5000, 0), (4700, 0), (100, 0)
    found = served(tmp_path, "TG", "Llama-3.3-70B", 32, *prompts)
    assert [bool(compiled) for compiled, _ in found] == [True, True, False, False]
    assert found[0][1] != found[1][1] == found[2][1] == found[3][1]


def test_after_a_warm_up_for_lengths_nothing_is_compiled_or_recorded(tmp_path: Path) -> None:
    prompts = (300, 0), (100, 0), (600, 352), (384, 0), (1000, 640)
    (compiled, recording), *others = served(tmp_path, "N150", "Llama-3.2-1B", 2, *prompts, warm=384)
    assert (compiled, others) == (0, [[0, recording]] * 4)
