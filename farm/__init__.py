"""The control plane of the render farm; importing it loads neither torch nor ray."""

__version__ = "0.1.0"
