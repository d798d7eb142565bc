"""One converted model behind an HTTP interface."""

from fas.serving.gate import Limits
from fas.serving.one_model import listen, server

__all__ = ["Limits", "listen", "server"]
