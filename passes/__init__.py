"""Graph rewrites, one a file: each a `torch.fx` PassBase that states what it needs and what it leaves.

In: an annotated graph. Out: the graph, changed in place, and checked by `spec` in `apply.run`.
"""
