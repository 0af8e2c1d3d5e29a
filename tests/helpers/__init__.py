"""What several tests need: adapters, cohorts, commands, and the truth to compare with."""
