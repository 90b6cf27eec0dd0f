"""From shapes to the text of a grammar, as llama.cpp reads it (GBNF)."""

from __future__ import annotations

from collections.abc import Sequence

from kwaai_lobe_llama.worker.grammar.branches import Branch, branches
from kwaai_lobe_llama.worker.grammar.numerals import number
from kwaai_lobe_llama.worker.grammar.shapes import (
    Anything,
    Array,
    Choice,
    Literals,
    Map,
    Member,
    Number,
    Record,
    Reference,
    SchemaError,
    Shape,
    Shapes,
    Text,
)

MAX_GRAMMAR = 1 << 19  # characters
_MAX_REPEATS = 20_000
"""Of all bounds on lengths together: llama.cpp has a rule for each of them."""

# A lone half of a surrogate pair is no text, escaped or not.
_BASICS = {
    "ws": r'([ ] | "\n" [ \t]{0,20})?',
    "hex": "[0-9a-fA-F]",
    "char": r'[ !#-\[\]-~\u0080-\uD7FF\uE000-\U0010FFFF] | "\\" (["\\/bfnrt] | "u" (hex0 hex{3} | '
    r"[dD] [0-7] hex{2}))",
    "hex0": "[0-9a-cA-Ce-fE-F]",
    "string": r'"\"" char* "\""',
    "fraction": '"." [0-9]{1,15}',
    "more": '"." [0-9]{0,14} [1-9]',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": "integer fraction? ([eE] [-+]? [0-9]{1,2})?",
    "value": 'object | array | string | number | "true" | "false" | "null"',
    "pair": 'string ":" ws value ws',
    "object": '"{" ws (pair ("," ws pair)*)? "}"',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
    "year": '[0-9]{3} [1-9] | [0-9]{2} [1-9] "0" | [0-9] [1-9] "00" | [1-9] "000"',
    "leap": '[0-9]{2} ("0" [48] | [2468] [048] | [13579] [26]) | '
    '("0" [48] | [2468] [048] | [13579] [26]) "00"',
    "days": 'leap "-02-29" | year "-" ("02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]) | '
    '("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01]) | '
    '("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30"))',
    "hours": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "date": r'"\"" days "\""',
    "time": r'"\"" hours "\""',
    "date-time": r'"\"" days "T" hours "\""',
    "uuid": r'"\"" hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12} "\""',
}


class Writer:
    """Collects the rules of a grammar."""

    def __init__(self) -> None:
        self._rules = dict(_BASICS)
        self._repeats = 0

    def value(self, shapes: Shapes, at: str) -> str:
        """The name of a rule for a value of these shapes; :class:`SchemaError` if it is large."""
        named = {name: f"n{len(self._rules)}-{i}" for i, name in enumerate(shapes.named)}
        write = _Write(self, named, at)
        for name, rule in named.items():
            self._rules[rule] = write.expression(shapes.named[name])
        return self.rule(write.expression(shapes.root))

    def rule(self, expression: str) -> str:
        """The name of a rule for an expression."""
        name = f"r{len(self._rules)}"
        self._rules[name] = expression
        return name

    def repeat(self, number: int, at: str) -> None:
        """Count what a bound costs."""
        self._repeats += number
        if self._repeats > _MAX_REPEATS:
            raise SchemaError(f"the bounds on lengths are over {_MAX_REPEATS} in all", at)

    def text(self, root: str, at: str) -> str:
        """The whole grammar, whose root is an expression; more rules may be added after it."""
        rules = {"root": root} | self._rules
        text = "\n".join(f"{name} ::= {rule}" for name, rule in rules.items())
        if len(text) > MAX_GRAMMAR:
            raise SchemaError(f"the schema makes a grammar of over {MAX_GRAMMAR} characters", at)
        return text + "\n"


class _Write:
    """Writes shapes of one schema, in which references are ``named`` rules."""

    def __init__(self, writer: Writer, named: dict[str, str], at: str) -> None:
        self._writer = writer
        self._named = named
        self._at = at

    def expression(self, shape: Shape) -> str:
        match shape:
            case Anything():
                return "value"
            case Literals(texts):
                return self._texts(branches(texts))
            case Text():
                return self._string(shape)
            case Number():
                return number(shape)
            case Array():
                return self._array(shape)
            case Record(members):
                return self._record(members)
            case Map(values):
                pair = self._writer.rule(f'string ":" ws {self._name(values)} ws')
                return f'"{{" ws ({pair} ("," ws {pair})*)? "}}"'
            case Choice(options):
                return " | ".join(map(self._name, options))
            case Reference(name):
                return self._named[name]

    def _name(self, shape: Shape) -> str:
        return self._writer.rule(self.expression(shape))

    def _texts(self, tree: Sequence[Branch]) -> str:
        return " | ".join(map(self._branch, tree))

    def _branch(self, branch: Branch) -> str:
        if not branch.others:
            return quoted(branch.text)
        rest = f"({self._texts(branch.others)})" + ("?" if branch.ends else "")
        return f"{quoted(branch.text)} {rest}"

    def _string(self, shape: Text) -> str:
        if shape.format is not None:
            return shape.format
        if shape.least == 0 and shape.most is None:
            return "string"
        return rf'"\"" char{self._times(shape.least, shape.most)} "\""'

    def _times(self, least: int, most: int | None) -> str:
        if most is not None and most < least:  # which llama.cpp takes for 2⁶⁴
            raise SchemaError("nothing is within the bounds of the schema", self._at)
        self._writer.repeat(most or least, self._at)
        return f"{{{least},{'' if most is None else most}}}"

    def _array(self, shape: Array) -> str:
        first = [f"{self._name(one)} ws" for one in shape.first]
        if shape.most != 0:
            item = self._name(shape.items)
            if first:
                first.append(f'("," ws {item} ws){self._times(shape.least, shape.most)}')
                return f'"[" ws {self._listed(first[:-1])} {first[-1]} "]"'
            least, most = max(shape.least - 1, 0), None if shape.most is None else shape.most - 1
            items = f'{item} ws ("," ws {item} ws){self._times(least, most)}'
            return f'"[" ws {items if shape.least else f"({items})?"} "]"'
        return f'"[" ws {self._listed(first)} "]"'

    def _listed(self, items: Sequence[str]) -> str:
        return ' "," ws '.join(items)

    def _record(self, members: Sequence[Member]) -> str:
        """Members in their order. Those that may be left out are skipped one by one, and what is
        before their names is written once for all of them."""
        after, following, needed = "", "", False
        for member in reversed(members):
            pair = f"{quoted(member.key + ':')} ws {self._name(member.value)} ws {after}"
            skipped = f" | {following}" if following and not member.required else ""
            following, needed = self._writer.rule(pair + skipped), needed or member.required
            after = self._writer.rule(f'("," ws {following}){"" if needed else "?"}')
        return f'"{{" ws {following}{"" if needed or not following else "?"} "}}"'


def quoted(text: str) -> str:
    """A text as a literal of a grammar."""
    return '"' + "".join(_ESCAPED.get(one, one) for one in text) + '"'


_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"} | {
    chr(code): f"\\x{code:02X}" for code in (*range(9), 11, 12, *range(14, 32), 127)
}
