"""PEFT: LoRA and the other tuners whose updates have a closed form."""
