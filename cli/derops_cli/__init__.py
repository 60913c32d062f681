"""``kubectl derops``: says which link of the data path is broken, and why a dispatch did not run.

It looks with the rights of its caller, changes nothing, and stands on the kernel alone.
"""
