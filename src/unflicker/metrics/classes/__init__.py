"""The metrics as torchmetrics classes; `unflicker.metrics` lists them, and loads them when they are used."""
