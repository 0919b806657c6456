"""Tuned models out of finished cells: read back, asked, and written down in forms that others read.

`finished` finds a cell's folder, `load` makes a ready `model.TunedModel` of it, `formats` writes that as one of
`peft` (`adapters`), `merged` and `delta`; `lora` reads an adapter of PEFT's as a plan.
"""
