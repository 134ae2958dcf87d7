"""The data plane: the engine, the publisher and the worker that drives them."""
