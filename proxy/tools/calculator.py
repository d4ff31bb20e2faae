"""A calculator: an expression is parsed, checked and worked out here, and never run as code.

Whole numbers are exact, all others decimal with 34 digits, so that 0.1 + 0.2 is 0.3. Everything is bounded: the length
and the nesting of the expression, the size of whole numbers, exponents.
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
from proxy.tools.functions import without_effects

MAX_LENGTH = 500
MAX_DEPTH = 50
MAX_BITS = 4096
MAX_EXPONENT = 10_000

Number = int | Decimal

_SHOWN_DIGITS = 15
_PLAIN_EXPONENTS = range(-7, 21)
"""Powers of ten between which a number is written without an exponent."""


@without_effects
def calculate(
    expression: Annotated[
        str,
        Field(
            description="For example 15 + 27, (3.5 - 1) * 2^10, 15% of 80, sqrt(2), round(10/3, 2).",
            min_length=1,
        ),
    ],
) -> dict[str, str]:
    """Work out an arithmetic expression, exactly where possible.

    Knows + - * / // (whole division), % (percent, or the remainder when a number follows), ^ or ** (power),
    parentheses, pi, e, and the functions abs, acos, asin, atan, avg, ceil, cos, degrees, exp, factorial, floor,
    gcd, ln, log (base 10, or a second argument), max, min, percent (percent(15, 80) is 15% of 80), radians, round,
    sin, sqrt, sum and tan. Angles are in radians. Numbers are written without thousands separators.
    """
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"the expression is longer than {MAX_LENGTH} characters")
    tree = _parsed(expression)
    with decimal.localcontext(_CONTEXT):
        try:
            return {"expression": " ".join(expression.split()), "result": _written(_value(tree, 0))}
        except ZeroDivisionError:
            raise ToolError("something is divided by zero") from None
        except (decimal.Overflow, OverflowError):
            raise ToolError("a number gets too large") from None
        except (decimal.InvalidOperation, ValueError):
            raise ToolError("a function or a power is not defined for the number it is given") from None


_CONTEXT = decimal.Context(
    prec=34,
    Emax=MAX_EXPONENT,
    Emin=-MAX_EXPONENT,
    traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
)


# --- reading -------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_π]\w*)"
    r"|(?P<sign>\*\*|//|[-+*/%^(),×·÷−])",
    re.ASCII,
)
_SIGNS = {"^": "**", "×": "*", "·": "*", "÷": "/", "−": "-"}
_AFTER_PERCENT = frozenset("+-*/),×·÷−^") | {"**", "//", "of"}
"""What follows a percent sign; a sign before anything else is that of the remainder."""


def _parsed(expression: str) -> ast.expr:
    # Python's own reader warns of numbers with letters behind them and the like; it is only shown clean tokens.
    try:
        return ast.parse(" ".join(_rewritten(_tokens(expression))), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("the expression cannot be read; check operators and parentheses") from None


def _tokens(expression: str) -> Sequence[str]:
    tokens: list[str] = []
    place = 0
    while place < len(expression):
        if expression[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(expression, place)
        if found is None:
            raise ToolError(f"the expression holds {expression[place]!r}, which means nothing here")
        tokens.append(found[0])
        place = found.end()
    return tokens


def _rewritten(tokens: Sequence[str]) -> Sequence[str]:
    """Return the tokens in Python's words.

    A percent sign becomes ``[0]``, which binds like one, and a number that is not whole a string, which keeps all its
    digits; neither means anything else here.
    """
    written: list[str] = []
    for index, token in enumerate(tokens):
        following = tokens[index + 1] if index + 1 < len(tokens) else ")"
        if token == "%" and following in _AFTER_PERCENT:  # noqa: S105 - a token of an expression
            written.append("[0]")
        elif token == "of":  # noqa: S105
            written.append("*")
        elif token[0].isdigit() or token[0] == ".":
            # Zeros in front are an error in Python, and a form of writing elsewhere.
            written.append((token.lstrip("0") or "0") if token.isdigit() else repr(token))
        else:
            written.append(_SIGNS.get(token, token))
    return written


# --- working out ---------------------------------------------------------------------------------------------


def _value(node: ast.expr, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise ToolError(f"the expression is nested more than {MAX_DEPTH} deep")
    match node:
        case ast.BinOp():
            return _chain(node, depth)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, depth + 1)
        case ast.Constant(value=bool()):
            return _constant(str(node.value))
        case ast.Constant(value=int() as value):
            return _bounded(value)
        case ast.Constant(value=str() as written):
            return _bounded(+Decimal(written))
        case ast.Subscript(value=percent):
            return _divided(_value(percent, depth + 1), 100)
        case ast.Name(id=name):
            return _constant(name)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _called(name, [_value(argument, depth + 1) for argument in arguments])
        case ast.Tuple():
            raise ToolError("write numbers without thousands separators")
        case _:
            raise ToolError("the expression cannot be read; only numbers, operators and functions are known")


def _chain(node: ast.BinOp, depth: int) -> Number:
    """Work out operators that stand in a row; a long sum is not nested."""
    rights: list[tuple[ast.operator, ast.expr]] = []
    left: ast.expr = node
    while isinstance(left, ast.BinOp):
        rights.append((left.op, left.right))
        left = left.left
    value = _value(left, depth + 1)
    for operator, right in reversed(rights):
        work = _OPERATORS.get(type(operator))
        if work is None:
            raise ToolError("the expression holds an operator that is not known")
        value = _bounded(work(value, _value(right, depth + 1)))
    return value


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return _too_large()
    if isinstance(value, Decimal) and not value.is_finite():
        raise decimal.InvalidOperation
    return value


def _too_large() -> Number:
    raise ToolError(f"a number gets too large; whole numbers may have {MAX_BITS} bits")


def _divided(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int):
        if right == 0:
            raise ZeroDivisionError
        if left % right == 0:
            return left // right
    return Decimal(left) / Decimal(right)


def _whole_divided(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    return (Decimal(left) / Decimal(right)).to_integral_value(ROUND_FLOOR)


def _remainder(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    return Decimal(left) - Decimal(right) * Decimal(_whole_divided(left, right))


def _power(base: Number, exponent: Number) -> Number:
    if not -MAX_EXPONENT <= exponent <= MAX_EXPONENT:
        raise ToolError(f"exponents may be at most {MAX_EXPONENT}")
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
    ast.Div: _divided,
    ast.FloorDiv: _whole_divided,
    ast.Mod: _remainder,
    ast.Pow: _power,
}


# --- functions and constants ---------------------------------------------------------------------------------


def _constant(name: str) -> Number:
    if name.lower() in ("pi", "π"):
        return Decimal("3.141592653589793238462643383279503")
    if name.lower() == "e":
        return Decimal(1).exp()
    raise ToolError(f"there is no number named {name[:40]!r}")


def _called(name: str, arguments: Sequence[Number]) -> Number:
    known = _FUNCTIONS.get(name.lower())
    if known is None:
        raise ToolError(f"there is no function {name[:40]!r}; known are {', '.join(sorted(_FUNCTIONS))}")
    fewest, most, work = known
    if not fewest <= len(arguments) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} or more" if most > 2 else f"{fewest} or {most}"
        raise ToolError(f"{name.lower()} takes {wanted} argument{'' if wanted == '1' else 's'}")
    return _bounded(work(*arguments))


def _by_float(work: Callable[[float], float]) -> Callable[..., Number]:
    """Where a float's 15 digits are enough."""

    def apply(value: Number) -> Number:
        return Decimal(repr(round(work(float(value)), _SHOWN_DIGITS)))

    return apply


