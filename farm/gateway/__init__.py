"""The farm's HTTP interface: a FastAPI application on uvicorn."""
