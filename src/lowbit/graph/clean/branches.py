"""`If` nodes whose condition is known: the taken branch becomes part of the graph."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from lowbit.graph.clean.values import all_nodes, constant, fresh_name, is_op

__all__ = ["inline_branches"]


def inline_branches(model: ir.Model) -> Counter[str]:
    """Replace each `If` with a constant condition by the nodes of its taken branch.

    Names of the branch stay, unless another value of the model has one: sibling branches may use the same names.
    """
    changes: Counter[str] = Counter()
    for graph, node in all_nodes(model):
        condition = constant(node.inputs[0]) if is_op(node, "If") else None
        if condition is None or condition.size != 1:
            continue
        taken = node.attributes["then_branch" if condition.item() else "else_branch"]
        if not taken.is_ref():
            _inline(model, graph, node, taken.as_graph())
            changes["{n} If node{s} with a constant condition inlined"] += 1
    return changes


def _inline(model: ir.Model, graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    results = list(branch.outputs)
    branch.outputs.clear()
    nodes = list(branch)
    constants = [branch.initializers.pop(name) for name in list(branch.initializers)]
    branch.remove(nodes)
    for attribute in list(node.attributes.values()):
        if not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH:
            _release(attribute.as_graph())
        node.attributes.pop(attribute.name)
    # With the branches detached, a name is taken only by what remains.
    for value in constants:
        value.name = fresh_name(model, value.name or "constant")
        graph.register_initializer(value)
    for inner in nodes:
        for value in inner.outputs:
            if value.name:
                value.name = fresh_name(model, value.name)
        graph.insert_before(node, inner)
    for old, new in zip(node.outputs, results, strict=True):
        if not old.is_graph_output():
            old.replace_all_uses_with(new)
            continue
        producer = new.producer()
        name = old.name or ""
        if producer is not None and producer.graph is graph and not new.is_graph_output():
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name, new.name = f"{name}/replaced", name
        else:
            identity = ir.node("Identity", [new])
            copy = identity.outputs[0]
            copy.shape, copy.type = old.shape, old.type
            graph.insert_before(node, identity)
            old.replace_all_uses_with(copy, replace_graph_outputs=True)
            old.name, copy.name = f"{name}/replaced", name
    graph.remove(node, safe=True)


def _release(graph: ir.Graph) -> None:
    """Let the nodes of a discarded branch read nothing, so that outer values do not count them among their readers."""
    for node in (*graph, *(inner for each in graph.subgraphs() for inner in each)):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
