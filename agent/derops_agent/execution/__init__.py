"""What the agent decides: values and pure functions; nothing here reads a clock or touches I/O."""
