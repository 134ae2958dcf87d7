"""The engine measured beside the diffusers pipelines."""
