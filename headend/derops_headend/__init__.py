"""The headend: gateway, writer and API, three programs of one package."""
