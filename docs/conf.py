"""How the documents are built: ``tox -e docs``."""

import tomllib
from pathlib import Path

_project = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text())

project = "kwaai-core"
author = "The kwaai-core developers"
copyright = f"2026, {author}"
release = version = _project["project"]["version"]

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = f"kwaai-core {release}"
