"""Core stays small, and importing it or any lobe stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "src" / "kwaai_core"
APART = ("openai", "gguf", "span", "testing", "scaffold")
BUDGETS = {"": 2_500, "http": 1_450}
"""Lines of code: core itself, and its HTTP face."""

HEAVY = {
    "cryptography", "httpx", "jwcrypto", "llama_cpp", "numpy", "onnxruntime", "starlette",
    "tokenizers", "trio",
}  # fmt: skip
LOBES = [path.parent for path in sorted(ROOT.glob("plugins/*/src/*/__init__.py"))]


def code_lines(source: str) -> int:
    """Lines that are neither blank, nor comment, nor docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for statement in node.body if isinstance(node, documented) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                prose.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(s := line.strip()) and s[0] != "#" and n not in prose for n, line in lines)


@pytest.mark.parametrize("part", BUDGETS)
def test_core_keeps_to_its_budget(part: str) -> None:
    paths = (path.relative_to(CORE) for path in CORE.rglob("*.py"))
    counted = [p for p in paths if (p.parts[0] if p.parts[0] in (*APART, "http") else "") == part]
    sizes = {str(path): code_lines((CORE / path).read_text()) for path in counted}
    assert 0 < sum(sizes.values()) <= BUDGETS[part], sorted(sizes.items(), key=lambda s: -s[1])


def test_prose_and_blank_lines_cost_nothing() -> None:
    source = '"""Doc."""\n\n# why\nx = 1\n\n\ndef f():\n    """Doc\n\n    more."""\n    return x\n'
    assert code_lines(source) == 3


@pytest.mark.parametrize("package", [CORE, *LOBES], ids=lambda package: package.name)
def test_importing_is_light_and_so_are_commands(package: Path) -> None:
    """Whoever asks for help waits for the commands of every lobe."""
    program = (
        f"import sys, click, {package.name} as package\n"
        "getattr(package, 'add_commands', lambda cli: None)(click.Group())\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{CORE.parent}:{package.parent}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
