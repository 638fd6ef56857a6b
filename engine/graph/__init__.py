"""The model as a graph: traced with shapes, shown as rows, folded."""
