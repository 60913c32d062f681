"""The loop around one asset: it stores, writes the device and reports."""
