"""The rules of docs/security.md and the tests fit."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RULE = re.compile(r"^- \*\*([A-Z]\d+)\*\* ", re.MULTILINE)


def rules() -> list[str]:
    return RULE.findall((ROOT / "docs" / "security.md").read_text(encoding="utf-8"))


def named_by(node: ast.AST) -> list[str]:
    """The rules that a `pytest.mark.rule(…)` names."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "rule"):
        return []
    return [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]


def rules_of_tests() -> set[str]:
    """The rules that a test is about: one of its decorators names them, or its module's `pytestmark` does."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.update(rule for decorator in node.decorator_list for rule in named_by(decorator))
            if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["pytestmark"]:
                found.update(rule for inner in ast.walk(node.value) for rule in named_by(inner))
    return found


def test_every_rule_has_a_name_of_its_own_and_they_count_up() -> None:
    names = rules()
    assert len(names) >= 19
    for letter in {name[0] for name in names}:
        numbers = [int(name[1:]) for name in names if name[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1)), letter


def test_every_rule_has_a_test_and_every_test_a_rule() -> None:
    assert rules_of_tests() == set(rules())
