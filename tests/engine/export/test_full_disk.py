"""A disk that is full: one line, nothing left behind, and the process lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import driving
import pytest

from engine.export.registry import FORMATS, formats_of

# Files of more bytes than that cannot be written, in this process and in its children.
SCRIPT = """
import resource, sys
from pathlib import Path
import nets
from engine.errors import EngineError
from engine.export.making import write
from engine.export.registry import find
given = nets.quantized(nets.Residual)
folder = Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    write(find(sys.argv[1]), given, folder)
except EngineError as error:
    print("refused:", error)
print(sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.parametrize("name", sorted(formats_of("graph")))
def test_a_full_disk_ends_no_process_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    for package in FORMATS[name].writes:
        pytest.importorskip(package)
    folder = tmp_path / "folder"
    folder.mkdir()
    environment = driving.child_environment()
    environment["PYTHONPATH"] += f":{Path(__file__).parent}"
    for limit in (700, 3000):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, name, str(folder), str(limit)], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        said, left = done.stdout.splitlines()
        assert said.startswith("refused: ") and len(said) < 500 and left == "[]", done.stdout
