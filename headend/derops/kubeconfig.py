"""How a program finds the API server. Operator and API alone are installed with what this needs."""

import os

import yaml
from kubernetes.aio import client, config

from derops.errors import SettingError

_UNUSABLE = (
    config.ConfigException,
    OSError,
    yaml.YAMLError,
    # What the client comes across in a file that is YAML and no kubeconfig.
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


async def read_configuration() -> client.Configuration:
    """Read KUBECONFIG or the pod's service account; no call is made yet.

    Raises:
        SettingError: There is neither, or it cannot be read.
    """
    configuration = client.Configuration()
    file = os.environ.get("KUBECONFIG")
    if file and not any(map(os.path.isfile, file.split(os.pathsep))):
        raise SettingError("KUBECONFIG", "environment", f"there is no file {file}")
    try:
        if file:
            await config.load_kube_config(file, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except _UNUSABLE as error:
        why = " ".join(str(error).split())
        problem = (
            f"{file} is of no use: {why}"
            if file
            else f"is not set, and this is no pod with a service account: {why}"
        )
        raise SettingError("KUBECONFIG", "environment", problem) from error
    return configuration
