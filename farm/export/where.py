"""``--where``: which rows of a data set are wanted, as a condition on its columns.

It is read with Python's own parser and turned, node by node, into an expression of
``pyarrow.compute``; nothing of it is ever run.
"""

import ast
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from farm.errors import InvalidInput

MAX_CHARACTERS = 2000
HINT = 'write it like: nsfw < 0.1 and category == "cat"'

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: lambda left, right: left < right,
    ast.LtE: lambda left, right: left <= right,
    ast.Gt: lambda left, right: left > right,
    ast.GtE: lambda left, right: left >= right,
    ast.Eq: lambda left, right: left == right,
    ast.NotEq: lambda left, right: left != right,
}


class Where(NamedTuple):
    """A condition; a row for which it cannot be decided, as a value is missing, is not wanted."""

    text: str
    columns: frozenset[str]
    expression: pc.Expression

    @classmethod
    def parse(cls, text: str) -> "Where":
        """Raises ``InvalidInput`` for what is not such a condition."""
        if len(text) > MAX_CHARACTERS:
            raise _wrong(f"has more than {MAX_CHARACTERS:,} characters")
        try:
            tree = ast.parse(text.strip(), mode="eval")
            condition = _condition(tree.body)
        except (RecursionError, MemoryError):
            raise _wrong("cannot be read: is too deep") from None
        except SyntaxError as error:
            raise _wrong(f"cannot be read: {error.msg}") from None
        except ValueError as error:  # such as a list of texts and numbers
            raise _wrong(f"cannot be read: {str(error)[:160]}") from None
        names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        return cls(text, names, condition)

    def check_columns(self, known: Sequence[str]) -> None:
        """Raises ``InvalidInput`` for a column that no row has."""
        for name in sorted(self.columns - set(known)):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"farm score JOB --with {name}"
            raise _wrong(f"no row has a column {name[:60]!r}", hint)

    def filter(self, table: pa.Table) -> pa.Table:
        """The wanted rows."""
        try:
            return table.filter(self.expression)
        except (pa.ArrowException, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise _wrong(f"does not fit the columns: {reason[:160]}") from None


def _condition(node: ast.expr) -> pc.Expression:
    match node:
        case ast.BoolOp(op=operator, values=values):
            found = [_condition(value) for value in values]
            whole = found[0]
            for one in found[1:]:
                whole = whole & one if isinstance(operator, ast.And) else whole | one
            return whole
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_condition(operand)
        case ast.Compare(left=left, ops=operators, comparators=comparators):
            sides = [left, *comparators]
            whole = _comparison(operators[0], sides[0], sides[1])
            for at in range(1, len(operators)):
                whole = whole & _comparison(operators[at], sides[at], sides[at + 1])
            return whole
        case ast.Name(id=name):  # a column of booleans
            return pc.field(name)
    raise _wrong(f"{ast.unparse(node)[:60]!r} is not a condition")


def _comparison(operator: ast.cmpop, left: ast.expr, right: ast.expr) -> pc.Expression:
    match operator, right:
        case ((ast.Is() | ast.IsNot()), ast.Constant(value=None)):
            missing = _operand(left).is_null()
            return ~missing if isinstance(operator, ast.IsNot) else missing
        case ((ast.In() | ast.NotIn()), (ast.Tuple(elts=elements) | ast.List(elts=elements))):
            if not elements:
                raise _wrong("has a list without values")
            found = _operand(left).isin([_literal(one) for one in elements])
            return ~found if isinstance(operator, ast.NotIn) else found
        case ((ast.In() | ast.NotIn()), _):
            raise _wrong(
                f"{ast.unparse(right)[:60]!r} is not a list", 'a list of one value is ["cat"]'
            )
    if type(operator) not in _COMPARE:
        raise _wrong(f"{ast.unparse(left)[:60]!r} is compared in a way that is not known")
    return _COMPARE[type(operator)](_operand(left), _operand(right))


def _operand(node: ast.expr) -> pc.Expression:
    return pc.field(node.id) if isinstance(node, ast.Name) else pc.scalar(_literal(node))


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            pass
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            value = -number
        case _:
            raise _wrong(f"{ast.unparse(node)[:60]!r} is not a column, a number or a text")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _wrong("has a number with too many digits")
    return value


def _wrong(message: str, hint: str = HINT) -> InvalidInput:
    return InvalidInput(message, field="--where", hint=hint)
