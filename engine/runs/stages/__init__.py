"""One module a stage, one public generator of events each."""
