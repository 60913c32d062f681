"""The real parts on one machine: control plane, database, operator, headend, agents.

The demo, the end-to-end tests, the benchmarks and people (``make up``) share this harness; there
is no second way to start the product. Nothing in it is simulated but the devices. The harness plays
kubelet (it mounts Secrets and restarts what dies) and installer (each DERAsset gets an agent).
"""
