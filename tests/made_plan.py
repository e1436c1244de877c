"""A plan and its nodes, made by hand: a chain in segments and blocks."""

from dni_fx.cut_plans import CrossingTensor, Cut
from dni_fx.forecasts import Forecast, Outlook
from dni_fx.page import GraphNode
from dni_fx.plans import Plan, SegmentPlan


def made_plan(segments: int, blocks: int, per_block: int, name: str = "op") -> tuple[Plan, tuple[GraphNode, ...]]:
    """A plan of so many segments, each of so many blocks with a skip connection; and its nodes."""
    nodes: list[GraphNode] = []
    for segment in range(segments):
        for block in range(blocks):
            first = len(nodes)
            scope = ((f"stage{segment}", "Stage"), (f"stage{segment}.block{block}", "Block"))
            for k in range(per_block):
                sources = [f"{name}_{len(nodes) - 1}"] if nodes else []
                if first and k == per_block - 1:
                    sources.append(f"{name}_{first - 1}")
                line = (f"net.py:{len(nodes) + 1}", f"h = self.{name}(h)")
                nodes.append(
                    GraphNode(
                        f"{name}_{len(nodes)}", "Linear", "", tuple(sources), (), segment, scope, (4, 8), "float32",
                        100, 200, 64, ("weight",), line,
                    )
                )  # fmt: skip
    last = [[node for node in nodes if node.segment == k][-1] for k in range(segments)]
    cuts = [Cut(node.name, (CrossingTensor(node.name, (4, 8), "float32", 128, -1),)) for node in last[:-1]]
    plans = [
        SegmentPlan(tuple(node.name for node in nodes if node.segment == k), 10, 100, 64, peak_bytes=1000 * (k + 1))
        for k in range(segments)
    ]
    outlooks = Outlook(900, 1.0, 1.0, (100, 900, 100)), Outlook(500, 1.0, 1.0, (100, 500, 200, 500, 100))
    forecast = Forecast("FLOPs", 0, 0, 0, *outlooks)
    return Plan("Made", "0", ("x",), "made", tuple(cuts), tuple(plans), "asked for", forecast=forecast), tuple(nodes)
