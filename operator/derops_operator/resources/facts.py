"""What the operator keeps of each resource: slim, frozen, without managed fields.

A manifest is read once, when it arrives; everything behind works on these values.
"""

from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Certificate, Request
from derops_operator.resources.dispatches import Dispatch

Fact = Asset | Dispatch | Request | Certificate
