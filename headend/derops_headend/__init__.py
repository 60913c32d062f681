"""The headend: gateway and writer, two processes of one package."""
