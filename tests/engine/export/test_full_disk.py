"""A disk that is full: one line, nothing left behind, and the process lives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import driving

from engine.export.registry import FORMATS, formats_of

# Files of more bytes than the limit cannot be written, by this process nor by its children.
SCRIPT = """
import json, resource, sys
from pathlib import Path
import nets
from engine.errors import EngineError
from engine.export.making import write
from engine.export.registry import find
given = nets.quantized(nets.Residual)
folder, *names = sys.argv[1:]
for name in names:
    said = []
    for limit in (700, 2000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(find(name), given, Path(folder))
        except EngineError as error:
            said.append(str(error))
    print(json.dumps([name, said, sorted(path.name for path in Path(folder).iterdir())]), flush=True)
"""


def test_a_full_disk_ends_no_process_and_leaves_nothing(tmp_path: Path) -> None:
    names = [name for name in sorted(formats_of("graph")) if not FORMATS[name].missing(FORMATS[name].writes)]
    environment = driving.child_environment()
    environment["PYTHONPATH"] += f":{Path(__file__).parent}"
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in found] == names and {"pt2", "safetensors"} <= {*names}
    for name, said, left in found:
        assert len(said) == 2 and left == [], (name, said, left)
        assert all("\n" not in line and len(line) < 500 for line in said)
