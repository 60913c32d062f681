"""From a sample of the device to the gateway that has it on disk."""
