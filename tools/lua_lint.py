"""Finds undefined and unused names in the queue's Lua scripts and their parts.

    python tools/lua_lint.py

A file may use its own locals, what Redis provides, and what the parts that it requires define at
their top level: directly, so that each file can be read with the parts that it names.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import tree_sitter_lua
from tree_sitter import Language, Node, Parser

ROOT = Path(__file__).resolve().parent.parent
PROVIDED = {
    "ARGV",
    "KEYS",
    "cjson",
    "ipairs",
    "math",
    "pairs",
    "redis",
    "select",
    "string",
    "table",
}
PROVIDED |= {"tonumber", "tostring", "unpack"}
_PARSER = Parser(Language(tree_sitter_lua.language()))
_FUNCTIONS = {"function_declaration", "function_definition"}


@dataclass
class Local:
    """A local name; ``read`` once something uses its value."""

    name: str
    line: int
    read: bool = False


class Finding(NamedTuple):
    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}.lua:{self.line}: {self.text}"


@dataclass
class Names:
    """What one file defines and uses."""

    top: dict[str, Local] = field(default_factory=dict)  # its locals at the top level
    inner: list[Local] = field(default_factory=list)  # the locals inside functions and blocks
    free: list[Local] = field(default_factory=list)  # uses of what it does not define
    errors: list[int] = field(default_factory=list)  # lines that do not parse


def read_names(source: str) -> Names:
    names = Names()
    root = _PARSER.parse(source.encode()).root_node
    names.errors = [node.start_point.row + 1 for node in _errors(root)]
    _Walk(names).block(root, names.top)
    return names


def _errors(node: Node) -> Iterator[Node]:
    if node.is_error or node.is_missing:
        yield node
    elif node.has_error:
        for child in node.children:
            yield from _errors(child)


class _Walk:
    """Visits a file's nodes in the order in which Lua brings names into scope."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._scopes: list[dict[str, Local]] = []

    def block(self, node: Node, scope: dict[str, Local] | None = None) -> None:
        self._scopes.append({} if scope is None else scope)
        for child in node.named_children:
            self.visit(child)
        self._scopes.pop()

    def visit(self, node: Node) -> None:
        method = getattr(self, f"_{node.type}", None)
        if node.type in _FUNCTIONS:
            self._function(node)
        elif method is not None:
            method(node)
        elif node.type == "identifier":
            self._read(node)
        else:
            for child in node.named_children:
                self.visit(child)

    def _block(self, node: Node) -> None:
        self.block(node)

    def _comment(self, node: Node) -> None:
        """Holds no names."""

    def _variable_declaration(self, node: Node) -> None:
        [child] = node.named_children
        targets = child
        if child.type == "assignment_statement":
            targets, values = child.named_children
            self.visit(values)
        for name in targets.named_children:
            self._define(name)

    def _assignment_statement(self, node: Node) -> None:
        targets, values = node.named_children
        self.visit(values)
        for target in targets.named_children:
            if target.type != "identifier":
                self.visit(target)
            elif self._find(target) is None:
                self._names.free.append(_local(target))

    def _function(self, node: Node) -> None:
        name = node.child_by_field_name("name")
        if name is not None and name.type == "identifier":
            self._define(name)
        elif name is not None:
            self.visit(name)
        self._scopes.append({})
        parameters = node.child_by_field_name("parameters")
        for parameter in parameters.named_children if parameters else ():
            if parameter.type == "identifier":
                self._define(parameter)
        if body := node.child_by_field_name("body"):
            self.block(body)
        self._scopes.pop()

    def _for_statement(self, node: Node) -> None:
        clause, body = node.child_by_field_name("clause"), node.child_by_field_name("body")
        assert clause is not None
        if clause.type == "for_numeric_clause":
            names, *values = clause.named_children
            counters = [names]
        else:
            names, *values = clause.named_children
            counters = names.named_children
        for value in values:
            self.visit(value)
        self._scopes.append({})
        for name in counters:
            self._define(name)
        if body is not None:
            self.block(body)
        self._scopes.pop()

    def _repeat_statement(self, node: Node) -> None:
        """Its condition sees the locals of its body."""
        self._scopes.append({})
        for part in node.named_children:
            for child in part.named_children if part.type == "block" else [part]:
                self.visit(child)
        self._scopes.pop()

    def _field(self, node: Node) -> None:
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if name is not None and node.children[0].type == "[":
            self.visit(name)
        if value is not None:
            self.visit(value)

    def _dot_index_expression(self, node: Node) -> None:
        self.visit(node.named_children[0])

    _method_index_expression = _dot_index_expression

    def _define(self, node: Node) -> None:
        local = _local(node)
        self._scopes[-1][local.name] = local
        if len(self._scopes) > 1:
            self._names.inner.append(local)

    def _find(self, node: Node) -> Local | None:
        name = _local(node).name
        return next((scope[name] for scope in reversed(self._scopes) if name in scope), None)

    def _read(self, node: Node) -> None:
        found = self._find(node)
        if found is None:
            self._names.free.append(_local(node))
        else:
            found.read = True


def _local(node: Node) -> Local:
    assert node.text is not None
    return Local(node.text.decode(), node.start_point.row + 1)


def lint(
    scripts: Mapping[str, str],
    parts: Mapping[str, str],
    required: Mapping[str, list[str]],
) -> list[Finding]:
    """What is wrong with the files, in order of file and line.

    Args:
        scripts, parts: name → source; the names of parts start with ``parts/``.
        required: name of either → the parts that it requires.
    """
    names = {name: read_names(source) for name, source in {**scripts, **parts}.items()}
    found = []
    for file, own in names.items():
        found += [Finding(file, line, "does not parse") for line in own.errors]
        needed = set()
        for use in own.free:
            part = next((part for part in required[file] if use.name in names[part].top), None)
            if part is not None:
                names[part].top[use.name].read = True
                needed.add(part)
            elif use.name not in PROVIDED:
                found.append(Finding(file, use.line, f"{use.name} is not defined"))
        for part in required[file]:
            if part not in needed:
                found.append(Finding(file, 1, f"requires {part} and uses nothing of it"))
            for name in own.top.keys() & names[part].top.keys():
                found.append(Finding(file, own.top[name].line, f"{name} is defined in {part} too"))
    for file, own in names.items():
        for local in (*own.top.values(), *own.inner):
            if not local.read and local.name != "_":
                found.append(Finding(file, local.line, f"{local.name} is never used"))
    return sorted(found)


def lint_queue() -> list[Finding]:
    """The farm's own scripts."""
    from farm.queue.scripts import read_bodies, read_parts, requires

    parts = {f"parts/{name}": source for name, source in read_parts().items()}
    required = {
        name: [f"parts/{part}" for part in requires(source)]
        for name, source in {**read_bodies(), **parts}.items()
    }
    # Python defines the constants, for whichever script needs one.
    return [
        finding
        for finding in lint(read_bodies(), parts, required)
        if finding.file != "parts/constants"
    ]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    findings = lint_queue()
    for finding in findings:
        print(f"farm/queue/lua/{finding}")
    sys.exit(1 if findings else 0)
