"""The API server as a test sees it: objects go in, refusals come back with their causes."""

import json
from dataclasses import dataclass
from typing import Any

import kubernetes
from tests.crds.manifests import PLURALS, Manifest

_MERGE = {"_content_type": "application/merge-patch+json"}


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that is wrong: where, and why."""

    field: str
    message: str


class RefusedError(Exception):
    """The API server refused an object."""

    def __init__(self, code: int, body: str) -> None:
        super().__init__(body)
        answer = json.loads(body)
        self.code = code
        self.message = str(answer.get("message", ""))
        self.causes = [
            Cause(each.get("field", ""), each.get("message", ""))
            for each in (answer.get("details") or {}).get("causes") or []
        ]


class Api:
    """Our kinds in one namespace."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._objects = kubernetes.client.CustomObjectsApi(client)
        self.namespace = namespace

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Create an object, refusing fields that the schema does not have, as kubectl does."""
        return self._call(
            self._objects.create_namespaced_custom_object,
            manifest["kind"],
            body=manifest,
            field_validation="Strict",
            **({"dry_run": "All"} if dry_run else {}),
        )

    def patch(self, stored: Manifest, patch: Manifest) -> Manifest:
        """Change an object by a merge patch; status is left as it is."""
        return self._patch(self._objects.patch_namespaced_custom_object, stored, patch)

    def patch_status(self, stored: Manifest, status: Manifest) -> Manifest:
        """Change the status of an object by a merge patch, refusing unknown fields."""
        call = self._objects.patch_namespaced_custom_object_status
        return self._patch(call, stored, {"status": status})

    def list(self, kind: str, field_selector: str) -> list[str]:
        """Return the names of the objects that a field selector finds."""
        answer = self._call(
            self._objects.list_namespaced_custom_object, kind, field_selector=field_selector
        )
        return [item["metadata"]["name"] for item in answer["items"]]

    def delete(self, kind: str, name: str) -> None:
        """Delete an object."""
        self._call(self._objects.delete_namespaced_custom_object, kind, name=name)

    def _patch(self, call: Any, stored: Manifest, patch: Manifest) -> Manifest:
        return self._call(
            call,
            stored["kind"],
            name=stored["metadata"]["name"],
            body=patch,
            field_validation="Strict",
            **_MERGE,
        )

    def _call(self, call: Any, kind: str, **arguments: Any) -> Manifest:
        try:
            answer: Manifest = call(
                group="derops.io",
                version="v1alpha1",
                namespace=self.namespace,
                plural=PLURALS[kind],
                **arguments,
            )
        except kubernetes.client.exceptions.ApiException as error:
            raise RefusedError(error.status, error.body) from error
        return answer
