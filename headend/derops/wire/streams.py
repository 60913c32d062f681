"""What both ends of a gRPC stream need."""

from typing import Any

import grpc

EOF: Any = vars(grpc.aio)["EOF"]
"""What a read returns at the end of a stream; the stubs of grpc do not know it."""
