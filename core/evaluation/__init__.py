"""Let models answer a set and measure the answers."""
