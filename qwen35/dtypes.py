"""Number types by name, as `load()` and the command line take them; loads nothing."""

DTYPES = ("auto", "float32", "bfloat16")  # of weights
KV_DTYPES = ("auto", "int16", "float32", "float16", "bfloat16", "q8_0")  # of the K/V cache
SHORT_KV_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
