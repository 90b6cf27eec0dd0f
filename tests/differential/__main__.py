"""A node against llama-server: ``python -m tests.differential`` in the repository."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.models import ModelFile, model_file
from kwaai_core.testing.models import CHAT_TEMPLATE, Shape, write_random_model
from kwaai_core.testing.templates import TAGGED_TOOLS
from tests.differential.allowed import ALLOWED
from tests.differential.cases import CASES, Case, Manner, cases_for
from tests.differential.comparison import differences
from tests.differential.report import Compared, Report, judged
from tests.differential.servers import both

SHAPE = Shape("qwen2", blocks=6, vocabulary=4096)
MODELS: Mapping[str, Manner] = {
    "smollm2": "talks",
    "gemma3-270m": "continues",
    "random": "talks",
    "random-tools": "calls",
}


def _model(name: str, folder: Path) -> ModelFile:
    if not name.startswith("random"):
        return model_file(name)
    template = TAGGED_TOOLS if MODELS[name] == "calls" else CHAT_TEMPLATE
    path = write_random_model(folder / f"{name}.gguf", SHAPE, name=name, template=template)
    return ModelFile(name, path, path)


def _compared(names: Sequence[str], cases: Sequence[Case], exact: bool) -> Iterator[Compared]:
    with tempfile.TemporaryDirectory(prefix="kwaai-differential-") as folder:
        for name in names:
            with both(_model(name, Path(folder)), exact=exact) as (ours, theirs):
                for case in cases_for(cases, MODELS[name]):
                    a, b = ours.ask(case), theirs.ask(case)
                    yield judged(name, case, a, differences(a, b), ALLOWED)


def main() -> None:
    parser = argparse.ArgumentParser(prog="differential", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="with commas (default: all)")
    parser.add_argument("--only", default="", help="only cases whose category/name has this in it")
    parser.add_argument(
        "--fast", action="store_true", help="with a node's defaults, where numbers depend on calls"
    )
    parser.add_argument("--list", action="store_true", help="the cases and what may differ")
    parser.add_argument("--json", type=Path, help="a file for everything")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in str(case)]
    if options.list:
        lines = [*map(str, cases), "", *(f"{one.name}: {one.reason}" for one in ALLOWED)]
        sys.exit(sys.stdout.write("\n".join(lines) + "\n") and 0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end with it
    began = time.monotonic()
    report = Report(ALLOWED, whole=len(cases) == len(CASES) and options.models == ",".join(MODELS))
    for compared in _compared(options.models.split(","), cases, not options.fast):
        report.add(compared)
        for line in compared.lines:
            sys.stderr.write(f"{time.monotonic() - began:6.1f} s  {line}\n")
    if options.json:
        document = json.dumps(report.document(), indent=1, ensure_ascii=False)
        options.json.write_text(document + "\n")
    sys.stdout.write(report.table())
    sys.exit(not report.good)


if __name__ == "__main__":
    main()
