"""The page of commands is what the command line says of itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    program = "import cli_page; print(cli_page.page() == cli_page.PAGE.read_text())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "tests" / "docs",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n", "python tests/docs/cli_page.py writes it anew"
