"""Files for other runtimes, each read back and compared with the model that was measured."""
