"""Every promise of the contract suite is stated together with what its author should do."""

import ast
import re
from pathlib import Path

import pytest

import cdkit.testing
from cdkit.testing import adapter_contract

FILES = sorted(Path(cdkit.testing.__file__).parent.glob("*.py"))
STATES = {"require", "require_same", "takes"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_each_promise_has_its_advice(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in STATES:
            told = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "todo" in told, f"{file.name}:{node.lineno} ends in no advice"
            if isinstance(told["todo"], ast.Constant):
                assert len(str(told["todo"].value)) >= 20, f"{file.name}:{node.lineno}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "AssertionError":
            text = ast.unparse(node)
            assert "What to do: " in text, f"{file.name}:{node.lineno} ends in no advice"


def test_checks_that_are_tried_out_for_users_get_theirs() -> None:
    with pytest.raises(AssertionError, match=r"it fits\. What to do: .*own_model\.md.*") as error:
        with adapter_contract._ends_in_advice():
            raise AssertionError("Own: it fits.")
    with pytest.raises(AssertionError) as again:
        with adapter_contract._ends_in_advice():
            raise error.value
    assert len(re.findall("What to do: ", str(again.value))) == 1
