"""Python SDK of the render farm."""
