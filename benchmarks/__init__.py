"""What is measured about clair: each benchmark runs from the checkout, `python -m benchmarks.<name>`."""
