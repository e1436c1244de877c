"""Graph rewrites, one a file: each is a `torch.fx` PassBase whose docstring says what it needs and what it leaves.

In: an annotated graph. Out: the graph, changed in place; `apply.run` checks it by the rules of `spec` after each pass.
"""
