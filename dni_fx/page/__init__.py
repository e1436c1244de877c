"""One web page that shows a plan and its graph, and pictures of the graph.

In: a plan, nodes as plain data, and numbers to show. Out: a page of HTML that needs no network, dot text, JSON.
"""

from dni_fx.page.nodes import GraphNode, nodes_of
from dni_fx.page.page import Chart, Page, Series, write_page
from dni_fx.page.pictures import check_picture, write_node_data, write_picture

__all__ = [
    "Chart",
    "GraphNode",
    "Page",
    "Series",
    "check_picture",
    "nodes_of",
    "write_node_data",
    "write_page",
    "write_picture",
]
