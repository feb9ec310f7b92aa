"""What developers of the kernels use from a checkout's root, without a GPU; users do not install it.

python -m tools.inspect_kernels    what the compiler makes of every shipped kernel
python -m tools.device_time        how long these take on an H100: a prediction
python -m tools.step_time          how long a compiled training step does, and what it holds: a prediction
"""
