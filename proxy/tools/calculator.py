"""The tool ``calculate``: parse an arithmetic expression and evaluate its syntax tree, without executing code.

Integers are exact; other numbers are decimals with 34 digits, so that 0.1 + 0.2 is 0.3. The length and nesting of the
expression, the size of integers and exponents are limited.
"""

from __future__ import annotations

import ast
import decimal
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Annotated

from pydantic import Field

from proxy.errors import ToolError
from proxy.tools.functions import tool

MAX_LENGTH = 500
MAX_DEPTH = 50
MAX_BITS = 4096
MAX_EXPONENT = 10_000

Number = int | Decimal

_SHOWN_DIGITS = 15
_PLAIN_EXPONENTS = range(-7, 21)
"""Decimal exponents for which a result is written without scientific notation."""


@tool(has_effects=False)
def calculate(
    expression: Annotated[
        str,
        Field(
            description="For example 15 + 27, (3.5 - 1) * 2^10, 15% of 80, sqrt(2), round(10/3, 2).",
            min_length=1,
        ),
    ],
) -> dict[str, str]:
    """Evaluate an arithmetic expression, exactly where possible.

    Supports + - * / // (integer division), % (percent, or the remainder when a number follows), ^ or ** (power),
    parentheses, pi, e, and the functions abs, acos, asin, atan, avg, ceil, cos, degrees, exp, factorial, floor,
    gcd, ln, log (base 10, or a second argument), max, min, percent (percent(15, 80) is 15% of 80), radians, round,
    sin, sqrt, sum and tan. Angles are in radians. Numbers are written without thousands separators.
    """
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"the expression is longer than {MAX_LENGTH} characters")
    tree = _parse(expression)
    with decimal.localcontext(_CONTEXT):
        try:
            return {"expression": " ".join(expression.split()), "result": _format(_evaluate(tree, 0))}
        except ZeroDivisionError:
            raise ToolError("division by zero") from None
        except (decimal.Overflow, OverflowError):
            raise ToolError("a number is too large") from None
        except (decimal.InvalidOperation, ValueError):
            raise ToolError("a function or power is not defined for its argument") from None


_CONTEXT = decimal.Context(
    prec=34,
    Emax=MAX_EXPONENT,
    Emin=-MAX_EXPONENT,
    traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
)


# --- parsing -------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_π]\w*)"
    r"|(?P<sign>\*\*|//|[-+*/%^(),×·÷−])",
    re.ASCII,
)
_SIGNS = {"^": "**", "×": "*", "·": "*", "÷": "/", "−": "-"}
_AFTER_PERCENT = frozenset("+-*/),×·÷−^") | {"**", "//", "of"}
"""Tokens after which % means percent; before any other token it is the remainder operator."""


