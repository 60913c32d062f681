"""What the operator keeps of Kubernetes' objects."""