def _square_root(value: Number) -> Number:
    if isinstance(value, int) and value >= 0 and (root := math.isqrt(value)) ** 2 == value:
        return root
    return Decimal(value).sqrt()


def _rounded(value: Number, digits: Number = 0) -> Number:
    places = _whole(digits)
    if abs(places) > 100:
        raise ToolError("a number can be rounded to at most 100 places")
    if isinstance(value, int) and places >= 0:
        return value
    # More places than the number has digits leave it as it is.
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
        raise ToolError("a whole number is wanted here")
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
    "avg": (1, MAX_LENGTH, lambda *values: _divided(_sum(*values), len(values))),
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
    "percent": (2, 2, lambda share, whole: _divided(share * whole, 100)),
    "radians": (1, 1, _by_float(math.radians)),
    "round": (1, 2, _rounded),
    "sin": (1, 1, _by_float(math.sin)),
    "sqrt": (1, 1, _square_root),
    "sum": (1, MAX_LENGTH, _sum),
    "tan": (1, 1, _by_float(math.tan)),
}
"""Fewest and most arguments, and the function."""


def _written(value: Number) -> str:
    """Write a number as people do: 42, 0.3, 1.5E+40; at most 15 digits where it is not exact."""
    if isinstance(value, int):
        return str(value)
    rounded = decimal.Context(prec=_SHOWN_DIGITS, rounding=ROUND_HALF_UP).plus(value)
    if rounded == 0:
        return "0"
    if rounded.adjusted() in _PLAIN_EXPONENTS:
        text = f"{rounded:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{rounded.normalize():E}"
