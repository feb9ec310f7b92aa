"""What developers of the kernels use from a checkout's root, without a GPU; users do not install it.

python -m tools.inspect_kernels    what the compiler makes of every shipped kernel
"""
