"""A job's pictures as a data set that other libraries read."""
