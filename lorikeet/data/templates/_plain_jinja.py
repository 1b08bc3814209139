"""Chat templates in jinja that write every text around holes: what of the language may come near a text.

A hole (`_hole.py`) tells when a template looks into it, as long as it is asked through Python. This file refuses what
would pass that by: filters, macros and captured blocks that work on plain strings, and methods that are handed a text.
"""

from __future__ import annotations

import jinja2
from jinja2 import nodes

_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.Name, nodes.NSRef,
    nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Compare, nodes.Operand, nodes.And, nodes.Or,
    nodes.Not, nodes.Add, nodes.Sub, nodes.Mod, nodes.Neg, nodes.List, nodes.CondExpr, nodes.Filter, nodes.Test,
    nodes.Call, nodes.Keyword, nodes.Break, nodes.Continue, nodes.Concat, nodes.Tuple, nodes.Dict, nodes.Pair,
)  # fmt: skip
_FILTERS = {"trim", "tojson", "length", "count", "string"}
_TESTS = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "boolean", "true", "false"}
_FUNCTIONS = {"namespace", "raise_exception", "range"}


def writes_around_texts(source: str, environment: jinja2.Environment) -> bool:
    """Whether only such means are used that a hole notices."""
    return all(_passes(node) for node in _below(environment.parse(source)))


def _below(node: nodes.Node) -> list[nodes.Node]:
    found = [node]
    for child in node.iter_child_nodes():
        found += _below(child)
    return found


def _passes(node: nodes.Node) -> bool:
    if not isinstance(node, _NODES) or type(node) not in _NODES:
        return False
    if isinstance(node, nodes.Filter):
        return node.name in _FILTERS and node.node is not None and not node.args and not node.kwargs
    if isinstance(node, nodes.Test):
        return node.name in _TESTS
    if isinstance(node, nodes.Call):
        if isinstance(node.node, nodes.Name):
            return node.node.name in _FUNCTIONS
        return isinstance(node.node, nodes.Getattr) and all(isinstance(given, nodes.Const) for given in node.args)
    if isinstance(node, nodes.Compare):
        tests = [operand for operand in node.ops if operand.op in ("in", "notin")]
        known = isinstance(node.expr, nodes.Const)
        return all(known or isinstance(operand.expr, (nodes.List, nodes.Tuple)) for operand in tests)
    if isinstance(node, nodes.Mod):
        return not isinstance(node.left, nodes.Const) and not isinstance(node.right, nodes.Tuple)
    if isinstance(node, (nodes.Output, nodes.Concat)):
        return True
    # what ~ joins is a plain string, so it may only be written
    return not any(isinstance(child, nodes.Concat) for child in node.iter_child_nodes())
