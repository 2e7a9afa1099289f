"""Methods on a device that is not the CPU, without one: no tensor of theirs is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.wide
def test_every_preset_and_family_on_another_device(tmp_path: Path) -> None:
    """The same answers as on the CPU: in a process of its own, whose torch has a device more."""
    script = Path(__file__).with_name("stand_in_device.py")
    ended = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(script.parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    *wrong, last = [line for line in ended.stdout.splitlines() if line]
    assert not wrong and int(last.removesuffix(" tried")) > 200, ended.stdout
