"""clair inside frameworks that run the rounds; each module needs the extra of its name."""
