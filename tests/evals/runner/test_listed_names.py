"""Lists with commas, of names that have commas."""

from pathlib import Path

import pytest

from cdkit.evals.runner.listed_names import listed_names


def test_a_name_with_commas_is_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ("cmac", "cmac, alpha 1, gamma 2", "vcd", "cmac, alpha 1")
    assert listed_names("vcd,CMAC, alpha 1, gamma 2, none", known) == ["vcd", known[1], "none"]
    assert listed_names("cmac, alpha 1,cmac", known) == [known[3], "cmac"]
    assert listed_names("cmac,,vcd", known) == ["cmac", "", "vcd"] and listed_names("") == [""]
    monkeypatch.chdir(tmp_path)
    assert listed_names("a, b.toml,c") == ["a", "b.toml", "c"]
    Path("a, b.toml").touch()
    assert listed_names("a, b.toml,c") == ["a, b.toml", "c"]
