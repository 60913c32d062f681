"""The wire format between the programs; one package for each version."""
