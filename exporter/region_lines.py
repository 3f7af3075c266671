"""Keeps the person's lines of what stands in regions of a traced graph, such as those of autocast.

torch.export traces a region to a graph of its own. Decomposing puts its nodes into the graph around
it, and says of each that it came from the code that torch wrote for that graph::

    File "<eval_with_key>.33", line 6, in forward     softmax = torch.ops.aten.softmax.int(…)

The name in that code, and of its file, are those of a node that still has its own line.
"""

from __future__ import annotations

import re
from typing import Final

from torch.export import ExportedProgram
from torch.fx import GraphModule

#: What torch writes for a node of a region: the file, and the name of the node.
_WRITTEN: Final = re.compile(r'File "(?P<file><eval_with_key>[^"]*)", [^\n]*\n\s*(?P<name>\w+) = ')


def put_lines(program: ExportedProgram, traced: ExportedProgram) -> None:
    """Gives the nodes of a decomposed graph that stood in regions the lines they had there.

    Args:
        program: What decomposing made.
        traced: What it made it of; to run a region it has compiled, and so named, its code anew.
    """
    lines = {
        (module.forward.__code__.co_filename, node.name): node.meta["stack_trace"]
        for path, module in traced.graph_module.named_modules()
        if path and isinstance(module, GraphModule)
        for node in module.graph.nodes
        if isinstance(node.meta.get("stack_trace"), str)
    }
    for node in program.graph.nodes:
        found = [*_WRITTEN.finditer(node.meta.get("stack_trace") or "")]
        own = lines.get((found[-1]["file"], found[-1]["name"])) if found else None
        if own is not None:
            node.meta["stack_trace"] = own
