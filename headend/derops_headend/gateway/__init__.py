"""The gateway process: agents on one port, the operator on another, and what lies between."""
