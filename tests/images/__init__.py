"""Images that only tests use: ``python -m tests.images`` writes them beside the product's."""
