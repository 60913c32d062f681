"""Who calls, by each kind of credential."""

from derops_headend.api.caller import Caller
from derops_headend.api.callers.kubernetes import KubernetesTokens
from derops_headend.api.callers.static import PREFIX, StaticTokens


class Callers:
    """Finds the caller of a token, of any kind."""

    def __init__(self, kubernetes: KubernetesTokens, static: StaticTokens) -> None:
        self._kubernetes, self._static = kubernetes, static

    async def caller_of(self, token: str, source: str) -> Caller | None:
        """Return whose token it is; None = nobody's who may come in.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE, TOO_MANY_REQUESTS.
        """
        if token.startswith(PREFIX):
            return self._static.caller_of(token)
        return await self._kubernetes.caller_of(token, source)
