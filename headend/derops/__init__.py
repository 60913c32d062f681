"""The shared kernel: what operator, headend and agent mean by an asset and a dispatch.

It knows no transport, no database and no cluster. Programs depend on it and never on each other.
"""
