"""The user's own PPO: a stable-baselines3 archive, read without unpickling and published as an ONNX model.

archive.py        the zip: bounded, nothing extracted; weights through torch's weights_only reader
description.py    what its JSON says in plain text: spaces, activation, which algorithm
pickled.py        a pickle as inert data, for the statistics of VecNormalize
normalization.py  those statistics
actions.py        its actions as ours
policy.py         the network, in torch
onnx_file.py      the same network as ONNX
importing.py      from a file to a published version
trusted.py        the only module that lets stable-baselines3 load, and so execute, an archive
"""