def _parse(expression: str) -> ast.expr:
    # Tokenise first: Python's parser emits SyntaxWarning for input such as "1if", and accepts more than arithmetic.
    try:
        return ast.parse(" ".join(_to_python(_tokens(expression))), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("the expression cannot be parsed; check operators and parentheses") from None


def _tokens(expression: str) -> Sequence[str]:
    tokens: list[str] = []
    place = 0
    while place < len(expression):
        if expression[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(expression, place)
        if found is None:
            raise ToolError(f"the expression contains {expression[place]!r}, which is not supported")
        tokens.append(found[0])
        place = found.end()
    return tokens


def _to_python(tokens: Sequence[str]) -> Sequence[str]:
    """Return the tokens as Python tokens.

    A percent sign becomes ``[0]``, which has the same precedence. A number that is not an integer becomes a string,
    which preserves all digits. Expressions have no other subscripts and strings.
    """
    converted: list[str] = []
    for index, token in enumerate(tokens):
        following = tokens[index + 1] if index + 1 < len(tokens) else ")"
        if token == "%" and following in _AFTER_PERCENT:  # noqa: S105 - a token of an expression
            converted.append("[0]")
        elif token == "of":  # noqa: S105
            converted.append("*")
        elif token[0].isdigit() or token[0] == ".":
            # Leading zeros are a syntax error in Python.
            converted.append((token.lstrip("0") or "0") if token.isdigit() else repr(token))
        else:
            converted.append(_SIGNS.get(token, token))
    return converted


# --- evaluation ----------------------------------------------------------------------------------------------


def _evaluate(node: ast.expr, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise ToolError(f"the expression is nested more than {MAX_DEPTH} levels deep")
    match node:
        case ast.BinOp():
            return _evaluate_chain(node, depth)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand, depth + 1)
        case ast.Constant(value=bool()):
            return _constant(str(node.value))
        case ast.Constant(value=int() as value):
            return _bounded(value)
        case ast.Constant(value=str() as digits):
            return _bounded(+Decimal(digits))
        case ast.Subscript(value=percent):
            return _divide(_evaluate(percent, depth + 1), 100)
        case ast.Name(id=name):
            return _constant(name)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _call_function(name, [_evaluate(argument, depth + 1) for argument in arguments])
        case ast.Tuple():
            raise ToolError("write numbers without thousands separators")
        case _:
            raise ToolError(
                "the expression cannot be parsed; only numbers, operators and functions are supported"
            )


def _evaluate_chain(node: ast.BinOp, depth: int) -> Number:
    """Evaluate a chain of binary operators in a loop: a long sum does not count as nested."""
    rights: list[tuple[ast.operator, ast.expr]] = []
    left: ast.expr = node
    while isinstance(left, ast.BinOp):
        rights.append((left.op, left.right))
        left = left.left
    value = _evaluate(left, depth + 1)
    for operator, right in reversed(rights):
        apply = _OPERATORS.get(type(operator))
        if apply is None:
            raise ToolError("the expression contains an operator that is not supported")
        value = _bounded(apply(value, _evaluate(right, depth + 1)))
    return value


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return _too_large()
    if isinstance(value, Decimal) and not value.is_finite():
        raise decimal.InvalidOperation
    return value


def _too_large() -> Number:
    raise ToolError(f"a number is too large; integers can have at most {MAX_BITS} bits")


def _divide(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int):
        if right == 0:
            raise ZeroDivisionError
        if left % right == 0:
            return left // right
    return Decimal(left) / Decimal(right)


def _floor_divide(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    return (Decimal(left) / Decimal(right)).to_integral_value(ROUND_FLOOR)


def _remainder(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    return Decimal(left) - Decimal(right) * Decimal(_floor_divide(left, right))


def _power(base: Number, exponent: Number) -> Number:
    if not -MAX_EXPONENT <= exponent <= MAX_EXPONENT:
        raise ToolError(f"an exponent must be at most {MAX_EXPONENT}")
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if (abs(base).bit_length() - 1) * exponent > MAX_BITS:
            return _too_large()
        return int(base**exponent)
    if base == 0 and exponent < 0:
        raise ZeroDivisionError
    return Decimal(base) ** Decimal(exponent)


_OPERATORS: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: _divide,
    ast.FloorDiv: _floor_divide,
    ast.Mod: _remainder,
    ast.Pow: _power,
}


# --- functions and constants ---------------------------------------------------------------------------------


def _constant(name: str) -> Number:
    if name.lower() in ("pi", "π"):
        return Decimal("3.141592653589793238462643383279503")
    if name.lower() == "e":
        return Decimal(1).exp()
    raise ToolError(f"there is no constant {name[:40]!r}")


def _call_function(name: str, arguments: Sequence[Number]) -> Number:
    known = _FUNCTIONS.get(name.lower())
    if known is None:
        raise ToolError(f"there is no function {name[:40]!r}; supported: {', '.join(sorted(_FUNCTIONS))}")
    least, most, function = known
    if not least <= len(arguments) <= most:
        wanted = str(least) if least == most else f"{least} or more" if most > 2 else f"{least} or {most}"
        raise ToolError(f"{name.lower()} takes {wanted} argument{'' if wanted == '1' else 's'}")
    return _bounded(function(*arguments))


def _by_float(function: Callable[[float], float]) -> Callable[..., Number]:
    """Return a function that computes in floating point, with a result of at most 15 decimal places."""

    def apply(value: Number) -> Number:
        return Decimal(repr(round(function(float(value)), _SHOWN_DIGITS)))

    return apply


def _square_root(value: Number) -> Number:
    if isinstance(value, int) and value >= 0 and (root := math.isqrt(value)) ** 2 == value:
        return root
    return Decimal(value).sqrt()


def _rounded(value: Number, digits: Number = 0) -> Number:
    places = _whole(digits)
    if abs(places) > 100:
        raise ToolError("a number can be rounded to at most 100 decimal places")
    if isinstance(value, int) and places >= 0:
        return value
    # Unchanged if the precision of 34 digits has no more digits at these places.
    if places > 0 and Decimal(value).adjusted() + places >= 33:
        return value
    step = Decimal(1).scaleb(-places)
    rounded = (Decimal(value) / step).to_integral_value(ROUND_HALF_UP) * step
    return int(rounded) if places <= 0 else rounded


def _to_whole(rounding: str) -> Callable[..., Number]:
    def apply(value: Number) -> Number:
        return value if isinstance(value, int) else value.to_integral_value(rounding)

    return apply


def _logarithm(value: Number, base: Number = 10) -> Number:
    if base == 10:
        return Decimal(value).log10()
    return Decimal(value).ln() / Decimal(base).ln()


def _factorial(value: Number) -> Number:
    number = _whole(value)
    if number > 1000:
        return _too_large()
    return math.factorial(number)


def _whole(value: Number) -> int:
    if isinstance(value, int):
        return value
    if value != value.to_integral_value():
        raise ToolError("an integer is required")
    return int(value) if abs(value) < 10**30 else _whole(_too_large())


def _sum(*values: Number) -> Number:
    total: Number = 0
    for value in values:
        total += value
    return total


_FUNCTIONS: Mapping[str, tuple[int, int, Callable[..., Number]]] = {
    "abs": (1, 1, abs),
    "acos": (1, 1, _by_float(math.acos)),
    "asin": (1, 1, _by_float(math.asin)),
    "atan": (1, 1, _by_float(math.atan)),
    "avg": (1, MAX_LENGTH, lambda *values: _divide(_sum(*values), len(values))),
    "ceil": (1, 1, _to_whole(ROUND_CEILING)),
    "cos": (1, 1, _by_float(math.cos)),
    "degrees": (1, 1, _by_float(math.degrees)),
    "exp": (1, 1, lambda value: Decimal(value).exp()),
    "factorial": (1, 1, _factorial),
    "floor": (1, 1, _to_whole(ROUND_FLOOR)),
    "gcd": (2, MAX_LENGTH, lambda *values: math.gcd(*map(_whole, values))),
    "ln": (1, 1, lambda value: Decimal(value).ln()),
    "log": (1, 2, _logarithm),
    "max": (1, MAX_LENGTH, lambda *values: max(values)),
    "min": (1, MAX_LENGTH, lambda *values: min(values)),
    "percent": (2, 2, lambda share, whole: _divide(share * whole, 100)),
    "radians": (1, 1, _by_float(math.radians)),
    "round": (1, 2, _rounded),
    "sin": (1, 1, _by_float(math.sin)),
    "sqrt": (1, 1, _square_root),
    "sum": (1, MAX_LENGTH, _sum),
    "tan": (1, 1, _by_float(math.tan)),
}
"""Minimum and maximum number of arguments, and the function."""


def _format(value: Number) -> str:
    """Return a number as text: 42, 0.3, 1.5E+40; decimals with at most 15 significant digits."""
    if isinstance(value, int):
        return str(value)
    rounded = decimal.Context(prec=_SHOWN_DIGITS, rounding=ROUND_HALF_UP).plus(value)
    if rounded == 0:
        return "0"
    if rounded.adjusted() in _PLAIN_EXPONENTS:
        text = f"{rounded:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{rounded.normalize():E}"
