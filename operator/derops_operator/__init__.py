"""The operator: what should be, from Kubernetes to the gateways, and what was, back into status."""
