"""The mutants of the queue's scripts still fit the scripts."""

import shutil
from pathlib import Path

import pytest
from mutants import MUTANTS, ROOT, SCRIPTS, TESTS, Mutant, break_script


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_changes_its_script(mutant: Mutant, tmp_path: Path) -> None:
    script = tmp_path / SCRIPTS / mutant.file
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / SCRIPTS / mutant.file, script)
    before = script.read_text(encoding="utf-8")
    break_script(tmp_path, mutant)
    assert script.read_text(encoding="utf-8") != before


def test_the_tests_that_look_for_mutants_exist() -> None:
    assert [test for test in TESTS if not (ROOT / test).exists()] == []
