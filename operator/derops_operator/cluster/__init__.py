"""The API server: what is heard of it, and what is asked of it."""
