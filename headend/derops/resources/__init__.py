"""The two kinds of resources as typed values, for programs that read or write them.

Manifests come from the API server, which has checked them against ``crds/``: the models give names,
types and defaults and check no rule again. Fields that they do not know are ignored, so that an
older program reads what a newer one wrote. A test compares them with the CRDs.
"""

from derops.resources.derassets import DERAsset, parse_asset
from derops.resources.dispatches import Dispatch, parse_dispatch

__all__ = ["DERAsset", "Dispatch", "parse_asset", "parse_dispatch"]
