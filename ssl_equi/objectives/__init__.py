"""Objectives: views and actions in, named loss terms out.

One file a method. An objective is a plain `torch.nn.Module` that sees tensors only; import it from its own
file, for example `from ssl_equi.objectives.sie import SIE, SIEConfig`.
"""
