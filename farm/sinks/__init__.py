"""How the results of tasks lie in the store."""
