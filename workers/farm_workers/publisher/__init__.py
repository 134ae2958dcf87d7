"""From pixels to stored files, in a process of its own."""
