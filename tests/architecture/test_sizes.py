"""What does not fit into a reader's head is cut: lines of a file, a class and a function."""

import ast

MAX_FILE, MAX_CLASS, MAX_FUNCTION = 650, 500, 60


def too_long(sources, kinds, limit):
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, kinds) and (lines := node.end_lineno - node.lineno + 1) > limit:
                found.append(f"{source.name}:{node.lineno} {node.name} has {lines} lines")
    return found


def test_files(sources):
    lengths = {source.name: len(source.text.splitlines()) for source in sources}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}


def test_classes(sources):
    assert too_long(sources, ast.ClassDef, MAX_CLASS) == []


def test_functions(sources):
    assert too_long(sources, (ast.FunctionDef, ast.AsyncFunctionDef), MAX_FUNCTION) == []
