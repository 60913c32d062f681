"""The sub-commands of ``derops-headend``, but for gateway and API."""
