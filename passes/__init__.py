"""Graph rewrites, one a file: each a torch.fx PassBase that changes one thing and leaves a legal graph."""
