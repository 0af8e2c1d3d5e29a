"""What a user would copy: adapters of models that are no language models, and rounds of a federation."""
