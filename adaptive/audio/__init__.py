"""Audio: files, codecs, the latent cache, data sets of clips, and small synthesized pieces.

Import from the modules themselves: `files`, `codec` (by name; `interface` says what one is), `cache`, `dataset`,
`synthesis`. Nothing here knows of the model.
"""
