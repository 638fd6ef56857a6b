"""A model whose forward cannot be traced: its largest traceable submodules are graphs, the rest runs as the Python that it is."""
