"""Images that only tests use: ``python -m tests.images`` writes them next to those of the product."""
