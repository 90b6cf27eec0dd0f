"""Coverage-guided fuzzing of the GGUF reader and the model digest, for as long as one likes.

Whatever the bytes, there is a model or a :class:`ModelFileError`, within the memory given::

    pip install atheris
    PYTHONPATH=. python tests/fuzz/fuzz_gguf.py -max_total_time=300 -rss_limit_mb=512 [CORPUS...]

All options are libFuzzer's. ``tox -e fuzz`` runs the property tests, which need no compiler; a
crash that is found here becomes an ``@example`` or a refusal in ``tests/gguf``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kwaai_core.gguf", "kwaai_core.gguf.digest"]):
    from kwaai_core.errors import ModelFileError
    from kwaai_core.gguf import read_gguf
    from kwaai_core.gguf.digest import model_digest

from tests.gguf.writer import ample, model

# in memory where there is such a place: millions of files are written
SHARED = Path("/dev/shm")


def main() -> None:
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as folder:
        path = Path(folder, "model.gguf")
        seeds = Path(folder, "seeds")
        seeds.mkdir()
        for number, seed in enumerate((ample(), model())):
            (seeds / str(number)).write_bytes(bytes(seed))

        def try_one(data: bytes) -> None:
            path.write_bytes(data)
            with suppress(ModelFileError):
                file = read_gguf(path)
                for value in file.metadata.values():
                    assert len(value.numbers()) + len([*value.strings()]) == value.count
                assert all(t.offset + t.nbytes <= len(data) for t in file.tensors)
                assert len(model_digest(file)) == 64

        atheris.Setup([*sys.argv, os.fspath(seeds)], try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
