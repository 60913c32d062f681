"""The API: REST for what is outside Kubernetes. Each call has a caller, a right and a record."""
