"""What can go wrong with a cluster."""


class ClusterError(Exception):
    """The cluster, or a part of it, could not be had; the text says why and what to do."""


class NoDaemonError(ClusterError):
    """No Docker daemon answers, and none can start on this machine."""
